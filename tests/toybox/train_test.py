"""The training program: it starts, resumes and repeats its steps to the bit."""

import dataclasses
import json
from types import SimpleNamespace

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamfusion_jax.diffusion.loading.weights import read_component, write_component
from dreamfusion_jax.diffusion.models.clip import TextStates
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.models.vae import AutoencoderKL
from dreamfusion_jax.toybox import dataset, fit, latents, recipes, tasks, train, warm_start


class Encoder(nn.Module):
    """Stands for the autoencoder: every other pixel, four channels."""

    def setup(self):
        self.mix = nn.Dense(4)

    def encode(self, rgb):
        mean = self.mix(rgb[:, ::2, ::2])
        return mean, mean


class Words(nn.Module):
    """Stands for the text encoder: the embeddings of the words."""

    @nn.compact
    def __call__(self, ids):
        hidden = _Embeddings(name="embeddings")(ids)
        return TextStates(hidden, hidden[:, -1], hidden)

    def dummy_inputs(self):
        return (jnp.zeros((1, 4), jnp.int32),)


class _Embeddings(nn.Module):
    @nn.compact
    def __call__(self, ids):
        return nn.Embed(1000, 8, name="token_embedding")(ids)


class Denoiser(nn.Module):
    """Stands for the U-Net: linear in the sample and in the text."""

    @nn.compact
    def __call__(self, sample, timestep, text):
        del timestep
        told = nn.Dense(sample.shape[-1], name="told")(jnp.mean(text, axis=1))
        return nn.Dense(sample.shape[-1], name="seen")(sample) + told[:, None, None]

    def dummy_inputs(self):
        return jnp.zeros((1, 4, 4, 4)), jnp.zeros((1,), jnp.int32), jnp.zeros((1, 4, 8))


@pytest.fixture
def setup(tmp_path, monkeypatch):
    networks = {"AutoencoderKL": Encoder, "CLIPTextModel": Words, "UNet2DConditionModel": Denoiser}
    for name, network in networks.items():
        stand_in = SimpleNamespace(from_config=lambda config, network=network: network())
        monkeypatch.setattr(train, name, stand_in)
    stand_in = SimpleNamespace(from_config=lambda config: Encoder())
    monkeypatch.setattr(latents, "AutoencoderKL", stand_in)
    stages = {"diffusion": recipes.Stage(6, 8, 1e-3, preview_every=6)}
    monkeypatch.setattr(recipes, "STAGES", stages)
    monkeypatch.setattr(fit, "_SAVE_EVERY", 3)
    monkeypatch.setattr(fit, "_LOG_EVERY", 1)
    # Muon, which takes longer to compile, is resumed in fit_test.
    monkeypatch.setattr(fit, "_optimizer", lambda stage: optax.adam(stage.learning_rate))
    blank = np.zeros((8, 8, 3), np.uint8)
    monkeypatch.setattr(train, "draw_samples", lambda directory: blank)
    monkeypatch.setattr(train, "measure_obedience", lambda directory: {"azimuth_obedience": 0.5})

    rng = np.random.default_rng(0)
    shard = dataset.LabeledImages(
        rng.integers(0, 256, (16, 8, 8, 3)).astype(np.uint8),
        *(rng.integers(0, high, 16) for high in (26, 10, 1, 1)),
        *rng.uniform(0, 70, (2, 16)),
    )
    mix = {"mix": {"kernel": rng.normal(size=(3, 4)), "bias": np.zeros(4)}}

    def make(name: str) -> train.Setup:
        made = train.Setup(
            tmp_path / name, tmp_path / name / "trained", None, shards=1, first_shards=1, seed=1
        )
        made.images.mkdir(parents=True)
        np.savez(dataset.shard_path(made.images, 0), **dataclasses.asdict(shard))
        write_component(made.output / "weights" / "vae", {"scaling_factor": 0.5}, mix)
        return made

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


