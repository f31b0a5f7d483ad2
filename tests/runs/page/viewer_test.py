"""The page in headless Chromium: the mesh is shown and turns, without network requests."""

import io

import numpy as np
import pytest
from PIL import Image

from dreamfusion_jax.mesh import formats
from dreamfusion_jax.runs.page import build
from tests.browser import opened
from tests.config.flags_test import parse
from tests.mesh.conftest import surface, textured  # noqa: F401, fixtures

CONFIG = parse("--prompt=a ball")
METRICS = [{"step": step, "opacity_mean": step / 40} for step in (10, 20, 40)]


@pytest.fixture
def workdir(tmp_path, textured):  # noqa: F811
    """One with a mesh of many colors and a black poster."""
    (tmp_path / "mesh.glb").write_bytes(formats.glb_bytes(textured))
    black = formats.png_bytes(np.zeros((32, 32, 3), np.uint8))
    (tmp_path / "poster.png").write_bytes(black)
    return tmp_path


def address(workdir):
    text = build.page(workdir, CONFIG, build.FINISHED, 1000, METRICS)
    (workdir / "index.html").write_text(text, encoding="utf-8")
    return (workdir / "index.html").as_uri()


def screenshot(locator):
    """A part of the page as it is shown, [H, W, 3] int, without the edge, where a focus shows."""
    image = Image.open(io.BytesIO(locator.screenshot())).convert("RGB")
    return np.asarray(image).astype(int)[8:-8, 8:-8]


def covered(image):
    """Share of a picture whose pixels are as colored as the mesh, and not like the stage."""
    return np.mean(np.ptp(image, axis=-1) > 20)


def test_the_mesh_shows_turns_and_returns(workdir):
    with opened(address(workdir), viewport={"width": 900, "height": 700}) as (page, events):
        page.get_by_text("The mesh: 1,280 triangles").wait_for()
        canvas = page.locator("canvas")
        before = screenshot(canvas)
        assert 0.1 < covered(before) < 0.7, "a ball that fits the stage"
        box = canvas.bounding_box()
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(*middle)
        page.mouse.down()
        page.mouse.move(middle[0] + 150, middle[1], steps=3)
        page.mouse.up()
        turned = screenshot(canvas)
        assert np.mean(np.abs(turned - before).max(axis=-1) > 20) > 0.1
        page.mouse.wheel(0, 300)
        page.wait_for_timeout(100)
        assert covered(screenshot(canvas)) < 0.8 * covered(turned), "further away"
        canvas.press("Home")
        page.wait_for_timeout(100)
        assert np.abs(screenshot(canvas) - before).max() <= 2
        assert page.locator(".chart svg").count() == 1
        assert events.complaints == [] and events.requests[1:] == []


def test_without_a_mesh_that_can_be_shown_the_poster_stays(workdir):
    (workdir / "mesh.glb").write_bytes(b"no mesh at all, but long enough")
    with opened(address(workdir)) as (page, events):
        page.get_by_text("the mesh cannot be shown here (no GLB)").wait_for()
        assert page.locator(".stage img").is_visible() and page.locator("canvas").is_hidden()
        assert events.complaints == []
