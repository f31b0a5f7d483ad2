"""Measures the quality of assets, of the embedded prior, and of the judge.

  python -m dreamfusion_jax.evaluate --measure=judge       toybox-clip on unseen true renders
  python -m dreamfusion_jax.evaluate --measure=prior       does the prior obey the view words?
  python -m dreamfusion_jax.evaluate --measure=assets --workdirs='workdir/*'
                                                           R-precision of finished runs
  python -m dreamfusion_jax.evaluate --measure=colors --workdirs='workdir/*'
                                                           their colors against the prior's samples
  python -m dreamfusion_jax.evaluate --measure=benchmark   makes 40 assets, then measures them

The benchmark's prompts are the toybox's 40, of which 12 name pairs that it never saw, or those of
--prompts_file. It makes an asset of each for each of --seeds, with the flags in --run_flags,
continues where it was stopped, and leaves in --workdir a table, all numbers and an image of all
assets.

R-precision is the share of views (eight azimuths, 30 degrees up) that a CLIP matches to the
prompt's own caption among all candidates. A metric's name is measure/views/candidates/judge:

  r_precision/albedo/260 pairs/toybox-clip                 colors alone
  r_precision/shaded/260 pairs/toybox-clip                 colors under a light
  r_precision/textureless/26 kinds/toybox-clip             gray under that light
  r_precision/albedo/153 prompts/openai/clip-vit-base-patch32@0123abcd
                                                           a CLIP of --judge, by its weights' hash

"untrained" is the scene before its first step, scored for the same prompts.

toybox-clip chooses among all captions of the toybox. A CLIP of --judge (a directory or a hub id,
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
from dreamfusion_jax.evaluation import benchmark_runner, colors, gallery, report, toybox
from dreamfusion_jax.evaluation.judges import TOYBOX, Judge, find_judge, load_judge
from dreamfusion_jax.evaluation.score import Score, ScoredRun, score_run, score_untrained
from dreamfusion_jax.evaluation.views import front_left, open_run
from dreamfusion_jax.runs.checkpoint import steps_done
from dreamfusion_jax.runtime import process
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.files import AnyPath, as_path, atomic_write, local_path
from dreamfusion_jax.runtime.png import encode_png
from dreamfusion_jax.runtime.progress import Progress
from dreamfusion_jax.toybox import captions
from dreamfusion_jax.toybox.judge import load_judge as load_toybox_clip
from dreamfusion_jax.toybox.view_scheme import SCHEMES

GALLERY = "gallery.png"

Numbers = dict[str, Any]


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags: what to measure, where, by which judge, and the platform."""
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
        "the benchmark's prompts, instead of the toybox's 40: a text file with one prompt per line,"
        " where lines that begin with # are skipped; also the candidates of your own --judge",
    )
    help = "seeds of the benchmark's runs, with commas between them"
    flags.DEFINE_list("seeds", ["0"], help, flag_values=flag_values)
    text("run_flags", "", "flags of all runs of the benchmark, in one string: '--steps=500 ...'")
    text("judge", TOYBOX, f"{TOYBOX}, or a CLIPModel of transformers: its directory or hub id")
    text("judge_revision", "", "branch, tag or commit of the judge's repository on the hub")
    text("json", "", "also write the numbers to this file")
    text("pictures", "", "also write the judged images to this PNG")


def main() -> int:
    """Measures, prints and writes the numbers; returns the exit code."""
    options = flags.FLAGS
    for name in ("json", "pictures"):
        path = options[name].value
        if path and not local_path(path, name).parent.is_dir():
            raise UserError(f"--{name}={path} cannot be written: name one in an existing folder.")
    cli.use_platform(flags.FLAGS.platform)
    cli.use_compilation_cache("auto")
    numbers = _MEASURE[options.measure]()
    if options.json:
        atomic_write(local_path(options.json), _json(numbers))
    return 0


def measure_judge() -> Numbers:
    """Measures toybox-clip."""
    _require_toybox()
    numbers = toybox.measure_judge(load_toybox_clip())
    _print_numbers(numbers)
    return numbers


def measure_prior() -> Numbers:
    """Measures the embedded prior."""
    _require_toybox()
    pictures = flags.FLAGS.pictures
    numbers = toybox.measure_prior(load_toybox_clip(), local_path(pictures) if pictures else None)
    _print_numbers(numbers)
    return numbers


