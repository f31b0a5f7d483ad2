"""How good is it? The judge, the prior, and the assets, measured.

  python -m dreamfusion_jax.evaluate --measure=judge       toybox-clip on unseen true renders
  python -m dreamfusion_jax.evaluate --measure=prior       does the prior obey the view words?
  python -m dreamfusion_jax.evaluate --measure=assets --workdirs='workdir/*'
                                                           R-precision of finished runs
  python -m dreamfusion_jax.evaluate --measure=benchmark   makes 40 assets, then measures them

The benchmark's prompts are the toybox's 40, of which 12 name pairs that it never saw, or those of
--prompts_file. It makes an asset of each for each of --seeds, with the flags in --run_flags, goes
on where it was stopped, and leaves in --workdir a table, all numbers and a picture of all assets.

R-precision is the share of views (eight azimuths, 30 degrees up) that a CLIP matches to the
prompt's own caption among all candidates. Its name says of what, among what and by whom:

  r_precision/albedo/260 pairs/toybox-clip                 colors alone
  r_precision/shaded/260 pairs/toybox-clip                 colors under a light
  r_precision/textureless/26 kinds/toybox-clip             gray under that light
  r_precision/albedo/153 prompts/openai/clip-vit-base-patch32@0123abcd
                                                           a CLIP of --judge, by its weights' digest

Beside them, "untrained" is the scene before its first step, scored for the same prompts.

toybox-clip chooses among all that the toybox can say. A CLIP of --judge (a directory or a hub id,
in transformers' layout) chooses among all prompts of --prompts_file, or of the benchmark, or else
of the runs, for every kind of view, as in the paper.

Dream Fields' 153 object-centric captions of COCO, which the paper measures on, are the list in
dreamfields/dreamfields/config/coco_queries_val.py of github.com/google-research/google-research:

  python -c "print(*__import__('coco_queries_val').queries, sep='\\n')" > coco153.txt
"""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from dreamfusion_jax.config import cli
from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.config.flags import read_config
from dreamfusion_jax.config.prompts_file import read_prompts
from dreamfusion_jax.evaluation import benchmark_runner, gallery, report, toybox
from dreamfusion_jax.evaluation.judges import TOYBOX, Judge, find_judge, load_judge
from dreamfusion_jax.evaluation.score import Score, ScoredRun, score_run, score_untrained
from dreamfusion_jax.evaluation.views import front_left, open_run
from dreamfusion_jax.runs.checkpoint import steps_done
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.files import AnyPath, as_path, atomic_write
from dreamfusion_jax.runtime.png import encode_png
from dreamfusion_jax.runtime.progress import Progress
from dreamfusion_jax.toybox import captions
from dreamfusion_jax.toybox.judge import load_judge as load_toybox_clip

GALLERY = "gallery.png"

Numbers = dict[str, Any]


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """What to measure, of what, by whom, and on what platform."""
    configs.define_flags(("platform",), flag_values)

    def text(name: str, default: str, help: str) -> None:
        flags.DEFINE_string(name, default, help, flag_values=flag_values)

    help = "what to measure"
    flags.DEFINE_enum("measure", "judge", list(_MEASURE), help, flag_values=flag_values)
    text("workdirs", "", "finished runs to measure, as a file pattern")
    text("workdir", "workdir/benchmark", "where the benchmark's runs and results go")
    text(
        "prompts_file",
        "",
        "the benchmark's prompts, instead of the toybox's 40: a text file with a prompt a line,"
        " where lines that begin with # are skipped; what a --judge of your own chooses among",
    )
    help = "seeds of the benchmark's runs, with commas between them"
    flags.DEFINE_list("seeds", ["0"], help, flag_values=flag_values)
    text("run_flags", "", "flags of all runs of the benchmark, in one string: '--steps=500 ...'")
    text("judge", TOYBOX, f"{TOYBOX}, or a CLIPModel of transformers: its directory or hub id")
    text("judge_revision", "", "branch, tag or commit of the judge's repository on the hub")
    text("json", "", "also write the numbers to this file")
    text("pictures", "", "also write a picture of what was judged to this PNG")


def main() -> int:
    asked = flags.FLAGS
    for name in ("json", "pictures"):
        path = asked[name].value
        if path and not Path(path).parent.is_dir():
            raise UserError(f"--{name}={path} cannot be written: name a file in a folder of yours.")
    cli.use_platform(flags.FLAGS.platform)
    cli.use_compilation_cache("auto")
    numbers = _MEASURE[asked.measure]()
    if asked.json:
        atomic_write(Path(asked.json), _json(numbers))
    return 0


def measure_judge() -> Numbers:
    """toybox-clip itself."""
    _require_toybox()
    numbers = toybox.measure_judge(load_toybox_clip())
    _print_numbers(numbers)
    return numbers


def measure_prior() -> Numbers:
    """The embedded prior."""
    _require_toybox()
    pictures = flags.FLAGS.pictures
    numbers = toybox.measure_prior(load_toybox_clip(), Path(pictures) if pictures else None)
    _print_numbers(numbers)
    return numbers


