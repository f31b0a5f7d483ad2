"""The whole command on small runs: what it makes, scores, writes and refuses."""

import json
from pathlib import Path

import imageio.v2 as imageio
import jax
import jax.numpy as jnp
import pytest
from absl import flags

from dreamfusion_jax import evaluate
from dreamfusion_jax.config import cli
from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.config.folder_names import slug
from dreamfusion_jax.config.prompts_file import read_prompts
from dreamfusion_jax.evaluation import benchmark_runner
from dreamfusion_jax.runs.checkpoint import Checkpoints
from dreamfusion_jax.runs.workdir import store_config
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.toybox import captions
from dreamfusion_jax.training.optimizer import make_optimizer
from dreamfusion_jax.training.state import build_scene, init_state
from tests.evaluation.conftest import clip_folder, clip_model  # noqa: F401 (fixtures)

TINY = "--steps=2 --field=grid --grid_resolution=5 --fine_samples=8"
COCO = """
# As in Dream Fields' list.
A blue bicycle parked by a metal gate.
a sign says "Walk & Don't Walk" | 50 %
a sign says "Walk & Don't Walk" | 50 %
"""


@pytest.fixture
def program(monkeypatch):
    """Runs the program in this process: arguments -> exit code."""
    monkeypatch.setattr(cli, "use_compilation_cache", lambda folder: None)

    def run(*arguments):
        values = flags.FlagValues()
        evaluate.define_flags(values)
        values(["evaluate", *arguments])
        monkeypatch.setattr(flags, "FLAGS", values)
        return evaluate.main()

    return run


def pretended_run(command):
    """Writes the work folders of runs that learned nothing."""
    values = flags.FlagValues()
    configs.define_flags(flag_values=values)
    flags.DEFINE_string("prompts_file", "", "", flag_values=values)
    configs.parse_flags(command[2:], values)
    for prompt in read_prompts(values.prompts_file):
        workdir = f"{values.workdir}/{slug(prompt)}"
        config = configs.config_from_flags(values, prompt=prompt, workdir=workdir)
        state = init_state(build_scene(config.scene), make_optimizer(config.optimizer, 2), 0)
        checkpoints = Checkpoints(Path(workdir), jax.devices()[:1])
        checkpoints.save(state._replace(step=jnp.int32(config.train.steps)))
        checkpoints.close()
        store_config(config)
        (Path(workdir) / "metrics.jsonl").write_text('{"step": 2, "seconds": 1.5}\n')
    return 0


def test_the_benchmark_makes_assets_and_reports_scores(
    program,
    clip_folder,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
):
    prompts, workdir = tmp_path / "coco.txt", tmp_path / "w"
    prompts.write_text(COCO)
    monkeypatch.setattr(benchmark_runner, "_run", pretended_run)
    for size in ("judges.CLIP_RENDER_SIZE", "gallery.SIZE"):
        monkeypatch.setattr(f"dreamfusion_jax.evaluation.{size}", 12)
    arguments = [
        *("--measure=benchmark", f"--prompts_file={prompts}", f"--workdir={workdir}", "--seeds=3"),
        *(f"--judge={clip_folder}", f"--run_flags={TINY}"),
    ]
    assert program(*arguments) == 0
    stdout = capsys.readouterr().out
    folders = sorted(path.parent.name for path in (workdir / "seed_3").glob("*/config.json"))
    assert folders == ["a-blue-bicycle-parked-by-a-metal-gate", "a-sign-says-walk-don-t-walk-50"]

    (result,) = workdir.glob("small-clip@*.json")
    numbers = json.loads(result.read_text())
    judge = numbers["judge"]["name"]
    assert [asset["seed"] for asset in numbers["assets"]] == [3, 3]
    assert numbers["run_flags"][0] == "--steps=2"
    assert numbers["settings_beside_the_defaults"]["steps"] == 2
    for kind in ("albedo", "shaded", "textureless"):
        name = f"r_precision/{kind}/2 prompts/{judge}"
        shares = [asset[name] for asset in numbers["assets"]]
        assert numbers["groups"]["all"]["mean"][name] == sum(shares) / 2
        assert name in stdout and all(8 * x in range(9) for x in shares)
    assert all(asset["seconds"] == 1.5 for asset in numbers["assets"])
    table = result.with_suffix(".md").read_text()
    assert 'a sign says "Walk & Don\'t Walk" \\| 50 %' in table
    assert imageio.imread(workdir / "gallery.png").shape[1] == 2 * (2 * 12 + 8)

    # The same runs, once more and by another judge.
    with pytest.raises(UserError, match="color and kind in the prompt 'A blue bicycle"):
        program("--measure=assets", f"--workdirs={workdir}/seed_3/*")
    image, file = tmp_path / "p.png", tmp_path / "n.json"
    pattern = f"--workdirs={workdir}/seed_3/a-blue*"
    more = (f"--json={file}", f"--pictures={image}", f"--judge={clip_folder}")
    assert program("--measure=assets", pattern, f"--prompts_file={prompts}", *more) == 0
    (asset,) = json.loads(file.read_text())["assets"]
    assert asset == numbers["assets"][0] and image.exists()
    prompts.write_text("a cup")
    with pytest.raises(UserError, match="--prompts_file=.* lacks 'A blue bicycle"):
        program("--measure=assets", pattern, f"--prompts_file={prompts}", *more)


def test_the_benchmarks_prompts_are_the_toyboxs_forty(program, tmp_path, monkeypatch):
    calls = []

    def make_assets(*arguments):
        calls.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark_runner, "make_assets", make_assets)
    with pytest.raises(KeyboardInterrupt):
        program("--measure=benchmark", f"--workdir={tmp_path}", "--run_flags=--steps=3")
    ((prompts, workdir, seed, arguments),) = calls
    assert prompts == captions.benchmark_prompts(count=40, held_out=12, per_kind=2)
    assert (workdir, seed, arguments) == (tmp_path, 0, ["--steps=3"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--measure=assets", "--workdirs=/no/such"], "--workdirs='/no/such' matches no folder"),
        (["--measure=judge", "--judge=x/y"], "--judge=x/y needs --measure=assets or benchmark"),
        (["--json=/no/such/file"], "--json=/no/such/file cannot be written"),
        (["--measure=benchmark", "--judge=no/such/judge"], "--judge=no/such/judge is not a dir"),
        (["--measure=benchmark", "--seeds=0,x"], "--seeds must be whole numbers"),
        (["--measure=benchmark", "--seeds=0,0"], "--seeds=0,0 must name each seed once"),
        (["--measure=benchmark", "--seeds="], "--seeds= must name each seed once"),
        (["--measure=benchmark", "--run_flags=--steps=0"], "--steps must be at least 1"),
        (["--measure=benchmark", "--prompts_file=/no/such"], "--prompts_file=/no/such cannot be"),
    ],
)
def test_bad_input_is_reported_before_any_work(arguments, message, program, monkeypatch):
    monkeypatch.setattr(
        benchmark_runner, "make_assets", lambda *_: pytest.fail("bad input was acted upon")
    )
    with pytest.raises(UserError, match=message):
        program(*arguments)


def test_unfinished_runs_are_skipped_and_named(tmp_path, capsys):
    run = tmp_path / "a"
    run.mkdir()
    (run / "config.json").write_text('{"train": {"prompt": "a red chair", "steps": 9}}')
    (tmp_path / "gallery.png").touch()
    with pytest.raises(UserError, match="matches no finished run"):
        evaluate.finished_runs(f"{tmp_path}/*")
    assert f"{run} is left out: 0 of 9 steps" in capsys.readouterr().err
