"""How objectives are compared: settings are searched once, times are equal, tables tell errors."""

import json
from pathlib import Path

import numpy as np
import pytest

from dreamfusion_jax.evaluation import objectives
from dreamfusion_jax.evaluation.chroma import chroma, foreground, mean_chroma
from dreamfusion_jax.evaluation.objectives import Measured
from dreamfusion_jax.evaluation.score import Score
from tests.config.flags_test import parse


@pytest.mark.parametrize("name", objectives.CANDIDATES)
def test_every_candidate_is_a_run_of_its_objective(name):
    candidates = objectives.CANDIDATES[name]
    configs = [parse("--prompt=x", f"--objective={name}", *flags) for flags in candidates]
    assert all(config.distillation.objective == name for config in configs)
    assert len({str(config) for config in configs}) == len(candidates)


def test_the_best_settings_are_searched_once(tmp_path, monkeypatch):
    made = []

    def make_assets(prompts, workdir, arguments):
        made.append((Path(workdir).relative_to(tmp_path).as_posix(), arguments))
        Path(workdir).mkdir(parents=True)
        return [Path(workdir) / p for p in prompts]

    def score(judge, prompt, folder):
        best = folder.parent.name == "1"
        return Score(0.5 + 0.25 * best, 0.0, 0.5, None), None

    monkeypatch.setattr(objectives.benchmark_runner, "make_assets", make_assets)
    monkeypatch.setattr(objectives, "_score", score)
    for _ in range(2):
        found = objectives.settings_of(tmp_path, "nfsd", ["p", "q"], None, ["--steps=3"])
        assert found == ["--objective=nfsd", objectives.CANDIDATES["nfsd"][1][0]]
    assert [folder for folder, _ in made] == [f"search/nfsd/{i}" for i in range(3)]
    assert made[0][1] == ["--objective=nfsd", "--guidance_scale=3", "--steps=3"]
    written = json.loads((tmp_path / "search" / "nfsd.json").read_text())
    assert written["prompts"] == ["p", "q"] and written["tried"][1]["albedo"] == 0.75


def test_as_much_time_as_the_reference_is_decided_once(tmp_path):
    measured = {
        "sds": Measured({}, {}, 1000, 0.1, 1e9),
        "sdi": Measured({}, {}, 1000, 0.5, 1e9),
    }
    assert objectives.steps_for_time(tmp_path, "sdi", measured) == 200
    slower = {**measured, "sdi": measured["sdi"]._replace(seconds_per_step=0.9)}
    assert objectives.steps_for_time(tmp_path, "sdi", slower) == 200


def test_a_step_s_time_is_without_what_is_compiled_or_drawn():
    times = {20: 50.0, 40: 54.0, 60: 58.0, 80: 90.0, 90: 92.0}  # a preview after step 60
    lines = [{"step": step, "seconds": seconds} for step, seconds in times.items()]
    assert objectives.seconds_per_step(lines) == pytest.approx(0.2)
    assert objectives.seconds_per_step(lines[:1]) == 2.5


def test_the_table_has_means_and_standard_errors_over_prompts():
    scores = {"p": Score(0.5, 0.0, 1.0, 1), "q": Score(1.0, 0.0, 0.5, None)}
    row = Measured(scores, {"p": 30.0, "q": 20.0}, 1000, 0.25, 2.5e9)
    line = objectives.table({"sds": row}, {"p": 10.0, "q": 20.0}).splitlines()[-1]
    assert (
        line == "| sds | 1,000 | 75.0 ± 25.0 % | 75.0 ± 25.0 % | 1.00 | 2.00 ± 1.00 | 0.25 | 2.50 |"
    )


def test_chroma_is_cielab_s():
    """Of red, blue and gray; values of the CIE's formulas, as published for sRGB."""
    colors = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.4, 0.4, 0.4]])
    np.testing.assert_allclose(chroma(colors), [104.55, 133.81, 0.0], atol=0.1)


def test_only_what_differs_from_the_border_has_a_chroma():
    image = np.full((8, 8, 3), 0.8)
    image[2:4, 3:6] = (1.0, 0.0, 0.0)
    assert foreground(image).sum() == 6
    nothing = np.tile([0.0, 0.0, 1.0], (8, 8, 1))
    np.testing.assert_allclose(mean_chroma(np.stack([image, nothing])), 104.55, atol=0.1)
    assert np.isnan(mean_chroma(nothing[None]))