def test_the_recipes_unet_starts_as_the_embedded_one():
    unet = UNet2DConditionModel.from_config(recipes.UNET)
    outline = jax.eval_shape(
        lambda key: unet.init(key, *unet.dummy_inputs())["params"], jax.random.key(0)
    )
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), outline)
    directory = train._HOME / "weights" / "unet"
    grown = train._with_donor({"unet": ones}, "unet", directory)["unet"]
    # Of what the new channels hold it knows nothing yet: it does not hear them.
    assert not np.asarray(grown["conv_in"]["kernel"][:, :, 4:]).any()
    grown["conv_in"]["kernel"] = grown["conv_in"]["kernel"][:, :, :4]
    grown["conv_out"] = {name: leaf[..., :4] for name, leaf in grown["conv_out"].items()}
    chex.assert_trees_all_equal(grown, jax.tree.map(np.float32, read_component(directory)[1]))


def test_a_stage_starts_from_the_weights_that_init_names(tmp_path, monkeypatch):
    donor = {"layer": {"kernel": np.ones((2, 3), np.float32)}}
    write_component(tmp_path / "weights" / "net", {}, donor)
    start = {"layer": {"kernel": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)}}
    task = tasks.Task(lambda key: {"net": start}, None, None, None)
    monkeypatch.setattr(train, "fit", lambda task, *_: task.init(None)["net"])
    setup = train.Setup(tmp_path, tmp_path, tmp_path, shards=1, first_shards=1, seed=1)
    begun = train._fit("diffusion", task, setup, {"net": "weights/net"})["layer"]
    assert np.all(np.asarray(begun["kernel"]) == 1.0) and np.all(begun["bias"] == 0.0)
    random = train._fit("diffusion", task, setup._replace(init=None), {"net": "weights/net"})
    assert not random["layer"]["kernel"].any()


def test_an_embedding_that_grew_keeps_its_rows():
    old, new = {"words": {"embedding": np.ones((2, 3))}}, {"words": {"embedding": np.zeros((4, 3))}}
    grown = warm_start.transplant(jax.tree.map(jnp.asarray, new), old)
    assert np.asarray(grown["words"]["embedding"]).sum(axis=1).tolist() == [3, 3, 0, 0]


def test_a_network_with_an_outer_level_more_keeps_the_inner_ones():
    names = [f"down_blocks_{i}" for i in range(4)] + [f"up_blocks_{i}" for i in range(4)]
    renamed = [warm_start.inner_blocks(1, 3)(name).split("_")[-1] for name in names]
    assert renamed == ["new", "0", "1", "2", "0", "1", "2", "new"]


def test_the_recipes_autoencoder_starts_as_the_embedded_one():
    directory = train._HOME / "weights" / "vae"
    vae = AutoencoderKL.from_config(recipes.VAE)
    params = jax.jit(lambda key: vae.init(key, *vae.dummy_inputs())["params"])(jax.random.key(0))
    grown = train._with_donor(params, "", directory)
    # Smooth, because of sharp edges the new level sees more.
    x, y = np.meshgrid(np.linspace(0, 3, 64), np.linspace(0, 3, 64))
    image = np.stack([128 + 90 * np.sin(wave) for wave in (x, y, x + y)], axis=-1)[None]
    expected = latents.smaller_encoder(directory, vae.downscale)(image.astype(np.uint8))
    found = latents.encoder(vae, grown)(image.astype(np.uint8))[..., :4]
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.1 * expected.std()


def test_a_kernel_that_grew_is_deaf_to_what_is_new():
    donor, new = {"kernel": np.ones((1, 1, 2, 2))}, {"kernel": jnp.full((1, 1, 3, 4), 5.0)}
    kernel = np.asarray(warm_start.transplant(new, donor)["kernel"])[0, 0]
    assert kernel.tolist() == [[1, 1, 5, 5], [1, 1, 5, 5], [0, 0, 5, 5]]


def test_shards_join_when_their_step_comes():
    shard = dataset.LabeledImages(*[np.zeros((2, 3))] * 7)
    at = latents.growing(lambda index: (np.full(2, index), shard), lambda step: 1 + step // 10)
    assert [at(step)[0].tolist() for step in (0, 9)] == [[0, 0]] * 2
    resumed = latents.growing(lambda index: (np.full(2, index), shard), lambda step: 1 + step // 10)
    for step in (10, 25):
        assert at(step)[0].tolist() == resumed(step)[0].tolist()
        assert at(step)[1].count == len(at(step)[0])
