"""Surfaces rendered by sphere tracing, against closed forms and finite differences."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dreamfusion_jax.nerf import ray_chunks
from dreamfusion_jax.nerf.cameras import orbit_camera, pixel_rays
from dreamfusion_jax.nerf.fields.field import FieldOutput
from dreamfusion_jax.nerf.options import SceneOptions
from dreamfusion_jax.nerf.scene import make_scene
from dreamfusion_jax.nerf.shading import density_normals
from dreamfusion_jax.nerf.surface_rendering import render_surface, trace
from dreamfusion_jax.nerf.view import albedo_view, lit_view
from dreamfusion_jax.nerf.view_rays import bounded_rays

SIZE = 32
OPTIONS = SceneOptions(field="sdf", render="surface")
CAMERA = orbit_camera(20.0, 30.0, 2.5, 40.0)


class Ball(NamedTuple):
    radius: jax.Array
    center: jax.Array


BALL = Ball(jnp.float32(0.5), jnp.array([0.1, -0.05, 0.08]))


def ball(params, points):
    return jnp.sqrt(jnp.sum((points - params.center) ** 2, axis=-1) + 1e-12) - params.radius


def box(half_size, points):
    outside = jnp.abs(points) - half_size
    corner = jnp.sqrt(jnp.sum(jnp.maximum(outside, 0.0) ** 2, axis=-1) + 1e-12)
    return corner + jnp.minimum(jnp.max(outside, axis=-1), 0.0)


def rays_of(camera, size=SIZE):
    bounded, _ = bounded_rays(OPTIONS, camera, pixel_rays(camera, size, size), None)
    return jax.tree.map(lambda x: x.reshape(size**2, -1), bounded)


def query(shape, params, points):
    """A surface whose color is a smooth function of space."""
    f = shape(params, points)
    return FieldOutput(jnp.zeros_like(f), 0.5 + 0.4 * jnp.sin(3.0 * points), f)


def query_normals(query, points):
    def depth(points):
        out = query(points)
        return -out.sdf, out

    _, out, normals = density_normals(depth, points)
    return out, normals


@functools.partial(jax.jit, static_argnames=("shape", "lit"))
def draw(shape, params, camera=CAMERA, lit=False):
    view = (lit_view if lit else albedo_view)(camera, jnp.zeros(3))
    normals = query_normals if lit else None
    rays = rays_of(camera)
    traced = trace(functools.partial(query, shape, jax.lax.stop_gradient(params)), rays, 32)
    field = functools.partial(query, shape, params)
    return render_surface(OPTIONS, field, normals, view, rays, traced)


def traced_rays(distance):
    field = functools.partial(query, lambda _, points: distance(points), None)
    return jax.jit(lambda: trace(field, rays_of(CAMERA), 32))()


def exact_crossing(rays, params):
    """The nearer root of |o + s d - c| = r, and the ray's distance from the middle."""
    offset = rays.origin - params.center
    along = jnp.sum(offset * rays.direction, axis=-1)
    passing = jnp.linalg.norm(offset - along[:, None] * rays.direction, axis=-1)
    half_chord = jnp.sqrt(jnp.maximum(params.radius**2 - passing**2, 1e-12))
    return -along - half_chord, passing


@pytest.mark.parametrize("slope", [0.6, 1.0, 4.0])
def test_a_ray_ends_where_it_meets_the_ball(slope):
    """Also where f is no distance, but grows too slowly or too fast."""
    bounded = rays_of(CAMERA)
    traced = traced_rays(lambda points: slope * ball(BALL, points))
    expected, passing = exact_crossing(bounded.rays, BALL)
    clear = jnp.abs(passing - BALL.radius) > 0.01
    np.testing.assert_array_equal(traced.hit[clear], (passing < BALL.radius)[clear])
    hit = traced.hit & clear
    assert hit.sum() > 100
    np.testing.assert_allclose(traced.distance[hit], expected[hit], atol=2e-4)


