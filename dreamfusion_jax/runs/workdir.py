"""The work folder, local or in a bucket, which is checked before anything is written to it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from dreamfusion_jax import __version__
from dreamfusion_jax.config.flags import Config, conflicting_settings, read_config, to_dict
from dreamfusion_jax.config.reproduce import format_flag_value
from dreamfusion_jax.runs.lock import LOCK, SYSTEM_LOCK
from dreamfusion_jax.runs.metrics import FILE as METRICS
from dreamfusion_jax.runs.prior_record import FILE as PRIOR
from dreamfusion_jax.runs.prior_record import PLACES, is_recorded
from dreamfusion_jax.runs.text_embeddings import FOLDER as TEXT_EMBEDDINGS
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.files import AnyPath, as_path, atomic_write, copy_folder

# What a run writes; all else in the folder is not its own.
FIRST_STAGE = "first_stage"  # of a run of two, once it is done
FOLDERS = (
    FIRST_STAGE,
    *("checkpoints", "damaged_checkpoints", "previews", "tensorboard", "wandb"),
    TEXT_EMBEDDINGS,
)
SUFFIXES = (
    *(".json", ".jsonl", ".html", ".part"),
    *(".png", ".mp4", ".gif", ".glb", ".obj", ".mtl", ".ply"),
)
PROBE = ".writable"
MACHINE = "machine.json"
_CHECKPOINT = re.compile(r"[0-9]+(\.orbax-checkpoint-tmp.*)?")


def prepare_workdir(config: Config) -> AnyPath:
    """Creates the work folder and checks it.

    Raises:
      UserError: it cannot be written to, or holds another run or misplaced files.
    """
    workdir = as_path(config.run.workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        check_places(workdir)
        probe = workdir / PROBE
        probe.write_bytes(b"")
        probe.unlink()
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"--workdir={workdir} needs a package that is not installed ({error}): pip install"
            " gcsfs, or s3fs."
        ) from error
    except Exception as error:  # A bucket's client raises many kinds.
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(
            f"--workdir={workdir} cannot be written to ({reason:.300}); name another folder."
        ) from error
    require_same_run(workdir, config)
    return workdir


def require_same_run(workdir: AnyPath, config: Config) -> None:
    """Raises a UserError where the folder holds a run that `config` does not continue."""
    if not (workdir / "config.json").exists():
        return
    stored = read_config(workdir / "config.json")
    conflicts = conflicting_settings(stored, config)
    if set(conflicts) & set(PLACES) and is_recorded(workdir, config.prior):
        conflicts = {name: pair for name, pair in conflicts.items() if name not in PLACES}
    if conflicts:
        shown = ((name, *map(format_flag_value, pair)) for name, pair in conflicts.items())
        differences = ", ".join(f"--{name}={before}, not {now}" for name, before, now in shown)
        raise UserError(
            f"{workdir} holds a run with other settings ({differences}); give those that it holds,"
            " or name another --workdir."
        )


def store_config(config: Config) -> None:
    """Writes config.json, the configuration that a later run in this folder must match."""
    text = json.dumps(to_dict(config), indent=2) + "\n"
    atomic_write(as_path(config.run.workdir) / "config.json", text.encode())


def store_machine(workdir: AnyPath, devices: Sequence[jax.Device]) -> None:
    """Writes machine.json: the devices and versions with which the run was last continued."""
    record = {
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "jax": jax.__version__,
        "dreamfusion_jax": __version__,
    }
    atomic_write(workdir / MACHINE, (json.dumps(record, indent=2) + "\n").encode())


def copy_record(source: AnyPath, target: AnyPath) -> None:
    """Copies metrics and previews to another folder, if the source is local and not the same."""
    if str(source) == str(target) or not isinstance(source, Path):
        return
    for name in ("previews", "tensorboard", FIRST_STAGE):
        copy_folder(source / name, target / name)
    for name in (METRICS, MACHINE, PRIOR, "preview.png"):
        if (source / name).exists():
            (target / name).write_bytes((source / name).read_bytes())


def first_stage(workdir: AnyPath) -> Config | None:
    """Returns the settings of the first stage of a run of two, once that is done; else None."""
    file = workdir / FIRST_STAGE / "config.json"
    return read_config(file) if file.exists() else None


def span(workdir: AnyPath, config: Config) -> tuple[int, int]:
    """Returns the steps of a run before its present stage, and those of all stages."""
    first = first_stage(workdir)
    before = first.train.steps if first else 0
    return before, before + config.train.steps + config.train.second_stage_steps


def newest_checkpoint(workdir: AnyPath) -> int:
    """Returns the step of the newest checkpoint without any other process's help; 0: none."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if re.fullmatch("[0-9]{1,18}", name)), default=0)


def check_places(workdir: AnyPath) -> None:
    """Raises a UserError where a run's file or folder is of another kind, or a link to outside."""
    if not isinstance(workdir, Path):
        return  # Buckets have no links.
    inside, remedy = workdir.resolve(), "remove it, or choose another --workdir."
    for path in _places_written(workdir):
        if path.is_symlink() and not (
            _target(path).is_relative_to(inside) or _is_own_disk(workdir, path)
        ):
            raise UserError(f"{path} is a link that leads out of --workdir: {remedy}")
        if path.parent == workdir and path.exists():
            kind = "folder" if path.name in FOLDERS else "file"
            if not (path.is_dir() if kind == "folder" else path.is_file()):
                raise UserError(f"{path} is not a {kind}, as a run needs it: {remedy}")


def _places_written(workdir: Path) -> Iterator[Path]:
    if not workdir.is_dir():
        return
    for path in workdir.iterdir():
        if path.name in (*FOLDERS, PROBE, LOCK, SYSTEM_LOCK) or path.suffix in SUFFIXES:
            yield path
    for folder in FOLDERS:
        for parent, folders, files in os.walk(workdir / folder):
            yield from (Path(parent) / name for name in (*folders, *files))


def _is_own_disk(workdir: Path, link: Path) -> bool:
    """Returns whether a link is that of the checkpoints to the user's own folder on another disk.

    It must hold nothing else, so that a link in a folder from elsewhere leads to no other files.
    """
    target = _target(link)
    if link != workdir / "checkpoints" or not target.is_dir():
        return False
    is_own = not hasattr(os, "getuid") or target.stat().st_uid == os.getuid()
    return is_own and all(_CHECKPOINT.fullmatch(path.name) for path in target.iterdir())


def _target(link: Path) -> Path:
    try:
        return link.resolve()
    except (OSError, RuntimeError):  # a link to itself
        return Path("/")
