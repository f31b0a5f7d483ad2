"""The progress of a run: some of its previews in a row, each under its step.

Made only from the images in a run's previews/, so it needs neither scene nor checkpoint.
"""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dreamfusion_jax.runs.workdir import FIRST_STAGE, first_stage
from dreamfusion_jax.runtime.files import AnyPath

FILE = "progress.png"
MAX_PREVIEWS = 8
_WIDEST = 128  # pixels of a column
_HEADING = 22
_NAME = re.compile(r"step_(\d+)\.png")


def progress_strip(workdir: AnyPath) -> np.ndarray:
    """Draws the strip [H, W, 3] uint8: a column per preview, with its sides one below the other.

    Where no preview can be read, it is one white cell.
    """
    steps, columns = [], []
    for step, path in subsample(_of_all_stages(workdir), MAX_PREVIEWS):
        column = _read_column(path)
        if column is not None:
            steps.append(step)
            columns.append(column)
    side = min(max((column.width for column in columns), default=_WIDEST), _WIDEST)
    # A continued run may have previews of another size.
    columns = [c.resize((side, side * c.height // c.width), Image.Resampling.BOX) for c in columns]
    height = max((column.height for column in columns), default=side)
    strip = Image.new("RGB", (side * max(len(columns), 1), _HEADING + height), "white")
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(size=12)
    for i, (step, column) in enumerate(zip(steps, columns, strict=True)):
        strip.paste(column, (i * side, _HEADING))
        middle = ((i + 0.5) * side, _HEADING / 2)
        pen.text(middle, f"{step:,}", "black", font, anchor="mm")
    return np.asarray(strip)


def previews(workdir: AnyPath) -> list[tuple[int, AnyPath]]:
    """Lists all previews with their steps, in order."""
    matches = ((_NAME.fullmatch(path.name), path) for path in (workdir / "previews").glob("*"))
    return sorted(((int(match[1]), path) for match, path in matches if match), key=lambda p: p[0])


def _of_all_stages(workdir: AnyPath) -> list[tuple[int, AnyPath]]:
    """Lists the previews of a first stage, too, and counts the steps through."""
    first = first_stage(workdir)
    if not first:
        return previews(workdir)
    later = ((first.train.steps + step, path) for step, path in previews(workdir))
    return [*previews(workdir / FIRST_STAGE), *later]


def subsample(items: list, count: int) -> list:
    """Returns at most `count` evenly spaced items, with the first and the last."""
    if len(items) <= count:
        return items
    return [items[round(i)] for i in np.linspace(0, len(items) - 1, count)]


def _read_column(path: AnyPath) -> Image.Image | None:
    """Reads a preview, and stacks its sides, which are in a row, one below the other."""
    try:
        row = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None  # incomplete, or no image: the other previews are enough
    side, count = row.height, max(row.width // row.height, 1)
    column = Image.new("RGB", (side, side * count))
    for i in range(count):
        column.paste(row.crop((i * side, 0, (i + 1) * side, side)), (0, i * side))
    return column
