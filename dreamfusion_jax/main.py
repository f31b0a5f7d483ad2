"""A text prompt becomes a 3D asset.

  python -m dreamfusion_jax.main --prompt="a red chair"
  python -m dreamfusion_jax.main --flagfile=experiments/chair.cfg

The same command again goes on with a run that was stopped. Exit codes: 0 done; 2 bad input, told in
one line; 130 interrupted by Ctrl-C or SIGTERM, the state saved.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path

from dreamfusion_jax import entry, export, picture, render
from dreamfusion_jax.config import Config, config_from_flags, define_flags, is_flat
from dreamfusion_jax.files import read_json
from dreamfusion_jax.toybox import captions
from dreamfusion_jax.training import loop
from dreamfusion_jax.training import workdir as workdirs
from dreamfusion_jax.training.checkpoint import Checkpoints, SavedRun, load_run

SCENE_FILES = (*render.PICTURE_FILES, *export.MESH_FILES)


def main() -> int:
    started = time.monotonic()
    config = config_from_flags()
    entry.use_compilation_cache(config.run.compilation_cache)
    workdir = workdirs.prepare_workdir(config)
    try:
        saved = optimise(config, workdir, started)
    except loop.Interrupted as stopped:
        print(f"Stopped after step {stopped}; {workdir} is saved. To go on:", file=sys.stderr)
        print(f"  python -m dreamfusion_jax.main {shlex.join(sys.argv[1:])}", file=sys.stderr)
        return entry.EXIT_INTERRUPTED
    if outputs_made(workdir, config) != int(saved.state.step):
        make_outputs(workdir, saved)
    made = ", ".join([*output_files(config), "config.json"])
    print(f"{config.train.prompt}: {made} are in {workdir.resolve()}")
    return 0


def optimise(config: Config, workdir: Path, started: float) -> SavedRun:
    """The finished run in `workdir`, optimised as far as is still to do."""
    checkpoints = Checkpoints(workdir)
    done = checkpoints.latest_step()
    checkpoints.close()
    if done >= config.train.steps:
        print(f"{workdir} is finished: all {done} steps are done.")
        return load_run(workdir)._replace(config=config)
    if config.prior.prior == "toybox":
        _warn_of_unknown_words(config.train.prompt)
    run = loop.prepare(config)
    workdirs.store_config(config)
    return SavedRun(config, run.scene, loop.train(config, run, started))


def _warn_of_unknown_words(prompt: str) -> None:
    unknown = captions.unknown_words(prompt)
    if unknown:
        print(
            f"Note: the embedded prior never learned {', '.join(map(repr, unknown))}. It knows"
            f" {', '.join(captions.KINDS)}; in {', '.join(captions.COLORS)}.",
            file=sys.stderr,
        )


def make_outputs(workdir: Path, saved: SavedRun) -> None:
    """Pictures and mesh of the finished scene; or the flat picture beside the prior's samples."""
    config, scene, state = saved
    step, files = int(state.step), output_files(config)
    print("Making " + ", ".join(files) + " ...", flush=True)
    if is_flat(config):
        picture.write_comparison(workdir, scene, state.params, step, config)
    else:
        render.write_pictures(workdir, scene, state.params, step, config)
        export.write_mesh(workdir, scene, state.params, step, config)
    # Last, so that a run that is stopped here makes them again.
    _outputs_record(workdir).write_text(json.dumps({"step": step, "files": files}) + "\n")


def output_files(config: Config) -> tuple[str, ...]:
    """The names of what is made at the end."""
    return picture.FILES if is_flat(config) else SCENE_FILES


def outputs_made(workdir: Path, config: Config) -> int | None:
    """The step whose scene the outputs show; None unless all of them are there."""
    record = _outputs_record(workdir)
    if not all((workdir / name).exists() for name in (*output_files(config), record.name)):
        return None
    try:
        return read_json(record)["step"]
    except (OSError, ValueError, LookupError, TypeError):
        return None  # a record cut short, or no record at all: the outputs are made again


def _outputs_record(workdir: Path) -> Path:
    return workdir / "outputs.json"


if __name__ == "__main__":
    define_flags()
    entry.run(main)
