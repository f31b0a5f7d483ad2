"""Signed distances against closed forms, and images of solids whose outline is known."""

import chex
import jax
import numpy as np
import pytest

from dreamfusion_jax.nerf.cameras import orbit_camera
from dreamfusion_jax.toybox import captions, objects, shapes

RED = (1.0, 0.0, 0.0)


def distances(part: shapes.Part, points: list[tuple[float, float, float]]) -> np.ndarray:
    solids = shapes.stack([part])
    return np.asarray(shapes.distance((part.shape,), solids, np.array(points, np.float32).T))[0]


def part_distance(part: shapes.Part, points: np.ndarray) -> np.ndarray:
    """A part's distances in numpy, in the part's own axes."""
    local = part.rotation.T @ (points - np.array(part.center)[:, None])
    unit = part._replace(center=(0.0, 0.0, 0.0), rotation=np.eye(3))
    return np.asarray(shapes.distance((part.shape,), shapes.stack([unit]), np.float32(local)))[0]


@pytest.mark.parametrize(
    "part, points, expected",
    [
        (
            shapes.Part("ellipsoid", (1, 0, 0), (0.5, 0.5, 0.5), RED),
            [(3, 0, 0), (1, 0.5, 0), (1, 0.2, 0)],
            [1.5, 0.0, -0.3],
        ),
        (
            shapes.Part("box", (0, 0, 0), (1, 2, 3), RED, 0.1),
            [(2, 0, 0), (0, 0, 0), (4, 6, 0), (0, 0, 4)],
            [0.9, -1.1, 4.9, 0.9],
        ),
        (
            shapes.Part("cone", (0, 0, 0), (1, 1, 2), RED),  # a cylinder
            [(3, 0, 0), (0, 0, 5), (4, 0, 6), (0.5, 0, 0)],
            [2.0, 3.0, 5.0, -0.5],
        ),
        (
            shapes.Part("cone", (0, 0, 0), (2, 0, 1), RED),  # its side is the line x + z = 1
            [(2, 0, 1), (1, 0, 0), (0, 0, -3)],
            [np.sqrt(2), 0.0, 2.0],
        ),
        (
            shapes.Part("torus", (0, 0, 0), (2, 0.5, 0), RED),
            [(2, 0, 0), (0, 4, 0), (0, 0, 0), (0, 2, 1)],
            [-0.5, 1.5, 1.5, 0.5],
        ),
        (
            shapes.Part("dome", (0, 0, 0), (1, 1, 1), RED),  # the upper half of a ball
            [(0, 0, 3), (2, 0, 0), (0, 0, -1), (0, 0, 0.25)],
            [2.0, 1.0, 1.0, -0.25],
        ),
        (
            shapes.Part("prism", (0, 0, 0), (3, 1, 1), RED),  # its slopes are |y| + z = 1
            [(0, 0, 2), (0, 2, 1), (5, 0, 0.5), (0, 0, -2), (0, 0, 0.25)],
            [np.sqrt(0.5), np.sqrt(2), 2.0, 2.0, -0.25],
        ),
        (
            shapes.Part("tube", (0, 0, 0), (2, 0.25, 1), RED),
            [(0, 0, 0), (0, 3, 0), (2, 0, 0), (0, 2, 3), (0, 5.25, 5)],
            [1.75, 0.75, -0.25, 2.0, 5.0],
        ),
    ],
)
def test_distance_closed_forms(part, points, expected):
    chex.assert_trees_all_close(distances(part, points), np.array(expected, np.float32), atol=2e-5)


def test_rotation_turns_the_part():
    along_x = shapes.Part("cone", (0, 0, 0), (0.1, 0.2, 1), RED, 0.0, shapes.turn("y", 90))
    along_z = along_x._replace(rotation=np.eye(3))
    turned = distances(along_x, [(3, 0.5, 0), (-3, 0, 0.5)])
    chex.assert_trees_all_close(turned, distances(along_z, [(0, 0.5, 3), (0.5, 0, -3)]), atol=1e-5)


def render_sphere(radius: float, ambient: float) -> np.ndarray:
    solids = shapes.stack([shapes.Part("ellipsoid", (0, 0, 0), (radius,) * 3, RED)])
    camera = orbit_camera(30.0, 20.0, 3.0, 50.0)
    light = shapes.Light(
        np.asarray(camera.pose[:, 3]), np.float32(ambient), np.float32(1 - ambient)
    )
    batch = jax.tree.map(
        lambda x: np.asarray(x)[None], (solids, camera, light, np.ones((2, 3), np.float32))
    )
    return np.asarray(shapes.render_batch(("ellipsoid",), *batch, 64))[0]


def test_a_sphere_covers_its_disc_and_is_brightest_to_the_light():
    image = render_sphere(0.7, 0.3)
    covered = 1.0 - image[..., 2]  # red on white: blue is what the background left
    # A sphere is seen under half angle asin(r / d); its outline on the image is a circle.
    radius = np.tan(np.arcsin(0.7 / 3.0)) / (2 * np.tan(np.deg2rad(25.0))) * 64
    # Coverage falls from 1 to 0 over half a pixel outside: a rim a quarter of a pixel wide in all.
    area = np.pi * radius**2 + 2 * np.pi * radius * 0.25
    chex.assert_trees_all_close(covered.sum(), np.float32(area), rtol=0.01)
    # Light at the eye: full in the middle, ambient alone at the rim.
    assert image[32, 32, 0] > 0.98
    rim = image[32, int(32 - radius) + 1, 0]
    assert 0.3 < rim < 0.75


@pytest.mark.parametrize("kind", captions.KINDS)
def test_objects_are_bounded_and_their_parts_distinct(kind):
    points = np.random.default_rng(1).uniform(-1, 1, (3, 20_000)).astype(np.float32)
    outside = np.linalg.norm(points, axis=0) > 0.97
    rng = np.random.default_rng(0)
    for _ in range(3):
        parts = objects.build(rng, captions.Subject(kind, "red", None))
        # Evaluated eagerly, part by part: to compile a kind takes seconds.
        gaps = np.stack([part_distance(part, points) for part in parts])
        inside = gaps.min(axis=0) < 0
        assert inside.mean() > 0.002
        assert not (inside & outside).any()
        for i, part in enumerate(parts):
            others = [
                other
                for j, other in enumerate(parts)
                if j != i and other.center == part.center and other.size == part.size
            ]
            assert all(not np.allclose(other.rotation, part.rotation) for other in others)
        if kind == "chair":
            upper = points[:, inside & (points[2] > 0.2)]
            assert (upper[0] < 0).all()


def test_a_kind_has_one_sequence_of_primitives():
    rng = np.random.default_rng(0)
    for kind in captions.KINDS:
        subjects = [
            captions.Subject(kind, "red", None),
            captions.Subject(kind, "white", "blue", "striped"),
            captions.Subject(kind, None, None, "wooden"),
            captions.Subject(kind, None, None),
        ]
        built = [objects.build(rng, subject) for subject in subjects]
        assert len({tuple(part.shape for part in parts) for parts in built}) == 1
        plain, striped, wooden, gray = (np.any([p.stripes[3] for p in x]) for x in built)
        assert not plain and striped and wooden and not gray


def test_gray_subjects_have_no_color_at_all():
    parts = objects.build(np.random.default_rng(0), captions.Subject("car", None, None))
    assert {part.color for part in parts} == {captions.GRAY}
