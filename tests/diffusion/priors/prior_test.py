import json
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.diffusion.priors.analytic import analytic_prior
from dreamfusion_jax.diffusion.priors.prior import resize_bilinear
from dreamfusion_jax.diffusion.schedule import add_noise, alpha_sigma

PROMPTS = ["a red chair", "a blue mug, seen from far behind and above, on its own", ""]


def test_text_is_encoded_as_the_pipeline_does(pipeline, loaded, relative_error):
    prior, _ = loaded
    theirs = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)[0].numpy()
    ours = prior.encode_text(PROMPTS).tokens
    assert theirs.shape == (3, pipeline.tokenizer.model_max_length, 16)
    for row in range(3):
        assert relative_error(ours[row], theirs[row]) < 1e-4
    assert relative_error(ours[1], theirs[0]) > 1e-2


def test_pictures_are_encoded_to_scaled_latents(
    pipeline, loaded, channels_first, channels_last, relative_error
):
    prior, params = loaded
    assert (prior.image_size, prior.latent_shape) == (16, (8, 8, 4))
    rgb = np.random.default_rng(0).uniform(size=(2, 16, 16, 3)).astype(np.float32)
    theirs = pipeline.vae.encode(channels_first(2 * rgb - 1)).latent_dist
    scale = pipeline.vae.config.scaling_factor
    mean = jax.jit(lambda rgb: prior.encode(params, rgb, None))(rgb)
    assert relative_error(mean, scale * channels_last(theirs.mean)) < 1e-4
    many = np.tile(rgb, (32, 1, 1, 1))
    draws = jax.jit(prior.encode)(params, many, jax.random.key(0)).reshape(32, *mean.shape)
    z_score = (draws - mean) / (scale * channels_last(theirs.std))
    chex.assert_trees_all_close(jnp.mean(z_score), jnp.float32(0.0), atol=0.03)
    chex.assert_trees_all_close(jnp.std(z_score), jnp.float32(1.0), atol=0.03)


def test_decoding_undoes_the_scale_and_the_range(pipeline, loaded, channels_first, channels_last):
    prior, params = loaded
    z = np.random.default_rng(0).standard_normal((2, *prior.latent_shape)).astype(np.float32)
    decoded = pipeline.vae.decode(channels_first(z) / pipeline.vae.config.scaling_factor).sample
    theirs = channels_last((decoded / 2 + 0.5).clamp(0, 1))
    chex.assert_trees_all_close(jax.jit(prior.decode)(params, z), theirs, atol=1e-4)


def test_predict_is_the_network_at_the_index_of_its_time(
    pipeline, loaded, channels_first, channels_last, relative_error
):
    prior, params = loaded
    z_t = np.random.default_rng(0).standard_normal((2, *prior.latent_shape)).astype(np.float32)
    text = prior.encode_text(PROMPTS[:2])
    index = torch.tensor([100, 900])
    theirs = pipeline.unet(
        channels_first(z_t), index, torch.from_numpy(np.array(text.tokens))
    ).sample
    ours = jax.jit(prior.predict)(params, z_t, jnp.array([100, 900]) / 999, text)
    assert prior.schedule.prediction_type == "v_prediction"
    assert relative_error(ours, channels_last(theirs)) < 1e-4


def test_every_pixel_of_a_larger_picture_has_a_gradient(loaded):
    prior, params = loaded
    rgb = np.random.default_rng(0).uniform(size=(1, 24, 40, 3)).astype(np.float32)
    encode = jax.jit(jax.value_and_grad(lambda rgb: prior.encode(params, rgb, None).sum()))
    z, gradient = encode(rgb)
    chex.assert_tree_all_finite((z, gradient))
    assert np.all(np.abs(gradient) > 0)


def test_resizing_is_smooth_and_keeps_flat_pictures():
    flat = jnp.full((1, 24, 40, 3), 0.3)
    chex.assert_trees_all_close(resize_bilinear(flat, 16), jnp.full((1, 16, 16, 3), 0.3), atol=1e-6)
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    halved = resize_bilinear(image, 2)
    # Weights 3 and 3 inside, 1 beyond: a triangle as wide as two output pixels.
    rows = jnp.array([(3 * 0 + 3 * 1 + 1 * 2) / 7, (1 * 1 + 3 * 2 + 3 * 3) / 7])
    expected = 4 * rows[:, None] + rows[None, :]
    chex.assert_trees_all_close(halved[0, :, :, 0], expected, atol=1e-5)


def test_a_pipeline_without_a_vae_is_a_prior_on_pixels(
    pipeline, pipeline_dir, redraw, tmp_path, channels_first, channels_last, relative_error
):
    folder = Path(shutil.copytree(pipeline_dir, tmp_path / "pixels"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"vae": [None, None]}))
    config = {**pipeline.unet.config, "in_channels": 3, "out_channels": 3}
    unet = redraw(UNet2DConditionModel.from_config(config))
    unet.save_pretrained(folder / "unet")
    prior, params = load_prior(folder)
    assert (prior.image_size, prior.latent_shape, params.keys()) == (8, (8, 8, 3), {"unet"})
    rgb = jnp.linspace(0.0, 1.0, 8 * 8 * 3).reshape(1, 8, 8, 3)
    z = prior.encode(params, rgb, None)
    chex.assert_trees_all_close((z.min(), z.max()), (jnp.float32(-1), jnp.float32(1)))
    chex.assert_trees_all_close(prior.decode(params, z), rgb, atol=1e-6)
    larger = prior.encode(params, jnp.full((1, 24, 40, 3), 0.75), None)
    chex.assert_trees_all_close(larger, jnp.full((1, 8, 8, 3), 0.5), atol=1e-6)
    text = prior.encode_text(PROMPTS[:1])
    theirs = unet(
        channels_first(z), torch.tensor([500]), torch.from_numpy(np.array(text.tokens))
    ).sample
    ours = jax.jit(prior.predict)(params, z, jnp.array([500 / 999]), text)
    assert relative_error(ours, channels_last(theirs)) < 1e-4


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_gaussian_prior_predicts_the_expected_noise(t):
    # E[eps | z_t] is what leaves an error of mean zero, uncorrelated with z_t.
    mean, std = 0.7, 0.4
    prior = analytic_prior(mean, std, image_size=32)
    key_x, key_eps = jax.random.split(jax.random.key(0))
    x = mean + std * jax.random.normal(key_x, (64, *prior.latent_shape))
    eps = jax.random.normal(key_eps, x.shape)
    time = jnp.full((64,), t)
    z_t = add_noise(x, eps, *alpha_sigma(prior.schedule, time))
    eps_hat = prior.predict({}, z_t, time, prior.encode_text(["any"] * 64))
    error = eps_hat - eps
    chex.assert_trees_all_close(jnp.mean(error), jnp.float32(0.0), atol=0.01)
    chex.assert_trees_all_close(jnp.mean(error * z_t), jnp.float32(0.0), atol=0.01)
    assert jnp.var(error) < 0.999 * jnp.var(eps)