def test_a_ray_ends_where_it_meets_the_box():
    half_size = jnp.array([0.5, 0.3, 0.4])
    bounded = rays_of(CAMERA)
    traced = traced_rays(functools.partial(box, half_size))
    rays = bounded.rays
    sides = jnp.stack([(k * half_size - rays.origin) / rays.direction for k in (-1.0, 1.0)])
    enters, leaves = sides.min(axis=0).max(axis=-1), sides.max(axis=0).min(axis=-1)
    clear = jnp.abs(leaves - enters) > 0.02
    np.testing.assert_array_equal(traced.hit[clear], (leaves > enters)[clear])
    hit = traced.hit & clear
    assert hit.sum() > 100
    np.testing.assert_allclose(traced.distance[hit], enters[hit], atol=2e-4)


@pytest.mark.parametrize("slope", [1.0, 4.0])
def test_no_step_leaps_over_a_thin_plate(slope):
    """Also where f says that it is four times as far as it is, as a field may that still learns."""
    plate = jnp.array([0.04, 0.4, 0.3])
    traced = traced_rays(lambda points: slope * box(plate, points))
    rays = rays_of(CAMERA).rays
    sides = jnp.stack([(k * plate - rays.origin) / rays.direction for k in (-1.0, 1.0)])
    enters, leaves = sides.min(axis=0).max(axis=-1), sides.max(axis=0).min(axis=-1)
    clear = jnp.abs(leaves - enters) > 0.03
    np.testing.assert_array_equal(traced.hit[clear], (leaves > enters)[clear])


def silhouette_area(params, size, distance=2.5):
    """Of a ball in the middle, in pixels: a circle of radius tan(asin(r / D))."""
    sine = params.radius / distance
    focal = CAMERA.focal * size
    return jnp.pi * (focal * sine) ** 2 / (1.0 - sine**2)


def test_the_opacity_adds_up_to_the_silhouettes_area():
    middle = BALL._replace(center=jnp.zeros(3))
    for radius in (0.3, 0.5, 0.7):
        params = middle._replace(radius=jnp.float32(radius))
        opacity = draw(ball, params).opacity
        np.testing.assert_allclose(opacity.sum(), silhouette_area(params, SIZE), rtol=0.01)


def test_the_silhouette_grows_with_the_radius_as_its_area():
    """On the mean of many radii: at a single one it matters where pixels lie."""
    middle = BALL._replace(center=jnp.zeros(3))

    def mean(area):
        radii = jnp.linspace(0.45, 0.54, 10)
        return jnp.mean(
            jax.lax.map(lambda r: jax.grad(area)(middle._replace(radius=r)).radius, radii)
        )

    slope = mean(lambda params: draw(ball, params).opacity.sum())
    np.testing.assert_allclose(slope, mean(lambda p: silhouette_area(p, SIZE)), rtol=0.01)


def differences(function, params, spacing=4e-3):
    """Central differences along the radius and each coordinate of the center."""
    flat, restore = ravel_pytree(params)
    steps = spacing * jnp.eye(len(flat))
    return [
        (function(restore(flat + h)) - function(restore(flat - h))) / (2 * spacing) for h in steps
    ]


@pytest.mark.parametrize("lit", [False, True])
def test_colors_inside_learn_as_finite_differences_say(lit):
    """The point moves on the ray, and with it its color and its light."""
    expected, passing = exact_crossing(rays_of(CAMERA).rays, BALL)
    inside = passing < 0.8 * BALL.radius

    def color(params):
        out = draw(ball, params, lit=lit)
        return jnp.sum(jnp.where(inside[:, None], out.color, 0.0) * jnp.array([1.0, 2.0, -3.0]))

    slopes, _ = ravel_pytree(jax.grad(color)(BALL))
    np.testing.assert_allclose(slopes, differences(color, BALL), rtol=0.01, atol=0.1)


def test_a_depth_inside_learns_as_the_closed_form_says():
    expected, passing = exact_crossing(rays_of(CAMERA).rays, BALL)
    inside = passing < 0.9 * BALL.radius
    slopes = jax.grad(lambda p: jnp.sum(draw(ball, p).depth[inside]))(BALL)
    exact = jax.grad(lambda p: jnp.sum(exact_crossing(rays_of(CAMERA).rays, p)[0][inside]))(BALL)
    chex.assert_trees_all_close(slopes, exact, rtol=1e-3, atol=0.05)


