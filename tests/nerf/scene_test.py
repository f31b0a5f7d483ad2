"""The whole renderer: orientation, closed forms, light, chunks, and which losses train what."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dreamfusion_jax.nerf import ray_chunks, view_rays
from dreamfusion_jax.nerf.cameras import orbit_camera, pixel_rays
from dreamfusion_jax.nerf.fields.density import Density
from dreamfusion_jax.nerf.fields.proposal import proposal_grid
from dreamfusion_jax.nerf.ray_sampling import sphere_bounds
from dreamfusion_jax.nerf.scene import Render, SceneOptions, make_scene
from dreamfusion_jax.nerf.view import albedo_view, lit_view

_BACKGROUND = jnp.array([0.2, 0.4, 0.6])
_GRID = SceneOptions(
    **{"field": "grid", "grid_resolution": 9, "blob_scale": 0.0, "shading": "samples"},
    **{"proposal_resolution": 9, "fine_samples": 24},
)
_MIP = SceneOptions(
    **{"field": "mip", "width": 8, "depth": 2, "max_degree": 4, "shading": "samples"},
    **{"proposal_resolution": 8, "proposal_samples": 8, "fine_samples": 6},
)


def _camera(azimuth=30.0, elevation=20.0):
    return orbit_camera(azimuth, elevation, 2.75, 47.0)


@functools.cache
def _renderer(options):
    """Compiled once for all tests that use the same options and size."""
    return jax.jit(make_scene(options).render, static_argnums=(2, 3))


@functools.cache
def _init(options):
    return jax.jit(make_scene(options).init)(jax.random.key(0))


def _draw(options, params, view, size=9, key=None, half_size=None):
    return _renderer(options)(params, view, size, size, jnp.int32(0), key, half_size)


@functools.cache
def _learner(options, chunk_points=2**20):
    """params, view, cotangent (a Render), key -> the Render and its gradient of the params."""

    def learn(params, view, cotangent, key, half_size=None):
        def draw(params):
            return make_scene(options).render(params, view, 9, 9, jnp.int32(0), key, half_size)

        with pytest.MonkeyPatch.context() as patch:  # read while tracing
            patch.setattr(ray_chunks, "_CHUNK_POINTS_CPU", chunk_points)
            patch.setattr(ray_chunks, "_CHUNK_POINTS", chunk_points)
            render, pull = jax.vjp(draw, params)
        return render, pull(cotangent)[0]

    return jax.jit(learn)


def _cotangent(image=0.0, interlevel=0.0, rest=0.0):
    """A Render of constants."""
    names = ("opacity", "orientation", "distortion", "entropy")
    regularizers = {name: jnp.float32(rest) for name in names}
    return Render(
        image=jnp.full((9, 9, 3), image),
        opacity=jnp.full((9, 9), rest),
        depth=jnp.full((9, 9), rest),
        normals=jnp.full((9, 9, 3), rest),
        regularizers={**regularizers, "interlevel": jnp.float32(interlevel)},
    )


def _empty_grids():
    return {
        "field": {"grid": jnp.zeros((9, 9, 9, 4)).at[..., 0].set(-30.0)},
        "proposal": {"grid": jnp.full((9, 9, 9, 1), -30.0)},
    }


def _with_ball(params, x, y, z, color):
    """Marks the grid node at indices x, y, z (4 is the middle, 8 is +1) as solid."""
    return {
        "field": {"grid": params["field"]["grid"].at[x, y, z].set(jnp.array([90.0, *color]))},
        "proposal": {"grid": params["proposal"]["grid"].at[x, y, z].set(90.0)},
    }


def _centroid(mask):
    mask = np.asarray(mask)
    rows, columns = np.indices(mask.shape)
    return np.sum(rows * mask) / mask.sum(), np.sum(columns * mask) / mask.sum()


def test_seen_from_the_front_y_is_right_and_z_is_up():
    view = albedo_view(_camera(0.0, 0.0), _BACKGROUND)
    row, column = _centroid(
        _draw(_GRID, _with_ball(_empty_grids(), 4, 6, 4, (60, 60, 60)), view).opacity
    )
    assert column > 4.8 and abs(row - 4.0) < 0.25
    row, column = _centroid(
        _draw(_GRID, _with_ball(_empty_grids(), 4, 4, 6, (60, 60, 60)), view).opacity
    )
    assert row < 3.2 and abs(column - 4.0) < 0.25


@pytest.mark.parametrize("azimuth, red, depth", [(0.0, 1.0, 2.25), (180.0, 0.0, 2.25)])
def test_the_front_hides_the_back(azimuth, red, depth):
    """A red ball at +x before a green one at -x: each is seen from its own side only."""
    params = _with_ball(_empty_grids(), 6, 4, 4, (60, -60, -60))
    params = _with_ball(params, 2, 4, 4, (-60, 60, -60))
    render = _draw(_GRID, params, albedo_view(_camera(azimuth, 0.0), _BACKGROUND))
    np.testing.assert_allclose(render.image[4, 4], [red, 1.0 - red, 0.0], atol=0.05)
    assert abs(render.depth[4, 4] - depth) < 0.25


def test_constant_density_gives_the_exponential_law_of_the_chord():
    """Through all of sampling, field and compositing: opacity is 1 - exp(-tau chord)."""
    options = dataclasses.replace(_GRID, proposal_samples=0, density_scale=0.5)
    params = {"field": {"grid": jnp.zeros((9, 9, 9, 4))}}
    camera = _camera()
    near, far = sphere_bounds(pixel_rays(camera, 9, 9), 1.0)
    expected = 1.0 - jnp.exp(-0.5 * jnp.log(2.0) * (far - near)[..., 0])
    render = _draw(options, params, albedo_view(camera, _BACKGROUND), key=jax.random.key(0))
    chex.assert_trees_all_close(render.opacity, expected, atol=1e-5)
    image = 0.5 * expected[..., None] + (1.0 - expected[..., None]) * _BACKGROUND
    chex.assert_trees_all_close(render.image, image, atol=1e-5)


def test_turning_scene_and_camera_together_leaves_the_image():
    grid = jax.random.normal(jax.random.key(0), (9, 9, 9, 4)) * 2.0
    proposal = jax.random.normal(jax.random.key(1), (9, 9, 9, 1))
    params = {"field": {"grid": grid}, "proposal": {"grid": proposal}}
    # A quarter turn takes +x to +y: index (x, y) of the turned grid holds what was at (y, -x).
    turned = jax.tree.map(lambda g: jnp.rot90(g, 1, (0, 1)), params)
    before = _draw(_GRID, params, lit_view(_camera(20.0), _BACKGROUND))
    after = _draw(_GRID, turned, lit_view(_camera(110.0), _BACKGROUND))
    chex.assert_trees_all_close(after.image, before.image, atol=2e-4)
    x, y, z = jnp.moveaxis(before.normals, -1, 0)
    chex.assert_trees_all_close(after.normals, jnp.stack([-y, x, z], axis=-1), atol=2e-3)


def test_rays_that_miss_are_exactly_the_background():
    params = _init(_MIP)
    render = _draw(_MIP, params, albedo_view(orbit_camera(0.0, 0.0, 4.0, 60.0), _BACKGROUND))
    assert render.opacity[0, 0] == 0.0 and render.opacity[4, 4] > 0.5
    chex.assert_trees_all_equal(render.image[0, 0], _BACKGROUND)


def test_an_untrained_scene_is_a_ball_with_normals_outward():
    scene = make_scene(_MIP)
    params = jax.tree.map(jnp.zeros_like, _init(_MIP))
    camera = _camera()
    analytic, differences = (
        _draw(dataclasses.replace(_MIP, fd_epsilon=spacing), params, lit_view(camera, _BACKGROUND))
        for spacing in (0.0, 1e-2)
    )
    np.testing.assert_allclose(analytic.normals[4, 4], camera.pose[:, 2], atol=0.05)
    chex.assert_trees_all_close(differences.normals, analytic.normals, atol=1e-2)
    chex.assert_trees_all_close(differences.image, analytic.image, atol=1e-2)
    points = jax.random.uniform(jax.random.key(1), (10, 3), minval=-0.5, maxval=0.5)
    outward = points / jnp.linalg.norm(points, axis=-1, keepdims=True)
    chex.assert_trees_all_close(jax.jit(scene.normals)(params, points, 0), outward, atol=1e-3)
    density, albedo = jax.jit(lambda *given: scene.query(*given)[:2])(
        params, jnp.array([[0.9, 0.0, 0.0], [0.9, 0.9, 0.0]]), 0
    )
    np.testing.assert_allclose(density, [20.0 * np.log1p(np.exp(-3.2)), 0.0], rtol=1e-4)
    np.testing.assert_allclose(albedo, 0.5)


def test_rounds_of_proposals_close_in_on_what_is_thin():
    """A shell about one cell of the proposal grid thick: how far from it the fine samples lie."""
    points = jnp.stack(jnp.meshgrid(*[jnp.linspace(-1.0, 1.0, 33)] * 3, indexing="ij"), axis=-1)
    shell = jnp.abs(jnp.linalg.norm(points, axis=-1, keepdims=True) - 0.6) < 0.04
    params = {"proposal": {"grid": jnp.where(shell, 90.0, -90.0)}}
    rays = pixel_rays(_camera(), 5, 5)
    distances, last = [], []
    for rounds in (1, 2):
        options = dataclasses.replace(
            _GRID, proposal_resolution=33, proposal_samples=12, proposal_rounds=rounds
        )
        density = Density(blob_scale=0.0)
        proposal = proposal_grid(33, 1.0, density)
        noise = view_rays.draw_stratified_noise(options, (5, 5), jax.random.key(0))
        density_fn = functools.partial(proposal.density, proposal.table(params["proposal"]))
        choose = functools.partial(view_rays.choose_intervals, options, density_fn)
        bounded = view_rays.BoundedRays(rays, *sphere_bounds(rays, 1.0))
        chosen = jax.jit(choose)(bounded, noise)
        assert len(chosen.proposals) == rounds
        last.append(chosen.proposals[-1][0])
        middle = 0.5 * (chosen.edges[..., 1:] + chosen.edges[..., :-1])
        at = rays.origin[..., None, :] + middle[..., None] * rays.direction[..., None, :]
        distances.append(jnp.mean(jnp.abs(jnp.linalg.norm(at, axis=-1)[2, 2] - 0.6)))
        assert jnp.all(jnp.diff(chosen.edges, axis=-1) >= 0.0)
    assert distances[1] < 0.7 * distances[0], distances
    assert jnp.abs(last[0] - last[1]).max() > 0.05, "the second round samples elsewhere"


@pytest.mark.parametrize("options", [_MIP, dataclasses.replace(_MIP, shading="deferred")])
def test_a_vanishing_light_joins_the_unlit_image(options):
    """The two branches are different programs; at diffuse -> 0 they must agree, gradients too."""
    view = lit_view(_camera(), _BACKGROUND, ambient=1.0, diffuse=0.0)
    arguments = (_cotangent(image=1.0), jax.random.key(1))
    unlit, unlit_gradient = _learner(options)(_init(options), view, *arguments)
    faint = view._replace(diffuse=jnp.float32(1e-7))
    lit, lit_gradient = _learner(options)(_init(options), faint, *arguments)
    chex.assert_trees_all_close(lit.image, unlit.image, atol=1e-5)
    chex.assert_trees_all_close(lit_gradient, unlit_gradient, atol=1e-3)
    chex.assert_trees_all_equal(unlit.normals, jnp.zeros((9, 9, 3)))
    assert unlit.regularizers["orientation"] == 0.0 and jnp.any(lit.normals != 0.0)


def test_unlit_views_have_normals_on_request():
    """The image stays what it was, and the loss is that of the lit branch."""
    view = albedo_view(_camera(), _BACKGROUND)
    requested = view._replace(with_normals=jnp.asarray(True))
    plain, oriented = (_draw(_MIP, _init(_MIP), v) for v in (view, requested))
    chex.assert_trees_all_close(oriented.image, plain.image, atol=1e-5)
    lit = _draw(_MIP, _init(_MIP), requested._replace(diffuse=jnp.float32(0.5)))
    chex.assert_trees_all_close(oriented.normals, lit.normals, atol=1e-5)
    assert plain.regularizers["orientation"] == 0.0 < oriented.regularizers["orientation"]
    hit = np.mean(np.asarray(oriented.opacity) > 0.01)
    assert hit < 1.0, "the mean over the rays that hit is not that over all"


@pytest.mark.parametrize("textureless", [False, True])
def test_deferred_light_equals_that_of_samples_where_normals_agree(textureless):
    """A density that rises in one direction, in a light from afar: every sample is as bright."""
    along = jnp.linspace(-1.0, 1.0, 9)[:, None, None]
    grid = jax.random.normal(jax.random.key(3), (9, 9, 9, 4)).at[..., 0].set(-2.0 * along)
    params = {**_init(_GRID), "field": {"grid": grid}}
    from_afar = jnp.array([3e4, 4e4, 0.0])
    view = lit_view(_camera(), _BACKGROUND, from_afar, textureless)
    one, many = (
        _draw(dataclasses.replace(_GRID, shading=shading), params, view)
        for shading in ("deferred", "samples")
    )
    chex.assert_trees_all_close(one, many, atol=2e-4)
    assert jnp.ptp(one.image) > 0.1


def test_the_lit_side_is_brightest_and_textureless_is_gray():
    params = jax.tree.map(jnp.zeros_like, _init(_MIP))
    camera = _camera(0.0, 0.0)
    from_right = jnp.array([0.0, 5.0, 0.0])
    view = lit_view(camera, jnp.zeros(3), from_right, ambient=0.0, diffuse=1.0)
    image = _draw(_MIP, params, view).image
    assert jnp.sum(image[:, 5]) > 2.0 * jnp.sum(image[:, 3])
    shape_alone = _draw(_MIP, params, view._replace(textureless=jnp.asarray(True))).image
    chex.assert_trees_all_close(shape_alone, 2.0 * image, atol=1e-5)  # its albedo is one half


@pytest.mark.parametrize("distance", [2.75, 9.0])
def test_chunks_leave_image_and_gradients(distance):
    """81 rays of 6 samples in chunks that do not divide them evenly; from afar most are empty."""
    view = lit_view(orbit_camera(30.0, 20.0, distance, 47.0), _BACKGROUND)
    arguments = (_init(_MIP), view, _cotangent(1.0, 1.0, 1.0), jax.random.key(1))
    whole, in_chunks = _learner(_MIP)(*arguments), _learner(_MIP, 100)(*arguments)
    chex.assert_trees_all_close(in_chunks, whole, atol=1e-3, rtol=1e-3)


def test_residuals_of_an_image_are_smaller_than_one_layer():
    """Even in one chunk: both branches' residuals stay in memory while the prior runs."""
    options = dataclasses.replace(_MIP, width=64, proposal_resolution=4)
    scene, view = make_scene(options), lit_view(_camera(), _BACKGROUND)

    def pull_back(params):
        draw = lambda params: scene.render(params, view, 9, 9, jnp.int32(0), None)  # noqa: E731
        return jax.vjp(draw, params)[1]

    residuals = jax.tree.leaves(jax.eval_shape(pull_back, scene.init(jax.random.key(0))))
    assert sum(leaf.size for leaf in residuals) < 81 * options.fine_samples * options.width


