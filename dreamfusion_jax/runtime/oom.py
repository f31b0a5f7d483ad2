"""Turns running out of memory, on a device or on the host, into one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import jax

from dreamfusion_jax.runtime.errors import RunError


@contextmanager
def oom_context(what: str, remedies: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Turns running out of memory, on a device or on the host, into one sentence.

    Args:
      what: what was being done, as a clause.
      remedies: returns the flags that help, each with its effect, the most effective first.

    Raises:
      RunError: memory ran out.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_oom(error):
            raise
        raise oom_error(error, what, remedies()) from error


def is_oom(error: BaseException) -> bool:
    """Returns whether the error means that memory, a device's or the host's, has run out."""
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    )


def oom_error(error: BaseException, what: str, remedies: Sequence[str] = ()) -> RunError:
    """Builds the out-of-memory error; `what` and `remedies` are those of `oom_context`."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    reason = reason.removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")
    help = "; ".join(remedies) or (
        "no setting of this run lowers it by much: end other programs that hold memory, or take a"
        " machine with more"
    )
    return RunError(
        f"Memory ran out while {what} ({reason:.200}); what was saved before is kept. What helps:"
        f" {help}."
    )
