"""The kind of machine that a program is for: what chooses by it while tracing asks here.

Mostly it is the one that JAX runs on. Programs are also compiled ahead of time, on a machine
without the accelerator that they are for, and must come out as they would there.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import jax

# Part of the key under which JAX keeps what it traced: nothing traced for one platform is taken
# for another.
_target = jax.make_user_context("")


def platform() -> str:
    """The platform, "cpu", "gpu" or "tpu", that what is traced now will run on."""
    return _target.value or jax.default_backend()


def compiling_for(name: str) -> AbstractContextManager[None]:
    """Within it `platform()` is `name`; what is traced there is only compiled, or runs there."""
    return _target(name)
