"""JAX's process-wide modes: pinned to those that the package is written for, whatever they are.

An environment variable such as JAX_ENABLE_X64, or a line in the caller's own program, would change
the numbers, the format of checkpoints, or what JAX refuses.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import jax

from dreamfusion_jax.runtime.errors import RunError

# Names of functions of `jax`, each of which sets a mode in a `with` block.
PINNED: Mapping[str, Any] = MappingProxyType(
    {
        "enable_x64": False,
        "numpy_dtype_promotion": "standard",
        "numpy_rank_promotion": "allow",
        "default_prng_impl": "threefry2x32",
        "threefry_partitionable": True,
        "transfer_guard": "allow",
        "debug_key_reuse": False,
        "check_tracer_leaks": False,
        "disable_jit": False,
    }
)
# Those that are set to find an error: it is said that they have no effect.
_NAMED = ("disable_jit", "check_tracer_leaks", "debug_key_reuse")
_SEARCHES = ("debug_nans", "debug_infs")


def pin() -> None:
    """Pins the modes in all threads of this program; notes each debugging mode that it ends."""
    for name in _NAMED:
        if getattr(jax.config, f"jax_{name}"):
            print(f"Note: JAX_{name.upper()} has no effect on this program.", file=sys.stderr)
    for name, value in PINNED.items():
        jax.config.update(f"jax_{name}", value)


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Pins the modes of this thread within a `with` block; the caller's hold again after it."""
    with contextlib.ExitStack() as stack:
        for name, value in PINNED.items():
            stack.enter_context(getattr(jax, name)(value))
        yield


@contextlib.contextmanager
def name_debug_nans() -> Iterator[None]:
    """Turns what JAX's own search for NaN raises into one sentence that names it."""
    try:
        yield
    except FloatingPointError as error:
        found = [name for name in _SEARCHES if getattr(jax.config, f"jax_{name}")]
        if not found:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(
            f"JAX_{found[0].upper()} stopped the program ({reason:.200}): unset it, and steps whose"
            " numbers are not finite are skipped, and explained where there are many."
        ) from error