@pytest.mark.parametrize("lit", [False, True])
def test_half_size_is_the_small_image_enlarged(lit):
    """Also for a side that is odd, where the small image's is rounded up."""
    make_view = lit_view if lit else albedo_view
    view = make_view(_camera(), _BACKGROUND)
    params = _init(_MIP)
    small = _draw(_MIP, params, view, size=5)
    render = _draw(_MIP, params, view, half_size=jnp.asarray(True))
    for name in ("image", "opacity", "depth", "normals"):
        expected = getattr(small, name)
        expected = jax.image.resize(expected, (9, 9, *expected.shape[2:]), "linear")
        chex.assert_trees_all_close(getattr(render, name), expected, atol=1e-5)
    if lit:
        assert jnp.any(small.normals != 0.0)


def test_chunks_leave_the_half_size_image_and_gradients():
    """In chunks only a quarter of the rays are traced: the rest are skipped, not enlarged."""
    view = lit_view(_camera(), _BACKGROUND)
    cotangent, half_size = _cotangent(1.0, 1.0, 1.0), jnp.asarray(True)
    arguments = (_init(_MIP), view, cotangent, jax.random.key(1), half_size)
    whole, in_chunks = _learner(_MIP)(*arguments), _learner(_MIP, 100)(*arguments)
    chex.assert_trees_all_close(in_chunks, whole, atol=1e-3, rtol=1e-3)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(whole[1]["field"]))


