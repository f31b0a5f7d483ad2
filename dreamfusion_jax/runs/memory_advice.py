"""Names the settings of a run that lower what it holds, for the sentence that ends it.

Only what was measured to help (tests/benchmarks) is named, most effective first, with the size of
its effect and, where there is one, its price. Much does not: views are rendered one after another,
rays block by block and pictures tile by tile, so samples, hidden units and sizes of renders hardly
change what a device holds. On a CPU half precision does not help either: XLA turns the weights back
into float32 as it computes.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.runs.options import RunOptions
from dreamfusion_jax.runtime.device import platform

# Bytes that the host holds: of a pixel of a picture while it is put together from its tiles, of
# one of a turntable until all are encoded, of a point of the mesh's grid, of a texel while baked.
_PICTURE_BYTES, _TURNTABLE_BYTES = 64, 13
_GRID_BYTES, _TEXEL_BYTES = 24, 160
_LARGE = 200e6  # what saves less is not worth a word
# Of the U-Net, by platform, each with its price (tests/benchmarks/prior_precision.py).
_HALF = {
    "gpu": ("--prior_dtype=float16", "and costs next to no accuracy"),
    "tpu": (
        "--prior_dtype=bfloat16",
        "but whose rounding is up to a third of the guided direction",
    ),
}
_NEW_FOLDER = "in another --workdir"


def training_remedies(config: Config, unet_bytes: int, dtype: Any, vae_dtype: Any) -> list[str]:
    """What lowers the memory of a step.

    Args:
      unet_bytes: of the U-Net's weights as they are now, nearly all of the prior's.
      dtype, vae_dtype: the number formats of the prior's U-Net and of its autoencoder.
    """
    views, found = config.train.views_per_device, []
    if views > 1:
        found.append(
            f"--views_per_device={views // 2}, which halves what grows with the views, most of all"
            " what the encoder keeps for its gradient, and may change in the same --workdir"
        )
    if config.distillation.objective == "full":
        found.append(f"--objective=sds {_NEW_FOLDER}, which keeps nothing of the U-Net's")
    if platform() not in _HALF or unet_bytes < _LARGE:
        return found
    if dtype == jnp.float32:
        flag, price = _HALF[platform()]
        found.append(
            f"{flag} {_NEW_FOLDER}, which halves the U-Net's weights from {_size(unet_bytes)} to"
            f" {_size(unet_bytes / 2)}, {price}"
        )
    if vae_dtype == jnp.float32:
        found.append(f"--vae_dtype=bfloat16 {_NEW_FOLDER}, which halves what the encoder keeps")
    return found


def prior_remedies(dtype: Any) -> list[str]:
    """What lowers the memory that a prior's weights take, its U-Net read in this number format."""
    if platform() not in _HALF or dtype != jnp.float32:
        return []
    flag, price = _HALF[platform()]
    return [f"{flag}, which halves the U-Net's weights, {price}"]


def sample_remedies(samples: int) -> list[str]:
    """What lowers the memory of drawing so many samples at once."""
    return [f"--samples={samples // 2}, which halves what is drawn at once"] if samples > 1 else []


def picture_remedies(run: RunOptions) -> list[str]:
    """What lowers the memory of a run's pictures, which are kept until the last one is drawn."""
    frames, side = run.turntable_frames, run.turntable_size
    held = {
        f"--turntable_size={max(side // 4 * 2, 8)}": (
            _TURNTABLE_BYTES * frames * side**2,
            4,
            "turntable",
        ),
        f"--poster_size={max(run.poster_size // 2, 8)}": (
            _PICTURE_BYTES * run.poster_size**2,
            4,
            "poster",
        ),
    }
    if frames > 1:
        held[f"--turntable_frames={frames // 2}"] = (
            _TURNTABLE_BYTES * frames * side**2,
            2,
            "turntable",
        )
    return _ranked(held)


def mesh_remedies(run: RunOptions) -> list[str]:
    """What lowers the memory of making the mesh."""
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


def _ranked(held: dict[str, tuple[int, int, str]]) -> list[str]:
    """Flags by what they save. Of each: the bytes held now, by what it divides them, of what."""

    def saved(flag: str) -> float:
        size, divisor, _ = held[flag]
        return size * (1.0 - 1.0 / divisor)

    def told(flag: str) -> str:
        size, divisor, what = held[flag]
        return (
            f"{flag}, with which the {what} takes {_size(size / divisor)} instead of {_size(size)}"
        )

    worth = max(_LARGE, 0.05 * max(map(saved, held)))
    return [told(flag) for flag in sorted(held, key=saved, reverse=True) if saved(flag) > worth]


def _size(bytes: float) -> str:
    return f"{bytes / 1e9:.1f} GB" if bytes >= 0.95e9 else f"{bytes / 1e6:.0f} MB"
