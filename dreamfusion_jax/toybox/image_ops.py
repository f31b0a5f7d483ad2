"""What is done to batches of images before a network sees them, or a person does."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

_CHUNK = 32


def to_signed(image: jax.Array) -> jax.Array:
    """Converts uint8 to float32 in [-1, 1]."""
    return jnp.asarray(image, jnp.float32) / 127.5 - 1.0


def from_signed(rgb: jax.Array) -> jax.Array:
    """Converts [-1, 1] to uint8, clipped."""
    return jnp.clip(jnp.round((rgb + 1.0) * 127.5), 0.0, 255.0).astype(jnp.uint8)


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Joins images [N, H, W, 3] to one, `columns` across; N must be a multiple of it."""
    _, height, width, channels = images.shape
    rows = images.reshape(-1, columns, height, width, channels)
    return rows.transpose(0, 2, 1, 3, 4).reshape(-1, columns * width, channels)


def shrink(image: np.ndarray, size: int) -> np.ndarray:
    """Averages uint8 images [N, H, H, 3] over squares to [N, size, size, 3]; H is a multiple."""
    count, side = image.shape[:2]
    squares = image.reshape(count, size, side // size, size, side // size, 3)
    return np.round(squares.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)


def random_crops(rng: np.random.Generator, image: np.ndarray, size: int) -> np.ndarray:
    """Cuts a square of `size` pixels out of each image, anywhere."""
    corners = rng.integers(0, image.shape[1] - size + 1, (len(image), 2))
    return np.stack(
        [image[i, y : y + size, x : x + size] for i, (y, x) in enumerate(corners.tolist())]
    )


def augment(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Shifts, blurs, brightens, adds noise: who judges renders must not mind their flaws."""
    size = image.shape[1]
    padded = np.pad(image, ((0, 0), (6, 6), (6, 6), (0, 0)), mode="edge").astype(np.float32)
    moved = np.empty(image.shape, np.float32)
    for i, (row, column) in enumerate(rng.integers(0, 13, (len(image), 2))):
        moved[i] = padded[i, row : row + size, column : column + size]
    blurred = (np.roll(moved, 1, 1) + np.roll(moved, -1, 1) + np.roll(moved, 1, 2)) / 6
    blurred = blurred + np.roll(moved, -1, 2) / 6 + moved / 3
    each = (len(image), 1, 1, 1)
    changed = np.where(rng.random(each) < 0.5, blurred, moved) * rng.uniform(0.9, 1.1, each)
    changed += rng.normal(size=image.shape) * 12.0 * rng.random(each) ** 2
    return np.clip(changed, 0, 255).astype(np.uint8)


def mirror(rng: np.random.Generator, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirrors half of the images, and tells which [N]: of symmetric objects, other views."""
    mirrored = rng.random(len(image)) < 0.5
    return np.where(mirrored[:, None, None, None], image[:, :, ::-1], image), mirrored


def in_chunks(
    function: Callable[[np.ndarray], jax.Array], rows: np.ndarray, length: int = _CHUNK
) -> np.ndarray:
    """Applies `function` to the rows, in chunks of one length so that one program is compiled."""
    padded = np.concatenate([rows, np.zeros((-len(rows) % length, *rows.shape[1:]), rows.dtype)])
    chunks = [
        np.asarray(function(padded[start : start + length]))
        for start in range(0, len(padded), length)
    ]
    return np.concatenate(chunks)[: len(rows)]