def measure_assets() -> Numbers:
    """Those runs that --workdirs matches and that are finished."""
    asked = flags.FLAGS
    workdirs = finished_runs(asked.workdirs)
    prompts = [read_config(workdir / "config.json").train.prompt for workdir in workdirs]
    candidates = read_prompts(asked.prompts_file) if asked.prompts_file else prompts
    unknown = [prompt for prompt in prompts if prompt not in candidates]
    if unknown:
        raise UserError(f"--prompts_file={asked.prompts_file} lacks {unknown[0]!r}, of a run.")
    candidates = list(dict.fromkeys(candidates))
    directory = find_judge(asked.judge, asked.judge_revision, candidates)
    judge = load_judge(asked.judge, directory, candidates)
    runs, untrained, shown = score_all(judge, workdirs)
    print(f"{report.asset_table(judge, runs)}\n{report.summary_table(judge, runs, untrained)}")
    if asked.pictures:
        atomic_write(Path(asked.pictures), encode_png(gallery.gallery(shown)))
    return report.report(judge, runs, untrained)


def measure_benchmark() -> Numbers:
    """Makes what is missing, then measures all of it."""
    asked = flags.FLAGS
    workdir, seeds = as_path(asked.workdir), _seeds(asked.seeds)
    prompts = read_prompts(asked.prompts_file) if asked.prompts_file else benchmark_prompts()
    arguments = benchmark_runner.check_run_flags(asked.run_flags, prompts, seeds)
    directory = find_judge(asked.judge, asked.judge_revision, prompts)
    workdirs = []
    for seed in seeds:
        workdirs += benchmark_runner.make_assets(prompts, workdir, seed, arguments)
    # Not before: what this process holds of an accelerator, the runs could not have.
    judge = load_judge(asked.judge, directory, prompts)
    runs, untrained, shown = score_all(judge, workdirs)
    summary = report.summary_table(judge, runs, untrained)
    numbers = report.report(judge, runs, untrained) | {"run_flags": arguments}
    files = {
        f"{_file_name(judge)}.json": _json(numbers),
        f"{_file_name(judge)}.md": f"{summary}\n{report.asset_table(judge, runs)}".encode(),
        GALLERY: encode_png(gallery.gallery(shown)),
    }
    for name, data in files.items():
        atomic_write(workdir / name, data)
    if asked.pictures:
        atomic_write(Path(asked.pictures), files[GALLERY])
    print(summary)
    print(f"{', '.join(files)} are in {workdir}")
    return numbers


_MEASURE = {
    "judge": measure_judge,
    "prior": measure_prior,
    "assets": measure_assets,
    "benchmark": measure_benchmark,
}


def benchmark_prompts() -> list[str]:
    """The toybox benchmark: 40 prompts, 12 of them of held-out pairs."""
    return captions.benchmark_prompts(count=40, held_out=12, per_kind=2)


def finished_runs(pattern: str) -> list[Path]:
    """The folders that match and hold a finished run; others that hold a run are told of."""
    matches = sorted(Path(name) for name in glob.glob(pattern))
    found = [path for path in matches if (path / "config.json").is_file()]
    if not found:
        raise UserError(f"--workdirs={pattern!r} matches no folder of a run; name finished runs.")
    finished = []
    for workdir in found:
        steps, done = read_config(workdir / "config.json").train.steps, steps_done(workdir)
        if done >= steps:
            finished.append(workdir)
        else:
            print(f"Note: {workdir} is left out: {done} of {steps} steps.", file=sys.stderr)
    if not finished:
        raise UserError(f"--workdirs={pattern!r} matches no finished run; let them go on first.")
    return finished


def score_all(
    judge: Judge, workdirs: Sequence[AnyPath]
) -> tuple[list[ScoredRun], Score, list[gallery.Shown]]:
    """Renders and judges one asset after another.

    Returns:
      The scores; that of the first one's scene before its first step, for the same prompts; and
      what the gallery shows.
    """
    runs, shown = [], []
    try:
        with Progress(len(workdirs), "scoring", "asset") as progress:
            for workdir in workdirs:
                run = open_run(workdir)
                runs.append(score_run(judge, workdir, run))
                shown.append(gallery.Shown(runs[-1].prompt, *front_left(run, gallery.SIZE)))
                progress.update()
        prompts = list(dict.fromkeys(run.prompt for run in runs))
        untrained = score_untrained(judge, open_run(workdirs[0]), prompts)
    except KeyboardInterrupt:
        print("\nThe assets are kept; their scores are not, until all are told.", file=sys.stderr)
        raise
    if len(prompts) < len(runs):
        labels = [f"{run.prompt}, seed {run.seed}" for run in runs]
        shown = [s._replace(prompt=label) for s, label in zip(shown, labels, strict=True)]
    return runs, untrained, shown


def _seeds(words: Sequence[str]) -> list[int]:
    try:
        seeds = [int(word) for word in words]
    except ValueError as error:
        raise UserError(
            f"--seeds must be whole numbers with commas between them ({error})."
        ) from None
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds={','.join(words)} must name each seed once, and at least one.")
    return seeds


def _require_toybox() -> None:
    if flags.FLAGS.judge != TOYBOX:
        raise UserError(f"--judge={flags.FLAGS.judge} needs --measure=assets or benchmark.")


def _file_name(judge: Judge) -> str:
    """The judge's name as a file's: what another judge says is kept beside it."""
    return judge.name.replace("/", "--")


def _json(numbers: Numbers) -> bytes:
    return (json.dumps(numbers, indent=2) + "\n").encode()


def _print_numbers(numbers: Numbers, indent: str = "") -> None:
    for name, value in numbers.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            _print_numbers(value, indent + "  ")
        else:
            print(f"{indent}{name:<32} {value}")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
