"""Activations, the blob, trilinear grids and the fields built on them."""

from dataclasses import replace
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamfusion_jax.nerf.encoding import integrated_positional_encoding
from dreamfusion_jax.nerf.fields.background import Background
from dreamfusion_jax.nerf.fields.density import Density, Sharpening, safe_exp
from dreamfusion_jax.nerf.fields.field import Field
from dreamfusion_jax.nerf.fields.grid import corner_table, grid_field, look_up, trilinear
from dreamfusion_jax.nerf.fields.hash_grid import HashGrid, hash_field
from dreamfusion_jax.nerf.fields.mip import CovarianceAnnealing, mip_field
from dreamfusion_jax.nerf.fields.proposal import proposal_grid
from dreamfusion_jax.nerf.options import SceneOptions
from dreamfusion_jax.nerf.scene import make_scene
from dreamfusion_jax.runtime.device import compiling_for

_POINTS = jnp.array([[0.0, 0.0, 0.0], [0.3, 0.0, 0.4], [0.0, -1.0, 0.0]])


@pytest.mark.parametrize(
    "density, bias",
    [
        (Density(blob_scale=4.0, blob_radius=0.5, blob_shape="linear"), (4.0, 0.0, -4.0)),
        (
            Density(blob_scale=5.0, blob_radius=0.2, blob_shape="gaussian"),
            (5.0, 5.0 * np.exp(-3.125), 5.0 * np.exp(-12.5)),
        ),
    ],
)
def test_blob(density, bias):
    np.testing.assert_allclose(density.blob(_POINTS), bias, atol=1e-3)


def test_blob_is_added_before_the_activation_and_scaled_after_it():
    raw = jnp.array([1.0, -2.0, 3.0])
    for name, activation in [("softplus", lambda x: np.log1p(np.exp(x))), ("exp", np.exp)]:
        density = Density(activation=name, scale=7.0)
        expected = 7.0 * activation(np.asarray(raw + density.blob(_POINTS)))
        np.testing.assert_allclose(density(raw, _POINTS), expected, rtol=1e-4)


def test_a_bias_scales_an_exponential_density_everywhere():
    """exp(h + blob + bias) = exp(bias) exp(h + blob): at -3 the fog thins twentyfold."""
    raw = jnp.linspace(-2.0, 2.0, len(_POINTS))
    plain = Density("exp", scale=1.0, blob_shape="gaussian", blob_radius=0.2)
    biased = plain._replace(bias=-3.0)
    chex.assert_trees_all_close(biased(raw, _POINTS), np.exp(-3.0) * plain(raw, _POINTS), rtol=1e-5)
    shifted = Density(bias=0.7)(raw, _POINTS)
    chex.assert_trees_all_close(shifted, Density()(raw + 0.7, _POINTS), rtol=1e-5)


def test_densities_and_their_gradients_are_finite_at_extremes():
    raw = jnp.array([-1e6, -100.0, 0.0, 100.0, 1e6])
    for name in ("softplus", "exp"):
        density = Density(activation=name)
        gradients = jax.grad(lambda r, x, d=density: jnp.sum(jnp.log1p(d(r, x))), (0, 1))(
            raw, jnp.zeros((5, 3))
        )
        chex.assert_tree_all_finite((density(raw, jnp.zeros((5, 3))), gradients))
    assert jax.grad(safe_exp)(100.0) == jnp.exp(15.0)
    np.testing.assert_allclose(jax.grad(safe_exp)(2.0), np.exp(2.0), rtol=1e-6)


def test_sharpening_fixes_one_density_and_steepens_the_others():
    at, origin = jnp.linspace(-3.0, 3.0, 61), jnp.zeros((61, 3))
    for name, scale in (("softplus", 20.0), ("exp", 1.0)):
        sharpening = Sharpening(factor=4.0, density=5.0, start=100, steps=50)
        density = Density(name, scale, blob_scale=0.0, sharpening=sharpening)
        before = density(at, origin)
        for step, factor in ((0, 1.0), (100, 1.0), (125, 2.5), (150, 4.0), (1000, 4.0)):
            sharp = density(at, origin, step)
            np.testing.assert_array_less(0.0, (sharp - before) * jnp.sign(before - 5.0) + 1e-3)
            if name == "exp":  # a power about the density that stays
                np.testing.assert_allclose(sharp, 5.0 * (before / 5.0) ** factor, rtol=1e-3)
            slope = jax.vmap(jax.grad(lambda x: jnp.log(density(x, origin[0], step))))(at)  # noqa: B023
            plain = jax.vmap(jax.grad(lambda x: jnp.log(density(x, origin[0]))))(at)  # noqa: B023
            where = int(np.argmin(abs(before - 5.0)))
            np.testing.assert_allclose(slope[where] / plain[where], factor, rtol=0.05)
        chex.assert_trees_all_equal(density(at, origin), before)  # the proposal has no step


