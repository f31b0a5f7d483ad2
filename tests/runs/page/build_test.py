import base64
import contextlib
import dataclasses
import hashlib
import html
import json
import re

import numpy as np
import pytest

from dreamfusion_jax.config import reproduce
from dreamfusion_jax.config.flags import SECTIONS
from dreamfusion_jax.mesh.formats import png_bytes
from dreamfusion_jax.runs.page import build, media
from tests.config.flags_test import parse


def page(workdir, state=build.FINISHED, step=1000, lines=(), arguments=("--prompt=a mug",)):
    return build.page(workdir, parse(*arguments), state, step, list(lines))


def write_image(path, gray=0):
    path.write_bytes(png_bytes(np.full((4, 6, 3), gray, np.uint8)))


def test_words_of_the_user_are_words_in_the_page(tmp_path):
    prompt = "</title><script>alert('1')</script> & \"more\""
    text = page(tmp_path, arguments=[f"--prompt={prompt}"])
    assert "<script>alert" not in text
    assert f"<h1>{html.escape(prompt)}</h1>" in text.replace("&#34;", "&quot;").replace(
        "&#39;", "&#x27;"
    )


def test_the_content_policy_allows_one_script_and_no_requests(tmp_path):
    text = page(tmp_path)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none';")
    for tag, source in (("script", "script-src"), ("style", "style-src")):
        body = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(body) == 1
        digest = base64.b64encode(hashlib.sha256(body[0].encode()).digest()).decode()
        assert f"{source} 'sha256-{digest}'" in html.unescape(policy)
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]*//', text)


@pytest.mark.parametrize(
    "state, step, expected",
    [
        (build.RUNNING, 20, "Running, step 20 of 1,000"),
        (build.STOPPED, 30, "Stopped after step 30 of 1,000"),
        (build.FINISHED, 1000, "Finished, 1,000 steps"),
    ],
)
def test_only_a_page_of_a_run_in_progress_renews_itself(tmp_path, state, step, expected):
    write_image(tmp_path / "preview.png")
    write_image(tmp_path / "contact_sheet.png", 9)
    text = page(tmp_path, state, step)
    assert expected in text
    assert ('http-equiv="refresh"' in text) == (state == build.RUNNING)
    embedded = media.embed(tmp_path, ["preview.png", "contact_sheet.png"])[0]
    assert (embedded["preview.png"].uri in text) == (state != build.FINISHED)
    assert (embedded["contact_sheet.png"].uri in text) == (state == build.FINISHED)


def test_every_setting_is_told_once_and_the_command_is(tmp_path):
    arguments = ["--prompt=a mug", "--steps=77", "--distance=2,3"]
    changed, unchanged = build.settings(parse(*arguments))
    assert {row.name for row in changed} == {"prompt", "steps", "distance", "workdir"}
    names = [field.name for kind in SECTIONS.values() for field in dataclasses.fields(kind)]
    assert sorted(row.name for row in changed + unchanged) == sorted(names)
    text = html.unescape(page(tmp_path, arguments=arguments))
    assert reproduce.shell_command(parse(*arguments)) in text


def test_time_and_devices_are_told(tmp_path):
    (tmp_path / "machine.json").write_text(json.dumps({"device_kind": "TPU v9", "devices": 4}))
    lines = [{"step": 1, "seconds": 5400.0, "device_seconds": 21600.0}]
    text = page(tmp_path, lines=lines)
    for expected in ("1 h 30 min", "4 × TPU v9", "<dd>6</dd>"):
        assert expected in text
    (tmp_path / "machine.json").write_text("{")
    assert "<dt>Devices</dt>" not in page(tmp_path), "a record cut short"


def test_what_finds_no_room_is_left_beside_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(media, "MAX_BYTES", 1000)
    (tmp_path / "turntable.mp4").write_bytes(b"0" * 1001)
    write_image(tmp_path / "poster.png")
    text = page(tmp_path)
    assert "<video" not in text and 'alt="a mug, rendered' in text
    assert text.count("too large to be shown here") == 1


def test_a_page_is_written_despite_a_damaged_image(tmp_path):
    (tmp_path / "poster.png").write_bytes(b"no picture")
    assert "a mug, rendered" in page(tmp_path)


def test_a_page_made_again_tells_how_far_the_run_came(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 20, "opacity_mean": 0.5}\n{"step": 40, "opacity_mean": 0.6}\n{"step'
    )
    config = parse("--prompt=a mug", "--steps=40")
    build.rewrite_page(tmp_path, config, 20)
    assert "Stopped after step 20 of 40" in (tmp_path / build.FILE).read_text()
    build.rewrite_page(tmp_path, config, 40)
    text = (tmp_path / build.FILE).read_text()
    assert "Finished, 40 steps" in text and "opacity_mean: from 0.5 to 0.6" in text


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_no_page_says_running_after_the_end(failures, tmp_path, monkeypatch):
    config = parse("--prompt=a mug", "--steps=40")
    build.write_page(tmp_path, config, build.RUNNING, 10)
    assert build.says_running(tmp_path)
    write, left = build.atomic_write, [OSError("the disk is full")] * failures

    def atomic_write(*arguments):
        if left:
            raise left.pop()
        write(*arguments)

    monkeypatch.setattr(build, "atomic_write", atomic_write)
    with contextlib.suppress(OSError):
        build.close_page(tmp_path, config, 20, is_done=False)
    assert not build.says_running(tmp_path)
    if failures < 2:  # The old page made room for the new one.
        assert "Stopped after step 20 of 40" in (tmp_path / build.FILE).read_text()


def test_a_page_that_is_true_already_is_left_alone(tmp_path):
    config = parse("--prompt=a mug", "--steps=40")
    build.write_page(tmp_path, config, build.FINISHED, 40)
    before = (tmp_path / build.FILE).stat().st_mtime_ns
    build.close_page(tmp_path, config, 40, is_done=True)
    assert (tmp_path / build.FILE).stat().st_mtime_ns == before
