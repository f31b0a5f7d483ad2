import concurrent.futures
import contextlib
import functools
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
import trimesh
from safetensors.numpy import save_file

import dreamfusion_jax
from dreamfusion_jax import Asset, UserError, text_to_3d, text_to_images
from dreamfusion_jax.diffusion.loading.names import params_to_torch
from dreamfusion_jax.rendering import images
from dreamfusion_jax.runs import loop, open_prior, prior_cache, sampling
from dreamfusion_jax.runs.checkpoint import steps_done
from dreamfusion_jax.runs.outputs import missing_outputs

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
    code = "import sys, dreamfusion_jax as d; sys.exit('jax' in sys.modules or d.UserError is None)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {"text_to_3d", "text_to_images", "Asset"} <= set(dir(dreamfusion_jax))
    with pytest.raises(AttributeError, match="no attribute 'text_to_4d'"):
        dreamfusion_jax.text_to_4d  # noqa: B018


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"widht": 8}, "There is no setting widht; did you mean width?"),
        ({"width": 8.5}, "width must be a whole number, not 8.5"),
        ({"width": True}, "width must be a whole number, not True"),
        ({"learning_rate": 10**400}, "learning_rate must be"),
        ({"fov_deg": (60, 30)}, "fov_deg must go from the lesser"),
        ({"fov_deg": "60,30"}, "fov_deg must be a range, not '60,30'"),
        ({"field": "cube"}, "field must be one of mip, sdf, grid, hash, image, not cube"),
        ({"preset": "mine"}, "preset must be one of toybox, if, mvdream, paper, refine, sd,"),
        ({"perp_neg": True}, "perp_neg needs view_words=paper"),
        ({"processes": 2}, "processes is for jobs of several processes"),
        ({"platform": "tpu"}, "platform=tpu, but JAX runs on the cpu"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_a_bad_setting_is_a_value_error_that_names_the_keyword(settings, message, monkeypatch):
    monkeypatch.setattr(loop, "prepare", lambda *_: pytest.fail("too late"))
    with pytest.raises(ValueError) as error:
        text_to_3d(**{"prompt": "a red chair", **settings})
    assert isinstance(error.value, UserError) and str(error.value).startswith(message)
    assert "--" not in str(error.value)


def test_settings_may_be_numpy_numbers_single_ends_and_paths(asset, workdir):
    given = {"fov_deg": 50, "steps": np.int64(7), "learning_rate": 1, "workdir": workdir}
    config = dreamfusion_jax.api.configs.config_from_settings("paper", {"prompt": "x", **given})
    assert config.camera.fov_deg == (50.0, 50.0) and config.run.workdir == str(workdir)
    assert type(config.train.steps) is int and type(config.optimizer.learning_rate) is float
    assert config.scene.network == "residual", "the preset's"


def test_finished_runs_are_read_and_new_prompts_compile_nothing(
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
    assert not missing_outputs(folder, config, 2) and steps_done(folder) == 2
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


def test_a_finished_run_that_may_not_be_written_to_is_read(asset, workdir, tiny_prior, monkeypatch):
    for name in ("mkdir", "write_bytes", "write_text", "unlink", "touch"):
        monkeypatch.setattr(Path, name, lambda path, *_, **__: pytest.fail(f"writes {path}"))
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    again = text_to_3d("a red chair", tiny_prior, workdir=workdir, **TINY)
    chex.assert_trees_all_equal(again.saved.state, asset.saved.state)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before
    with pytest.raises(UserError, match="other settings .width=8, not 9.; give those"):
        text_to_3d("a red chair", tiny_prior, workdir=workdir, **{**TINY, "width": 9})


def test_a_relative_folder_is_found_after_a_change_of_folder(
    asset, workdir, tiny_prior, tmp_path, monkeypatch
):
    shutil.copytree(workdir, tmp_path / "chair")
    monkeypatch.chdir(tmp_path)
    made = text_to_3d("a red chair", tiny_prior, workdir="chair", **TINY)
    for found in (made, Asset.load("chair")):
        assert found.workdir == tmp_path / "chair"
        assert found.saved.config.run.workdir in (str(workdir), str(tmp_path / "chair"))


def test_calls_from_threads_queue(tiny_prior, tmp_path, monkeypatch):
    inside, most = [], []
    optimized = dreamfusion_jax.api._optimized

    def counted(*args):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.2)
        inside.pop()
        return optimized(*args)

    monkeypatch.setattr(dreamfusion_jax.api, "_optimized", counted)
    call = functools.partial(
        text_to_3d, "a red chair", tiny_prior, workdir=tmp_path / "run", **TINY
    )
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: call(), range(2))
    assert max(most) == 1
    chex.assert_trees_all_equal(one.saved.state, other.saved.state)


