"""The studio as its user meets it: a prompt typed in a browser, a run, a mesh to take away."""

import contextlib
import importlib.util
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from dreamfusion_jax import studio
from dreamfusion_jax.runtime.errors import UserError
from tests.browser import opened

PROMPT = "a red <b>chair</b>"
FOLDER = "a-red-b-chair-b"
STEPS = 3000
# Flags before those of the form: a small scene, small outputs.
SMALL = (
    *("--width=8", "--depth=1", "--proposal_samples=0", "--fine_samples=4", "--half_size_steps=0"),
    *("--sheet_size=8", "--turntable_size=8", "--turntable_frames=3", "--poster_size=16"),
    *("--mesh_resolution=12", "--texture_size=64", "--preview_size=8", "--preview_every=50"),
    "--checkpoint_every=100",
)
PATIENCE_MS = 240_000

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("gradio"), reason="needs gradio")


@contextlib.contextmanager
def served(root, password=""):
    """The studio's address and its queue."""
    from dreamfusion_jax.webui import app, jobs

    root.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = jobs.Queue(root, (*jobs.COMMAND, *SMALL))
    with app.serving(app.Studio(root, queue), "127.0.0.1", port, password) as address:
        queue.start()
        try:
            yield address, queue
        finally:
            queue.close()


def await_status(page, state):
    page.locator("#status .state").get_by_text(state, exact=True).wait_for(timeout=PATIENCE_MS)


def faults(events):
    """What the console says, without Gradio's own notes: it tries WebGPU before WebGL."""
    return [text for text in events.complaints if not re.search("BJS|adapters|i18n", text)]


def error_below(page, name):
    """The sentence about a setting's value, which follows its field at once."""
    field = "xpath=ancestor-or-self::*[following-sibling::*[contains(@class, 'field-error')]][1]"
    below = "xpath=following-sibling::*[1][contains(@class, 'field-error')]"
    return page.locator(f"#setting-{name}").locator(field).locator(below)


def set_value(page, name, value):
    page.locator(f"#setting-{name}").locator("input, textarea").first.fill(str(value))


def test_a_prompt_becomes_a_mesh_in_the_browser(tiny_prior, tmp_path):
    pytest.importorskip("playwright.sync_api")
    with contextlib.ExitStack() as stack:
        address, queue = stack.enter_context(served(tmp_path / "root"))
        size = {"width": 1280, "height": 1000}
        page, events = stack.enter_context(opened(address, viewport=size))
        page.set_default_timeout(PATIENCE_MS)

        set_value(page, "prior", "/nowhere")
        page.get_by_label("Prompt").fill(PROMPT)
        page.locator("#start").click()
        error_below(page, "prior").get_by_text("--prior=/nowhere is not a directory").wait_for()
        assert not queue.waiting and not queue.current

        set_value(page, "prior", tiny_prior)
        page.get_by_role("button", name="All settings").click()
        page.get_by_role("button", name="Training cameras").click()
        set_value(page, "fov_deg", "40,x")
        page.get_by_role("button", name="All settings").click()
        page.locator("#start").click()
        sentence = "flag --fov_deg=40,x: could not convert string to float: 'x'"
        error_below(page, "fov_deg").get_by_text(sentence).wait_for()
        page.locator("#message").get_by_text(sentence).wait_for()
        assert page.locator(".block.field-error").count() == 1, "the other has gone"
        set_value(page, "fov_deg", "40,55")

        set_value(page, "steps", STEPS)
        page.locator("#start").click()
        await_status(page, "running")
        page.locator("#status").get_by_text(PROMPT).wait_for()
        page.locator("#preview img").wait_for()

        tab = page.context.browser.new_page()
        tab.goto(address)
        await_status(tab, "running")
        tab.locator("#stop").click()
        await_status(page, "stopped")
        page.get_by_text("Mesh after").wait_for()
        saved = int(
            max(path.name for path in (tmp_path / "root" / FOLDER / "checkpoints").iterdir())
        )
        assert 0 < saved < STEPS
        tab.close()

        assert faults(events) == []
        page.reload()  # which cuts off what the page waits for, and Gradio complains
        events.complaints.clear()
        await_status(page, "stopped")
        page.locator("#continue").click()
        await_status(page, "finished")
        page.locator("#gallery img").wait_for()
        page.locator("#mesh canvas").wait_for()
        page.wait_for_timeout(3000)
        mesh = Image.open(io.BytesIO(page.locator("#mesh canvas").screenshot())).convert("RGB")
        assert np.asarray(mesh).reshape(-1, 3).std(axis=0).max() > 2.0, "the mesh is not blank"
        with page.expect_download() as download:
            page.locator("#downloads a").get_by_text("KB", exact=False).first.click()
        assert trimesh.load(download.value.path(), file_type="glb", force="mesh").faces.size > 0

        hosts = {urllib.parse.urlsplit(url).netloc for url in events.requests if "http" in url[:5]}
        assert hosts == {urllib.parse.urlsplit(address).netloc}
        assert faults(events) == []
        assert "Continuing in" in "\n".join(queue.log_tail(FOLDER))


def test_only_the_studio_s_copies_are_served_and_only_to_its_user(tmp_path):
    secret = tmp_path / "root" / "secret"
    with served(tmp_path / "root", "word") as (address, _):
        secret.write_text("secret")
        for path in ("config", f"gradio_api/file={secret}", "gradio_api/queue/status"):
            with pytest.raises(urllib.error.HTTPError, match="401|403"):
                get(address + path)
    with served(tmp_path / "root") as (address, _):
        for path in (secret, f"{secret.parent}/x/../secret", "/etc/hosts", "pyproject.toml"):
            with pytest.raises(urllib.error.HTTPError, match="40[0-9]"):
                get(f"{address}gradio_api/file={path}")


def get(url):
    return urllib.request.urlopen(url, timeout=60)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org"])
def test_other_machines_need_a_password(host):
    with pytest.raises(UserError, match="give a --password"):
        studio.require_password(host, "")
    studio.require_password(host, "word")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_needs_none(host):
    studio.require_password(host, "")


def test_a_root_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    for name in (str(tmp_path / "file" / "root"), "gs://bucket/root"):
        with pytest.raises(UserError, match=f"--root={name}"):
            studio.make_root(name)


def test_the_space_serves_from_its_folder_alone(tmp_path):
    package = Path(studio.__file__).parents[1]
    shutil.copytree(package / "experiments" / "space", tmp_path / "space")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(package), "PORT": port, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-u", "app.py"]
    kwargs = {"cwd": tmp_path / "space", "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    refused = subprocess.run(command, env=environment, **kwargs)
    assert refused.returncode == 2 and b"give a --password" in refused.stdout
    environment["STUDIO_PASSWORD"] = "word"
    with subprocess.Popen(command, env=environment, **kwargs) as server:
        try:
            assert b"The studio is at" in server.stdout.readline()
            with pytest.raises(urllib.error.HTTPError, match="401"):
                get(f"http://127.0.0.1:{port}/config")
            server.terminate()
            assert b"The studio is closed." in server.stdout.read()
        finally:
            server.kill()
    assert (tmp_path / "space" / "assets").is_dir()
