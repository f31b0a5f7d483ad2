"""All assets in one picture: each from the front left, shaded and textureless, above its prompt."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dreamfusion_jax.rendering.images import to_uint8

SIZE = 96  # pixels of one picture's side
COLUMNS = 8  # of assets; 1,600 pixels across
_GAP = 8
_LINE = 17  # pixels, and how large its letters are
_LETTERS = 14
_MAX_LINES = 3


class Shown(NamedTuple):
    """One asset: its prompt, and two pictures [SIZE, SIZE, 3] in [0, 1]."""

    prompt: str
    shaded: np.ndarray
    textureless: np.ndarray


def gallery(assets: Sequence[Shown]) -> np.ndarray:
    """[H, W, 3] uint8; H and W follow from how many there are."""
    font = ImageFont.load_default(size=_LETTERS)
    columns = min(COLUMNS, len(assets))
    labels = [_wrapped(asset.prompt, font) for asset in assets]
    width, below = 2 * SIZE + _GAP, _LINE * max(map(len, labels)) + _GAP
    rows = -(-len(assets) // columns)
    canvas = Image.new("RGB", (columns * width, rows * (SIZE + below)), "white")
    pen = ImageDraw.Draw(canvas)
    for place, asset, lines in zip(
        itertools.product(range(rows), range(columns)), assets, labels, strict=False
    ):
        top, left = place[0] * (SIZE + below), place[1] * width + _GAP // 2
        pair = np.concatenate([asset.shaded, asset.textureless], axis=1)
        canvas.paste(Image.fromarray(to_uint8(pair)), (left, top))
        for i, line in enumerate(lines):
            middle = (left + SIZE, top + SIZE + (i + 0.5) * _LINE + 1)
            pen.text(middle, line, "black", font, anchor="mm")
    return np.asarray(canvas)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """The text in lines as wide as two pictures; what does not fit is left out, and said to be."""
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
