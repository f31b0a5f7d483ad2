"""Images, videos and a mesh embedded in a page, as far as they fit."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

from PIL import Image

from dreamfusion_jax.runtime.files import AnyPath

# Base64 makes four bytes of three; a page stays below 10 MB.
MAX_BYTES = 7 * 2**20
_TYPES = {".png": "image/png", ".mp4": "video/mp4", ".glb": "model/gltf-binary"}


class Media(NamedTuple):
    """A file inside the page.

    Attributes:
      base64: its bytes.
      type: its MIME type.
      width, height: of an image, in pixels; else 0.
    """

    base64: str
    type: str
    width: int
    height: int

    @property
    def uri(self) -> str:
        """The whole file as a data URI."""
        return f"data:{self.type};base64,{self.base64}"


def embed(workdir: AnyPath, names: Iterable[str]) -> tuple[dict[str, Media], list[str]]:
    """Reads the files that exist and fit; returns them, and the names of those that do not fit.

    Args:
      names: the most important first.
    """
    room, embedded, left_out = MAX_BYTES, {}, []
    for name in names:
        try:
            data = (workdir / name).read_bytes()
        except OSError:
            continue
        if len(data) > room:
            left_out.append(name)
            continue
        room -= len(data)
        embedded[name] = _media(name, data)
    return embedded, left_out


def _media(name: str, data: bytes) -> Media:
    suffix = PurePosixPath(name).suffix
    text = base64.b64encode(data).decode()
    width, height = _size(data) if suffix == ".png" else (0, 0)
    return Media(text, _TYPES[suffix], width, height)


def _size(data: bytes) -> tuple[int, int]:
    try:
        return Image.open(io.BytesIO(data)).size
    except (OSError, ValueError, Image.DecompressionBombError):
        return 0, 0  # incomplete: the page shows its description instead
