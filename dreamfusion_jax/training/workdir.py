"""Looks at a work folder, which somebody else may have made, before anything is written there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from dreamfusion_jax.errors import UserError

# What a run writes; whatever else lies in the folder is not its own.
FOLDERS = ("checkpoints", "previews", "tensorboard")
SUFFIXES = (".json", ".jsonl", ".png", ".part", ".mp4", ".gif", ".glb", ".obj")
PROBE = ".writable"


def check_places(workdir: Path) -> None:
    """Raises a UserError where a run's file or folder is a link that leads out, or is neither."""
    inside, mend = workdir.resolve(), "remove it, or choose another --workdir."
    for path in _places_written(workdir):
        if path.is_symlink() and not _target(path).is_relative_to(inside):
            raise UserError(f"{path} is a link that leads out of --workdir: {mend}")
        if path.parent == workdir and path.exists():
            kind = "folder" if path.name in FOLDERS else "file"
            if not (path.is_dir() if kind == "folder" else path.is_file()):
                raise UserError(f"{path} is not a {kind}, as a run wants it: {mend}")


def _places_written(workdir: Path) -> Iterator[Path]:
    if not workdir.is_dir():
        return
    for path in workdir.iterdir():
        if path.name in (*FOLDERS, PROBE) or path.suffix in SUFFIXES:
            yield path
    for folder in FOLDERS:
        for parent, folders, files in os.walk(workdir / folder):
            yield from (Path(parent) / name for name in (*folders, *files))


def _target(link: Path) -> Path:
    try:
        return link.resolve()
    except (OSError, RuntimeError):  # a link to itself leads nowhere
        return Path("/")
