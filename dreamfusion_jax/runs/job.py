"""From settings to finished outputs, for one asset or many: what main and the Python API call."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from dreamfusion_jax.config import cli
from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.diffusion.priors.options import PriorOptions
from dreamfusion_jax.distillation.view_prompts import ViewScheme
from dreamfusion_jax.runs import distributed, lock, loop, two_stages
from dreamfusion_jax.runs.checkpoint import SavedRun, load_run, steps_done
from dreamfusion_jax.runs.outputs import make_outputs, missing_outputs, output_files
from dreamfusion_jax.runs.page import build
from dreamfusion_jax.runs.prior_record import record_prior
from dreamfusion_jax.runs.sampling import PriorSampler, open_sampler, shared_sampler
from dreamfusion_jax.runs.start import check_start
from dreamfusion_jax.runs.workdir import (
    newest_checkpoint,
    prepare_workdir,
    store_config,
    store_machine,
)
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.files import absolute, as_path


class Runs(NamedTuple):
    """What was prepared for an asset, and serves for others of the same settings.

    Attributes:
      first, second: the run of each stage; None: it was not needed, or there is none.
    """

    first: loop.Run | None = None
    second: loop.Run | None = None


NO_RUNS = Runs()


def make_assets(many: list[Config], schemes: Mapping[str, ViewScheme]) -> int:
    """Makes one asset after another, also after one fails; returns the exit code."""
    runs, failed = NO_RUNS, []
    for number, config in enumerate(many, 1):
        distributed.print_primary(f"[{number}/{len(many)}] {config.train.prompt}")
        try:
            runs = make_asset(config, schemes, runs)
        except UserError as error:
            cli.print_error(error)
            failed.append(config.train.prompt)
    if failed:
        distributed.print_primary(
            f"{len(many) - len(failed)} of {len(many)} are done; failed: {', '.join(failed)}.",
            file=sys.stderr,
        )
    return 1 if failed else 0


def make_asset(config: Config, schemes: Mapping[str, ViewScheme], runs: Runs = NO_RUNS) -> Runs:
    """Does what is left of the optimization, in both stages, then writes the missing outputs.

    Args:
      runs: what was prepared for the same settings and another prompt.

    Returns:
      What was prepared; the members of `runs` where nothing was left to do.
    """
    first, second = runs
    if not config.train.second_stage_steps:
        return Runs(_make_stage(config, schemes, first), second)
    if not distributed.run_on_primary(lambda: two_stages.is_first_done(config)):
        first = _make_stage(config, schemes, first, second, two_stages.FIRST_FILES)
        distributed.run_on_primary(lambda: two_stages.set_aside(config))
    refined = distributed.run_on_primary(lambda: two_stages.refined(config))
    return Runs(first, _make_stage(refined, schemes, second, first))


def _make_stage(
    config: Config,
    schemes: Mapping[str, ViewScheme],
    run: loop.Run | None,
    other: loop.Run | None = None,
    files: Collection[str] = (),
) -> loop.Run | None:
    """Makes one stage of an asset, as `make_asset` does.

    Args:
      run: a run that was prepared for this stage.
      other: a run whose prior serves this one, too.
      files: the outputs to make; empty: all.
    """
    workdir = as_path(config.run.workdir)
    with contextlib.ExitStack() as stack:
        distributed.run_on_primary(lambda: _acquire_lock(config, stack))
        distributed.require_shared(workdir)
        saved = None
        steps_here = steps_done(workdir)  # in every process, as Orbax requires
        done = distributed.run_on_primary(lambda: steps_here)
        if done < config.train.steps:
            run, saved = optimize(config, schemes, run, other)
        else:
            distributed.print_primary(f"{workdir} is finished: all {done} steps are done.")
        steps = max(done, config.train.steps)
        missing = distributed.run_on_primary(lambda: missing_outputs(workdir, config, steps))
        missing = [name for name in missing if name in (files or missing)]
        if missing:
            finished = saved or load_run(workdir)._replace(config=config)
            sampler = functools.partial(_sampler, run)
            distributed.run_on_primary(lambda: make_outputs(workdir, finished, sampler, missing))
        made = ", ".join([*(files or output_files(config)), "config.json"])
        distributed.print_primary(f"{config.train.prompt}: {made} are in {absolute(workdir)}")
    return run


def _sampler(run: loop.Run | None, options: PriorOptions) -> PriorSampler:
    """Returns a sampler of the prior that the run holds; loads one only where there is no run."""
    return shared_sampler(run.prior, run.prior_params) if run else open_sampler(options)


def _acquire_lock(config: Config, stack: contextlib.ExitStack) -> None:
    """Locks the work folder for as long as `stack` is open."""
    stack.enter_context(at_work(config))


@contextlib.contextmanager
def at_work(config: Config) -> Iterator[None]:
    """Keeps other jobs out of the work folder; however the job ends, the page then says so."""
    stop = functools.partial(_close_page, config, is_done=False)
    with lock.locked(prepare_workdir(config)), distributed.before_abort(stop):
        try:
            yield
        except BaseException:
            stop()
            raise
        _close_page(config, is_done=True)


def _close_page(config: Config, is_done: bool) -> None:
    """Makes the page tell the state that the job leaves, as far as the disk allows."""
    workdir = as_path(config.run.workdir)
    with contextlib.suppress(OSError):  # What ended the job says more.
        build.close_page(workdir, config, newest_checkpoint(workdir), is_done)


def optimize(
    config: Config,
    schemes: Mapping[str, ViewScheme],
    run: loop.Run | None,
    other: loop.Run | None = None,
) -> tuple[loop.Run, SavedRun]:
    """Optimizes from the newest checkpoint, or the start, to the last step.

    Args:
      run: a run that was prepared for the same settings, but for the prompt.
      other: a run of other settings whose prior may serve.
    """
    started = time.monotonic()
    scheme = schemes.get(config.view_prompts.view_words)
    if scheme and scheme.note and (note := scheme.note(config.train.prompt)):
        distributed.print_primary(note, file=sys.stderr)
    if not newest_checkpoint(as_path(config.run.workdir)):  # before anything is written
        check_start(config)
    run = loop.with_prompt(run, config) if run else loop.prepare(config, schemes, other)
    digest = run.prior_digest
    distributed.run_on_primary(lambda: record_prior(run.workdir, config.prior, digest))
    distributed.run_on_primary(lambda: store_config(config))
    distributed.run_on_primary(lambda: store_machine(run.workdir, run.devices))
    return run, SavedRun(config, run.scene, loop.train(config, run, started))
