"""Runs that start from another run's scene or from a mesh, and what --freeze holds."""

import dataclasses
import shutil
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh

from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.diffusion.priors.analytic import analytic_prior
from dreamfusion_jax.distillation.objectives import make_objective
from dreamfusion_jax.mesh import given
from dreamfusion_jax.nerf.options import SceneOptions
from dreamfusion_jax.runs import loop
from dreamfusion_jax.runs.start import check_start, find_source, initial_state
from dreamfusion_jax.runs.workdir import store_config
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.training import fit_distance
from dreamfusion_jax.training.optimizer import make_optimizer
from dreamfusion_jax.training.options import OptimizerOptions
from dreamfusion_jax.training.state import build_scene
from tests.training.conftest import SCENE

FIRST = dataclasses.replace(
    SCENE, field="sdf", blur_start=5e-3, surface_points=8, trace_steps=4, width=8
)
SECOND = dataclasses.replace(FIRST, render="surface", texture="own")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Makes the folder of a run of two steps, once for all tests."""
    return tmp_path_factory.mktemp("runs") / "first"


@pytest.fixture
def train(make_config, make_run, count_step, monkeypatch):
    """Runs the loop with a step that only counts: folder, scene, settings of the train section."""
    monkeypatch.setattr(loop.images, "preview", lambda *_: np.zeros((8, 32, 3), np.uint8))

    def run(folder, scene, **settings):
        config = make_config(**settings)
        options = dataclasses.replace(config.run, workdir=str(folder))
        config = dataclasses.replace(config, scene=scene, run=options)
        prepared = make_run(config)._replace(step=count_step)
        state = loop.train(config, prepared, time.monotonic())
        store_config(config)
        return state

    return run


@pytest.fixture
def first(source, train):
    if not source.exists():
        train(source, FIRST, steps=2)
    return source


def start(config):
    scene = build_scene(config.scene)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    objective = make_objective(analytic_prior(0.2, 0.05), config.distillation)
    return scene, initial_state(config, scene, optimizer, objective)


def second(make_config, first, scene=SECOND, **train):
    return dataclasses.replace(make_config(init_from=str(first), **train), scene=scene)


def test_a_run_starts_from_anothers_scene_and_a_fresh_optimizer(first, make_config):
    _, fresh = start(dataclasses.replace(make_config(), scene=FIRST))
    _, state = start(second(make_config, first, scene=FIRST))
    saved = loop.Checkpoints(first).restore(fresh)
    assert int(saved.step) == 2 and int(state.step) == 0
    chex.assert_trees_all_equal(state.scene_params, saved.scene_params)
    chex.assert_trees_all_equal(state.opt_state, fresh.opt_state)


def test_a_texture_of_its_own_changes_nothing_at_first(first, make_config):
    points = jax.random.normal(jax.random.key(0), (50, 3))
    answers = []
    for options in (FIRST, SECOND):
        scene, state = start(second(make_config, first, scene=options))
        answers.append(scene.query(state.scene_params, points, jnp.int32(0)))
    chex.assert_trees_all_close(answers[0].albedo, answers[1].albedo)
    chex.assert_trees_all_close(answers[0].sdf, answers[1].sdf)


def test_a_scene_without_a_proposal_leaves_the_sources_behind(first, make_config):
    """Else its own checkpoints would not fit it."""
    bare = dataclasses.replace(SECOND, proposal_samples=0)
    scene, state = start(second(make_config, first, scene=bare))
    fresh = scene.init(jax.random.key(0))
    chex.assert_trees_all_equal_shapes(state.scene_params, fresh)


def test_a_folder_of_a_checkpoint_is_a_source_too(first):
    for name, step in ((first, None), (first / "checkpoints", None), (first / "checkpoints/2", 2)):
        assert find_source(str(name)) == (first, step)
    with pytest.raises(UserError, match="--init_from=.*holds no run"):
        find_source(str(first / "nothing"))


@pytest.mark.parametrize(
    "changes, wanted",
    [
        ({"width": 9}, "--width=8"),
        ({"field": "mip", "render": "volume"}, "--field=sdf"),
        ({"blur_start": 5e-2}, "--blur_start=0.005"),
        ({"bound_radius": 2.0, "depth": 2}, "--bound_radius=1.0 --depth=1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_scene_is_refused_with_the_flags_to_give(first, make_config, changes, wanted):
    config = second(make_config, first, scene=dataclasses.replace(SECOND, **changes))
    with pytest.raises(UserError, match=wanted):
        check_start(config)


def test_hash_levels_that_were_learned_must_be_seen():
    grid = SceneOptions(field="hash", hash_start_step=10, hash_level_steps=5)
    assert grid.detail(0) == {"hash_start_level": 8}
    assert grid.detail(21) == {"hash_start_level": 11}
    assert grid.detail(1000) == {"hash_start_level": 16}


@pytest.mark.parametrize("group, other", [("geometry", "texture"), ("texture", "geometry")])
@pytest.mark.parametrize("freeze_steps", [0, 2])
def test_what_is_frozen_stays_until_its_step(group, other, freeze_steps):
    options = OptimizerOptions(freeze=group, freeze_steps=freeze_steps)
    optimizer = make_optimizer(options, 10)
    params = {"scene": build_scene(SECOND).init(jax.random.key(0)), "objective": {}}
    gradient, state = jax.tree.map(jnp.ones_like, params), optimizer.init(params)
    for step in range(4):
        updates, state = optimizer.update(gradient, state, params)
        held, free = (jax.tree.leaves(updates["scene"]["field"][name]) for name in (group, other))
        assert all(jnp.all(update != 0.0) for update in free)
        is_held = step < freeze_steps or not freeze_steps
        assert all(jnp.all((update == 0.0) == is_held) for update in held)


def test_a_texture_of_its_own_learns_at_the_rate_of_the_network():
    grid = dataclasses.replace(SECOND, sdf_encoding="hash", hash_log2_rows=4, hash_levels=2)
    params = {"scene": build_scene(grid).init(jax.random.key(0)), "objective": {}}
    optimizer = make_optimizer(OptimizerOptions(network_rate=0.1), 10)
    gradient = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    for part in updates["scene"]["field"].values():
        table, network = part["tables"].mean(), jax.tree.leaves(part["network"])[0].mean()
        np.testing.assert_allclose(network, 0.1 * table, rtol=1e-5)


def test_an_interrupted_run_goes_on_from_its_own_state(first, train, tmp_path):
    """Even where the run that it started from is gone."""
    copy, folder = shutil.copytree(first, tmp_path / "source"), tmp_path / "second"
    started = train(folder, SECOND, steps=2, init_from=str(copy))
    shutil.rmtree(copy)
    resumed = train(folder, SECOND, steps=4, init_from=str(copy))
    assert int(resumed.step) == 4
    chex.assert_trees_all_equal(started.params, resumed.params)
    with pytest.raises(UserError, match="--init_from"):
        train(tmp_path / "third", SECOND, steps=2, init_from=str(copy))


@pytest.mark.parametrize("shape", ["box", pytest.param("sphere", marks=pytest.mark.slow)])
def test_a_distance_is_fitted_to_a_mesh(shape, tmp_path, monkeypatch):
    """On its surface the field is 0 to 0.01 on the mean, in a scene of radius 1."""
    monkeypatch.setattr(fit_distance, "STEPS", 300)
    monkeypatch.setattr(fit_distance, "_BATCH", 1024)
    mesh = {
        "box": trimesh.creation.box([0.9, 0.6, 0.7]),
        "sphere": trimesh.creation.icosphere(3, 2.0),
    }[shape]
    mesh.export(tmp_path / "given.glb")
    config = Config(scene=SceneOptions(field="sdf", render="surface", texture="own"))
    train = dataclasses.replace(config.train, init_mesh=str(tmp_path / "given.glb"))
    config = dataclasses.replace(config, train=train)
    check_start(config)
    scene, state = start(config)
    data = (tmp_path / "given.glb").read_bytes()
    placed = given.into_sphere(given.read_mesh(data, "glb"), 0.8)
    points, _ = trimesh.sample.sample_surface(placed, 2000, seed=1)
    found = scene.query(state.scene_params, jnp.asarray(points, jnp.float32), jnp.int32(0)).sdf
    assert np.abs(found).mean() < 0.01 and np.abs(found).max() < 0.08


def test_a_file_that_is_no_mesh_is_refused(make_config, tmp_path):
    (tmp_path / "chair.glb").write_bytes(b"nonsense")
    for name in ("chair.glb", "missing.obj"):
        refused = dataclasses.replace(make_config(init_mesh=str(tmp_path / name)), scene=FIRST)
        with pytest.raises(UserError, match=f"--init_mesh=.*{name} cannot be read"):
            check_start(refused)
