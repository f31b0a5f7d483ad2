"""The kind of machine that a program is for: what chooses by it while tracing asks here.

Mostly it is the one that JAX runs on. Programs are also compiled ahead of time, on a machine
without the accelerator that they are for, and must come out as they would there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType

import jax

from dreamfusion_jax.runtime.errors import UserError

# What JAX is asked for. Its own "gpu" wants CUDA and ROCm both, and "tpu" leaves no CPU beside it:
# it chooses the fastest by itself, and what it chose is looked at.
_ASKED: Mapping[str, str] = MappingProxyType({"cpu": "cpu", "gpu": "", "tpu": ""})
_MEND: Mapping[str, str] = MappingProxyType(
    {
        "gpu": 'an NVIDIA GPU needs pip install ".[cuda]"',
        "tpu": 'a TPU needs pip install ".[tpu]"',
    }
)

# Part of the key under which JAX keeps what it traced: nothing traced for one platform is taken
# for another.
_target = jax.make_user_context("")


def platform() -> str:
    """The platform, "cpu", "gpu" or "tpu", that what is traced now will run on."""
    return _target.value or jax.default_backend()


def compiling_for(name: str) -> AbstractContextManager[None]:
    """Within it `platform()` is `name`; what is traced there is only compiled, or runs there."""
    return _target(name)


def use(name: str) -> None:
    """Has this program, and those that it starts, run on "cpu", "gpu" or "tpu".

    Must come before all other use of JAX. "auto" leaves the choice to JAX, which prefers a TPU to a
    GPU to the CPU, unless JAX_PLATFORMS is set.
    """
    if name == "auto":
        return
    jax.config.update("jax_platforms", _ASKED[name] or None)
    os.environ["JAX_PLATFORMS"] = _ASKED[name]


def require(name: str) -> None:
    """Refuses to go on with anything but the platform that was asked for. Wakes JAX.

    Raises:
      UserError: it is not here, or JAX runs on another already.
    """
    try:
        here = jax.default_backend()
    except (RuntimeError, AssertionError) as error:
        if asked := os.environ.get("JAX_PLATFORMS", ""):
            raise UserError(
                f"JAX_PLATFORMS={asked} names a platform that is not here: unset it, or give"
                " --platform=cpu."
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"JAX cannot use what is here ({reason:.200}): if another program holds it, end that"
            " one, or give --platform=cpu."
        ) from error
    if name not in ("auto", here):
        raise UserError(
            f"--platform={name}, but JAX runs on the {here} here: give --platform={here} or"
            f" --platform=auto{'; ' + _MEND[name] if name in _MEND else ''}."
        )
