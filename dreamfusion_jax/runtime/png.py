"""Images as PNG files."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from dreamfusion_jax.runtime.files import AnyPath, atomic_write


def write_png(path: AnyPath, image: np.ndarray) -> None:
    """Writes an image [H, W, 3] uint8, whole or not at all, so that no reader sees half of it."""
    atomic_write(path, encode_png(image))


def encode_png(image: np.ndarray) -> bytes:
    """Encodes an image [H, W, 3] uint8 as PNG."""
    png = io.BytesIO()
    Image.fromarray(image).save(png, format="PNG")
    return png.getvalue()
