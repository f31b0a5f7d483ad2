"""A text prompt becomes a 3D asset, or a file of prompts one asset after another.

  python -m dreamfusion_jax.main --prompt="a red chair"
  python -m dreamfusion_jax.main --flagfile=experiments/chair.cfg
  python -m dreamfusion_jax.main --prompts_file=prompts.txt --workdir=gs://bucket/assets

The same command again goes on with a run that was stopped, and leaves alone what is finished. Exit
codes: 0 done; 2 bad input and 1 what is no fault of the command's, both told in one line; 130
interrupted by Ctrl-C or SIGTERM, the state saved.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import time

from absl import flags

from dreamfusion_jax import config as configs
from dreamfusion_jax import entry, export, growth, picture, platform, render
from dreamfusion_jax.config import Config, is_flat
from dreamfusion_jax.errors import UserError
from dreamfusion_jax.files import AnyPath, absolute, as_path, read_json, write_whole
from dreamfusion_jax.page import build
from dreamfusion_jax.prompts_file import read_prompts
from dreamfusion_jax.toybox import captions
from dreamfusion_jax.training import lock, loop, processes
from dreamfusion_jax.training.checkpoint import SavedRun, load_run, steps_done
from dreamfusion_jax.training.workdir import prepare_workdir, store_config, store_machine

SCENE_FILES = (*render.PICTURE_FILES, *export.MESH_FILES, build.FILE)
FLAT_FILES = (*picture.FILES, growth.FILE, build.FILE)


def define_flags() -> None:
    """Every setting, and what stands for many prompts."""
    configs.define_flags()
    flags.DEFINE_string(
        "prompts_file",
        "",
        "instead of --prompt: a text file with a prompt a line, each made in its own folder of"
        " --workdir; lines that begin with # are skipped, a prompt that is repeated is made once",
    )


def main() -> int:
    many = read_configs(flags.FLAGS.prompts_file) if flags.FLAGS.prompts_file else []
    config = many[0] if many else configs.config_from_flags()
    entry.use_compilation_cache(config.run.compilation_cache)
    platform.use(config.run.platform)
    processes.start(config.run)
    platform.require(config.run.platform)
    try:
        with processes.watched():
            if many:
                return make_assets(many)
            make_asset(config)
            return 0
    except loop.Interrupted as stopped:
        processes.say(f"Stopped {stopped}; it is saved. To go on:", file=sys.stderr)
        again = shlex.join(sys.argv[1:])
        processes.say(f"  python -m dreamfusion_jax.main {again}", file=sys.stderr)
        return entry.EXIT_INTERRUPTED


def read_configs(name: str) -> list[Config]:
    """A configuration for every prompt in a file.

    Raises:
      UserError: it cannot be read, holds none, or two of them would share a folder.
    """
    if flags.FLAGS.prompt:
        raise UserError("--prompt contradicts --prompts_file; give one of them.")
    root = flags.FLAGS.workdir or "workdir"
    return [
        configs.config_from_flags(prompt=prompt, workdir=f"{root}/{configs.slug(prompt)}")
        for prompt in read_prompts(name)
    ]


def make_assets(many: list[Config]) -> int:
    """One after another; what fails keeps no other from being made. Returns the exit code."""
    run, failed = None, []
    for number, config in enumerate(many, 1):
        processes.say(f"[{number}/{len(many)}] {config.train.prompt}")
        try:
            run = make_asset(config, run)
        except UserError as error:
            entry.complain(error)
            failed.append(config.train.prompt)
    if failed:
        processes.say(
            f"{len(many) - len(failed)} of {len(many)} are made; not: {', '.join(failed)}.",
            file=sys.stderr,
        )
    return 1 if failed else 0


def make_asset(config: Config, run: loop.Run | None = None) -> loop.Run | None:
    """Optimises, as far as is still to do, and leaves pictures and mesh, if they are not there.

    Args:
      run: one that has been prepared for the same settings and another prompt.

    Returns:
      The run that was optimised; `run` where nothing was to do.
    """
    workdir = as_path(config.run.workdir)
    with contextlib.ExitStack() as held:
        processes.first(lambda: _take(config, held))
        processes.require_shared(workdir)
        saved = None
        here = steps_done(workdir)  # Orbax wants all processes to look.
        done = processes.first(lambda: here)
        if done < config.train.steps:
            run, saved = optimise(config, run)
        else:
            processes.say(f"{workdir} is finished: all {done} steps are done.")
        steps = max(done, config.train.steps)
        if processes.first(lambda: outputs_made(workdir, config)) != steps:
            finished = saved or load_run(workdir)._replace(config=config)
            processes.first(lambda: make_outputs(workdir, finished))
        made = ", ".join([*output_files(config), "config.json"])
        processes.say(f"{config.train.prompt}: {made} are in {absolute(workdir)}")
    return run


def _take(config: Config, held: contextlib.ExitStack) -> None:
    """Makes the work folder this job's own, for as long as `held` is open."""
    held.enter_context(lock.locked(prepare_workdir(config)))


def optimise(config: Config, run: loop.Run | None) -> tuple[loop.Run, SavedRun]:
    """From the newest checkpoint, or the start, to the last step."""
    started = time.monotonic()
    if config.prior.prior == "toybox":
        _warn_of_unknown_words(config.train.prompt)
    run = loop.with_prompt(run, config) if run else loop.prepare(config)
    processes.first(lambda: store_config(config))
    processes.first(lambda: store_machine(run.workdir, run.devices))
    return run, SavedRun(config, run.scene, loop.train(config, run, started))


def _warn_of_unknown_words(prompt: str) -> None:
    unknown = captions.unknown_words(prompt)
    if unknown:
        processes.say(
            f"Note: the embedded prior never learned {', '.join(map(repr, unknown))}. It knows"
            f" {', '.join(captions.KINDS)}; in {', '.join(captions.COLORS)}.",
            file=sys.stderr,
        )


def make_outputs(workdir: AnyPath, saved: SavedRun) -> None:
    """Pictures and mesh of the finished scene; or the flat picture beside the prior's samples."""
    config, scene, state = saved
    step, files = int(state.step), output_files(config)
    print("Making " + ", ".join(files) + " ...", flush=True)
    if is_flat(config):
        picture.write_comparison(workdir, scene, state.params, step, config)
        render.write_png(workdir / growth.FILE, growth.growth_strip(workdir))
    else:
        render.write_pictures(workdir, scene, state.params, step, config)
        export.write_mesh(workdir, scene, state.params, step, config)
    build.write_page(workdir, config, build.FINISHED, step)
    # Last, so that a run that is stopped here makes them again.
    record = json.dumps({"step": step, "files": files}) + "\n"
    write_whole(_outputs_record(workdir), record.encode())


def output_files(config: Config) -> tuple[str, ...]:
    """The names of what is made at the end."""
    return FLAT_FILES if is_flat(config) else SCENE_FILES


def outputs_made(workdir: AnyPath, config: Config) -> int | None:
    """The step whose scene the outputs show; None unless all of them are there."""
    record = _outputs_record(workdir)
    if not all((workdir / name).exists() for name in (*output_files(config), record.name)):
        return None
    try:
        return read_json(record)["step"]
    except (OSError, ValueError, LookupError, TypeError):
        return None  # a record cut short, or no record at all: the outputs are made again


def _outputs_record(workdir: AnyPath) -> AnyPath:
    return workdir / "outputs.json"


if __name__ == "__main__":
    define_flags()
    entry.run(main)