def measure_assets() -> Numbers:
    """Measures the finished runs that --workdirs matches."""
    options = flags.FLAGS
    workdirs = finished_runs(options.workdirs)
    prompts = [read_config(workdir / "config.json").train.prompt for workdir in workdirs]
    candidates = read_prompts(options.prompts_file) if options.prompts_file else prompts
    unknown = [prompt for prompt in prompts if prompt not in candidates]
    if unknown:
        raise UserError(f"--prompts_file={options.prompts_file} lacks {unknown[0]!r}, of a run.")
    candidates = list(dict.fromkeys(candidates))
    directory = find_judge(options.judge, options.judge_revision, candidates)
    judge = load_judge(options.judge, directory, candidates)
    runs, untrained, shown = score_all(judge, workdirs)
    tables = f"{report.asset_table(judge, runs)}\n{report.summary_table(judge, runs, untrained)}"
    print(process.printable(tables))
    if options.pictures:
        atomic_write(local_path(options.pictures), encode_png(gallery.gallery(shown)))
    return report.report(judge, runs, untrained)


def measure_colors() -> Numbers:
    """Measures how far the colors of finished runs are from those of their prior's samples."""
    _require_toybox()
    draw, rows = colors.sampler(SCHEMES), {}
    for workdir in finished_runs(flags.FLAGS.workdirs):
        rows[str(workdir)] = colors.compare(open_run(workdir), draw)
    print(process.printable(report.color_table(rows)))
    return report.color_report(rows)


def measure_benchmark() -> Numbers:
    """Makes the missing assets, then measures all of them."""
    options = flags.FLAGS
    workdir, seeds = as_path(options.workdir, "workdir"), _seeds(options.seeds)
    prompts = read_prompts(options.prompts_file) if options.prompts_file else benchmark_prompts()
    arguments = benchmark_runner.check_run_flags(options.run_flags, prompts, seeds)
    directory = find_judge(options.judge, options.judge_revision, prompts)
    workdirs = []
    for seed in seeds:
        workdirs += benchmark_runner.make_assets(prompts, workdir, seed, arguments)
    # Only now, because the runs could not use accelerator memory that this process holds.
    judge = load_judge(options.judge, directory, prompts)
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
    if options.pictures:
        atomic_write(local_path(options.pictures), files[GALLERY])
    print(summary)
    print(f"{', '.join(files)} are in {workdir}")
    return numbers


_MEASURE = {
    "judge": measure_judge,
    "prior": measure_prior,
    "assets": measure_assets,
    "colors": measure_colors,
    "benchmark": measure_benchmark,
}


def benchmark_prompts() -> list[str]:
    """Returns the toybox benchmark: 40 prompts, 12 of them of held-out pairs."""
    return captions.benchmark_prompts(count=40, held_out=12, per_kind=2)


def finished_runs(pattern: str) -> list[Path]:
    """Returns the matching folders of finished runs; prints the names of unfinished ones."""
    matches = sorted(Path(name) for name in glob.glob(str(local_path(pattern, "workdirs"))))
    workdirs = [path for path in matches if (path / "config.json").is_file()]
    if not workdirs:
        raise UserError(f"--workdirs={pattern!r} matches no folder of a run; name finished runs.")
    finished = []
    for workdir in workdirs:
        steps, done = read_config(workdir / "config.json").train.steps, steps_done(workdir)
        if done >= steps:
            finished.append(workdir)
        else:
            print(f"Note: {workdir} is left out: {done} of {steps} steps.", file=sys.stderr)
    if not finished:
        raise UserError(f"--workdirs={pattern!r} matches no finished run; let them finish first.")
    return finished


def score_all(
    judge: Judge, workdirs: Sequence[AnyPath]
) -> tuple[list[ScoredRun], Score, list[gallery.Shown]]:
    """Renders and judges one asset after another.

    Returns:
      The scores of the runs; the score of the first run's scene before its first step, for the
      same prompts; what the gallery shows.
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
        print("\nThe assets are kept; their scores are lost.", file=sys.stderr)
        raise
    if len(prompts) < len(runs):
        labels = [f"{run.prompt}, seed {run.seed}" for run in runs]
        shown = [s._replace(prompt=label) for s, label in zip(shown, labels, strict=True)]
    return runs, untrained, shown


def _seeds(texts: Sequence[str]) -> list[int]:
    try:
        seeds = [int(text) for text in texts]
    except ValueError as error:
        raise UserError(
            f"--seeds must be whole numbers with commas between them ({error})."
        ) from None
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds={','.join(texts)} must name each seed once, and at least one.")
    return seeds


def _require_toybox() -> None:
    if flags.FLAGS.judge != TOYBOX:
        raise UserError(f"--judge={flags.FLAGS.judge} needs --measure=assets or benchmark.")


def _file_name(judge: Judge) -> str:
    """Returns a file name of the judge's own, so that results of several judges are kept."""
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
