"""Which platform a program is for: code that depends on it while tracing asks here.

Usually that is the platform JAX runs on. But programs are also compiled ahead of time on a machine
without the accelerator they are for, and must be the same as if compiled there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType

import jax

from dreamfusion_jax.runtime.errors import UserError

# Values of jax_platforms. JAX's "gpu" needs both CUDA and ROCm, and "tpu" leaves no CPU beside it,
# so JAX chooses the fastest platform by itself, and `require` checks the choice.
_JAX_PLATFORMS: Mapping[str, str] = MappingProxyType({"cpu": "cpu", "gpu": "", "tpu": ""})
_INSTALL: Mapping[str, str] = MappingProxyType(
    {
        "gpu": 'an NVIDIA GPU needs pip install ".[cuda]"',
        "tpu": 'a TPU needs pip install ".[tpu]"',
    }
)

# Part of the key of JAX's tracing cache, so that nothing traced for one platform serves another.
_target = jax.make_user_context("")


def platform() -> str:
    """Returns the platform, "cpu", "gpu" or "tpu", that what is traced now will run on."""
    return _target.value or jax.default_backend()


def compiling_for(name: str) -> AbstractContextManager[None]:
    """Makes `platform()` return `name` within; what is traced there is for that platform alone."""
    return _target(name)


def use(name: str) -> None:
    """Makes this program, and those that it starts, run on "cpu", "gpu" or "tpu".

    Call it before any other use of JAX. "auto" leaves the choice to JAX, which prefers a TPU to a
    GPU to the CPU, unless JAX_PLATFORMS is set.
    """
    if name == "auto":
        return
    jax.config.update("jax_platforms", _JAX_PLATFORMS[name] or None)
    os.environ["JAX_PLATFORMS"] = _JAX_PLATFORMS[name]


def require(name: str) -> None:
    """Checks that JAX runs on the requested platform. Initializes JAX.

    Raises:
      UserError: the platform is not available, or JAX already runs on another.
    """
    try:
        here = jax.default_backend()
    except (RuntimeError, AssertionError) as error:
        if platforms := os.environ.get("JAX_PLATFORMS", ""):
            raise UserError(
                f"JAX_PLATFORMS={platforms} names a platform that is not here: unset it, or give"
                " --platform=cpu."
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"JAX cannot use the device here ({reason:.200}): if another program holds it, end that"
            " program, or give --platform=cpu."
        ) from error
    if name not in ("auto", here):
        raise UserError(
            f"--platform={name}, but JAX runs on the {here} here: give --platform={here} or"
            f" --platform=auto{'; ' + _INSTALL[name] if name in _INSTALL else ''}."
        )
