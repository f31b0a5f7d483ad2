import chex
import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.distillation.options import DistillationOptions
from dreamfusion_jax.nerf.cameras import CameraRanges, focal_from_fov, orbit_position
from dreamfusion_jax.nerf.options import SceneOptions
from dreamfusion_jax.training.options import TrainOptions
from dreamfusion_jax.training.views import draw_light, draw_shading, draw_view

COUNT = 4000


def draw_many(draw):
    return jax.vmap(draw)(jax.random.split(jax.random.key(1), COUNT))


def test_a_view_depends_on_seed_step_and_its_own_index_alone():
    def draw(seed, step, index):
        config = Config(train=TrainOptions(seed=seed))
        return jax.tree.map(
            lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
            draw_view(config, jnp.int32(step), jnp.int32(index)),
        )

    first = draw(0, 5, 3)
    together = jax.vmap(lambda index: draw_view(Config(), jnp.int32(5), index))(jnp.arange(4))
    chex.assert_trees_all_close(together.t[3], first.t)
    chex.assert_trees_all_close(together.view.camera.pose[3], first.view.camera.pose, atol=1e-6)
    for other in (draw(1, 5, 3), draw(0, 6, 3), draw(0, 5, 2)):
        for a, b in ((first.t, other.t), (first.view.camera.pose, other.view.camera.pose)):
            assert np.abs(a - b).max() > 1e-4
        assert (first.noise_key != other.noise_key).any()


def test_the_pose_is_the_drawn_cameras():
    back = CameraRanges(azimuth_deg=(180.0, 180.0), elevation_deg=(0.0, 0.0))
    draw = draw_view(Config(camera=back), jnp.int32(0), 0)
    assert draw.pose.azimuth_deg == 180.0 and draw.pose.elevation_deg == 0.0
    np.testing.assert_allclose(draw.view.camera.pose[1:, 3], 0.0, atol=1e-5)
    assert draw.view.camera.pose[0, 3] < -2.0
    np.testing.assert_allclose(draw.pose.distance, -draw.view.camera.pose[0, 3], rtol=1e-6)
    np.testing.assert_allclose(focal_from_fov(draw.pose.fov_deg), draw.view.camera.focal, rtol=1e-5)


def test_views_of_a_group_share_all_but_azimuth_and_noise():
    """Four views in a row, evenly around; the next group is another one."""
    draws = jax.vmap(lambda i: draw_view(Config(), jnp.int32(300), i, joint_views=4))(jnp.arange(8))
    first, second = draws.pose.azimuth_deg[:4], draws.pose.azimuth_deg[4:]
    turns = jnp.array([0.0, 90.0, 180.0, 270.0])
    for azimuth in (first, second):
        np.testing.assert_allclose((azimuth - azimuth[0]) % 360.0, turns, atol=1e-3)
    view = draws.view._replace(camera=draws.view.camera._replace(pose=0))
    shared = (view, draws.t, draws.pose.elevation_deg, draws.pose.fov_deg)
    for leaf in jax.tree.leaves(shared):
        if jnp.ndim(leaf):
            np.testing.assert_allclose(leaf[:4], jnp.broadcast_to(leaf[:1], leaf[:4].shape))
    assert draws.t[0] != draws.t[4] and first[0] != second[0]
    keys = jax.random.key_data(draws.noise_key)
    assert len({tuple(key) for key in keys.tolist()}) == 8
    alone = draw_view(Config(), jnp.int32(300), 4)
    chex.assert_trees_all_close(alone.view.camera, jax.tree.map(lambda x: x[4], draws.view.camera))


def test_early_views_are_of_half_the_size():
    config = Config(train=TrainOptions(half_size_steps=7))
    assert draw_view(config, jnp.int32(6), 0).half_size
    assert not draw_view(config, jnp.int32(7), 0).half_size


def test_views_have_normals_whenever_orientation_is_weighted():
    late = TrainOptions(orientation_start=0.0, orientation_weight=1.0, orientation_steps=10)
    views = [draw_view(Config(train=late), jnp.int32(step), 0).view for step in (0, 1)]
    assert [bool(view.with_normals) for view in views] == [False, True]
    assert not draw_view(Config(), jnp.int32(5), 0).view.with_normals


def test_solid_backgrounds_come_at_their_configured_share():
    for background, share, expected in (("mlp", 0.2, 0.2), ("mlp", 0.0, 0.0), ("solid", 0.0, 1.0)):
        config = Config(
            scene=SceneOptions(background=background),
            train=TrainOptions(solid_background_share=share),
        )
        draw = jax.jit(jax.vmap(lambda i, c=config: draw_view(c, 0, i).view.solid_background))
        np.testing.assert_allclose(draw(jnp.arange(COUNT)).mean(), expected, atol=0.03)


def test_t_is_uniform_in_its_falling_range():
    def times(step):
        draw = jax.vmap(lambda index: draw_view(config, jnp.int32(step), index).t)
        return draw(jnp.arange(COUNT))

    config = Config(
        distillation=DistillationOptions(t_min=0.1, t_max_start=0.95, t_max_end=0.6),
        train=TrainOptions(steps=1000),
    )
    for step, high in ((0, 0.95), (999, 0.6)):
        t = times(step)
        assert 0.1 <= t.min() < 0.12 and high - 0.02 < t.max() <= high
        np.testing.assert_allclose(t.mean(), (0.1 + high) / 2, atol=0.02)


def test_lights_scatter_around_the_camera_as_in_the_paper():
    position = orbit_position(30.0, 20.0, 2.7)
    lights = draw_many(lambda key: draw_light(key, position, TrainOptions()))
    distance = jnp.linalg.norm(lights, axis=-1)
    assert 0.8 <= distance.min() < 0.82 and 1.48 < distance.max() <= 1.5
    np.testing.assert_allclose(distance.mean(), 1.15, atol=0.02)
    # Oracle: the share of N(position, I) that lies within 30 degrees of the camera.
    samples = np.random.default_rng(0).normal(size=(COUNT, 3)) + np.asarray(position)

    def share(points):
        cosine = points @ np.asarray(position) / np.linalg.norm(points, axis=-1) / 2.7
        return (cosine > np.cos(np.pi / 6)).mean()

    np.testing.assert_allclose(share(np.asarray(lights)), share(samples), atol=0.04)


def test_shading_is_albedo_first_then_lit_at_its_share():
    config = TrainOptions(
        shading_start_step=10,
        lit_probability=0.75,
        textureless_probability=0.5,
        ambient=(0.1, 0.3),
    )
    early = draw_many(lambda key: draw_shading(key, jnp.int32(9), config))
    assert (early.ambient == 1).all() and (early.diffuse == 0).all() and not early.textureless.any()
    late = draw_many(lambda key: draw_shading(key, jnp.int32(10), config))
    lit = late.diffuse > 0
    np.testing.assert_allclose(lit.mean(), 0.75, atol=0.03)
    np.testing.assert_allclose(late.textureless.mean(), 0.375, atol=0.03)
    assert not (late.textureless & ~lit).any()
    np.testing.assert_allclose(late.ambient + late.diffuse, 1.0, atol=1e-6)
    assert 0.1 <= late.ambient[lit].min() and late.ambient[lit].max() <= 0.3
