"""What reaches the NeRF, against torch: the SDS residual, and its way back through the encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dreamfusion_jax.distillation.objective import draw_noise
from dreamfusion_jax.distillation.objectives import make_objective
from dreamfusion_jax.distillation.options import DistillationOptions
from tests.distillation.conftest import make_batch

RENDER = 6  # pixels; not the prior's 16


@pytest.mark.parametrize("guidance_rescale", [0.0, 0.5])
def test_the_residual_is_torchs(
    guidance_rescale, pipeline, loaded, channels_first, channels_last, relative_error
):
    prior, params = loaded
    draw = np.random.default_rng(0).standard_normal
    z = draw((2, *prior.latent_shape)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    index, scale = torch.tensor([120, 870]), 7.5
    text, uncond = prior.encode_text(["a red chair", "a blue car"]), prior.encode_text([""])

    eps = draw_noise(make_batch(jnp.asarray(z), jnp.zeros(2), keys))
    noise = channels_first(eps)
    z_t = pipeline.scheduler.add_noise(channels_first(z), noise, index)
    predictions = [
        pipeline.unet(z_t, index, torch.from_numpy(np.array(words))).sample
        for words in (jnp.broadcast_to(uncond.tokens, text.tokens.shape), text.tokens)
    ]
    guided = predictions[0] + scale * (predictions[1] - predictions[0])
    spread = predictions[1].std((1, 2, 3), keepdim=True)
    rescaled = guided * spread / guided.std((1, 2, 3), keepdim=True)
    velocity = guidance_rescale * rescaled + (1 - guidance_rescale) * guided
    alpha_squared = pipeline.scheduler.alphas_cumprod[index][:, None, None, None]
    sigma_squared = 1 - alpha_squared
    eps_hat = alpha_squared**0.5 * velocity + sigma_squared**0.5 * z_t
    theirs = channels_last(sigma_squared * (eps_hat - noise))

    t = jnp.array([120, 870]) / 999
    options = DistillationOptions(scale, guidance_rescale, weighting="sigma2", weight_cap=1e9)
    objective = make_objective(prior, options)

    @jax.jit
    def ours(keys):
        batch = make_batch(jnp.asarray(z), t, keys, cond=text, negative=uncond)
        return objective.gradient({}, params, batch)[0]

    assert relative_error(ours(keys), theirs) < 1e-4
    assert relative_error(ours(keys[::-1]), theirs) > 1e-2


@pytest.mark.parametrize("size", [RENDER, 16])
def test_the_gradient_that_reaches_the_render_is_torchs(
    size, pipeline, loaded, channels_first, channels_last, relative_error
):
    prior, params = loaded
    rng = np.random.default_rng(0)
    rgb = rng.uniform(size=(2, size, size, 3)).astype(np.float32)
    residual = rng.standard_normal((2, *prior.latent_shape)).astype(np.float32)

    image = channels_first(rgb).requires_grad_()
    with torch.enable_grad():
        large = torch.nn.functional.interpolate(image, prior.image_size, mode="bilinear")
        latent = pipeline.vae.encode(2 * large - 1).latent_dist.mean
        (latent * pipeline.vae.config.scaling_factor).backward(channels_first(residual))

    z, pull = jax.vjp(jax.jit(lambda rgb: prior.encode(params, rgb, None)), rgb)
    (ours,) = pull(jnp.asarray(residual))
    assert relative_error(ours, channels_last(image.grad)) < 1e-3
    assert relative_error(pull(z)[0], channels_last(image.grad)) > 1e-2
