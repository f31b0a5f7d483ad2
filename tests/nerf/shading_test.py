"""Normals of known shapes and a light at a known angle."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.nerf.shading import (
    density_normals,
    finite_difference_normals,
    point_light,
    safe_normalize,
)


def _ball(points):
    return jax.nn.sigmoid(8.0 * (0.5 - jnp.linalg.norm(points, axis=-1))), None


def test_normals_of_a_ball_point_outward():
    points = jax.random.uniform(jax.random.key(0), (20, 3), minval=-0.6, maxval=0.6)
    density, _, normals = density_normals(_ball, points)
    outward = points / jnp.linalg.norm(points, axis=-1, keepdims=True)
    chex.assert_trees_all_close(normals, outward, atol=1e-4)
    chex.assert_trees_all_close(density, _ball(points)[0])


def test_finite_differences_match_analytic_normals_if_smooth():
    points = jax.random.uniform(jax.random.key(0), (20, 3), minval=-0.6, maxval=0.6)
    density, _, normals = finite_difference_normals(_ball, points, 1e-2)
    expected = density_normals(_ball, points)
    chex.assert_trees_all_close(density, expected[0])
    chex.assert_trees_all_close(normals, expected[2], atol=1e-2)


def test_finite_differences_ignore_detail_finer_than_spacing():
    """A slope along x under ripples whose wavelength is the span of the differences."""

    def rippled(points):
        return points[..., 0] + 0.1 * jnp.sin(2.0 * jnp.pi / 0.2 * points[..., 1]), None

    points = jax.random.uniform(jax.random.key(0), (20, 3))
    smooth = finite_difference_normals(rippled, points, 0.1)[2]
    chex.assert_trees_all_close(
        smooth, jnp.broadcast_to(jnp.array([-1.0, 0, 0]), (20, 3)), atol=1e-4
    )
    assert jnp.abs(density_normals(rippled, points)[2][:, 1]).max() > 0.5


def test_normals_of_zero_gradient_are_zero_and_differentiable():
    def loss(level, points):
        return jnp.sum(density_normals(lambda x: (level + 0.0 * x[..., 0], None), points)[2] ** 2)

    value, gradients = jax.value_and_grad(loss, (0, 1))(1.0, jnp.ones((4, 3)))
    assert value == 0.0
    chex.assert_tree_all_finite(gradients)
    chex.assert_tree_all_finite(jax.jacobian(safe_normalize)(jnp.zeros(3)))


def test_lambert():
    """A light 60 degrees off the normal gives half of the diffuse light, plus the ambient."""
    albedo, normals = jnp.array([[0.8, 0.4, 0.2]]), jnp.array([[0.0, 0.0, 1.0]])
    point = jnp.array([[1.0, 2.0, 3.0]])
    direction = jnp.array([np.sin(np.pi / 3.0), 0.0, np.cos(np.pi / 3.0)])
    color = point_light(albedo, normals, point, point[0] + 5.0 * direction, 0.1, 0.9)
    chex.assert_trees_all_close(color, albedo * (0.9 * 0.5 + 0.1), atol=1e-6)
    from_behind = point_light(albedo, normals, point, point[0] - 5.0 * direction, 0.1, 0.9)
    chex.assert_trees_all_close(from_behind, albedo * 0.1, atol=1e-6)


def test_without_diffuse_light_the_color_is_the_albedo():
    albedo = jax.random.uniform(jax.random.key(0), (5, 3))
    color = point_light(albedo, jnp.zeros((5, 3)), jnp.zeros((5, 3)), jnp.ones(3), 1.0, 0.0)
    chex.assert_trees_all_equal(color, albedo)


def test_gradients():
    """By differences: of the light in all that it takes, of normals in what makes the density."""
    albedo, points = jax.random.uniform(jax.random.key(0), (2, 5, 3), minval=-0.5, maxval=0.5)
    light, bump = jnp.array([0.5, 1.0, 3.0]), jnp.array([0.1, -0.2, 0.05])

    def normals(bump):
        return density_normals(lambda x: (jnp.exp(-jnp.sum((x - bump) ** 2, -1)), None), points)[2]

    chex.assert_numerical_grads(normals, (bump,), order=1, atol=2e-3)
    towards_light = safe_normalize(light + albedo)  # where the cosine has no corner
    lit = lambda *at: point_light(*at, 0.1, 0.9)  # noqa: E731
    chex.assert_numerical_grads(lit, (albedo, towards_light, points, light), order=1, atol=2e-3)