def test_coverage_learns_as_finite_differences_say():
    """Weighed by its place in the image, so that moving the ball to a side counts, too."""
    weight = jnp.arange(SIZE**2) % SIZE / SIZE

    def moment(params):
        return jnp.sum(weight * draw(ball, params).opacity)

    slopes, _ = ravel_pytree(jax.grad(moment)(BALL))
    scale = np.abs(slopes).max()
    np.testing.assert_allclose(slopes, differences(moment, BALL, 2e-3), atol=0.03 * scale)


def plate_opacity(params):
    camera = orbit_camera(0.0, 0.0, 2.5, 40.0)  # looks along -x
    return draw(box, params, camera).opacity.reshape(SIZE, SIZE)


def test_a_thin_plate_is_opaque_and_its_outline_the_exact_area():
    """A fifth of a pixel thick, and seen from the front, where no ray lies deep inside."""
    plate = jnp.array([0.006, 0.4, 0.3])
    opacity = plate_opacity(plate)
    pixel = (2.5 - 0.006) / (CAMERA.focal * SIZE)
    assert opacity[12:20, 12:20].min() > 0.95
    np.testing.assert_allclose(opacity.sum() * pixel**2, 4 * 0.4 * 0.3, rtol=0.04)


def test_rays_past_the_bounding_sphere_return_nothing():
    wide = orbit_camera(20.0, 30.0, 2.5, 80.0)
    bounded = rays_of(wide)
    out = draw(ball, BALL, wide, lit=True)
    missing = (bounded.far <= bounded.near)[:, 0]
    assert missing.sum() > 100
    assert all(jnp.all(x[missing] == 0.0) for x in jax.tree.leaves(out))


def scene(**options):
    scene = make_scene(SceneOptions(field="sdf", width=8, depth=1, surface_points=8, **options))
    return scene, jax.tree.map(lambda x: 0.3 * x, scene.init(jax.random.key(0)))


def test_the_scene_looks_as_its_volume_with_narrow_edges():
    narrow = {"sdf_beta_start": 1e-3, "sdf_beta_end": 1e-3, "proposal_samples": 0}
    view = lit_view(CAMERA, jnp.array([0.1, 0.5, 0.9]))
    images = []
    for options in ({"render": "surface"}, {"render": "volume", "fine_samples": 128, **narrow}):
        thing, params = scene(**options)
        drawn = jax.jit(thing.render, static_argnums=(2, 3))(params, view, 24, 24, 600, None)
        images.append(drawn)
    surface, volume = images
    both = jnp.minimum(surface.opacity, volume.opacity)
    clear = (both > 0.99) | (jnp.maximum(surface.opacity, volume.opacity) < 1e-3)
    assert clear.mean() > 0.8 and (both > 0.99).mean() > 0.15
    for name in ("image", "opacity", "normals", "depth"):
        one, other = (np.asarray(getattr(x, name))[clear] for x in images)
        np.testing.assert_allclose(one, other, atol=0.03, err_msg=name)


def learner():
    """The gradient of a loss of a lit view's pixels and regularizers, and its params."""
    thing, params = scene(render="surface", trace_steps=8)

    def loss(params):
        view, key = lit_view(CAMERA, jnp.zeros(3)), jax.random.key(1)
        out = thing.render(params, view, 9, 9, jnp.int32(0), key, jnp.asarray(False))
        return jnp.sum(out.image**2) + out.regularizers["eikonal"]

    return jax.grad(loss), params


def test_rays_are_traced_once_a_step():
    """They march and search once, for both branches and both passes."""
    gradient, params = learner()
    assert str(jax.make_jaxpr(gradient)(params)).count("scan[") == 2


@pytest.mark.slow
def test_chunks_do_not_change_the_gradient(monkeypatch):
    gradient, params = learner()
    whole = jax.jit(gradient)(params)
    monkeypatch.setattr(ray_chunks, "_CHUNK_POINTS_CPU", 80)
    chunked = jax.jit(lambda params: gradient(params))(params)
    chex.assert_trees_all_close(whole, chunked, rtol=1e-3, atol=1e-4)
    assert jnp.abs(whole["field"]["density_and_albedo"]["kernel"]).max() > 0.01
