"""Colors in CIELAB of sRGB under D65, and the mean chroma (saturation) of what an image shows.

Score distillation under strong guidance is known for colors that no image of the prior has.
"""

from __future__ import annotations

import numpy as np

_TO_XYZ = np.array(  # of linear sRGB (IEC 61966-2-1); each row divided by D65's white
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)
_TO_XYZ /= _TO_XYZ.sum(axis=1, keepdims=True)
_NEAR = 0.1  # of a channel, below which a pixel is the background's


def mean_chroma(images: np.ndarray) -> float:
    """Returns the mean chroma over what images [N, H, W, 3] in [0, 1] show, see `foreground`.

    An image that shows nothing does not count; NaN where none shows anything.
    """
    means = [np.mean(chroma(x)[shown]) for x in images if (shown := foreground(x)).any()]
    return float(np.mean(means)) if means else float("nan")


def foreground(image: np.ndarray) -> np.ndarray:
    """Returns which pixels [H, W] of an image [H, W, 3] differ from the median of its border."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    return np.abs(image - np.median(border, axis=0)).max(axis=-1) > _NEAR


def chroma(rgb: np.ndarray) -> np.ndarray:
    """Returns the chroma sqrt(a^2 + b^2) [...] of sRGB colors [..., 3] in [0, 1]."""
    return np.hypot(*np.moveaxis(lab(rgb)[..., 1:], -1, 0))


def lab(rgb: np.ndarray) -> np.ndarray:
    """Converts sRGB colors [..., 3] in [0, 1] to CIELAB's L*, a*, b* [..., 3]."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