def test_interlevel_trains_the_proposal_and_never_the_field():
    view, key = albedo_view(_camera(), _BACKGROUND), jax.random.key(1)
    _, from_image = _learner(_MIP)(_init(_MIP), view, _cotangent(image=1.0), key)
    _, from_interlevel = _learner(_MIP)(_init(_MIP), view, _cotangent(interlevel=1.0), key)
    assert not np.any(from_image["proposal"]["grid"])
    assert np.any(from_interlevel["proposal"]["grid"])
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(from_interlevel["field"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(from_image["field"]))


@pytest.mark.parametrize("factor", [0.0, 1e4])
def test_gradients_are_finite_in_degenerate_scenes(factor):
    """Nothing but the blob; and densities of about a million beside exact zeros."""
    params = jax.tree.map(lambda p: factor * p, _init(_MIP))
    for view in (lit_view(_camera(), _BACKGROUND), albedo_view(_camera(), _BACKGROUND)):
        render, gradient = _learner(_MIP)(
            params, view, _cotangent(1.0, 1.0, 1.0), jax.random.key(1)
        )
        chex.assert_tree_all_finite((render, gradient))


@pytest.mark.parametrize("field", ["grid", "hash"])
def test_gradients_of_a_lit_image_are_its_differences(field):
    options = SceneOptions(
        field=field,
        shading="samples",
        grid_resolution=4,
        hash_levels=2,
        hash_log2_rows=9,
        hash_coarsest=3,
        hash_finest=5,
        width=8,
        depth=1,
        density_scale=5.0,
        proposal_samples=0,
        fine_samples=8,
    )
    scene, view = make_scene(options), lit_view(_camera(), _BACKGROUND)
    shape, unflatten = ravel_pytree(_init(options))
    # Not at the beginning: there every unit of the hash grid's MLP is at its corner.
    params, *directions = jax.random.normal(jax.random.key(1), (5, *shape.shape))

    @jax.jit
    def image(moved):
        """The image's numbers, the parameters moved along four directions."""
        params_moved = unflatten(params + moved @ jnp.stack(directions))
        render = scene.render(params_moved, view, 3, 3, jnp.int32(10_000), None)
        return jnp.concatenate([render.image.ravel(), render.opacity.ravel(), render.depth.ravel()])

    still = jnp.zeros(4)
    slopes = (image(still + 2e-3) - image(still)) / 2e-3
    assert jnp.sqrt(jnp.mean(slopes**2)) > 0.03, "there is something to compare"
    chex.assert_numerical_grads(
        image, (still,), order=1, atol=2e-3, rtol=1e-2, eps=2e-3, modes=("rev",)
    )


def test_images_are_random_only_with_a_key():
    params, view = _init(_MIP), albedo_view(_camera(), _BACKGROUND)
    chex.assert_trees_all_equal(_draw(_MIP, params, view), _draw(_MIP, params, view))

    def draw(seed):
        return _learner(_MIP)(params, view, _cotangent(), jax.random.key(seed))[0].image

    chex.assert_trees_all_equal(draw(1), draw(1))
    assert 0.0 < jnp.mean(jnp.abs(draw(1) - draw(2))) < 0.1


def test_learned_background_can_be_switched_off():
    options = dataclasses.replace(_MIP, background="mlp")
    params = _init(options)
    solid = albedo_view(orbit_camera(0.0, 0.0, 4.0, 60.0), _BACKGROUND)
    learned = solid._replace(solid_background=jnp.asarray(False))
    chex.assert_trees_all_equal(_draw(options, params, solid).image[0, 0], _BACKGROUND)
    image = _draw(options, params, learned).image
    assert jnp.any(image[0, 0] != _BACKGROUND) and jnp.any(image[0, 0] != image[0, -1])
    assert jnp.all((image >= 0.0) & (image <= 1.0))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'voxels' is not mip"):
        make_scene(SceneOptions(field="voxels"))
    with pytest.raises(ValueError, match="'sky' is not solid"):
        make_scene(SceneOptions(background="sky"))
