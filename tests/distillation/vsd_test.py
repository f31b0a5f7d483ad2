"""Variational Score Distillation on a prior whose noise estimate is known in closed form."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamfusion_jax.diffusion.lora import init_lora
from dreamfusion_jax.diffusion.priors.prior import Pose
from dreamfusion_jax.diffusion.schedule import alpha_sigma, to_velocity
from dreamfusion_jax.distillation import vsd
from dreamfusion_jax.distillation.objectives import make_objective
from dreamfusion_jax.distillation.options import DistillationOptions
from dreamfusion_jax.runtime.errors import ArgumentError
from tests.distillation.conftest import make_batch
from tests.distillation.objectives_test import BATCH, EMPTY, GAUSSIAN, TEXT, WORDED, Z, cotangent

NOTHING = {"lora": {}, "camera": {}}


def point_mass(z, otherwise=WORDED, prediction_type="epsilon"):
    """A prior that is exactly the score of a point mass at z wherever it is given a camera."""
    schedule = otherwise.schedule._replace(prediction_type=prediction_type)

    def predict(params, z_t, t, cond):
        if cond.vector is None:
            return otherwise.predict(params, z_t, t, cond)
        alpha, sigma = (x[:, None, None, None] for x in alpha_sigma(schedule, t))
        eps = (z_t - alpha * z) / sigma
        velocity = to_velocity(eps, z_t, *alpha_sigma(schedule, t), "epsilon")
        return {"epsilon": eps, "v_prediction": velocity, "sample": z}[prediction_type]

    return otherwise._replace(predict=predict, schedule=schedule)


def gradient(prior, batch=BATCH, **options):
    options = {"weighting": "one", "guidance_scale": 7.5, **options}
    objective = make_objective(prior, DistillationOptions(objective="vsd", **options))
    return jax.jit(lambda batch: objective.gradient(NOTHING, {}, batch)[0])(batch)


def test_phi_the_prior_without_guidance_pulls_nowhere():
    batch = BATCH._replace(view_independent=TEXT)
    still = gradient(WORDED, batch, guidance_scale=1.0)
    chex.assert_trees_all_close(still, jnp.zeros_like(still), atol=1e-6)
    # What is left of a guidance of 2, and of other words for the view, is their difference.
    pull = gradient(WORDED, batch._replace(view_independent=EMPTY), guidance_scale=2.0)
    chex.assert_trees_all_close(pull, jnp.full_like(pull, 2.0 * 0.6), atol=1e-4)


@pytest.mark.parametrize("weighting", ["one", "sigma2"])
def test_phi_a_point_mass_at_the_render_is_sds(weighting):
    ours = gradient(point_mass(Z), weighting=weighting)
    chex.assert_trees_all_close(ours, cotangent("sds", weighting=weighting), atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_loss_has_its_bottom_at_the_score_of_the_renders(prediction_type):
    def loss(z, prior):
        objective = make_objective(prior, DistillationOptions(objective="vsd"))
        return objective.loss(NOTHING, {}, BATCH._replace(z=z))

    exact, other = (point_mass(x, GAUSSIAN, prediction_type) for x in (Z, Z + 1.0))
    np.testing.assert_allclose(jax.jit(lambda: loss(Z, exact))(), 0.0, atol=1e-4)
    assert jax.jit(lambda: loss(Z, other))() > 1.0
    # The renders are data to phi: their gradient is zero.
    slope = jax.jit(jax.grad(lambda z: loss(z, other)))(Z)
    chex.assert_trees_all_equal(slope, jnp.zeros_like(slope))


def test_phi_learns_at_any_time_and_from_some_views_without_camera():
    asked = []

    def predict(params, z_t, t, cond):
        asked.append((np.asarray(t), np.asarray(cond.vector), np.asarray(z_t)))
        return z_t

    count = 2000
    batch = make_batch(jnp.zeros((count, 1, 1, 1)), jnp.full(count, 0.5), _keys(count))
    batch = batch._replace(pose=batch.pose._replace(camera_to_world=jnp.ones((count, 3, 4))))
    options = DistillationOptions(objective="vsd", vsd_camera_dropout=0.1)
    make_objective(GAUSSIAN._replace(predict=predict), options).loss(NOTHING, {}, batch)
    ((t, camera, z_t),) = asked
    quarters = np.quantile(t, [0.0, 0.25, 0.75, 1.0])
    np.testing.assert_allclose(quarters, [0.0, 0.25, 0.75, 1.0], atol=0.03)
    dropped = (camera == 0.0).all(axis=1)
    np.testing.assert_allclose(dropped.mean(), 0.1, atol=0.02)
    np.testing.assert_allclose(t[dropped].mean(), 0.5, atol=0.06)  # whatever the time
    assert (camera[~dropped] == [1] * 12 + [0, 0, 0, 1]).all()
    _, sigma = alpha_sigma(GAUSSIAN.schedule, jnp.asarray(t))
    assert abs(np.corrcoef((z_t[:, 0, 0, 0] / sigma), t)[0, 1]) < 0.06


def test_a_camera_is_its_flattened_matrix():
    top = jnp.arange(24.0).reshape(2, 3, 4)
    vectors = vsd.camera_vector(Pose(top, *(jnp.zeros(2) for _ in range(4))))
    np.testing.assert_array_equal(vectors[1], [*range(12, 24), 0, 0, 0, 1])


def test_updates_are_found_by_path_and_change_nothing_yet():
    attention = {"to_q": {"kernel": jnp.zeros((5, 3))}, "to_out_0": {"kernel": jnp.zeros((3, 5))}}
    others = {"net_0": {"kernel": jnp.zeros((5, 5))}, "norm1": {"scale": jnp.zeros(5)}}
    lora = init_lora(jax.random.key(0), {"mid": {"attn1": attention, **others}}, rank=2)
    shapes = jax.tree.map(jnp.shape, lora, is_leaf=lambda x: hasattr(x, "shape"))
    to_q, to_out = {"a": (5, 2), "b": (2, 3)}, {"a": (3, 2), "b": (2, 5)}
    assert shapes == {"mid": {"attn1": {"to_q": to_q, "to_out_0": to_out}}}
    assert not any(x["b"].any() for x in lora["mid"]["attn1"].values())


def test_a_prior_that_cannot_be_adapted_is_refused():
    joint = GAUSSIAN._replace(joint_views=4)
    with pytest.raises(ArgumentError, match="objective=vsd gives its network the camera"):
        make_objective(joint, DistillationOptions(objective="vsd"))
    with pytest.raises(ArgumentError, match="objective=vsd trains updates of a U-Net"):
        vsd.init_phi(jax.random.key(0), {}, DistillationOptions())


def _keys(count):
    return jax.random.split(jax.random.key(3), count)
