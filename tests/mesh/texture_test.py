import numpy as np
import trimesh

from dreamfusion_jax.mesh import texture
from dreamfusion_jax.mesh.raster import rasterize
from tests.mesh.conftest import RADIUS, colored


def test_texture_has_the_local_color_up_to_the_seams(textured):
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(3), len(textured.faces))
    on_an_edge = weights * [1.0, 1.0, 0.0]
    on_an_edge /= on_an_edge.sum(axis=-1, keepdims=True)
    for where in (weights, on_an_edge):
        uv, points = (
            np.einsum("fk,fkc->fc", where, values[textured.faces])
            for values in (textured.uv, textured.vertices)
        )
        shown = texture.read_texture(textured.texture, uv)
        np.testing.assert_allclose(shown, colored(points), atol=0.02)


def test_no_texel_is_left_blank(textured):
    assert textured.texture.shape == (256, 256, 3) and textured.texture.dtype == np.uint8
    assert textured.texture.min() >= 0.4 * 255 - 3


def test_unwrapping_only_cuts(surface):
    source, faces, uv = texture.unwrap(surface, 256)
    np.testing.assert_array_equal(source[faces], surface.faces)
    assert uv.min() >= 0.0 and uv.max() <= 1.0
    assert len(source) > len(surface.vertices), "a ball cannot be flattened in one piece"


def test_charts_do_not_overlap(textured):
    corners = 256 * textured.uv[textured.faces]
    drawn = rasterize(corners, 256)
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    areas = 0.5 * np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])
    np.testing.assert_allclose(drawn.covered.sum(), areas.sum(), rtol=0.01)
    assert drawn.covered.mean() > 0.3, "no great part of the texture is wasted"


def test_normals_are_smooth_across_seams(surface, textured):
    outward = textured.vertices / np.linalg.norm(textured.vertices, axis=-1, keepdims=True)
    np.testing.assert_allclose(textured.normals, outward, atol=0.01)


def test_the_layers_of_a_hard_surface_lie_on_it(surface):
    def ball(points):
        return 1e4 * (np.linalg.norm(points, axis=-1) < RADIUS), None

    depth = RADIUS - np.linalg.norm(texture.layers(surface, ball, 1.0), axis=-1)
    assert np.abs(depth).max() < 0.02


def open_square() -> trimesh.Trimesh:
    """In the plane z = 0.5, facing up."""
    x, y = np.meshgrid([-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0])
    vertices = np.stack([x.ravel(), y.ravel(), np.full(9, 0.5)], axis=-1)
    first = np.array([0, 1, 3, 4])
    faces = [np.stack([first, first + 1, first + 4]), np.stack([first, first + 4, first + 3])]
    return trimesh.Trimesh(vertices, np.concatenate(faces, axis=1).T, process=False)


def test_haze_shows_the_composited_albedo():
    """Density tau, albedo a + b s at depth s: the composited color is a + b / tau."""
    density, slab = 20.0, open_square()

    def haze(points):
        depth = 0.5 - points[:, 2]
        return np.where(depth > 0.0, density, 0.0), np.stack([0.2 + 4.0 * depth] * 3, axis=-1)

    below = texture.layers(slab, haze, 1.0)
    assert below.shape == (texture.LAYERS, len(slab.vertices), 3)
    # Four layers for an integral, and edges of depth's intervals that miss the haze's own.
    np.testing.assert_allclose(texture.mean_albedo(below, haze), 0.2 + 4.0 / density, atol=0.04)
