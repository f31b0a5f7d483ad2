"""All assets in one image: each from the front left, shaded and textureless, above its prompt."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dreamfusion_jax.rendering.images import to_uint8

SIZE = 96  # side of one image in pixels
COLUMNS = 8  # of assets; 1,600 pixels wide
_GAP = 8
_LINE_HEIGHT = 17  # pixels
_FONT_SIZE = 14
_MAX_LINES = 3


class Shown(NamedTuple):
    """One asset: its prompt, and two images [SIZE, SIZE, 3] in [0, 1]."""

    prompt: str
    shaded: np.ndarray
    textureless: np.ndarray


def gallery(assets: Sequence[Shown]) -> np.ndarray:
    """Draws the gallery [H, W, 3] uint8; H and W depend on the number of assets."""
    font = ImageFont.load_default(size=_FONT_SIZE)
    columns = min(COLUMNS, len(assets))
    labels = [_wrapped(asset.prompt, font) for asset in assets]
    width, label_height = 2 * SIZE + _GAP, _LINE_HEIGHT * max(map(len, labels)) + _GAP
    rows = -(-len(assets) // columns)
    canvas = Image.new("RGB", (columns * width, rows * (SIZE + label_height)), "white")
    pen = ImageDraw.Draw(canvas)
    for place, asset, lines in zip(
        itertools.product(range(rows), range(columns)), assets, labels, strict=False
    ):
        top, left = place[0] * (SIZE + label_height), place[1] * width + _GAP // 2
        pair = np.concatenate([asset.shaded, asset.textureless], axis=1)
        canvas.paste(Image.fromarray(to_uint8(pair)), (left, top))
        for i, line in enumerate(lines):
            middle = (left + SIZE, top + SIZE + (i + 0.5) * _LINE_HEIGHT + 1)
            pen.text(middle, line, "black", font, anchor="mm")
    return np.asarray(canvas)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Wraps a text to the width of two images; an ellipsis stands for what does not fit."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or font.getlength(longer) <= 2 * SIZE:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > _MAX_LINES:
        lines = [*lines[: _MAX_LINES - 1], lines[_MAX_LINES - 1] + " ..."]
    return [_cut(line, font) for line in lines]


def _cut(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    while font.getlength(line) > 2 * SIZE:
        line = line.removesuffix("...").rstrip()[:-1] + "..."
    return line
