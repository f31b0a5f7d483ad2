import os
import signal
import subprocess
import sys
from pathlib import Path

import chex
import numpy as np
import pytest
import trimesh

import dreamfusion_jax
from dreamfusion_jax import Asset, UserError, text_to_3d, text_to_images
from dreamfusion_jax.rendering import images
from dreamfusion_jax.runs import loop, sampling
from dreamfusion_jax.runs.checkpoint import steps_done
from dreamfusion_jax.runs.outputs import outputs_made

TINY = {
    "steps": 2,
    "width": 8,
    "depth": 1,
    "proposal_samples": 4,
    "fine_samples": 4,
    "poster_size": 8,
    "sheet_size": 8,
    "preview_size": 8,
    "turntable_size": 8,
    "turntable_frames": 3,
    "mesh_resolution": 12,
    "texture_size": 32,
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("api") / "run"


@pytest.fixture(scope="module")
def asset(tiny_prior, workdir) -> Asset:
    return text_to_3d("a red chair", tiny_prior, workdir=workdir, **TINY)


def test_importing_the_package_does_not_import_jax():
    look = "import sys, dreamfusion_jax as d; sys.exit('jax' in sys.modules or d.UserError is None)"
    subprocess.run([sys.executable, "-c", look], check=True)
    assert {"text_to_3d", "text_to_images", "Asset"} <= set(dir(dreamfusion_jax))
    with pytest.raises(AttributeError, match="no attribute 'text_to_4d'"):
        dreamfusion_jax.text_to_4d  # noqa: B018


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"widht": 8}, "There is no setting widht; did you mean width?"),
        ({"width": 8.5}, "width must be a whole number, not 8.5"),
        ({"width": True}, "width must be a whole number, not True"),
        ({"learning_rate": 10**400}, "learning_rate must be"),
        ({"fov_deg": (60, 30)}, "fov_deg must go from the lesser"),
        ({"fov_deg": "60,30"}, "fov_deg must be a range, not '60,30'"),
        ({"field": "cube"}, "field must be one of mip, grid, hash, image, not cube"),
        ({"preset": "mine"}, "preset must be one of toybox, paper, sd, not 'mine'"),
        ({"perp_neg": True}, "perp_neg needs view_words=paper"),
        ({"processes": 2}, "processes is of the command alone"),
        ({"platform": "tpu"}, "platform=tpu, but JAX runs on the cpu"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_a_bad_setting_is_a_value_error_that_names_the_keyword(settings, said, monkeypatch):
    monkeypatch.setattr(loop, "prepare", lambda *_: pytest.fail("told too late"))
    with pytest.raises(ValueError) as told:
        text_to_3d(**{"prompt": "a red chair", **settings})
    assert isinstance(told.value, UserError) and str(told.value).startswith(said)
    assert "--" not in str(told.value)


def test_settings_may_be_numpys_numbers_one_number_for_a_range_and_paths(asset, workdir):
    given = {"fov_deg": 50, "steps": np.int64(7), "learning_rate": 1, "workdir": workdir}
    config = dreamfusion_jax.api.configs.config_from_settings("paper", {"prompt": "x", **given})
    assert config.camera.fov_deg == (50.0, 50.0) and config.run.workdir == str(workdir)
    assert type(config.train.steps) is int and type(config.optimizer.learning_rate) is float
    assert config.scene.network == "residual", "the preset's"


def test_a_finished_run_is_read_and_one_of_another_prompt_compiles_nothing(
    asset, workdir, tiny_prior, monkeypatch
):
    assert asset.prompt == "a red chair" and asset.step == 2 and asset.workdir == workdir
    monkeypatch.setattr(loop, "prepare", lambda *_: pytest.fail("prepared twice"))
    again = text_to_3d("a red chair", tiny_prior, workdir=workdir, **TINY)
    chex.assert_trees_all_equal(again.saved.state, asset.saved.state)
    chex.assert_trees_all_equal(Asset.load(workdir).saved.state, asset.saved.state)
    other = text_to_3d("a blue cup", tiny_prior, **TINY)
    folder = other.workdir
    assert other.prompt == "a blue cup" and (folder / "metrics.jsonl").exists()
    del other, again
    assert not folder.exists(), "a temporary folder goes with its asset"


def test_the_same_pictures_and_mesh_as_the_program_leaves(asset, tmp_path):
    folder = asset.save(tmp_path / "chair")
    config = asset.saved.config
    assert outputs_made(folder, config) == steps_done(folder) == 2
    assert {"config.json", "previews", "metrics.jsonl"} <= {p.name for p in folder.iterdir()}
    chex.assert_trees_all_equal(Asset.load(folder).saved.state, asset.saved.state)

    frames = asset.turntable(size=8, frames=4)
    assert len(frames) == 4 and frames[0].dtype == np.uint8
    np.testing.assert_array_equal(frames[1], asset.render(90.0, size=8))
    poster = images.imageio.imread(folder / "poster.png")
    np.testing.assert_array_equal(asset.render(size=8), poster)
    dark = asset.render(size=8, show="albedo", background=(0, 0, 0), distance=100.0)
    assert (dark[0] == 0).all(), "far away there is only background"
    assert asset.render(90.0, size=8, show="opacity").max() > 0

    mesh, world = asset.mesh(), asset.mesh(up="z")
    stored = trimesh.load(folder / "mesh.glb", force="mesh")
    np.testing.assert_allclose(mesh.bounds, stored.bounds, atol=1e-6)
    np.testing.assert_allclose(mesh.vertices[:, [2, 0, 1]], world.vertices, atol=1e-12)
    assert mesh.visual.material.baseColorTexture.size == (32, 32)
    assert len(asset.mesh(mesh_faces=100).faces) <= 100 < len(mesh.faces)


def test_nothing_is_saved_to_a_folder_that_has_gone_further(asset, tmp_path):
    folder = asset.save(tmp_path / "chair")
    config = asset.saved.config
    older = asset.saved._replace(state=asset.saved.state._replace(step=np.int32(1)))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(UserError, match="already holds step 2, .* newer than step 1"):
        Asset(folder, older._replace(config=config)).save(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    "call",
    [
        lambda asset: asset.render(size=0),
        lambda asset: asset.render(show="shape"),
        lambda asset: asset.turntable(frames=1.5),
        lambda asset: asset.mesh(up="x"),
        lambda asset: asset.mesh(mesh_resolution=1),
    ],
)
def test_bad_arguments_of_an_asset_are_refused(asset, call):
    with pytest.raises(UserError, match="must be"):
        call(asset)


def test_ctrl_c_keeps_what_was_done_and_the_same_call_goes_on(
    tiny_prior, tmp_path, asset, monkeypatch
):
    def preview(*_):
        os.kill(os.getpid(), signal.SIGINT)
        return np.zeros((8, 32, 3), np.uint8)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "FIRST_PREVIEW_STEP", 1)
        patch.setattr(loop.images, "preview", preview)
        patch.setattr("tempfile.tempdir", str(tmp_path))
        with pytest.raises(KeyboardInterrupt, match="after step 1; it is saved") as stopped:
            text_to_3d("a red chair", tiny_prior, **TINY)
        with pytest.raises(UserError, match="no/such"):
            text_to_3d("a red chair", "no/such", **TINY)
    (folder,) = tmp_path.iterdir()  # of the other call there is nothing to keep
    assert f"workdir={str(folder)!r}" in str(stopped.value)
    assert Asset.load(folder).step == 1
    whole = text_to_3d("a red chair", tiny_prior, workdir=folder, **TINY)
    chex.assert_trees_all_equal(whole.saved.state, asset.saved.state)


def test_a_bad_number_of_samples_is_told_before_any_work(monkeypatch):
    monkeypatch.setattr(sampling, "open_prior", lambda _: pytest.fail("too late"))
    with pytest.raises(ValueError, match="samples must be a whole number from 1"):
        text_to_images("a cup", samples=0)
