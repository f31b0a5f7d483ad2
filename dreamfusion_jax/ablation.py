"""Runs the paper's ablation on the toybox: what each part of the recipe adds to shape and color.

  python -m dreamfusion_jax.ablation --workdir=workdir/ablation

Makes the missing assets of every prompt by every recipe (20 in all, about three minutes each on two
cores), then prints a table and writes ablation.png, ablation.md and ablation.json.
Each recipe adds one thing to the one before it (Poole et al. 2022, section 4 and figure 6).

  python -m dreamfusion_jax.ablation --what=objectives --workdir=workdir/objectives

compares the objectives instead: in as many steps, and in as much time as SDS takes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags
from PIL import Image, ImageDraw, ImageFont

from dreamfusion_jax.config import cli
from dreamfusion_jax.config.flags import check_text, define_flags
from dreamfusion_jax.config.folder_names import free_folder
from dreamfusion_jax.evaluation import benchmark_runner, objectives
from dreamfusion_jax.evaluation.judges import prompt_pair, toybox_judge
from dreamfusion_jax.evaluation.score import Score, means, named, score_views
from dreamfusion_jax.evaluation.views import AssetViews, open_run, views_of_run
from dreamfusion_jax.rendering.images import to_uint8
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.files import AnyPath, absolute, as_path
from dreamfusion_jax.runtime.png import write_png
from dreamfusion_jax.toybox import captions

_ONE_HEIGHT = ("--elevation_deg=30", "--distance=2.75", "--fov_deg=47.5")
_NO_WORDS = ("--view_words=none",)
_NO_LIGHT = ("--lit_probability=0",)
_TEXTURED = ("--textureless_probability=0",)
# The last is the default; each one adds something to the one before.
RECIPES: Mapping[str, tuple[str, ...]] = {
    "base": _ONE_HEIGHT + _NO_WORDS + _NO_LIGHT,
    "views": _NO_WORDS + _NO_LIGHT,
    "words": _NO_LIGHT,
    "light": _TEXTURED,
    "full": (),
}
TITLES: Mapping[str, str] = {
    "base": "base: unlit, one height",
    "views": "+ view augmentation",
    "words": "+ view words",
    "light": "+ lighting",
    "full": "+ textureless",
}
SHOWN_AZIMUTHS = (1, 5)  # front left, and the opposite side
CELL = 128  # side in pixels of one image in the grid
MARGIN = 28

# recipe -> prompt -> what was measured
Scores = Mapping[str, Mapping[str, Score]]
Views = Mapping[str, Mapping[str, AssetViews]]


def default_prompts(count: int = 4) -> list[str]:
    """Returns the benchmark's first prompts of kinds with a front, which can show a Janus."""
    fronted = captions.KINDS_WITH_FRONT
    more = captions.benchmark_prompts(count=40, held_out=12, per_kind=2)
    prompts = dict.fromkeys([*captions.benchmark_prompts(), *more])
    return [p for p in prompts if prompt_pair(p)[1] in fronted][:count]


def make_assets(workdir: AnyPath, prompts: Sequence[str], extra: Sequence[str] = ()) -> None:
    """Makes every missing asset in <workdir>/<recipe>/<prompt>.

    Args:
      extra: flags of all runs, after the recipe's.
    """
    for number, (recipe, recipe_flags) in enumerate(RECIPES.items(), 1):
        print(f"[{number}/{len(RECIPES)}] {TITLES[recipe]}", flush=True)
        benchmark_runner.make_assets(prompts, workdir / recipe, arguments=[*recipe_flags, *extra])


def folder(workdir: AnyPath, recipe: str, prompt: str) -> AnyPath:
    """Returns the folder of an asset of the ablation."""
    return free_folder(workdir / recipe, prompt)


