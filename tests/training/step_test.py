import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamfusion_jax.diffusion.schedule import alpha_sigma
from dreamfusion_jax.distillation.options import DistillationOptions
from dreamfusion_jax.nerf.cameras import CameraRanges, orbit_camera
from dreamfusion_jax.nerf.view import albedo_view
from dreamfusion_jax.rendering.images import render_image
from dreamfusion_jax.runtime.device import compiling_for
from dreamfusion_jax.training.options import OptimizerOptions
from dreamfusion_jax.training.state import init_state
from dreamfusion_jax.training.step import (
    gradients,
    place_input,
    place_weights,
    regularization,
    replicate,
)
from dreamfusion_jax.training.views import draw_view


def test_the_gradient_is_the_view_mean_of_pulled_back_residuals(make_config, make_run):
    """Against autodiff of sum(stop_gradient(residual) * z), with the Gaussian's eps_hat by hand."""
    config = make_config(opacity_weight=3.0, interlevel_weight=2.0, shading_start_step=0)
    run = make_run(config)
    state = init_state(run.scene, run.optimizer, 0)
    draws = jax.vmap(lambda index: draw_view(config, jnp.int32(0), index))(jnp.arange(2))

    def surrogate(params):
        total = 0.0
        for i in range(2):
            draw = jax.tree.map(lambda x, i=i: x[i], draws)
            args = (6, 6, 0, draw.render_key, draw.half_size)
            render = run.scene.render(params, draw.view, *args)
            z = run.prior.encode({}, render.image[None], None)[0]
            alpha, sigma = alpha_sigma(run.prior.schedule, draw.t)
            eps = jax.random.normal(draw.noise_key, z.shape)
            eps_hat = sigma * (alpha * z + sigma * eps - alpha * 0.2)
            eps_hat = eps_hat / (alpha**2 * 0.05**2 + sigma**2)
            residual = jnp.minimum(sigma / alpha, 10.0) * (eps_hat - eps)
            total += jnp.sum(jax.lax.stop_gradient(residual) * z)
            total += 3.0 * render.regularizers["opacity"] + 2.0 * render.regularizers["interlevel"]
        return total / 2

    grads, metrics = jax.jit(lambda state: gradients(run.setup, {}, run.table, state, draws))(state)
    chex.assert_trees_all_close(
        grads["scene"], jax.jit(jax.grad(surrogate))(state.params["scene"]), rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(metrics["t"], draws.t.mean(), rtol=1e-6)


def test_each_regulariser_has_its_own_weight(make_config):
    values = {
        name: jnp.array([x, x + 2.0])
        for x, name in enumerate(("opacity", "orientation", "distortion", "entropy", "interlevel"))
    }
    names = {f"{name}_weight": 10.0**i for i, name in enumerate(values)}
    total = regularization(make_config(**names).train, values, jnp.int32(1))
    np.testing.assert_allclose(total, 1 + 20 + 300 + 4000 + 50000)


def test_the_orientation_weight_rises_as_in_the_paper(make_config):
    """From 1e-4 to 1e-2 over 5,000 steps (DreamFusion, appendix A.2)."""
    weights = {"orientation_start": 1e-4, "orientation_weight": 1e-2, "orientation_steps": 5000}
    config = make_config(interlevel_weight=0.0, **weights).train
    values = dict.fromkeys(("opacity", "distortion", "entropy", "interlevel"), jnp.zeros(2))
    values["orientation"] = jnp.ones(2)
    totals = [regularization(config, values, jnp.int32(step)) for step in (0, 2500, 5000, 9000)]
    np.testing.assert_allclose(totals, [1e-4, 5.05e-3, 1e-2, 1e-2], rtol=1e-5)


def test_steps_compile_once_copy_nothing_and_find_the_mode(make_config, make_run):
    config = make_config(steps=100, shading_start_step=1000)
    # Little noise: there the residual in x0 is all but z - 0.2.
    distillation = DistillationOptions(t_min=0.05, t_max_start=0.3, t_max_end=0.3)
    # Close up: where the random background shines past the object, the object would make up for it.
    camera = CameraRanges(fov_deg=(15.0, 20.0))
    optimizer = OptimizerOptions(learning_rate=2e-2)
    config = dataclasses.replace(
        config, distillation=distillation, camera=camera, optimizer=optimizer
    )
    run = make_run(config)
    counted = chex.assert_max_traces(n=1)(run.prior.predict)
    prior = run.prior._replace(predict=counted)
    run = make_run(config, prior)
    step = run.step
    state = init_state(run.scene, run.optimizer, config.train.seed)
    state, params, table = replicate((state, run.prior_params, run.table), run.devices)
    index = place_input(run.devices)
    with jax.transfer_guard("disallow"):
        for _ in range(config.train.steps):
            given = state
            state, metrics = step(index, state, params, table)
    assert int(state.step) == config.train.steps
    assert given.step.is_deleted(), "the state is donated"
    chex.assert_tree_all_finite((state, metrics))

    view = albedo_view(orbit_camera(0.0, 10.0, 2.75, 20.0), jnp.array([1.0, 0.0, 1.0]))
    image = render_image(run.scene, jax.device_get(state.scene_params), view, 4, state.step).image
    np.testing.assert_allclose(image[1:3, 1:3].mean(), 0.2, atol=0.07)  # 0.5 at the start


EIGHT_DEVICES = """
import functools, os, signal, sys, time
from pathlib import Path
import chex, jax, numpy as np, optax
sys.path.insert(0, sys.argv[1])
from conftest import SCENE
from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.runs.options import RunOptions
from dreamfusion_jax.training.options import TrainOptions
from dreamfusion_jax.diffusion.priors.analytic import analytic_prior
from dreamfusion_jax.runs import loop
from dreamfusion_jax.training.state import init_state
from dreamfusion_jax.toybox.view_scheme import SCHEMES
from dreamfusion_jax.training.step import make_train_step, place_input, replicate

ALL, RATE = jax.local_devices(), 0.1
assert len(ALL) == 8
prior, descent, params = analytic_prior(0.2, 0.05), optax.sgd(RATE), {"unused": np.zeros(3)}

def configured(devices, workdir=""):
    train = TrainOptions(prompt="a cup", steps=8, render_size=(6,), shading_start_step=2,
                        views_per_device=8 // devices)
    return Config(scene=SCENE, train=train, run=RunOptions(workdir=workdir, log_every=1))

@functools.cache
def setup_of(devices):
    return loop.make_setup(configured(devices), prior, SCHEMES)

@functools.cache
def step_on(devices):
    return make_train_step(setup_of(devices), descent, ALL[:devices])

scene, table = setup_of(1).scene, loop.embed_prompts(setup_of(1), configured(1))

# Of one step of gradient descent: what the parameters lose is the gradient, times the rate.
def gradient(devices):
    start = init_state(scene, descent, 0)
    start = start._replace(step=jax.numpy.int32(3))  # some views are lit
    copy = jax.tree.map(np.array, start)
    state, frozen, placed = replicate((copy, params, table), ALL[:devices])
    state, metrics = step_on(devices)(place_input(ALL[:devices]), state, frozen, placed)
    lost = lambda a, b: (np.asarray(a) - np.asarray(b)) / RATE
    names = "t", "opacity_mean"
    return jax.tree.map(lost, copy.params, state.params), [float(metrics[n]) for n in names]

one, seen = gradient(1)
numbers = [int(number) for number in sys.argv[3:]]
assert max(abs(leaf).max() for leaf in jax.tree.leaves(one)) > 1e-2
for devices in numbers:
    many, also_seen = gradient(devices)
    chex.assert_trees_all_close(one, many, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen, also_seen, rtol=1e-5)

# A run of 4 devices, undisturbed, and stopped after step 4 to go on with 2 or with 8.
def train(devices, workdir):
    run = loop.Run(Path(workdir), setup_of(devices), params, table, descent, ALL[:devices],
                   step_on(devices))
    return loop.train(configured(devices, str(workdir)), run, time.monotonic())

def preview(*_):
    if stopping:
        os.kill(os.getpid(), signal.SIGTERM)
    return np.zeros((8, 32, 3), np.uint8)

loop.images.preview, loop.FIRST_PREVIEW_STEP, loop.FIRST_PREVIEW_SECONDS = preview, 4, 1e9
folder, stopping = Path(sys.argv[2]), False
for name in ("4", "42", "48"):
    (folder / name).mkdir()
whole = train(4, folder / "4")
for devices in {2, 8} & {*numbers}:
    stopping, workdir = True, folder / f"4{devices}"
    try:
        train(4, workdir)
    except loop.Interrupted as stopped:
        assert "after step 4" in str(stopped)
    stopping = False
    resumed = train(devices, workdir)
    assert int(resumed.step) == 8
    chex.assert_trees_all_close(whole.params, resumed.params, rtol=0, atol=1e-5)
"""


@pytest.mark.parametrize(
    "numbers", [(4, 8), pytest.param((2, 4, 8), marks=pytest.mark.slow)], ids=str
)
def test_one_and_several_devices_agree_and_resume_each_other(numbers, tmp_path):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            EIGHT_DEVICES,
            str(Path(__file__).parent),
            str(tmp_path),
            *map(str, numbers),
        ],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_gpus_kernels_are_kept_as_its_convolutions_read_them():
    """As [out, h, w, in] in memory, which a step reads as [h, w, in, out] all the same."""
    devices, kernel = jax.devices()[:1], np.arange(3 * 3 * 2 * 4, dtype=np.float32)
    kernel = kernel.reshape(3, 3, 2, 4)
    with compiling_for("gpu"):
        placed = place_weights(kernel, devices)
        matrix = place_weights(kernel[0, 0], devices)
    assert placed.format.layout.major_to_minor == (3, 0, 1, 2)
    assert replicate(placed, devices).format.layout.major_to_minor == (3, 0, 1, 2)
    assert matrix.format.layout.major_to_minor == (0, 1)
    step = jax.pmap(lambda x, k: x[0, 0] * k[0, 1], in_axes=(0, None), out_axes=None, axis_name="d")
    np.testing.assert_array_equal(step(np.full((1, 1, 1), 2.0), placed), 2.0 * kernel[0, 1])
    plain = place_weights(kernel, devices).format.layout.major_to_minor
    assert plain == (0, 1, 2, 3), "not on a CPU"


def test_replicated_arrays_are_not_copied_again():
    devices = jax.devices()
    placed = replicate(np.ones(3, np.float32), devices)
    again = replicate(placed, devices)
    for ours, theirs in zip(placed.addressable_shards, again.addressable_shards, strict=True):
        assert ours.data.unsafe_buffer_pointer() == theirs.data.unsafe_buffer_pointer()
