import os
import subprocess
import sys

import chex
import numpy as np
import pytest
from PIL import Image

from dreamfusion_jax import sample
from dreamfusion_jax.diffusion import sampling
from dreamfusion_jax.diffusion.priors.analytic import analytic_prior
from dreamfusion_jax.diffusion.sampling import ddim_sample
from dreamfusion_jax.rendering import images
from dreamfusion_jax.runtime.errors import UserError


def test_the_counted_loop_draws_what_the_scanned_one_does():
    prior, ticks = analytic_prior(0.4, 0.2), []
    keys = sampling.sample_keys(seed=1, samples=2)
    text = prior.encode_text(["a", "b"])
    counted = {"steps": 10, "scales": (2.0, 0.5), "on_step": lambda: ticks.append(1)}
    drawn = sampling.make_sampler(prior)({}, text, prior.encode_text([""]), keys, **counted)
    assert len(ticks) == 10
    noise = sampling.draw_noise(prior, keys)
    scanned = prior.decode({}, ddim_sample(prior, {}, text, text, noise, 10, 2.0, 0.5))
    chex.assert_trees_all_close(drawn, scanned, atol=1e-5)


def test_more_samples_leave_the_first_ones_as_they_are():
    prior = analytic_prior(0.0, 1.0)
    few, many = (sampling.draw_noise(prior, sampling.sample_keys(5, n)) for n in (2, 4))
    chex.assert_trees_all_equal(few, many[:2])
    assert not np.allclose(many[0], many[1])
    assert not np.allclose(few, sampling.draw_noise(prior, sampling.sample_keys(6, 2)))


def test_ancestral_samples_match_the_prior_and_use_all_noise():
    """Of a Gaussian prior: independent of the first noise, and still of its mean and spread."""
    mean, std = 0.5, 0.1  # far from 0 and 1, where images are clipped
    prior = analytic_prior(mean, std)
    text, keys = prior.encode_text(["a"] * 64), sampling.sample_keys(0, 64)
    sample_prior = sampling.make_sampler(prior)
    z = sample_prior({}, text, prior.encode_text([""]), keys, 1000, (1.0, 0.0), eta=1.0)
    noise = np.asarray(sampling.draw_noise(prior, keys))
    # Five standard errors of 64 latents.
    error = 5.0 / np.sqrt(noise.size)
    assert abs(z.mean() - mean) < std * error
    assert abs(z.std() / std - 1.0) < error
    assert abs(np.corrcoef(z.ravel(), noise.ravel())[0, 1]) < error


def test_the_grid_has_a_row_a_prompt():
    rows = [np.full((3, 2, 2, 3), value) for value in (0.0, 1.0)]
    rows[1][2] = 0.5
    grid = images.image_grid(rows)
    assert grid.shape == (4, 6, 3)
    assert (grid[:2] == 0).all() and (grid[2:, :4] == 255).all() and (grid[2:, 4:] == 128).all()


@pytest.mark.parametrize("name", ["picture.jpg", "nowhere/picture.png", "folder.png"])
def test_an_output_that_cannot_be_written_is_refused(name, tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match="--output"):
        sample._writable_png(tmp_path / name)


def run(tmp_path, *arguments):
    """The program as a user calls it."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "dreamfusion_jax.sample", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_the_program_writes_a_grid_and_says_where(tiny_prior, tmp_path):
    output = tmp_path / "grid.png"
    ended = run(
        tmp_path,
        f"--prior={tiny_prior}",
        "--prompt=a blue mug",
        "--prompt=a red chair, back view",
        "--samples=3",
        "--steps=2",
        f"--output={output}",
    )
    assert ended.returncode == 0, ended.stderr
    assert str(output) in ended.stdout and "4/4" in ended.stderr
    image = np.asarray(Image.open(output))
    assert image.shape == (16, 24, 3)
    assert (image[:8] != image[8:]).any()


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    ended = run(tmp_path, f"--prior={tmp_path}/nowhere", "--prompt=a mug")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1 and "is not a directory" in ended.stderr
    assert "Traceback" not in ended.stderr
