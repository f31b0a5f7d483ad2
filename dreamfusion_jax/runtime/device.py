"""The machine that a program is traced for: code that depends on the platform asks here.

Mostly it is the local one. Programs are also compiled ahead of time on a machine without the
accelerator that they are for, and must be the same as if they had been compiled there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import NamedTuple

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


class _Target(NamedTuple):
    """A machine that programs are compiled for; the local one where `platform` is empty."""

    platform: str = ""
    cuda_capability: float = 0.0
    memory_bytes: int = 0


# Part of the key of JAX's tracing caches: what was traced for one target is not used for another.
_target = jax.make_user_context(_Target())


def platform() -> str:
    """Returns the platform, "cpu", "gpu" or "tpu", that what is traced now will run on."""
    return _target.value.platform or jax.default_backend()


def cuda_capability() -> float:
    """Returns the compute capability, such as 8.0, of the NVIDIA GPU that will run what is traced.

    0.0 where that is no NVIDIA GPU. A compile target is taken at its word; no device is asked.
    """
    if _target.value.platform:
        return _target.value.cuda_capability
    device = jax.local_devices()[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return 0.0
    return float(device.compute_capability)


def memory_bytes() -> int:
    """Returns the memory of the accelerator that will run what is traced; 0: none, or not known."""
    if _target.value.platform:
        return _target.value.memory_bytes
    device = jax.local_devices()[0]
    return 0 if device.platform == "cpu" else (device.memory_stats() or {}).get("bytes_limit", 0)


def compiling_for(
    name: str, cuda_capability: float = 0.0, memory_bytes: int = 0
) -> AbstractContextManager[None]:
    """Makes `platform()` return `name` within a `with` block, and traces programs for it.

    Args:
      name: "cpu", "gpu" or "tpu". Programs for another machine can be compiled, but not run here.
      cuda_capability: compute capability of an NVIDIA GPU, such as 8.0 of Ampere; 0: not known, or
        no NVIDIA GPU, so that no kernel is used that needs one.
      memory_bytes: of one device; 0: not known, so that no memory is spent to save time.
    """
    return _target(_Target(name, cuda_capability, memory_bytes))


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


def peak_memory_bytes() -> int:
    """Returns the most memory in use so far: of the first device or, on a CPU, of the process.

    0 where the system does not tell, as Windows.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    try:
        import resource
    except ImportError:
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used