def test_every_field_is_sharpened():
    dull, sharp = (Density(sharpening=Sharpening(factor, 5.0, 0, 10)) for factor in (1.0, 3.0))
    points = jax.random.uniform(jax.random.key(1), (5, 3), minval=-0.7, maxval=0.7)
    for make in (
        lambda density: mip_field(8, 1, 0, 3, density),
        lambda density: grid_field(4, 1.0, density),
        lambda density: hash_field(HashGrid(levels=2, log2_rows=8), 8, 1, 1.0, density),
    ):
        params = jax.jit(make(dull).init)(jax.random.key(0))
        at = lambda field, step: field.query(params, points, jnp.ones((5, 3)), step)[0]  # noqa: B023, E731
        chex.assert_trees_all_close(at(make(sharp), 0), at(make(dull), 0), rtol=1e-5)
        assert jnp.std(at(make(sharp), 10)) > 1.5 * jnp.std(at(make(dull), 10))


def test_trilinear_is_exact_on_products_of_coordinates():
    """a + bx + cy + dz + exyz is trilinear; each axis of the grid is the axis of its name."""
    axis = jnp.linspace(-1.0, 1.0, 3)
    x, y, z = jnp.meshgrid(axis, axis, axis, indexing="ij")

    def function(x, y, z):
        return jnp.stack([1.0 + 2.0 * x - 3.0 * y + 0.5 * z, x * y * z], axis=-1)

    points = jax.random.uniform(jax.random.key(0), (50, 3), minval=-1.0)
    result = jax.jit(trilinear)(function(x, y, z), points)
    chex.assert_trees_all_close(result, function(*points.T), atol=1e-5)
    outside = jax.jit(trilinear)(function(x, y, z), jnp.array([[5.0, -7.0, 1.0]]))
    chex.assert_trees_all_close(outside, function(1.0, -1.0, 1.0)[None], atol=1e-5)


def test_a_corner_table_says_the_same_and_learns_the_same():
    grid = jax.random.normal(jax.random.key(0), (4, 4, 4))
    points = jax.random.uniform(jax.random.key(1), (50, 3), minval=-1.2, maxval=1.2)
    cotangent = jax.random.normal(jax.random.key(2), (50,))

    def value_and_pull(interpolate):
        value, pull = jax.vjp(interpolate, grid, points)
        return value, pull(cotangent)

    by_table = value_and_pull(lambda grid, points: look_up(corner_table(grid), points))
    by_grid = value_and_pull(lambda grid, points: trilinear(grid[..., None], points)[..., 0])
    chex.assert_trees_all_close(by_table, by_grid, atol=1e-5)


def test_trilinear_gradients():
    grid = jax.random.normal(jax.random.key(0), (3, 3, 3, 2))
    points = jnp.array([[0.3, -0.4, 0.6], [0.31, -0.4, 0.6], [-0.5, 0.2, 0.7]])
    chex.assert_numerical_grads(
        jax.jit(lambda g, x: jnp.sum(trilinear(g, x) ** 2)),
        (grid, points),
        order=1,
        atol=1e-2,
        rtol=1e-2,
    )


def test_mip_field_depends_on_the_size_of_what_it_sees():
    field = mip_field(16, 2, 0, 6, Density(blob_scale=0.0))
    params, query = jax.jit(field.init)(jax.random.key(0)), jax.jit(field.query)
    points = jax.random.uniform(jax.random.key(1), (2, 5, 3), minval=-0.7, maxval=0.7)
    density, albedo, _ = query(params, points, jnp.full_like(points, 1e-4), 0)
    chex.assert_shape((density, albedo), [(2, 5), (2, 5, 3)])
    assert jnp.std(density) > 1e-2 and jnp.all((albedo > 0.0) & (albedo < 1.0))
    blurred = query(params, points, jnp.full_like(points, 1e3), 0).density
    np.testing.assert_allclose(blurred, blurred[0, 0], rtol=1e-6)


def test_the_residual_field_is_the_papers_network():
    """Five blocks of 128 in float64 NumPy; LayerNorm stands between blocks and nowhere else."""
    field = mip_field(128, 5, 0, 8, Density(blob_scale=0.0, activation="exp"), residual=True)
    params = jax.jit(field.init)(jax.random.key(0))
    mean, covariance_diag = jax.random.uniform(jax.random.key(1), (2, 9, 3), maxval=0.3)
    density, albedo, _ = jax.jit(field.query)(params, mean, covariance_diag, jnp.int32(0))

    layers = jax.tree.map(np.float64, params)
    dense = lambda name, x: x @ layers[name]["kernel"] + layers[name]["bias"]  # noqa: E731
    swish = lambda x: x / (1.0 + np.exp(-x))  # noqa: E731
    x = dense("embedding", np.float64(integrated_positional_encoding(mean, covariance_diag, 0, 8)))
    for block in range(5):
        if block:
            spread = np.sqrt(x.var(-1, keepdims=True) + 1e-6)
            norm = layers[f"norm_{block}"]
            x = (x - x.mean(-1, keepdims=True)) / spread * norm["scale"] + norm["bias"]
        x = x + swish(dense(f"second_{block}", swish(dense(f"first_{block}", x))))
    raw = dense("density_and_albedo", x)
    assert sum(name.startswith("norm") for name in layers) == 4
    np.testing.assert_allclose(density, 20.0 * np.exp(raw[:, 0]), rtol=1e-4)
    np.testing.assert_allclose(albedo, 1.0 / (1.0 + np.exp(-raw[:, 1:])), rtol=1e-4)


