import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamfusion_jax.training.optimizer import learning_rate, make_optimizer
from dreamfusion_jax.training.options import OptimizerOptions

_SCENE = {
    "field": {"tables": jnp.zeros((2, 3)), "network": {"kernel": jnp.zeros((3, 2))}},
    "proposal": {"grid": jnp.zeros(4)},
    "background": {"bias": jnp.zeros(2)},
}
_PARAMS = {"scene": _SCENE, "objective": {"field": jnp.zeros(3)}}
_GRADIENTS = jax.tree.map(
    lambda leaf: 1.0 + jnp.arange(leaf.size, dtype=jnp.float32).reshape(leaf.shape), _PARAMS
)


def _updates(config, gradients=(_GRADIENTS,), steps=100):
    optimizer = make_optimizer(config, steps)
    state = optimizer.init(_PARAMS)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, _PARAMS)
    return updates


def test_the_default_is_adam_with_exponential_decay():
    theirs = optax.adam(optax.exponential_decay(5e-3, 100, 0.1))
    state = theirs.init(_PARAMS)
    for _ in range(3):
        expected, state = theirs.update(_GRADIENTS, state)
    got = _updates(OptimizerOptions(), [_GRADIENTS] * 3)
    chex.assert_trees_all_close(got["scene"], expected["scene"])


def test_the_objective_s_own_params_have_adamw_at_a_constant_rate():
    config = OptimizerOptions(objective_learning_rate=0.1, objective_weight_decay=0.5)
    config = dataclasses.replace(config, gradient_clip=1e-3, warmup_steps=10, optimizer="adan")
    theirs, params = optax.adamw(0.1, weight_decay=0.5), {"field": jnp.ones(3)}
    optimizer, whole = make_optimizer(config, 20), {**_PARAMS, "objective": params}
    state, their_state = optimizer.init(whole), theirs.init(params)
    for _ in range(3):
        updates, state = optimizer.update(_GRADIENTS, state, whole)
        expected, their_state = theirs.update(_GRADIENTS["objective"], their_state, params)
    chex.assert_trees_all_close(updates["objective"], expected)


def test_a_state_without_params_of_the_objective_is_the_scene_s_alone():
    optimizer = make_optimizer(OptimizerOptions(), 20)
    adam = optax.scale_by_adam().init({"scene": _SCENE, "objective": {}})
    chex.assert_trees_all_equal(optimizer.init({"scene": _SCENE, "objective": {}})[0], adam)


def test_the_papers_rate_warms_up_and_decays_as_a_cosine():
    """DreamFusion, appendix A.2: 1e-9 to 1e-4 over 3,000 steps, then to 1e-6 at 15,000."""
    rate = learning_rate(
        OptimizerOptions(
            learning_rate=1e-4,
            learning_rate_final=1e-6,
            learning_rate_decay="cosine",
            warmup_steps=3000,
        ),
        15_000,
    )
    steps = np.array([0, 1500, 3000, 9000, 15_000, 20_000])
    expected = [1e-9, 0.5 * (1e-9 + 1e-4), 1e-4, 0.5 * (1e-4 + 1e-6), 1e-6, 1e-6]
    np.testing.assert_allclose([rate(step) for step in steps], expected, rtol=1e-3, atol=1e-11)


def test_groups_have_rates_of_their_own():
    plain = _updates(OptimizerOptions())
    rates = {"proposal": 10.0, "background": 0.5, "network": 0.1}
    named = {f"{name}_rate": rate for name, rate in rates.items()}
    scaled = _updates(OptimizerOptions(**named))
    scene = plain["scene"]
    expected = {
        "scene": {
            "field": {
                "tables": scene["field"]["tables"],
                "network": {"kernel": 0.1 * scene["field"]["network"]["kernel"]},
            },
            "proposal": {"grid": 10.0 * scene["proposal"]["grid"]},
            "background": {"bias": 0.5 * scene["background"]["bias"]},
        },
        "objective": plain["objective"],
    }
    chex.assert_trees_all_close(scaled, expected, rtol=1e-6)


