"""The page in headless Chromium: the mesh is shown and turns, without network requests."""

import io
import re
import time

import numpy as np
import pytest
from PIL import Image

from dreamfusion_jax.mesh import axis_charts, formats, texture
from dreamfusion_jax.runs.page import build
from tests.browser import opened
from tests.config.flags_test import parse
from tests.mesh.conftest import surface, textured  # noqa: F401, fixtures

CONFIG = parse("--prompt=a ball")
METRICS = [{"step": step, "opacity_mean": step / 40} for step in (10, 20, 40)]


@pytest.fixture(scope="session")
def unwrap():
    return axis_charts.unwrap


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


def test_a_normal_map_shades_the_mesh(tmp_path, textured):  # noqa: F811
    """All normals tilted by 60 degrees along u: in the middle half of the diffuse light is gone."""
    turned = texture.add_normals(textured, np.zeros_like)
    tilted = np.array([3**0.5 / 2, 0.0, 0.5])
    color = np.round(127.5 + 127.5 * tilted).astype(np.uint8)
    image = np.broadcast_to(color, turned.normal_map.image.shape)
    images = []
    for name, mesh in (
        ("own", turned),
        ("tilted", turned._replace(normal_map=turned.normal_map._replace(image=image))),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mesh.glb").write_bytes(formats.glb_bytes(mesh))
        (tmp_path / name / "poster.png").write_bytes(
            formats.png_bytes(np.zeros((32, 32, 3), np.uint8))
        )
        with opened(address(tmp_path / name)) as (page, events):
            page.get_by_text("The mesh: 1,280 triangles").wait_for()
            page.wait_for_timeout(100)
            images.append(screenshot(page.locator("canvas")))
            assert events.complaints == []
    side = len(images[0]) // 2, images[0].shape[1] // 2
    middle = [
        image[side[0] - 9 : side[0] + 9, side[1] - 9 : side[1] + 9].mean() for image in images
    ]
    np.testing.assert_allclose(middle[1] / middle[0], 0.6 + 0.4 * 0.5, atol=0.06)


def test_without_a_mesh_that_can_be_shown_the_poster_stays(workdir):
    (workdir / "mesh.glb").write_bytes(b"no mesh at all, but long enough")
    with opened(address(workdir)) as (page, events):
        page.get_by_text("the mesh cannot be shown here (no GLB)").wait_for()
        assert page.locator(".stage img").is_visible() and page.locator("canvas").is_hidden()
        assert events.complaints == []


def test_a_page_of_a_killed_run_says_that_it_got_no_news(tmp_path):
    """It was last written when its run had 10 steps, at 0.1 s each."""
    lines = [{"step": 5, "seconds": 0.5}, {"step": 10, "seconds": 1.0}]
    text = build.page(tmp_path, CONFIG, build.RUNNING, 10, lines)
    patience = build.patience(CONFIG, lines)
    assert patience == 120.0 + 3 * CONFIG.run.preview_every * 0.1
    written = re.search('data-written="([0-9]+)"', text)[1]
    for age, expected in ((0.5 * patience, "Running, step 10 of 1,000"), (2 * patience, "5 min.")):
        shown = text.replace(f'"{written}"', f'"{int(time.time() - age)}"')
        (tmp_path / "index.html").write_text(shown, encoding="utf-8")
        with opened((tmp_path / "index.html").as_uri()) as (page, events):
            page.get_by_text(expected).wait_for()
            assert page.locator(".state").get_attribute("class") == (
                "state running" if expected.startswith("Running") else "state stopped"
            )
            assert events.complaints == []