@pytest.mark.parametrize("residual", [False, True])
def test_a_rounded_field_has_the_exact_ones_params_and_is_near(residual):
    make = partial(mip_field, 16, 2, 0, 4, Density(), residual=residual)
    exact, rounded = make(), make(dtype=jnp.bfloat16)
    params = exact.init(jax.random.key(0))
    chex.assert_trees_all_equal(rounded.init(jax.random.key(0)), params)
    points = jax.random.uniform(jax.random.key(1), (64, 3), minval=-1.0)

    def loss(field: Field, params: Any) -> jax.Array:
        out = field.query(params, points, jnp.full_like(points, 1e-3), jnp.int32(0))
        assert (out.density.dtype, out.albedo.dtype) == (jnp.float32, jnp.float32)
        return jnp.mean(out.albedo**2) + jnp.mean(jnp.log(out.density))

    (value, slope), (near, near_slope) = (
        jax.value_and_grad(partial(loss, field))(params) for field in (exact, rounded)
    )
    assert 0.0 < abs(near - value) < 1e-2 * abs(value)
    distance = jax.tree.map(jnp.subtract, near_slope, slope)
    assert optax.tree.norm(distance) < 2e-2 * optax.tree.norm(slope)


@pytest.mark.parametrize("field", ["mip", "hash", "sdf"])
def test_products_of_densities_are_rounded_on_gpus_alone(field):
    options = SceneOptions(field=field, hash_log2_rows=4)
    points = jnp.zeros((2, 3))
    for name, format, rounded in (
        ("cpu", "auto", False),
        ("gpu", "auto", field != "sdf"),
        ("tpu", "auto", False),
        ("gpu", "float32", False),
        ("cpu", "bfloat16", True),
    ):
        with compiling_for(name):
            scene = make_scene(replace(options, field_dtype=format))
            params = scene.init(jax.random.key(0))
            program = jax.make_jaxpr(scene.query)(params, points, jnp.int32(0))
        assert ("bf16" in str(program)) == rounded


def test_blur_is_added_variance_that_falls_and_stays():
    blur = CovarianceAnnealing(0.05, 0.002, 100)
    steps = jnp.array([0, 50, 100, 1000])
    chex.assert_trees_all_close(jax.vmap(blur)(steps), jnp.array([0.05, 0.026, 0.002, 0.002]))
    plain = mip_field(16, 2, 0, 6, Density())
    blurred = mip_field(16, 2, 0, 6, Density(), blur)
    params = jax.jit(plain.init)(jax.random.key(0))
    points = jax.random.uniform(jax.random.key(1), (5, 3), minval=-0.7, maxval=0.7)
    small = jnp.full_like(points, 1e-4)
    for step in (0, 1000):
        expected = plain.query(params, points, small + blur(step), 0)
        chex.assert_trees_all_close(blurred.query(params, points, small, step), expected)


def test_grid_field_reads_density_then_albedo():
    field = grid_field(2, 2.0, Density(blob_scale=0.0, scale=3.0))
    values = jnp.broadcast_to(jnp.array([1.0, -1.0, 0.0, 2.0]), (2, 2, 2, 4))
    points = jnp.array([[1.5, -1.0, 0.3]])
    density, albedo, _ = field.query({"grid": values}, points, jnp.zeros_like(points), 0)
    np.testing.assert_allclose(density, 3.0 * np.log1p(np.e), rtol=1e-5)
    np.testing.assert_allclose(albedo[0], 1.0 / (1.0 + np.exp([1.0, 0.0, -2.0])), rtol=1e-5)


def test_an_untrained_proposal_is_the_blob():
    density = Density()
    proposal = proposal_grid(4, 1.0, density)
    chex.assert_trees_all_close(
        proposal.density(proposal.table(proposal.init()), _POINTS), density(jnp.zeros(3), _POINTS)
    )


def test_proposal_nodes_count_tenfold():
    density = Density()
    proposal = proposal_grid(4, 1.0, density)
    result = proposal.density(proposal.table({"grid": jnp.full((4, 4, 4, 1), -0.2)}), _POINTS)
    chex.assert_trees_all_close(result, density(jnp.full(3, -2.0), _POINTS), rtol=1e-5)


def test_background_is_a_color_that_depends_on_the_direction():
    direction = jnp.eye(3)
    color, _ = jax.jit(Background().init_with_output)(jax.random.key(0), direction)
    assert jnp.all((color > 0.0) & (color < 1.0)) and jnp.ptp(color[:, 0]) > 1e-3


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="is not softplus"):
        Density(activation="relu")(jnp.zeros(3), _POINTS)
    with pytest.raises(ValueError, match="is not linear"):
        Density(blob_shape="cube")(jnp.zeros(3), _POINTS)