def test_gradients_are_clipped_together():
    """What Adam is given after a small gradient shows in the ratio of its moments."""
    small, large = (jax.tree.map(lambda leaf, s=s: s * leaf, _GRADIENTS) for s in (1e-2, 1e3))
    limit = 3.0
    norm = optax.tree.norm(large["scene"])
    by_hand = jax.tree.map(lambda leaf: leaf * limit / norm, large)
    clipped = _updates(OptimizerOptions(gradient_clip=limit), [small, large])["scene"]
    expected = _updates(OptimizerOptions(), [small, by_hand])["scene"]
    chex.assert_trees_all_close(clipped, expected, rtol=1e-5)
    unclipped = _updates(OptimizerOptions(), [small, large])["scene"]
    difference = optax.tree.sub(clipped, unclipped)
    assert optax.tree.norm(difference) > 1e-3 * optax.tree.norm(clipped)


def _adan(gradients, eps):
    """Adan's last direction after gradients [K, ...], in the paper's letters.

    A moving average whose bias is corrected is a mean, weighted by (1 - beta)^age.
    """
    beta_1, beta_2, beta_3 = 0.02, 0.08, 0.01
    changes = np.diff(gradients, axis=0, prepend=gradients[:1])

    def mean(values, beta):
        weights = (1 - beta) ** np.arange(len(values))[::-1]
        return np.tensordot(weights / weights.sum(), values, axes=1)

    m, v = mean(gradients, beta_1), mean(changes, beta_2)
    n = mean((gradients + (1 - beta_2) * changes) ** 2, beta_3)
    return (m + (1 - beta_2) * v) / (np.sqrt(n) + eps)


def _adan_updates(gradients, eps):
    """The updates [K, ...] that a leaf with gradients [K, ...] gets at the rate 1."""
    config = OptimizerOptions("adan", learning_rate=1.0, learning_rate_final=1.0, adam_eps=eps)
    optimizer = make_optimizer(config, len(gradients))

    def step(state, gradient):
        updates, state = optimizer.update({"field": {"tables": gradient}}, state)
        return state, updates["field"]["tables"]

    state = optimizer.init({"field": {"tables": jnp.zeros_like(gradients[0])}})
    return jax.lax.scan(step, state, gradients)[1]


@pytest.mark.parametrize("eps", [1e-8, 1e-20])
@pytest.mark.parametrize("size", [1e-12, 1e-6, 1.0, 1e4])
def test_adan_is_its_papers(size, eps):
    """Xie et al. 2022, algorithm 1, at every step, whatever the gradients' size."""
    gradients = size * np.random.default_rng(0).normal(0.3, 1.0, (30, 4, 3)).astype(np.float32)
    updates = _adan_updates(jnp.asarray(gradients), eps)
    exact = gradients.astype(np.float64)
    expected = np.stack([-_adan(exact[: step + 1], eps) for step in range(len(exact))])
    np.testing.assert_allclose(updates, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_adans_steps_do_not_shrink_with_the_gradients():
    """Tiny gradients do not stall: nothing but epsilon is added to their squares' root."""
    gradients = jax.random.normal(jax.random.key(0), (30, 5))
    tiny = _adan_updates(1e-12 * gradients, 1e-20)
    chex.assert_trees_all_close(tiny, _adan_updates(gradients, 1e-20), rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(tiny[0], -jnp.sign(gradients[0]), rtol=1e-4)


@pytest.mark.parametrize("name", ["adam", "adan"])
def test_every_optimizer_finds_the_bottom_of_a_bowl(name):
    config = OptimizerOptions(optimizer=name, learning_rate=0.1, learning_rate_final=1e-3)
    optimizer = make_optimizer(config, 500)

    def step(carry, _):
        params, state = carry
        gradients = jax.tree.map(lambda x: 2.0 * (x - 1.5), params)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = {"scene": _SCENE, "objective": {}}
    (params, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=500)
    chex.assert_trees_all_close(params, jax.tree.map(lambda x: x + 1.5, start), atol=2e-2)
