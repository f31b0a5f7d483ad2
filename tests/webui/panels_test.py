"""What the studio says of a run: its state, and how far it is."""

import pytest

from dreamfusion_jax.config.flags import config_from_settings
from dreamfusion_jax.webui import library, panels
from dreamfusion_jax.webui.jobs import Queue

CONFIG = config_from_settings("toybox", {"prompt": "a cup", "steps": 200, "workdir": "x"})


@pytest.mark.parametrize(
    ("lines", "fraction"),
    [
        ([], 0.25),
        (["optimizing: step 100/200  opacity 0.4  3 s left"], 0.5),
        (["optimizing: step 200/200  took 5 s", "rendering: tile 3/264  9 s left"], 1.0),
        (["rendering: tile 3/264  9 s left"], 0.25),
    ],
)
def test_progress_counts_steps_and_not_tiles(lines, fraction, tmp_path, monkeypatch):
    queue = Queue(tmp_path)
    monkeypatch.setattr(queue, "_current", "a")
    monkeypatch.setattr(queue, "log_tail", lambda name: lines)
    asset = library.StoredAsset("a", CONFIG, library.RUNNING, 50)
    now = panels.status(queue, "a", asset)
    assert (now.state, now.fraction) == (library.RUNNING, fraction)
    assert panels.status(queue, "a", None).state == panels.STARTING


def test_a_failure_is_told_of_every_run_but_a_finished_one(tmp_path, monkeypatch):
    queue = Queue(tmp_path)
    monkeypatch.setattr(queue, "log_tail", lambda name: ["Error: the disk is full."])
    for state in (library.STOPPED, library.FINISHED):
        now = panels.status(queue, "a", library.StoredAsset("a", CONFIG, state, 50))
        assert now.state == (panels.FAILED if state == library.STOPPED else state)
    assert panels.status(queue, "a", None).detail == "the disk is full."
    assert panels.status(queue, "", None).state == panels.MISSING
