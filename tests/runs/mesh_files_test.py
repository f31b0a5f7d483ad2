import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh

from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.nerf.cameras import pixel_rays
from dreamfusion_jax.nerf.fields.field import FieldOutput
from dreamfusion_jax.nerf.fields.sdf import laplace_density
from dreamfusion_jax.nerf.scene import Render, Scene, SceneOptions, make_scene
from dreamfusion_jax.rendering import images
from dreamfusion_jax.runs import mesh_files, outputs
from dreamfusion_jax.runtime.errors import RunError, UserError

CENTER = jnp.array([0.2, 0.0, 0.0])
RADIUS = 0.5
RED = (1.0, 0.2, 0.0)
VOLUME = 4 / 3 * np.pi * RADIUS**3


def ball_scene(density: float = 100.0, opacity: float = 0.9) -> Scene:
    """A red ball around CENTER whose density falls linearly: a tenth at RADIUS, none at 0.6.

    Its images are opaque on the rays that pass the center within RADIUS.
    """

    def query(params, points, step):
        distance = jnp.linalg.norm(points - CENTER, axis=-1)
        falling = jnp.maximum(density * (0.6 - distance), 0.0)
        return FieldOutput(falling, jnp.broadcast_to(jnp.array(RED), points.shape))

    def render_ball(params, view, height, width, step, key):
        rays = pixel_rays(view.camera, height, width)
        away = CENTER - rays.origin
        along = jnp.sum(away * rays.direction, axis=-1, keepdims=True)
        missed = jnp.linalg.norm(away - along * rays.direction, axis=-1)
        coverage = jnp.where(missed < RADIUS, opacity, 0.2)
        return Render(rays.direction, coverage, coverage, rays.direction, {})

    scene = make_scene(SceneOptions(field="mip"))
    return scene._replace(query=query, render=render_ball)


def config(**run) -> Config:
    small = {"mesh_resolution": 40, "texture_size": 64, "mesh_faces": 2000, **run}
    return Config(run=dataclasses.replace(Config().run, **small))


def make(scene: Scene, **run) -> mesh_files.Mesh:
    return mesh_files.make_mesh(scene, {}, 0, config(**run))


@pytest.fixture(scope="module")
def ball() -> mesh_files.Mesh:
    return make(ball_scene())


def test_automatic_threshold_makes_the_mesh_of_the_renders(ball):
    distance = np.linalg.norm(ball.surface.vertices - np.asarray(CENTER), axis=-1)
    np.testing.assert_allclose(distance, RADIUS, atol=0.03)
    assert ball.surface.is_volume and len(ball.surface.faces) <= 2000
    np.testing.assert_allclose(ball.surface.volume, VOLUME, rtol=0.1)


def test_a_threshold_of_ones_own_and_all_triangles():
    mesh = make(ball_scene(), mesh_threshold=30.0, mesh_faces=0).surface
    distance = np.linalg.norm(mesh.vertices - np.asarray(CENTER), axis=-1)
    np.testing.assert_allclose(distance, 0.3, atol=0.02)
    assert len(mesh.faces) > 1000


def test_texture_and_vertices_have_the_albedo(ball):
    red = images.to_uint8(np.array(RED))
    assert (ball.color == red).all()
    assert ball.textured.texture.shape == (64, 64, 3) and (ball.textured.texture == red).all()


def test_where_nothing_is_opaque_the_densest_part_is_shown(capsys):
    mesh = make(ball_scene(density=1.0, opacity=0.4)).surface
    distance = np.linalg.norm(mesh.vertices - np.asarray(CENTER), axis=-1)
    np.testing.assert_allclose(distance, 0.3, atol=0.03)  # half of the density
    assert "nothing in the scene is opaque" in capsys.readouterr().err


def test_a_missing_surface_is_reported_in_one_sentence():
    with pytest.raises(RunError, match="--workdir is empty.*--seed"):
        make(ball_scene(density=0.0))
    with pytest.raises(RunError, match="--workdir is not finite"):
        make(ball_scene(density=np.inf))
    with pytest.raises(UserError, match="--mesh_threshold=70 must be less than .* 5.* choose"):
        make(ball_scene(), mesh_threshold=70.0)


