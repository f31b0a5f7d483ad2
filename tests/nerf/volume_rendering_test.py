"""Volume rendering against closed forms, invariances and extremes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.nerf.volume_rendering import (
    composite,
    compositing_weights,
    expected_depth,
    over,
)


def test_constant_density_gives_the_exponential_law():
    edges = jnp.array([1.0, 1.2, 1.9, 2.0, 3.5])
    weights = compositing_weights(jnp.full(4, 0.7), edges)
    reached = np.exp(-0.7 * (np.asarray(edges) - 1.0))
    np.testing.assert_allclose(weights, reached[:-1] - reached[1:], rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(weights), 1.0 - np.exp(-0.7 * 2.5), rtol=1e-6)


def test_splitting_an_interval_leaves_the_image():
    density, color = jnp.array([0.5, 3.0, 1.0]), jax.random.uniform(jax.random.key(0), (3, 3))
    whole = composite(compositing_weights(density, jnp.array([0.0, 1.0, 1.4, 2.0])), color)
    again = jnp.array([0, 1, 1, 1, 2])
    weights = compositing_weights(density[again], jnp.array([0.0, 1.0, 1.1, 1.3, 1.4, 2.0]))
    chex.assert_trees_all_close(composite(weights, color[again]), whole, atol=1e-6)


def test_a_wall_hides_the_samples_after_it():
    weights = compositing_weights(jnp.array([0.0, 1e6, 5.0]), jnp.array([1.0, 2.0, 3.0, 4.0]))
    chex.assert_trees_all_close(weights, jnp.array([0.0, 1.0, 0.0]))
    np.testing.assert_allclose(expected_depth(weights, jnp.array([1.0, 2.0, 3.0, 4.0])), 2.5)


def test_an_empty_ray_is_exactly_the_background():
    background = jnp.array([0.1, 0.5, 0.9])
    for density, edges in [
        (jnp.zeros(3), jnp.arange(4.0)),
        (jnp.full(3, 1e6), jnp.full(4, 2.0)),  # a ray that misses: intervals of no length
    ]:
        weights = compositing_weights(density, edges)
        chex.assert_trees_all_equal(weights, jnp.zeros(3))
        image = over(composite(weights, jnp.ones((3, 3))), jnp.sum(weights), background)
        chex.assert_trees_all_equal(image, background)
        assert expected_depth(weights, edges) == 0.0


def test_white_in_front_of_white_is_white():
    density = jax.random.uniform(jax.random.key(0), (50, 6)) * 10.0
    weights = compositing_weights(density, jnp.linspace(0.0, 1.0, 7))
    opacity = jnp.sum(weights, axis=-1)
    image = over(composite(weights, jnp.ones((50, 6, 3))), opacity, jnp.ones(3))
    chex.assert_trees_all_close(image, jnp.ones((50, 3)), atol=1e-6)


def test_values_and_gradients_are_finite_at_extremes():
    density = jnp.array([[0.0, 0.0, 0.0], [1e6, 0.0, 1e6], [1e6, 1e6, 1e6], [1e-30, 1e30, 0.0]])

    def depth_and_weights(density):
        edges = jnp.array([0.0, 1e-8, 1.0, 2.0])
        weights = compositing_weights(density, edges)
        return jnp.sum(weights) + jnp.sum(expected_depth(weights, edges))

    chex.assert_tree_all_finite(jax.value_and_grad(depth_and_weights)(density))


def test_gradient_of_the_weights():
    edges = jnp.array([0.0, 0.4, 0.9, 1.0])
    chex.assert_numerical_grads(
        lambda density: compositing_weights(density, edges)[2],
        (jnp.array([0.5, 2.0, 1.0]),),
        order=1,
        atol=1e-3,
    )
