"""Turns the end of memory, a device's or the host's, into one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import jax

from dreamfusion_jax.runtime.errors import RunError


@contextmanager
def oom_context(what: str, remedies: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Turns the end of memory, a device's or the host's, into one sentence.

    Args:
      what: what was being done, as a clause.
      remedies: the flags that help, each with its effect, the most effective first.

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
    """Whether it says that there is no more memory, of a device or of the host."""
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    )


def oom_error(error: BaseException, what: str, remedies: Sequence[str] = ()) -> RunError:
    """What is said of it."""
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
