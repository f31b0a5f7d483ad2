"""A run of two stages in one work folder: the first, when it is done, is set aside in a folder of
its own, and the second takes its place.

Either is a run like any other, so every command works on the folder at any time. What both have in
common follows from where their files lie.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from dreamfusion_jax.config.flags import Config, read_config
from dreamfusion_jax.config.second_stage import second_stage
from dreamfusion_jax.runs import lock, mesh_files
from dreamfusion_jax.runs.page import build
from dreamfusion_jax.runs.workdir import (
    FIRST_STAGE,
    FOLDERS,
    SUFFIXES,
    first_stage,
    require_same_run,
    store_config,
)
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.files import AnyPath, as_path, move

# The outputs of the first stage: what the page shows beside those of the second.
FIRST_FILES = ("poster.png", *mesh_files.MESH_FILES, build.FILE)
_PREVIEW, _CONFIG = "preview.png", "config.json"


def refined(config: Config) -> Config:
    """Returns the settings of the second stage in the work folder of a run of two stages."""
    workdir = as_path(config.run.workdir)
    source = str(workdir / FIRST_STAGE)
    with contextlib.suppress(UserError):
        stored = read_config(workdir / _CONFIG).train.init_from
        if stored and as_path(stored).name == FIRST_STAGE:  # The folder may have been moved since.
            source = stored
    return second_stage(config, source, config.run.workdir)


def is_first_done(config: Config) -> bool:
    """Returns whether the first stage of a run of two is done and set aside.

    Raises:
      UserError: it had other settings.
    """
    workdir = as_path(config.run.workdir)
    if (workdir / FIRST_STAGE).is_dir() and not first_stage(workdir):
        set_aside(config)  # That was interrupted.
    first = first_stage(workdir)
    if not first:
        return False
    require_same_run(workdir / FIRST_STAGE, config)
    if (steps := first.train.steps) != config.train.steps:
        raise UserError(
            f"{workdir} is in its second stage, which went on from {steps} steps; give"
            f" --steps={steps}, or name another --workdir."
        )
    return True


def set_aside(config: Config) -> None:
    """Moves what the first stage wrote, its settings last, and writes those of the second."""
    workdir = as_path(config.run.workdir)
    folder = workdir / FIRST_STAGE
    with lock.locked(workdir):
        preview = _read(workdir / _PREVIEW) or _read(folder / _PREVIEW)
        folder.mkdir(exist_ok=True)
        for path in [*_written(workdir), workdir / _CONFIG]:
            _move(path, folder / path.name)
        second = refined(config)
        store_config(second)
        if preview:
            (workdir / _PREVIEW).write_bytes(preview)
        build.write_page(workdir, second, build.RUNNING, 0)


def _written(workdir: AnyPath) -> Iterator[AnyPath]:
    for path in list(workdir.iterdir()):
        is_own = path.name in FOLDERS or path.suffix in SUFFIXES
        if is_own and path.name not in (FIRST_STAGE, _CONFIG):
            yield path


def _move(source: AnyPath, target: AnyPath) -> None:
    """Moves a file or folder; of a link to another disk, what lies there."""
    if not (isinstance(source, Path) and source.is_symlink() and source.is_dir()):
        move(source, target)
        return
    target.mkdir(exist_ok=True)
    for path in list(source.iterdir()):
        move(path, target / path.name)


def _read(path: AnyPath) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
