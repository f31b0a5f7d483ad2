import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
import trimesh

from dreamfusion_jax import export, render
from dreamfusion_jax.errors import UserError
from dreamfusion_jax.nerf.scene import Scene, SceneOptions, make_scene

RADIUS = 0.5
RED = (1.0, 0.2, 0.0)


def ball_scene(floater: bool = False, density: float = 100.0) -> Scene:
    """A red ball of radius 0.5 around (0.2, 0, 0), its density falling linearly at the rim."""

    def density_albedo(params, points, step):
        distance = jnp.linalg.norm(points - jnp.array([0.2, 0.0, 0.0]), axis=-1)
        tau = density * (1.0 + RADIUS - distance) - 0.9 * density  # 0.1 density at the rim
        if floater:
            far = jnp.linalg.norm(points - jnp.array([-0.8, 0.0, 0.0]), axis=-1)
            tau = jnp.maximum(tau, density * (far < 0.05))
        return jnp.maximum(tau, 0.0), jnp.broadcast_to(jnp.array(RED), points.shape)

    return make_scene(SceneOptions())._replace(density_albedo=density_albedo)


def extract(scene: Scene, threshold: float = 10.0) -> trimesh.Trimesh:
    return export.extract_mesh(scene, {}, 0, 1.0, 40, threshold)


def test_the_mesh_lies_where_the_density_reaches_the_threshold():
    mesh = extract(ball_scene())
    distance = np.linalg.norm(mesh.vertices - [0.2, 0.0, 0.0], axis=-1)
    np.testing.assert_allclose(distance, RADIUS, atol=0.01)
    assert mesh.is_watertight
    np.testing.assert_allclose(mesh.volume, 4 / 3 * np.pi * RADIUS**3, rtol=0.05)  # outward faces
    np.testing.assert_array_equal(mesh.visual.vertex_colors[0, :3], [255, 51, 0])


def test_floaters_are_dropped_and_thin_scenes_are_cut_at_half_their_density():
    assert extract(ball_scene(floater=True)).vertices[:, 0].min() > -0.4
    thin = extract(ball_scene(density=1.0))
    assert len(thin.faces) > 100


def test_an_empty_scene_has_no_mesh():
    with pytest.raises(UserError, match="empty"):
        extract(ball_scene(density=0.0))


def test_files_stand_upright_and_carry_colour(tmp_path):
    mesh = extract(ball_scene())
    export.write_glb(tmp_path / "mesh.glb", mesh)
    export.write_obj(tmp_path / "mesh.obj", mesh)
    loaded = {
        name: trimesh.load(tmp_path / name, force="mesh") for name in ("mesh.glb", "mesh.obj")
    }
    for mesh in loaded.values():
        # The front of the world, +x, is glTF's +z.
        np.testing.assert_allclose(mesh.bounds.mean(axis=0), [0, 0, 0.2], atol=0.02)
        assert mesh.volume > 0
    (part,) = trimesh.load(tmp_path / "mesh.glb").geometry.values()
    linear = part.visual.vertex_attributes["color"][0, 1] / 255  # as glTF has it
    np.testing.assert_allclose(linear, ((0.2 + 0.055) / 1.055) ** 2.4, atol=0.003)
    np.testing.assert_allclose(loaded["mesh.obj"].visual.vertex_colors[0, 1] / 255, 0.2, atol=0.003)
    data = (tmp_path / "mesh.glb").read_bytes()
    tree = json.loads(data[20 : 20 + struct.unpack("<I", data[12:16])[0]])
    primitive = tree["meshes"][0]["primitives"][0]
    assert {"COLOR_0", "NORMAL", "POSITION"} <= primitive["attributes"].keys()
    assert tree["materials"][primitive["material"]]["pbrMetallicRoughness"]["metallicFactor"] == 0


def test_the_picture_of_the_mesh_shows_what_a_camera_sees():
    """A ball to the front of the origin: right of the centre when seen from the object's left."""
    mesh, orbit = extract(ball_scene()), render.Orbit()
    picture = export.mesh_picture(mesh, orbit.camera(270.0, 0.0), 32) / 255.0
    covered = picture[..., 2] < 0.5
    rows, columns = np.nonzero(covered)
    focal = 0.5 / np.tan(np.deg2rad(orbit.fov_deg / 2))
    np.testing.assert_allclose(rows.mean(), 15.5, atol=0.5)
    np.testing.assert_allclose(columns.mean(), 15.5 + 32 * focal * 0.2 / orbit.distance, atol=1.0)
    area = np.pi * (32 * focal * RADIUS / orbit.distance) ** 2
    np.testing.assert_allclose(covered.sum(), area, rtol=0.1)
    middle = picture[16, int(columns.mean())]
    np.testing.assert_allclose(middle, RED, atol=0.1)
