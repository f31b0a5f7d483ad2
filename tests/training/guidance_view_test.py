"""A training view and what the prior makes of it, on a Gaussian where all of it is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dreamfusion_jax.diffusion.priors.analytic import analytic_prior
from dreamfusion_jax.diffusion.schedule import alpha_sigma
from dreamfusion_jax.distillation.objective import Batch, draw_noise
from dreamfusion_jax.runs import loop
from dreamfusion_jax.runs.guidance_strip import guidance_strip
from dreamfusion_jax.training.guidance_view import make_guidance_view
from dreamfusion_jax.training.state import init_state
from dreamfusion_jax.training.step import draw_views

MEAN, STD = 0.5, 0.1


def test_the_images_are_the_gaussian_s_own(make_config, make_run):
    config = make_config(half_size_steps=0)
    run = make_run(config, analytic_prior(MEAN, STD, image_size=6))
    params = init_state(run.scene, run.optimizer, 0).scene_params
    drawn, t = make_guidance_view(run.setup)(run.prior_params, run.table, params, jnp.int32(4))

    draw = draw_views(run.setup, jnp.int32(4), jnp.arange(1))
    one = jax.tree.map(lambda x: x[0], draw)
    z = run.scene.render(params, one.view, 6, 6, jnp.int32(4), one.render_key, None).image
    batch = Batch(z[None], draw.t, draw.noise_key, jnp.int32(4), *[None] * 5)
    alpha, sigma = (float(x[0]) for x in alpha_sigma(run.prior.schedule, draw.t))
    z_t = alpha * z + sigma * draw_noise(batch)[0]
    spread = alpha**2 * STD**2 + sigma**2
    estimate = MEAN + alpha * STD**2 / spread * (z_t - alpha * MEAN)
    denoised = MEAN + STD / spread**0.5 * (z_t - alpha * MEAN)  # the probability flow's
    expected = jnp.clip(jnp.stack([z, z_t, estimate, denoised]), 0.0, 1.0)
    np.testing.assert_allclose(drawn[:3], expected[:3], atol=1e-4)
    np.testing.assert_allclose(drawn[3], expected[3], atol=0.03)
    assert t == draw.t[0] and abs(expected[2] - expected[3]).max() > 0.05


def test_a_run_leaves_the_images_with_each_preview(make_config, make_run, monkeypatch):
    monkeypatch.setattr(loop.images, "preview", lambda *_: np.zeros((8, 32, 3), np.uint8))
    monkeypatch.setattr(loop, "FIRST_PREVIEW_SECONDS", float("inf"))
    config = make_config(steps=2, half_size_steps=0)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, save_guidance=True))
    run = make_run(config)
    loop.train(config, run, started=loop.time.monotonic())
    newest = Image.open(run.workdir / "guidance.png")
    assert newest.size == (4 * 128, 128 + 18)
    assert (run.workdir / "guidance" / "step_000002.png").exists()
    assert "A training view, and what the prior makes" in (run.workdir / "index.html").read_text()


def test_a_strip_has_the_images_in_a_row_below_their_titles():
    drawn = np.linspace(0.1, 0.9, 4)[:, None, None, None] * np.ones((4, 16, 16, 3))
    strip = guidance_strip(drawn, 0.5)
    assert strip.shape == (128 + 18, 4 * 128, 3)
    for i in range(4):
        shown = strip[18:, i * 128 : (i + 1) * 128]
        assert (shown == round(255 * float(drawn[i, 0, 0, 0]))).all()
        assert (strip[:18, i * 128 : (i + 1) * 128] < 128).any(), "a title"
