"""Variational Score Distillation against torch: the pull on the render, and what phi learns."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.embeddings import TimestepEmbedding
from flax import traverse_util

from dreamfusion_jax.distillation import vsd
from dreamfusion_jax.distillation.objective import draw_noise, draw_uniform, with_other_keys
from dreamfusion_jax.distillation.objectives import make_objective
from dreamfusion_jax.distillation.options import DistillationOptions
from tests.distillation.conftest import make_batch

OPTIONS = DistillationOptions(
    objective="vsd",
    guidance_scale=7.5,
    guidance_scale_end=1.0,
    guidance_anneal_steps=10,
    weighting="sigma2",
    vsd_lora_rank=2,
    vsd_camera_dropout=0.5,
)
VIEWS = 3
INDEX = torch.tensor([120, 530, 870])


class Torch(NamedTuple):
    """The same in torch: phi's parameters by name, and its network."""

    params: dict[str, torch.Tensor]
    predict: object


@pytest.fixture(scope="module")
def phi(loaded):
    """phi's params, redrawn so that none is zero."""
    rng = np.random.default_rng(0)
    shapes = vsd.init_phi(jax.random.key(0), loaded[1], OPTIONS)
    return jax.tree.map(lambda x: rng.normal(0.0, 0.3, x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def gradient(loaded):
    """The compiled gradient; its guidance is 7.5 at step 0, and none from step 10 on."""
    return jax.jit(make_objective(loaded[0], OPTIONS).gradient)


@pytest.fixture(scope="module")
def batch(loaded):
    prior, _ = loaded
    draw = np.random.default_rng(1).standard_normal
    z = draw((VIEWS, *prior.latent_shape)).astype(np.float32)
    keys = jax.random.split(jax.random.key(4), VIEWS)
    batch = make_batch(jnp.asarray(z), jnp.asarray(INDEX.numpy()) / 999, keys)
    poses = batch.pose._replace(camera_to_world=jnp.asarray(draw((VIEWS, 3, 4)), jnp.float32))
    texts = ["a red chair", "a blue car", "a bed"]
    plain = prior.encode_text(["a bed", "a cat", "a red chair"])
    empty = jax.tree.map(lambda x: jnp.repeat(x, VIEWS, 0), prior.encode_text([""]))
    return batch._replace(
        pose=poses,
        cond=prior.encode_text(texts),
        negative=empty,
        uncond=empty,
        view_independent=plain,
    )


@pytest.fixture(scope="module")
def theirs(pipeline, phi):
    unet = pipeline.unet
    width = unet.time_embedding.linear_2.out_features
    unet.class_embedding = TimestepEmbedding(16, width)
    lora = {
        "/".join(path): torch.tensor(leaf, requires_grad=True)
        for path, leaf in traverse_util.flatten_dict(phi["lora"]).items()
    }
    camera = {
        f"class_embedding.{layer}.{'weight' if name == 'kernel' else name}": torch.tensor(
            leaf.T, requires_grad=True
        )
        for (layer, name), leaf in traverse_util.flatten_dict(phi["camera"]).items()
    }
    kernels = dict(unet.named_parameters())

    def predict(z_t, index, words, camera_vector):
        weights = dict(camera)
        for path in {name.rpartition("/")[0] for name in lora}:
            name = re.sub(r"_(\d+)(?=/|$)", r".\1", path).replace("/", ".") + ".weight"
            weights[name] = kernels[name] + (lora[f"{path}/a"] @ lora[f"{path}/b"]).T
        given = {"class_labels": camera_vector}
        return torch.func.functional_call(unet, weights, (z_t, index, words), given).sample

    yield Torch({**lora, **camera}, predict)
    unet.class_embedding = None


def words(condition):
    return torch.from_numpy(np.array(condition.tokens))


def matrices(batch):
    last = np.tile([[[0.0, 0.0, 0.0, 1.0]]], (VIEWS, 1, 1))
    full = np.concatenate([np.asarray(batch.pose.camera_to_world), last], axis=1)
    return torch.tensor(full.reshape(VIEWS, 16), dtype=torch.float32)


def test_the_gradient_is_torchs(
    pipeline, loaded, gradient, phi, batch, theirs, channels_first, channels_last, relative_error
):
    z_t = pipeline.scheduler.add_noise(
        channels_first(batch.z), channels_first(draw_noise(batch)), INDEX
    )
    render = theirs.predict(z_t, INDEX, words(batch.view_independent), matrices(batch))
    embedding, pipeline.unet.class_embedding = pipeline.unet.class_embedding, None
    text, empty = (pipeline.unet(z_t, INDEX, words(c)).sample for c in (batch.cond, batch.negative))
    pipeline.unet.class_embedding = embedding
    guided = empty + 7.5 * (text - empty)
    alpha_squared = pipeline.scheduler.alphas_cumprod[INDEX][:, None, None, None]
    # Both predict v, of which eps = alpha v + sigma z_t: z_t falls out of the difference.
    expected = channels_last((1 - alpha_squared) * alpha_squared**0.5 * (guided - render))
    ours = gradient(phi, loaded[1], batch)[0]
    assert relative_error(ours, expected) < 1e-4


def test_the_loss_and_its_gradient_are_torchs(
    pipeline, loaded, phi, batch, theirs, channels_first, relative_error
):
    prior, params = loaded
    learning = with_other_keys(batch, 2)
    index = torch.from_numpy(np.round(np.asarray(draw_uniform(learning)) * 999)).long()
    kept = np.asarray(draw_uniform(with_other_keys(learning, 3))) >= 0.5
    assert 0 < kept.sum() < VIEWS
    z, noise = channels_first(batch.z), channels_first(draw_noise(learning))
    z_t = pipeline.scheduler.add_noise(z, noise, index)
    camera = matrices(batch) * torch.from_numpy(kept)[:, None]
    with torch.enable_grad():
        velocity = theirs.predict(z_t, index, words(batch.view_independent), camera)
        target = pipeline.scheduler.get_velocity(z, noise, index)
        loss = ((velocity - target) ** 2).sum() / VIEWS
        slopes = dict(
            zip(
                theirs.params,
                torch.autograd.grad(loss, list(theirs.params.values())),
                strict=True,
            )
        )
    ours, own = jax.jit(jax.value_and_grad(make_objective(prior, OPTIONS).loss))(phi, params, batch)
    np.testing.assert_allclose(ours, loss.item(), rtol=1e-4)
    for path, leaf in traverse_util.flatten_dict(own["lora"]).items():
        assert relative_error(leaf, slopes["/".join(path)].numpy()) < 1e-4, path
    for (layer, name), leaf in traverse_util.flatten_dict(own["camera"]).items():
        name = f"class_embedding.{layer}.{'weight' if name == 'kernel' else name}"
        assert relative_error(leaf.T, slopes[name].numpy()) < 1e-4, name


def test_every_attention_s_projections_are_updated(pipeline, loaded, phi):
    attentions = [n for n, _ in pipeline.unet.named_modules() if n.endswith(("attn1", "attn2"))]
    updated = {path[:-2] for path in traverse_util.flatten_dict(phi["lora"])}
    assert len(updated) == len(attentions) > 0
    assert len(traverse_util.flatten_dict(phi["lora"])) == 4 * 2 * len(attentions)


def test_phi_starts_as_the_prior_and_then_pulls_nowhere(loaded, gradient, phi, batch):
    start = vsd.init_phi(jax.random.key(0), loaded[1], OPTIONS)
    batch = batch._replace(step=jnp.int32(10), cond=batch.view_independent)
    np.testing.assert_allclose(gradient(start, loaded[1], batch)[0], 0.0, atol=1e-6)
    assert np.abs(gradient(phi, loaded[1], batch)[0]).max() > 1e-2
