"""The work folder: it may be anybody's, so that it is looked at before anything is written there."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dreamfusion_jax.config import Config, differing_flags, read_config, to_dict
from dreamfusion_jax.errors import UserError
from dreamfusion_jax.files import write_whole

# What a run writes; whatever else lies in the folder is not its own.
FOLDERS = ("checkpoints", "damaged_checkpoints", "previews", "tensorboard")
SUFFIXES = (".json", ".jsonl", ".png", ".part", ".mp4", ".gif", ".glb", ".obj")
PROBE = ".writable"
LOCK = ".lock"


def prepare_workdir(config: Config) -> Path:
    """Makes the folder, and refuses one that holds another run."""
    workdir = Path(config.run.workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        check_places(workdir)
        probe = workdir / PROBE
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written to ({error.strerror}); name another folder."
        ) from error
    if (workdir / "config.json").exists():
        differing = differing_flags(read_config(workdir / "config.json"), config)
        if differing:
            names = ", ".join(f"--{name}" for name in differing)
            raise UserError(
                f"{workdir} holds a run with other settings ({names}); give the same, or name"
                " another --workdir."
            )
    return workdir


def store_config(config: Config) -> None:
    """Writes the resolved configuration, which a later run in this folder must match."""
    text = json.dumps(to_dict(config), indent=2) + "\n"
    write_whole(Path(config.run.workdir) / "config.json", text.encode())


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps other jobs out of the folder; the system unlocks it when the process ends, however.

    Raises:
      UserError: another job is at work there.
    """
    with (workdir / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"Another job ({file.read(200).strip() or 'unknown'}) is at work in {workdir}; wait"
                " until it is done, or name another --workdir."
            ) from None
        except OSError:
            pass  # A file system without locks.
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


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
        if path.name in (*FOLDERS, PROBE, LOCK) or path.suffix in SUFFIXES:
            yield path
    for folder in FOLDERS:
        for parent, folders, files in os.walk(workdir / folder):
            yield from (Path(parent) / name for name in (*folders, *files))


def _target(link: Path) -> Path:
    try:
        return link.resolve()
    except (OSError, RuntimeError):  # a link to itself leads nowhere
        return Path("/")
