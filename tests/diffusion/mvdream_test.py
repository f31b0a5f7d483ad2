"""MVDream: its U-Net against Stable Diffusion 2.1's and a torch form, its files, its guidance."""

import json
import shutil
from pathlib import Path

import chex
import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from dreamfusion_jax.diffusion.guidance import guided_prediction
from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.priors.analytic import analytic_prior
from dreamfusion_jax.diffusion.priors.camera import with_camera
from dreamfusion_jax.diffusion.priors.options import PriorOptions
from dreamfusion_jax.diffusion.priors.prior import Condition, Pose
from dreamfusion_jax.diffusion.schedule import alpha_sigma
from dreamfusion_jax.nerf.cameras import CameraRanges, fov_from_focal, sample_camera
from dreamfusion_jax.runs import sampling
from dreamfusion_jax.runtime.errors import PriorError, UserError
from tests.diffusion.loading.single_file_test import FILE, UNETS, WIDTH, write_pair
from tests.mvdream import UNET_FILE, camera_tensors, from_sd2


@pytest.fixture(scope="module")
def pair(redraw, tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("sd2"), "2", redraw)


@pytest.fixture(scope="module")
def folder(pair, tmp_path_factory):
    """A tiny MVDream, on latents of 8 x 8."""
    output = tmp_path_factory.mktemp("mvdream") / "pipeline"
    return from_sd2(pair / "pipeline", pair / FILE, output, image_size=8)


@pytest.fixture(scope="module")
def loaded(folder):
    return load_prior(folder)


class JointAttention:
    """Torch's attention over the tokens of four consecutive images as if they were one image's."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, attn, hidden_states, *args, **kwargs):
        joined = hidden_states.reshape(-1, 4 * hidden_states.shape[1], hidden_states.shape[2])
        return self.processor(attn, joined, *args, **kwargs).reshape(hidden_states.shape)


@pytest.fixture
def oracle(pair):
    """diffusers' U-Net of the same weights, with a camera to be set, and views that join."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(pair / "pipeline" / "unet")
    weights = {name: torch.from_numpy(t) for name, t in camera_tensors(4 * 64).items()}

    def embed(camera):
        linear, silu = torch.nn.functional.linear, torch.nn.functional.silu
        w = [weights[f"camera_embed.{n}"] for n in ("0.weight", "0.bias", "2.weight", "2.bias")]
        return linear(silu(linear(camera, *w[:2])), *w[2:])

    unet.camera = torch.zeros(1, 16)
    unet.time_embedding.register_forward_hook(lambda m, i, out: out + embed(unet.camera))
    return unet


def test_of_one_view_and_no_camera_it_is_stable_diffusion(
    oracle, loaded, channels_first, channels_last, relative_error
):
    alone = UNet2DConditionModel.from_config(UNETS["2"]).clone(camera_dim=16)
    _, params = loaded
    z = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype(np.float32)
    text = np.random.default_rng(1).standard_normal((2, 5, WIDTH)).astype(np.float32)
    index = np.array([7, 801])
    ours = jax.jit(alone.apply)({"params": params["unet"]}, z, index, text, np.zeros((2, 16)))
    theirs = oracle(channels_first(z), torch.from_numpy(index), torch.from_numpy(text)).sample
    assert relative_error(ours, channels_last(theirs)) < 1e-4


def test_four_views_are_denoised_together(
    oracle, loaded, channels_first, channels_last, relative_error
):
    prior, params = loaded
    assert prior.joint_views == 4 and prior.latent_shape == (8, 8, 4)
    draw = np.random.default_rng(0).standard_normal
    z, text = draw((8, 8, 8, 4)).astype(np.float32), draw((8, 5, WIDTH)).astype(np.float32)
    camera, t = draw((8, 16)).astype(np.float32), np.repeat([0.1, 0.8], 4).astype(np.float32)
    predict = jax.jit(prior.predict)

    def ours(z):
        return np.asarray(predict(params, z, t, Condition(jnp.asarray(text), jnp.asarray(camera))))

    oracle.camera = torch.from_numpy(camera)
    for name, module in oracle.named_modules():
        if name.endswith("attn1"):
            module.set_processor(JointAttention(module.processor))
    index = torch.from_numpy(np.round(t * 999).astype(np.int64))
    theirs = channels_last(oracle(channels_first(z), index, torch.from_numpy(text)).sample)
    assert relative_error(ours(z), theirs) < 1e-4
    changed = z.copy()
    changed[2] = 0.0
    moved = np.abs(ours(changed) - ours(z)).max((1, 2, 3))
    assert np.all(moved[:4] > 1e-4) and np.all(moved[4:] == 0.0)


def test_its_file_and_its_folder_hold_the_same(folder, loaded):
    prior, params = load_prior(folder / FILE)
    chex.assert_trees_all_equal(params, loaded[1])
    assert prior.joint_views == 4 and prior.latent_shape == (32, 32, 4)
    assert prior.schedule.prediction_type == "epsilon"


