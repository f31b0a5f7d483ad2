"""Settings that lower the memory of a run, for the message where memory runs out.

Only settings that were measured to help (tests/benchmarks) are named, the most effective first,
with the size of the effect and its cost. Many do not help: views are rendered one after another,
rays in chunks and images in tiles, so samples, hidden units and image sizes hardly change what a
device holds. On a CPU half precision does not help either, because XLA computes in float32.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.runs.options import RunOptions
from dreamfusion_jax.runtime.device import platform

# Host bytes per pixel of an image assembled from tiles, per pixel of a turntable until it is
# encoded, per point of the mesh's grid, per texel during baking.
_IMAGE_BYTES, _TURNTABLE_BYTES = 64, 13
_GRID_BYTES, _TEXEL_BYTES = 24, 160
_LARGE = 200e6  # bytes; a smaller saving is not named
# The U-Net in half precision, by platform, and its cost (tests/benchmarks/prior_precision.py).
_HALF = {
    "gpu": ("--prior_dtype=float16", "and costs next to no accuracy"),
    "tpu": (
        "--prior_dtype=bfloat16",
        "but whose rounding is up to a third of the guided direction",
    ),
}
_NEW_FOLDER = "in another --workdir"


def training_remedies(config: Config, unet_bytes: int, dtype: Any, vae_dtype: Any) -> list[str]:
    """Lists what lowers the memory of a step.

    Args:
      unet_bytes: size of the U-Net's parameters as loaded, nearly all of the prior's.
      dtype, vae_dtype: the number formats of the prior's U-Net and of its autoencoder.
    """
    views, remedies = config.train.views_per_device, []
    if views > 1:
        remedies.append(
            f"--views_per_device={views // 2}, which halves what grows with the views, mostly"
            " what the encoder keeps for its gradient, and may change in the same --workdir"
        )
    if config.distillation.objective in ("full", "vsd"):
        remedies.append(f"--objective=sds {_NEW_FOLDER}, which keeps no activations of the U-Net")
    if platform() not in _HALF or unet_bytes < _LARGE:
        return remedies
    if dtype == jnp.float32:
        flag, price = _HALF[platform()]
        remedies.append(
            f"{flag} {_NEW_FOLDER}, which halves the U-Net's weights from {_size(unet_bytes)} to"
            f" {_size(unet_bytes / 2)}, {price}"
        )
    if vae_dtype == jnp.float32:
        remedies.append(f"--vae_dtype=bfloat16 {_NEW_FOLDER}, which halves what the encoder keeps")
    return remedies


def prior_remedies(dtype: Any) -> list[str]:
    """Lists what lowers the memory of a prior whose U-Net is read in this number format."""
    if platform() not in _HALF or dtype != jnp.float32:
        return []
    flag, price = _HALF[platform()]
    return [f"{flag}, which halves the U-Net's weights, {price}"]


def sample_remedies(samples: int) -> list[str]:
    """Lists what lowers the memory of drawing this many samples at once."""
    return [f"--samples={samples // 2}, which halves the samples at once"] if samples > 1 else []


def image_remedies(run: RunOptions) -> list[str]:
    """Lists what lowers the memory of a run's images, which are held until all are rendered."""
    frames, side = run.turntable_frames, run.turntable_size
    items = {
        f"--turntable_size={max(side // 4 * 2, 8)}": (
            _TURNTABLE_BYTES * frames * side**2,
            4,
            "turntable",
        ),
        f"--poster_size={max(run.poster_size // 2, 8)}": (
            _IMAGE_BYTES * run.poster_size**2,
            4,
            "poster",
        ),
    }
    if frames > 1:
        items[f"--turntable_frames={frames // 2}"] = (
            _TURNTABLE_BYTES * frames * side**2,
            2,
            "turntable",
        )
    return _ranked(items)


def mesh_remedies(run: RunOptions) -> list[str]:
    """Lists what lowers the memory of making the mesh."""
    return _ranked(
        {
            f"--mesh_resolution={max(run.mesh_resolution // 2, 8)}": (
                _GRID_BYTES * run.mesh_resolution**3,
                8,
                "grid of densities",
            ),
            f"--texture_size={max(run.texture_size // 2, 16)}": (
                _TEXEL_BYTES * run.texture_size**2,
                4,
                "texture",
            ),
        }
    )


def _ranked(items: dict[str, tuple[int, int, str]]) -> list[str]:
    """Ranks flags by what they save; of each: the bytes now, the divisor, of what."""

    def saved(flag: str) -> float:
        size, divisor, _ = items[flag]
        return size * (1.0 - 1.0 / divisor)

    def sentence(flag: str) -> str:
        size, divisor, what = items[flag]
        return (
            f"{flag}, with which the {what} takes {_size(size / divisor)} instead of {_size(size)}"
        )

    least = max(_LARGE, 0.05 * max(map(saved, items)))
    return [
        sentence(flag) for flag in sorted(items, key=saved, reverse=True) if saved(flag) > least
    ]


def _size(bytes: float) -> str:
    return f"{bytes / 1e9:.1f} GB" if bytes >= 0.95e9 else f"{bytes / 1e6:.0f} MB"
