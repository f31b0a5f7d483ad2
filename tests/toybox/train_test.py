"""The training program: it starts, resumes and repeats its steps to the bit."""

import json

import chex
import jax
import numpy as np
import optax
import pytest

from dreamfusion_jax.diffusion.loading.weights import read_component, write_component
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.models.vae import AutoencoderKL
from dreamfusion_jax.toybox import dataset, fit, recipes, tasks, train, warm_start

TINY = {
    "VAE": {
        "block_out_channels": [8],
        "down_block_types": ["DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"],
    },
    "UNET": {
        "block_out_channels": [8],
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
        "cross_attention_dim": 8,
        "attention_head_dim": 1,
        "norm_num_groups": 2,
    },
    "TEXT_ENCODER": {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    },
}


@pytest.fixture
def setup(tmp_path, monkeypatch):
    for name, smaller in TINY.items():
        monkeypatch.setattr(recipes, name, getattr(recipes, name) | smaller)
    stages = {"diffusion": recipes.Stage(6, 8, 1e-3, preview_every=6)}
    monkeypatch.setattr(recipes, "STAGES", stages)
    monkeypatch.setattr(fit, "_SAVE_EVERY", 3)
    monkeypatch.setattr(fit, "_LOG_EVERY", 1)
    # Muon, which compiles for a minute, is resumed in fit_test.
    monkeypatch.setattr(fit, "_optimizer", lambda stage: optax.adam(stage.learning_rate))
    blank = np.zeros((8, 8, 3), np.uint8)
    monkeypatch.setattr(train, "draw_samples", lambda directory: blank)
    monkeypatch.setattr(train, "measure_obedience", lambda directory: {"azimuth_obedience": 0.5})
    dataset.render_shards(tmp_path / "images", 1, 8, seed=1, size=8, kinds=("mug",))
    vae = AutoencoderKL.from_config(recipes.VAE)
    params = jax.jit(vae.init)(jax.random.key(0), *vae.dummy_inputs())["params"]

    def make(name: str) -> train.Setup:
        workdir = tmp_path / name
        workdir.mkdir()
        (workdir / "images").symlink_to(tmp_path / "images")
        write_component(workdir / "trained" / "weights" / "vae", recipes.VAE, params)
        return train.Setup(workdir, workdir / "trained", None, shards=1, seed=1)

    return make


def losses(setup: train.Setup) -> list[float]:
    lines = (setup.workdir / "diffusion" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines if "loss" in line]


def test_training_resumes_and_repeats_to_the_bit(setup, monkeypatch):
    straight, resumed = setup("straight"), setup("resumed")
    train.train_diffusion(straight)

    class Stopped(Exception):
        pass

    def stop_at_4(self, step):
        if step == 4:
            raise Stopped
        return write(self, step)

    write = fit._Log.write
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(fit._Log, "write", stop_at_4)
        train.train_diffusion(resumed)
    train.train_diffusion(resumed)
    assert len(losses(straight)) == 6
    assert losses(straight) == losses(resumed)
    for name in ("unet", "text_encoder"):
        ends = [read_component(s.output / "weights" / name)[1] for s in (straight, resumed)]
        chex.assert_trees_all_equal(*ends)
    lines = (straight.workdir / "diffusion" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1]) == {"step": 6, "images": 48, "azimuth_obedience": 0.5}
    assert len(json.loads(lines[0])["velocity_mse_by_t"]) == 8


def test_the_recipes_networks_start_from_the_embedded_weights():
    unet = UNet2DConditionModel.from_config(recipes.UNET)
    outline = jax.eval_shape(
        lambda key: unet.init(key, *unet.dummy_inputs())["params"], jax.random.key(0)
    )
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), outline)
    grown = train._with_donor({"unet": zeros}, "unet", train._HOME / "weights" / "unet")["unet"]
    chex.assert_trees_all_equal_shapes(grown, zeros)
    config, donor = read_component(train._HOME / "weights" / "unet")
    levels = len(recipes.UNET["block_out_channels"]) - len(config["block_out_channels"])
    inner = grown[f"down_blocks_{1 + levels}"]["resnets_0"]["conv1"]["kernel"]
    expected = donor["down_blocks_1"]["resnets_0"]["conv1"]["kernel"]
    chex.assert_trees_all_equal(np.asarray(inner), np.asarray(expected))


def test_a_stage_starts_from_the_weights_that_init_names(tmp_path, monkeypatch):
    donor = {"layer": {"kernel": np.ones((2, 3), np.float32)}}
    write_component(tmp_path / "weights" / "net", {}, donor)
    start = {"layer": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}}
    task = tasks.Task(lambda key: {"net": start}, None, None, None)
    monkeypatch.setattr(train, "fit", lambda task, *_: task.init(None)["net"])
    setup = train.Setup(tmp_path, tmp_path, tmp_path, shards=1, seed=1)
    begun = train._fit("diffusion", task, setup, {"net": "weights/net"})["layer"]
    assert np.all(np.asarray(begun["kernel"]) == 1.0) and np.all(begun["bias"] == 0.0)
    random = train._fit("diffusion", task, setup._replace(init=None), {"net": "weights/net"})
    assert not random["layer"]["kernel"].any()


def test_an_embedding_that_grew_keeps_its_rows():
    old, new = {"words": {"embedding": np.ones((2, 3))}}, {"words": {"embedding": np.zeros((4, 3))}}
    grown = warm_start.transplant(jax.tree.map(jax.numpy.asarray, new), old)
    assert np.asarray(grown["words"]["embedding"]).sum(axis=1).tolist() == [3, 3, 0, 0]
    assert warm_start.inner_blocks(1)("down_blocks_2") == "down_blocks_1"
    assert warm_start.inner_blocks(1)("up_blocks_2") == "up_blocks_2"