def test_the_camera_is_the_matrix_at_a_distance_of_one():
    drawn = sample_camera(jax.random.key(0), CameraRanges())
    camera = drawn.camera
    pose = Pose(camera.pose, fov_from_focal(camera.focal), *drawn[1:3], jnp.float32(2))
    condition = with_camera(Condition(jnp.zeros((1, 1))), jax.tree.map(lambda x: x[None], pose))
    matrix = np.asarray(condition.vector).reshape(4, 4)
    chex.assert_trees_all_close(matrix[:3, :3], np.asarray(camera.pose[:, :3]), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(matrix[:3, 3]), 1.0, atol=1e-6)
    np.testing.assert_allclose(matrix[:3, 3] @ matrix[:3, 2], 1.0, atol=1e-5)
    assert matrix[3].tolist() == [0, 0, 0, 1]


def test_relative_distances_fit_a_sphere_into_the_view():
    ranges = CameraRanges(distance=(0.9, 0.9), fov_deg=(15.0, 60.0), relative_distance=True)
    cameras = jax.vmap(lambda key: sample_camera(key, ranges).camera)(
        jax.random.split(jax.random.key(0), 20)
    )
    half = np.deg2rad(fov_from_focal(cameras.focal)) / 2
    distance = np.linalg.norm(cameras.pose[..., 3], axis=-1)
    np.testing.assert_allclose(distance * np.tan(half), 0.9, rtol=1e-5)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_clean_estimate_keeps_its_spread_over_a_group(share):
    """As MVDream's authors compute it, in the clean latent and over four views at once."""
    gaussian = analytic_prior(0.3, 0.4)

    def predict(params, z_t, t, condition):
        shift = condition.tokens[:, :, :, None]
        return gaussian.predict(params, z_t, t, condition) + 0.2 * shift * z_t

    prior = gaussian._replace(predict=predict, joint_views=4)
    z_t = jax.random.normal(jax.random.key(0), (8, 4, 4, 3))
    t = jnp.repeat(jnp.array([0.3, 0.6]), 4)
    cond, uncond = Condition(jnp.ones((8, 1, 1))), Condition(jnp.zeros((1, 1, 1)))
    arguments = prior, {}, z_t, t, cond, uncond
    guided = guided_prediction(*arguments, 7.0, 0.0, None, share)
    plain, text = guided_prediction(*arguments, 7.0), guided_prediction(*arguments, 1.0)
    alpha, sigma = (np.asarray(x)[:, None, None, None] for x in alpha_sigma(prior.schedule, t))
    x0, x0_text, ours = ((z_t - sigma * eps) / alpha for eps in (plain, text, guided))
    for group in (slice(0, 4), slice(4, 8)):
        factor = np.std(x0_text[group]) / np.std(x0[group])
        expected = share * factor * x0[group] + (1 - share) * x0[group]
        np.testing.assert_allclose(ours[group], expected, rtol=2e-4, atol=1e-4)
    assert np.abs(ours - x0).max() > 1e-2


def test_samples_are_four_views_around_one_object(folder):
    sampler = sampling.open_sampler(PriorOptions(prior=str(folder)))
    guidance = sampling.Guidance(2.0)
    (images,) = sampling.draw_samples(sampler, ["a cup"], guidance, 4, 2, seed=0)
    assert images.shape == (4, 16, 16, 3)
    with pytest.raises(UserError, match="--samples=3 must be a multiple of 4"):
        sampling.draw_samples(sampler, ["a cup"], guidance, 3, 2, seed=0)


def config(**changed):
    def spoil(folder):
        path = folder / "unet" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return spoil


def tensors(change):
    def spoil(folder):
        save_file(change(load_file(folder / "unet" / UNET_FILE)), folder / "unet" / UNET_FILE)

    return spoil


REFUSED = {
    "of an image": (config(ip_dim=16), "ip_dim is of ImageDream"),
    "no size": (config(image_size=None), "image_size=None is not supported"),
    "a size in words": (config(image_size="32"), "image_size='32' is not supported"),
    "no camera": (
        tensors(lambda held: {n: t for n, t in held.items() if "camera" not in n}),
        "has no camera_embed",
    ),
    "half a camera": (
        tensors(lambda held: {n: t for n, t in held.items() if n != "camera_embed.2.bias"}),
        "missing: camera_embed/linear_2/bias",
    ),
    "a moment": (
        tensors(lambda held: held | {"time_mix.weight": np.ones((2, 2), np.float32)}),
        "surplus: time_mix",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_malformed_mvdream_is_told_in_one_sentence(case, folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    spoil, message = REFUSED[case]
    spoil(copy)
    with pytest.raises(PriorError, match=message) as error:
        load_prior(copy)
    assert str(copy) in str(error.value)
