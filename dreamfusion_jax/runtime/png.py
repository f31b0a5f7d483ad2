"""Images as PNG files."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from dreamfusion_jax.runtime.files import AnyPath, atomic_write


def write_png(path: AnyPath, image: np.ndarray) -> None:
    """Writes [H, W, 3] uint8 whole or not at all, so that whoever watches never sees half of it."""
    atomic_write(path, encode_png(image))


def encode_png(picture: np.ndarray) -> bytes:
    """PNG of [H, W, 3] uint8."""
    png = io.BytesIO()
    Image.fromarray(picture).save(png, format="PNG")
    return png.getvalue()