def table(scores: Scores) -> str:
    """Formats the means over the prompts in Markdown, a row per recipe."""
    lines = [
        "| recipe | R-precision, albedo | R-precision, shaded | kind, textureless | fronts of 8 |",
        "|---|---|---|---|---|",
    ]
    for recipe, by_prompt in scores.items():
        *shares, fronts = means(by_prompt.values())
        cells = [f"{100 * share:.1f} %" for share in shares if share is not None]
        cells.append("-" if fronts is None else f"{fronts:.2f}")
        lines.append(f"| {TITLES[recipe]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def comparison(views: Views) -> np.ndarray:
    """Draws the grid [H, W, 3] uint8: a column per recipe, a row per prompt.

    A cell has albedo above textureless views, from two sides.
    """
    recipes, prompts = list(views), list(next(iter(views.values())))
    size = 2 * CELL
    canvas = Image.new("RGB", (len(recipes) * size + MARGIN, len(prompts) * size + MARGIN), "white")
    for column, recipe in enumerate(recipes):
        at = MARGIN + column * size
        _write(canvas, TITLES.get(recipe, recipe), (at + size // 2, MARGIN // 2))
        for row, prompt in enumerate(prompts):
            shown = views[recipe][prompt]
            block = np.concatenate(
                [
                    np.concatenate(list(kind[list(SHOWN_AZIMUTHS)]), axis=1)
                    for kind in (shown.albedo, shown.textureless)
                ]
            )
            cell = Image.fromarray(to_uint8(block)).resize((size, size), Image.Resampling.BICUBIC)
            canvas.paste(cell, (at, MARGIN + row * size))
    # Prompts are written sideways, in the margin.
    canvas = canvas.rotate(-90, expand=True)
    for row, prompt in enumerate(prompts):
        from_right = MARGIN + row * size + size // 2
        _write(canvas, prompt, (canvas.width - from_right, MARGIN // 2))
    return np.asarray(canvas.rotate(90, expand=True))


def main() -> int:
    """Makes, scores and compares the assets; returns the exit code."""
    workdir, given = as_path(flags.FLAGS.workdir, "workdir"), flags.FLAGS.prompt
    of_objectives = flags.FLAGS.what == "objectives"
    prompts = given or default_prompts(6 if of_objectives else 4)
    for prompt in prompts:
        check_text("--prompt", prompt)
        prompt_pair(prompt)  # raises where the judge does not know it
    extra = benchmark_runner.check_run_flags(flags.FLAGS.run_flags, prompts, [0])
    cli.use_platform(flags.FLAGS.platform)
    cli.use_compilation_cache("auto")
    if of_objectives:
        compare_objectives(workdir, prompts, objective_names(flags.FLAGS.objectives), extra)
    else:
        compare_recipes(workdir, prompts, extra)
    return 0


def compare_recipes(workdir: AnyPath, prompts: Sequence[str], extra: Sequence[str]) -> None:
    """Makes the paper's ablation in `workdir`; `extra` are further flags of all runs."""
    make_assets(workdir, prompts, extra)
    judge = toybox_judge()
    views = {
        r: {p: views_of_run(open_run(folder(workdir, r, p))) for p in prompts} for r in RECIPES
    }
    scores = {
        recipe: {p: score_views(judge, p, shown) for p, shown in by_prompt.items()}
        for recipe, by_prompt in views.items()
    }
    write_png(workdir / "ablation.png", comparison(views))
    (workdir / "ablation.md").write_text(table(scores))
    numbers = {r: {p: named(judge, score) for p, score in s.items()} for r, s in scores.items()}
    (workdir / "ablation.json").write_text(json.dumps(numbers, indent=2) + "\n")
    print(table(scores))
    print(f"ablation.png, ablation.md, ablation.json are in {absolute(workdir)}")


def objective_names(names: Sequence[str]) -> list[str]:
    """Returns the objectives to compare, the reference first.

    Raises:
      UserError: there is none of a name.
    """
    for name in names:
        if name not in objectives.CANDIDATES:
            known = ", ".join(objectives.CANDIDATES)
            raise UserError(f"--objectives={name:.80} is none; there are {known}.")
    return list(dict.fromkeys([objectives.REFERENCE, *names]))


def compare_objectives(
    workdir: AnyPath, prompts: Sequence[str], names: Sequence[str], extra: Sequence[str]
) -> None:
    """Compares objectives in `workdir`; `extra` are further flags of all runs."""
    others = [p for p in default_prompts(len(prompts) + 2) if p not in prompts][:2]
    judge = toybox_judge()
    result = objectives.compare(workdir, prompts, others, names, judge, extra)
    samples = objectives.prior_chroma(prompts)
    text = "\n".join(
        f"{title}:\n\n{objectives.table(result.measured[kind], samples)}"
        for kind, title in objectives.KINDS.items()
    )
    for kind, shown in result.views.items():
        write_png(workdir / f"{kind}.png", comparison(shown))
    (workdir / "objectives.md").write_text(text)
    numbers = objectives.as_json(judge, result) | {"samples_chroma": samples}
    (workdir / "objectives.json").write_text(json.dumps(numbers, indent=2) + "\n")
    print(text)
    print(
        "objectives.md, objectives.json, equal_steps.png, equal_time.png and search/ are in"
        f" {absolute(workdir)}"
    )


def _write(canvas: Image.Image, text: str, center: tuple[int, int]) -> None:
    font = ImageFont.load_default(size=16)
    ImageDraw.Draw(canvas).text(center, text, "black", font, anchor="mm")


if __name__ == "__main__":
    flags.DEFINE_enum("what", "recipe", ["recipe", "objectives"], "what to compare")
    flags.DEFINE_list("objectives", list(objectives.COMPARED), "which --what=objectives compares")
    flags.DEFINE_string("run_flags", "", "further flags of all runs, quoted as for a shell")
    flags.DEFINE_string("workdir", "workdir/ablation", "where the assets and the results go")
    define_flags(("platform",))
    flags.DEFINE_multi_string("prompt", None, "what to make; may be given several times")
    cli.run(main)