def test_nothing_is_saved_to_a_folder_that_has_gone_further(asset, tmp_path):
    folder = asset.save(tmp_path / "chair")
    config = asset.saved.config
    older = asset.saved._replace(state=asset.saved.state._replace(step=np.int32(1)))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(UserError, match="already holds step 2, .* newer than step 1"):
        Asset(folder, older._replace(config=config)).save(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.slow
def test_both_stages_are_one_asset(tiny_prior, tmp_path, monkeypatch):
    """The prior is read once; what is saved elsewhere shows before and after, too."""
    small = {"surface_points": 16, "trace_steps": 8, "mesh_resolution": 24}
    given = {**TINY, **small, "field": "sdf", "second_stage_steps": 3, "workdir": tmp_path / "run"}
    loads: list[int] = []
    read_prior = loop.read_prior
    monkeypatch.setattr(loop, "read_prior", lambda *args: loads.append(1) or read_prior(*args))
    asset = text_to_3d("a red chair", tiny_prior, **given)
    assert asset.step == 3 and asset.saved.config.scene.render == "surface" and len(loads) <= 1
    assert Asset.load(tmp_path / "run" / "first_stage").step == 2
    again = text_to_3d("a red chair", tiny_prior, **given)
    chex.assert_trees_all_equal(again.saved.state, asset.saved.state)
    page = (asset.save(tmp_path / "saved") / "index.html").read_text()
    assert "Finished, 5 steps" in page and "The mesh before" in page


@pytest.mark.parametrize(
    "call",
    [
        lambda asset: asset.render(size=0),
        lambda asset: asset.render(show="shape"),
        lambda asset: asset.turntable(frames=1.5),
        lambda asset: asset.mesh(up="x"),
        lambda asset: asset.mesh(mesh_resolution=1),
        lambda asset: asset.render(background="white"),
        lambda asset: asset.render(background=(1, 1, 2)),
        lambda asset: asset.render(background=1.0),
        lambda asset: asset.render(math.nan),
        lambda asset: asset.render(distance=0.0),
        lambda asset: asset.render(fov_deg=math.inf),
        lambda asset: asset.render("front"),
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


def test_dashes_in_a_folder_name_stay_in_the_message(tmp_path):
    folder = tmp_path / "chair--v2 --steps1"
    with pytest.raises(UserError, match="; workdir must name the folder of a run") as error:
        Asset.load(folder)
    assert str(folder / "config.json") in str(error.value)


def test_text_to_images_refuses_bad_arguments_before_any_work(monkeypatch):
    monkeypatch.setattr(sampling, "open_prior", lambda _: pytest.fail("too late"))
    with pytest.raises(ValueError, match="samples must be a whole number from 1"):
        text_to_images("a cup", samples=0)
    with pytest.raises(ValueError, match="^dtype must be one of auto, float32"):
        text_to_images("a cup", dtype="int8")
    with pytest.raises(ValueError, match="^variant needs another prior than the toybox"):
        text_to_images("a cup", variant="fp16")
    with pytest.raises(ValueError, match="^width is no setting of a prior; text_to_images takes"):
        text_to_images("a cup", width=8)


def test_text_to_images_loads_and_compiles_once_for_each_prior(tiny_prior, monkeypatch):
    """The prior is loaded again where the number format differs, and the old one dropped before."""
    loaded = []

    def load(*args, load_prior=open_prior.load_prior):
        assert all(leaf() is None for leaf in loaded), "two priors in memory"
        prior, params = load_prior(*args)
        loaded.append(weakref.ref(jax.tree.leaves(params)[0]))
        return prior, params

    monkeypatch.setattr(open_prior, "load_prior", load)
    prior_cache._run.clear(), prior_cache._sampler.clear()
    few = {"samples": 2, "steps": 2}
    first = text_to_images("a cup", tiny_prior, **few)
    assert first.shape == (2, 8, 8, 3) and first.dtype == np.uint8
    with jax.log_compiles(), warnings_of_compilation() as compiled:
        again = text_to_images("a cup", tiny_prior, **few)
        other = text_to_images("a red chair", tiny_prior, steps=3, guidance_scale=2.0, samples=2)
    assert not compiled and len(loaded) == 1
    chex.assert_trees_all_equal(first, again)
    assert (first != other).any()
    against = text_to_images("a cup", tiny_prior, negative_prompt="a chair", **few)
    assert not compiled and len(loaded) == 1 and (first != against).any()
    text_to_images("a cup", tiny_prior, dtype="bfloat16", **few)
    assert len(loaded) == 2


def test_text_to_images_merges_the_lora_that_it_is_given(tiny_prior, tmp_path):
    unet = params_to_torch(open_prior.load_prior(tiny_prior)[1]["unet"])
    name = next(name for name in unet if name.endswith("attn2.to_v.weight"))
    rows, columns = unet[name].shape
    rng = np.random.default_rng(0)
    stem = "unet." + name.removesuffix(".weight")
    factors = {f"{stem}.lora_A.weight": (2, columns), f"{stem}.lora_B.weight": (rows, 2)}
    tensors = {key: rng.normal(size=size).astype(np.float32) for key, size in factors.items()}
    save_file(tensors, tmp_path / "style.safetensors")
    few = {"samples": 1, "steps": 2}
    with pytest.raises(UserError, match="^lora=nowhere.safetensors is no file"):
        text_to_images("a cup", tiny_prior, lora="nowhere.safetensors")
    plain = text_to_images("a cup", tiny_prior, **few)
    styled = text_to_images("a cup", tiny_prior, lora=str(tmp_path / "style.safetensors"), **few)
    assert (plain != styled).any()


@contextlib.contextmanager
def warnings_of_compilation():
    """Collects JAX's notes that it compiles something."""
    notes: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: notes.append(record.getMessage())
    logger = logging.getLogger("jax")
    logger.addHandler(handler)
    try:
        yield notes
    finally:
        logger.removeHandler(handler)


def test_one_entry_cache_drops_the_old_value_first():
    class Prior:
        pass

    cache = prior_cache.OneEntryCache()
    first = weakref.ref(cache.get("a", Prior))
    assert cache.get("a", lambda: pytest.fail("made twice")) is first()

    def make():
        assert first() is None
        return Prior()

    cache.get("b", make)


def test_a_sampler_shares_the_prior_of_the_run(asset, tiny_prior, monkeypatch):
    settings = {"prompt": "a red chair", "prior": tiny_prior, "workdir": "", **TINY}
    config = dreamfusion_jax.api.configs.config_from_settings("toybox", settings)
    run = prior_cache.prepared_run(config, dreamfusion_jax.api.SCHEMES)
    monkeypatch.setattr(sampling, "open_prior", lambda _: pytest.fail("loaded twice"))
    text_to_images("a cup", tiny_prior, samples=1, steps=1)
    ours, theirs = (
        jax.tree.leaves(params)[0]
        for params in (prior_cache._sampler.value.params, run.prior_params)
    )
    assert ours.unsafe_buffer_pointer() == theirs.addressable_data(0).unsafe_buffer_pointer()
