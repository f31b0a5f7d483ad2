"""The optimizer: its updates are orthogonal, as optax's are, and of one size."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamfusion_jax.toybox import muon


@pytest.mark.parametrize("shape", [(3, 3, 8, 16), (40, 16), (16, 40), (24, 24)])
def test_updates_are_those_of_optax(shape):
    update = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    scale = optax.contrib.scale_by_muon(
        nesterov=False,
        weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(
            tuple(range(len(shape) - 1)), len(shape) - 1
        ),
    )
    expected, _ = scale.update(update, scale.init(update))
    sides = int(np.prod(shape[:-1])), shape[-1]
    expected *= muon.UPDATE_RMS * max(sides) ** 0.5
    np.testing.assert_allclose(muon.orthogonalize(update), expected, atol=1e-3)


def test_updates_do_not_depend_on_the_gradients_scale():
    update = jnp.asarray(np.random.default_rng(1).normal(size=(30, 10)), jnp.float32)
    small, large = (muon.orthogonalize(scale * update) for scale in (1e-4, 1e4))
    np.testing.assert_allclose(small, large, rtol=1e-3, atol=1e-5)
    assert 0.1 < float(jnp.sqrt(jnp.mean(small**2))) < 0.3


def test_a_zero_gradient_makes_no_update():
    assert not np.asarray(muon.orthogonalize(jnp.zeros((4, 3)))).any()


def test_biases_and_embeddings_take_adams_step():
    params = {"kernel": jnp.eye(3), "bias": jnp.zeros(3), "embedding": jnp.zeros((4, 3))}
    grads = {name: jnp.full(leaf.shape, 5.0) for name, leaf in params.items()}
    optimizer = muon.muon(optax.constant_schedule(0.1), weight_decay=0.0)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    for name in ("bias", "embedding"):
        np.testing.assert_allclose(updates[name], -0.1, rtol=1e-4)
