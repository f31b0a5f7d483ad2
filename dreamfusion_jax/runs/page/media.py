"""Pictures, films and a mesh inside a page, as far as there is room for them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

from PIL import Image

from dreamfusion_jax.runtime.files import AnyPath

# Base64 makes four bytes of three, so that a page stays below 10 MB.
ROOM_BYTES = 7 * 2**20
_TYPES = {".png": "image/png", ".mp4": "video/mp4", ".glb": "model/gltf-binary"}


class Media(NamedTuple):
    """A file inside the page.

    Attributes:
      base64: its bytes.
      type: what they are (MIME).
      width, height: of a picture, in pixels; 0 of anything else.
    """

    base64: str
    type: str
    width: int
    height: int

    @property
    def uri(self) -> str:
        """The whole file as an address."""
        return f"data:{self.type};base64,{self.base64}"


def embed(workdir: AnyPath, names: Iterable[str]) -> tuple[dict[str, Media], list[str]]:
    """Those of the files that are there, and the names of those that found no room.

    Args:
      names: the most important one first.
    """
    room, embedded, left_out = ROOM_BYTES, {}, []
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
        return 0, 0  # cut short: the page shows its description instead
