"""Signed distances against closed forms: spheres, planes and boxes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamfusion_jax.nerf.cameras import orbit_camera, pixel_rays
from dreamfusion_jax.nerf.fields.mip import mip_field
from dreamfusion_jax.nerf.fields.sdf import (
    SignedDistance,
    laplace_density,
    project_to_surface,
    surface_regularizers,
    value_and_gradient,
)
from dreamfusion_jax.nerf.options import SceneOptions
from dreamfusion_jax.nerf.scene import make_scene
from dreamfusion_jax.nerf.view import albedo_view
from dreamfusion_jax.nerf.volume_rendering import compositing_weights

HALF_SIZE = jnp.array([0.5, 0.3, 0.4])
KEY = jax.random.key(0)


def sphere(points):
    return jnp.linalg.norm(points, axis=-1) - 0.5


def plane(points):
    return points[..., 2] - 0.1


def box(points):
    outside = jnp.abs(points) - HALF_SIZE
    corner = jnp.sqrt(jnp.sum(jnp.maximum(outside, 0.0) ** 2, axis=-1) + 1e-12)
    return corner + jnp.minimum(jnp.max(outside, axis=-1), 0.0)


@pytest.mark.parametrize("beta", [0.02, 0.1])
def test_opacity_down_to_a_depth_below_a_plane(beta):
    """The integral of the density from far outside to depth d is d / beta + exp(-d / beta) / 2."""
    edges = jnp.linspace(-1.0, 0.3, 20_001)
    depth = 0.5 * (edges[1:] + edges[:-1])
    weights = compositing_weights(laplace_density(-depth, jnp.float32(beta)), edges)
    expected = 1.0 - np.exp(-(0.3 / beta + 0.5 * np.exp(-0.3 / beta)))
    np.testing.assert_allclose(jnp.sum(weights), expected, atol=1e-4)


def test_opacity_along_a_ray_through_the_middle_of_a_sphere():
    """Twice the integral down to the radius: both halves of the diameter are alike."""
    beta, radius = 0.2, 0.3
    edges = jnp.linspace(-3.0, 3.0, 20_001)
    distance = jnp.abs(0.5 * (edges[1:] + edges[:-1])) - radius
    weights = compositing_weights(laplace_density(distance, jnp.float32(beta)), edges)
    expected = 1.0 - np.exp(-2.0 * (radius / beta + 0.5 * np.exp(-radius / beta)))
    np.testing.assert_allclose(jnp.sum(weights), expected, atol=1e-4)


def test_density_is_finite_and_bounded_at_extremes():
    distance = jnp.array([-1e6, -1e-9, 0.0, 1e-9, 1e6])
    density, slope = jax.vmap(jax.value_and_grad(laplace_density), (0, None))(
        distance, jnp.float32(1e-3)
    )
    chex.assert_tree_all_finite((density, slope))
    np.testing.assert_allclose(density, [1e3, 5e2, 5e2, 5e2, 0.0], rtol=1e-4)


def test_beta_falls_exponentially_and_then_stays():
    head = SignedDistance(beta_start=0.1, beta_end=0.001, beta_steps=100)
    betas = jax.vmap(head.beta)(jnp.array([0, 50, 100, 1000]))
    np.testing.assert_allclose(betas, [0.1, 0.01, 0.001, 0.001], rtol=1e-5)


def scene_of_a_sphere(**options):
    """A scene whose network says 0 everywhere: the sphere that it starts as."""
    scene = make_scene(SceneOptions(field="sdf", proposal_samples=0, **options))
    params = jax.tree.map(jnp.zeros_like, scene.init(KEY))
    return scene, params


def test_narrow_edges_give_the_exact_silhouette():
    scene, params = scene_of_a_sphere(fine_samples=128, sdf_beta_start=1e-3, sdf_beta_end=1e-3)
    camera = orbit_camera(20.0, 30.0, 2.5, 40.0)
    rays = pixel_rays(camera, 24, 24)
    passing = jnp.linalg.norm(jnp.cross(rays.origin, rays.direction), axis=-1)
    rendered = scene.render(params, albedo_view(camera, jnp.zeros(3)), 24, 24, jnp.int32(0), None)
    clear = jnp.abs(passing - 0.5) > 0.02
    np.testing.assert_array_equal((rendered.opacity > 0.5)[clear], (passing < 0.5)[clear])
    np.testing.assert_allclose(rendered.opacity[clear], (passing < 0.5)[clear], atol=1e-3)


def test_normals_are_the_distance_s_gradient():
    scene, params = scene_of_a_sphere()
    points = jax.random.normal(KEY, (20, 3))
    normals = scene.normals(params, points, jnp.int32(0))
    expected = points / jnp.linalg.norm(points, axis=-1, keepdims=True)
    np.testing.assert_allclose(normals, expected, atol=1e-3)
    out = scene.query(params, points, jnp.int32(0))
    np.testing.assert_allclose(out.sdf, sphere(points), atol=1e-4)
    np.testing.assert_allclose(scene.level_set.value(out), -out.sdf)
    assert scene.level_set.level == 0.0


@pytest.mark.parametrize("distance", [sphere, plane, box])
def test_a_distance_pays_no_eikonal_and_its_double_pays_one(distance):
    one = surface_regularizers(distance, 1.0, 4096, KEY)["eikonal"]
    two = surface_regularizers(lambda points: 2.0 * distance(points), 1.0, 4096, KEY)["eikonal"]
    np.testing.assert_allclose([one, two], [0.0, 1.0], atol=2e-3)


def test_smoothness_leaves_thin_sheets_alone():
    """The two sides of a flat sheet have opposite normals, closer than the points of a pair."""
    sheet = lambda points: jnp.abs(points[:, 2]) - 0.01  # noqa: E731
    assert surface_regularizers(sheet, 1.0, 2**12, KEY)["smoothness"] < 1e-6


def test_smoothness_is_the_curvature():
    """Two normals d apart differ by 2/3 (d / r)^2 on a sphere of radius r; on a plane, by 0."""
    length = 0.05
    terms = [
        surface_regularizers(f, 1.0, 2**16, KEY)["smoothness"]
        for f in (plane, lambda points: jnp.linalg.norm(points, axis=-1) - 0.8)
    ]
    assert terms[0] < 1e-6
    np.testing.assert_allclose(terms[1], 2.0 / 3.0 * (length / 0.8) ** 2, rtol=0.1)


@pytest.mark.parametrize("distance", [sphere, plane, box])
def test_newton_steps_end_on_the_surface(distance):
    points = 0.6 * jax.random.normal(KEY, (500, 3))
    far = jnp.abs(distance(points)) < 0.2
    moved = project_to_surface(distance, points, 0.3)[far]
    assert jnp.abs(distance(moved)).max() < 1e-4
    assert jnp.linalg.norm(moved - points[far], axis=-1).max() < 0.4


@pytest.mark.parametrize("shape", [sphere, pytest.param(box, marks=pytest.mark.slow)])
def test_a_field_fits_a_shape_with_a_slope_of_one(shape):
    field = mip_field(64, 3, 0, 5, SignedDistance())
    covariance = jnp.full((1024, 3), 1e-4)

    def distance(params, points):
        return field.query(params, points, covariance[: len(points)], jnp.int32(0)).sdf

    def loss(params, key):
        points = jax.random.ball(key, 3, shape=(1024,))
        value, slope = value_and_gradient(lambda at: distance(params, at), points)
        eikonal = jnp.mean((jnp.linalg.norm(slope, axis=-1) - 1.0) ** 2)
        return jnp.mean((value - shape(points)) ** 2) + 0.01 * eikonal

    optimizer = optax.adam(optax.exponential_decay(5e-3, 400, 0.05))

    @jax.jit
    def fit(params):
        def step(carry, key):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, key), state)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(KEY, 400)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    params = fit(field.init(KEY))
    points = jax.random.ball(jax.random.key(1), 3, shape=(1024,))
    value, slope = value_and_gradient(lambda at: distance(params, at), points)
    assert jnp.abs(value - shape(points)).mean() < 0.01
    # A box's edges and corners, where its slope jumps, are rounded by the network.
    assert jnp.abs(jnp.linalg.norm(slope, axis=-1) - 1.0).mean() < (
        0.05 if shape is sphere else 0.1
    )
