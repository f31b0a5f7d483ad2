import chex
import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.nerf.cameras import CameraRanges, orbit_camera, pixel_rays
from dreamfusion_jax.nerf.scene import Render, SceneOptions, make_scene
from dreamfusion_jax.nerf.view import albedo_view
from dreamfusion_jax.rendering import images
from dreamfusion_jax.runtime.png import write_png

SIZE = 4


def compass(params, view, height, width, step, key):
    """An "image" of the camera's direction as a color, its lower half transparent."""
    position = view.camera.pose[:, 3]
    color = 0.5 + 0.5 * position / jnp.linalg.norm(position)
    image = jnp.broadcast_to(color, (height, width, 3))
    opacity = jnp.broadcast_to(jnp.arange(height)[:, None] < height // 2, (height, width))
    normals = jnp.broadcast_to(jnp.array([1.0, 0.0, -1.0]), (height, width, 3))
    return Render(image, opacity.astype(jnp.float32), opacity, normals, {})


SCENE = make_scene(SceneOptions())._replace(render=compass)


def directions(row):
    """The camera's direction in each image of a row: [columns, 3]."""
    return row[0, ::SIZE] / 127.5 - 1.0


def around_degrees(azimuths_deg, elevation_deg=20.0):
    azimuth, elevation = np.deg2rad(azimuths_deg), np.deg2rad(elevation_deg)
    flat = np.stack([np.cos(azimuth), np.sin(azimuth)], axis=-1) * np.cos(elevation)
    return np.concatenate([flat, np.full((len(azimuths_deg), 1), np.sin(elevation))], axis=-1)


def test_the_contact_sheet_goes_around_and_ends_overhead():
    sheet = images.contact_sheet(SCENE, {}, SIZE, 0, images.Orbit())
    assert sheet.shape == (3 * SIZE, 9 * SIZE, 3) and sheet.dtype == np.uint8
    result = directions(sheet)
    np.testing.assert_allclose(result[:8], around_degrees(np.arange(8) * 45.0), atol=0.01)
    np.testing.assert_allclose(result[8], [0, 0, 1], atol=0.01)
    np.testing.assert_array_equal(sheet[SIZE, 0], [255, 128, 0])  # normals: the world's x, y, z
    opacity = sheet[2 * SIZE :, :, :]
    assert (opacity[: SIZE // 2] == 255).all() and (opacity[SIZE // 2 :] == 0).all()


def test_turntable_is_one_turn_and_renders_each_frame_once(monkeypatch):
    rendered, render_image = [], images.render_image
    monkeypatch.setattr(
        images, "render_image", lambda *given: rendered.append(1) or render_image(*given)
    )
    turntable = images.turntable(SCENE, {}, SIZE, 6, 0, images.Orbit())
    result = directions(np.concatenate(turntable.color, axis=1))
    np.testing.assert_allclose(result, around_degrees(np.arange(6) * 60.0), atol=0.01)
    assert len(rendered) == len(turntable.depth) == len(turntable.normals) == 6
    np.testing.assert_array_equal(turntable.normals[5][0, 0], [255, 128, 0])


def test_depth_is_light_near_and_dark_far_in_a_common_range():
    near, far = np.full((2, 2), 2.0), np.full((2, 2), 3.0)
    near[0, 0], far[0, 0] = 1.0, 9.0
    opacity = np.array([[0.4, 1.0], [0.0, 1.0]])  # haze does not stretch the range
    first, second = images.depth_images([near, far], [opacity, opacity])
    assert first.shape == (2, 2, 3) and first.dtype == np.uint8
    assert (first[:, 1] == 255).all() and (first[1, 0] == 0).all(), "near; the background"
    assert (second[:, 1] == round(255 * 0.15)).all(), "far"


def test_depths_of_nothing_are_all_background():
    (gray,) = images.depth_images([np.zeros((2, 2))], [np.zeros((2, 2))])
    assert (gray == 0).all()


def test_the_poster_is_seen_from_the_front_and_one_side():
    poster = images.poster(SCENE, {}, SIZE, 0, images.Orbit())
    assert poster.shape == (SIZE, SIZE, 3)
    np.testing.assert_allclose(directions(poster), around_degrees([35.0]), atol=0.01)


def test_the_preview_shows_four_sides():
    result = directions(images.preview(SCENE, {}, SIZE, 0, images.Orbit()))
    np.testing.assert_allclose(result, around_degrees(np.arange(4) * 90.0), atol=0.01)


def test_images_are_from_the_middle_of_the_training_cameras():
    assert images.training_orbit(CameraRanges()) == images.Orbit()
    papers = CameraRanges(distance=(1.0, 1.5), focal_multiplier=(0.7, 1.3))
    orbit = images.training_orbit(papers)
    camera = orbit.camera(90.0, 0.0)
    np.testing.assert_allclose(camera.pose[:, 3], [0.0, 1.25, 0.0], atol=1e-6)
    np.testing.assert_allclose(camera.focal, 1.0, rtol=1e-6)
    far = images.preview(SCENE, {}, SIZE, 0, orbit)
    np.testing.assert_allclose(directions(far), around_degrees(np.arange(4) * 90.0), atol=0.01)


def test_a_large_image_is_its_tiles(monkeypatch):
    """Side 7 in tiles of 3: the last row and column reach beyond. A flat image stays whole.

    One that is not square has the rays of its own height and width.
    """

    def towards(params, view, height, width, step, key):
        rays = pixel_rays(view.camera, height, width)
        radius = rays.radius[..., 0]
        return Render(rays.direction, radius, radius, rays.origin, {})

    scene = make_scene(SceneOptions())._replace(render=towards)
    camera = orbit_camera(20.0, 30.0, 2.0, 50.0)._replace(center=jnp.array([0.1, -0.2]))
    view = albedo_view(camera, jnp.zeros(3))
    monkeypatch.setattr(images, "_TILE_CPU", 3)
    monkeypatch.setattr(images, "_TILE", 3)
    whole = images.RenderedImage(*map(np.asarray, towards({}, view, 7, 7, 0, None)[:4]))
    chex.assert_trees_all_close(images.render_image(scene, {}, view, 7, 0), whole, atol=1e-6)
    done = []
    images.render_image(scene, {}, view, 7, 0, lambda: done.append(1))
    assert len(done) == images.tiles(7) == 9, "the progress bar counts tiles"
    one = images.render_image(scene._replace(flat=True), {}, view, 7, 0)
    chex.assert_trees_all_close(one, whole, atol=1e-6)
    for height, width in ((4, 8), (8, 4)):
        whole = images.RenderedImage(
            *map(np.asarray, towards({}, view, height, width, 0, None)[:4])
        )
        tiled = images.render_tiles(scene, {}, view, (height, width), 3, 0)
        chex.assert_trees_all_close(tiled, whole, atol=1e-6)


def test_colors_round_to_the_nearest_byte():
    np.testing.assert_array_equal(
        images.to_uint8(np.array([-1.0, 0.0, 0.5, 1.0, 2.0, 1.4 / 255])), [0, 0, 128, 255, 255, 1]
    )


def test_an_image_is_written_whole(tmp_path):
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    write_png(tmp_path / "image.png", image)
    np.testing.assert_array_equal(images.imageio.imread(tmp_path / "image.png"), image)
    assert [path.name for path in tmp_path.iterdir()] == ["image.png"]


def test_params_are_placed_on_the_device_once_for_many_images(monkeypatch):
    params = {"field": np.ones(3, np.float32)}
    device_put, uploads = jax.device_put, []

    def counting(tree, *args):
        uploads.extend(leaf for leaf in jax.tree.leaves(tree) if leaf is params["field"])
        return device_put(tree, *args)

    monkeypatch.setattr(jax, "device_put", counting)
    monkeypatch.setattr(images, "_TILE_CPU", 2)
    monkeypatch.setattr(images, "_TILE", 2)
    for render in (images.preview, images.contact_sheet):
        render(SCENE, params, SIZE, 0, images.Orbit())
        assert len(uploads) == 1
        uploads.clear()
    images.turntable(SCENE, params, SIZE, 3, 0, images.Orbit())
    assert len(uploads) == 1
