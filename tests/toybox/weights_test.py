"""The shipped weights are what they claim: a real Stable Diffusion layout, small, and they draw."""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamfusion_jax import toybox
from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.diffusion.sampling import ddim_sample
from dreamfusion_jax.toybox import captions, judge, judge_task

torch = pytest.importorskip("torch")

HOME = Path(toybox.__file__).parent
WEIGHTS, JUDGE, AZIMUTH = HOME / "weights", HOME / "clip_weights", HOME / "azimuth_weights"


def test_all_weights_are_at_most_25_megabytes():
    files = [
        path for folder in (WEIGHTS, JUDGE, AZIMUTH) for path in folder.rglob("*") if path.is_file()
    ]
    assert sum(path.stat().st_size for path in files) <= 25e6


def test_diffusers_loads_the_weights_and_draws_the_same_picture():
    diffusers = pytest.importorskip("diffusers")
    torch.set_num_threads(2)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(WEIGHTS, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    prompts = ["a red chair, front left view, medium angle", "a blue car"]
    prior, weights = load_prior(WEIGHTS)
    height, width, channels = prior.latent_shape
    noise = np.random.default_rng(0).normal(size=(2, channels, height, width)).astype(np.float32)
    expected = pipeline(
        prompts,
        height=prior.image_size,
        width=prior.image_size,
        num_inference_steps=8,
        guidance_scale=6.0,
        latents=torch.from_numpy(noise),
        output_type="np",
    ).images

    text, empty = prior.encode_text(prompts), prior.encode_text([""] * 2)

    @jax.jit
    def draw(weights, noise):
        return prior.decode(weights, ddim_sample(prior, weights, text, empty, noise, 8, 6.0))

    drawn = np.asarray(draw(weights, jnp.asarray(noise.transpose(0, 2, 3, 1))))
    assert drawn.std() > 0.05
    assert np.mean(np.abs(drawn - expected)) <= 1e-2
    # The same noise under the other prompt is another picture: the text is heard.
    assert np.mean(np.abs(drawn[0] - drawn[1])) > 0.05


def test_transformers_judges_as_we_do():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPModel.from_pretrained(JUDGE, dtype=torch.float32)
    tokens = transformers.CLIPTokenizer.from_pretrained(str(JUDGE))
    ours = judge.load_judge()
    rgb = np.random.default_rng(0).random((3, 64, 64, 3)).astype(np.float32)
    normal = np.array(judge_task.normalize(jnp.asarray(rgb)))
    pixels = torch.from_numpy(normal).permute(0, 3, 1, 2)
    text = judge_task.subject_captions()[len(captions.KINDS) :]
    ids = tokens(text, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        output = theirs(input_ids=ids.input_ids, pixel_values=pixels)
    chex.assert_trees_all_close(ours.embed(rgb), output.image_embeds.numpy(), atol=1e-4)
    chex.assert_trees_all_close(ours.subjects, output.text_embeds.numpy(), atol=1e-4)