def test_params_are_placed_on_the_device_once_per_mesh(monkeypatch, tmp_path):
    """Silhouettes, density grid and texture share them; so do all images of a run."""
    params, uploads = {"field": np.ones(3, np.float32)}, []
    device_put = jax.device_put

    def counting(tree, *args):
        uploads.extend(leaf for leaf in jax.tree.leaves(tree) if leaf is params["field"])
        return device_put(tree, *args)

    monkeypatch.setattr(jax, "device_put", counting)
    mesh_files.make_mesh(ball_scene(), params, 0, config(mesh_faces=500))
    assert len(uploads) == 1
    uploads.clear()
    monkeypatch.setattr(outputs, "encode_mp4", lambda frames: b"")
    monkeypatch.setattr(outputs, "encode_gif", lambda frames: b"")
    monkeypatch.setattr(
        outputs.progress_strip, "progress_strip", lambda workdir: np.zeros((1, 1, 3), np.uint8)
    )
    small = {"poster_size": 8, "sheet_size": 4, "turntable_size": 4, "turntable_frames": 2}
    failed = outputs.write_images(tmp_path, ball_scene(), params, 0, config(**small))
    assert not failed
    assert len(uploads) == 1


def test_all_files_are_written_whole_and_named(tmp_path):
    paths = mesh_files.write_mesh(tmp_path, ball_scene(), {}, 0, config())
    assert {path.name for path in tmp_path.iterdir()} == set(mesh_files.MESH_FILES)
    assert paths == [tmp_path / name for name in mesh_files.MESH_FILES]
    for path in paths:
        if path.suffix in (".glb", ".obj", ".ply"):
            # The front of the world, +x, is that of the files, +z.
            mesh = trimesh.load(Path(path), force="mesh")
            np.testing.assert_allclose(mesh.bounds.mean(axis=0), [0, 0, 0.2], atol=0.03)


def test_the_image_of_the_mesh_is_what_a_camera_sees(ball):
    """A ball to the front of the origin: right of the center when seen from the object's left."""
    orbit = images.Orbit()
    image = mesh_files.mesh_image(ball.textured, orbit.camera(270.0, 0.0), 32) / 255.0
    covered = image[..., 2] < 0.5
    rows, columns = np.nonzero(covered)
    focal = 0.5 / np.tan(np.deg2rad(orbit.fov_deg / 2))
    np.testing.assert_allclose(rows.mean(), 15.5, atol=0.5)
    np.testing.assert_allclose(columns.mean(), 15.5 + 32 * focal * 0.2 / orbit.distance, atol=1.0)
    area = np.pi * (32 * focal * RADIUS / orbit.distance) ** 2
    np.testing.assert_allclose(covered.sum(), area, rtol=0.1)
    middle = image[16, int(columns.mean())]
    np.testing.assert_allclose(middle, RED, atol=0.1)


def signed_scene(distance) -> Scene:
    """A red solid of this signed distance; its density is that of a narrow edge."""

    def query(params, points, step):
        value = distance(points)
        density = laplace_density(value, jnp.float32(0.01))
        return FieldOutput(density, jnp.broadcast_to(jnp.array(RED), points.shape), value)

    return make_scene(SceneOptions(field="sdf"))._replace(query=query)


def box_distance(points):
    outside = jnp.abs(points - 0.03) - jnp.array([0.5, 0.3, 0.4])
    corner = jnp.sqrt(jnp.sum(jnp.maximum(outside, 0.0) ** 2, axis=-1) + 1e-12)
    return corner + jnp.minimum(jnp.max(outside, axis=-1), 0.0)


def ball_distance(points):
    return jnp.linalg.norm(points - CENTER, axis=-1) - RADIUS


@pytest.mark.parametrize("distance", [ball_distance, box_distance])
def test_the_mesh_of_a_distance_lies_on_its_surface(distance):
    mesh = make(signed_scene(distance), mesh_faces=0).surface
    assert mesh.is_volume and mesh.volume > 0
    assert np.abs(distance(jnp.asarray(mesh.vertices))).max() < 1e-3


def test_a_threshold_asks_for_the_density_of_a_distance_field():
    mesh = make(signed_scene(ball_distance), mesh_faces=0, mesh_threshold=90.0).surface
    away = np.linalg.norm(mesh.vertices - np.asarray(CENTER), axis=-1)
    # 1 - exp(s / beta) / 2 of 1 / beta = 100 is 0.9 where s = beta log(0.2)
    np.testing.assert_allclose(away, RADIUS + 0.01 * np.log(0.2), atol=0.03)


def test_a_distance_without_an_inside_has_no_mesh():
    with pytest.raises(RunError, match="is empty"):
        make(signed_scene(lambda points: jnp.ones(len(points))))
