"""The interfaces fit other priors and objectives than Stable Diffusion and SDS.

A prior with a vector beside the text that sees two views together, and an objective that trains
params of its own, each as short as a user would write it, go through the real step on two devices,
are saved, and go on from there to the very same numbers.
"""

import os
import subprocess
import sys
from pathlib import Path

TWO_DEVICES = """
import functools, sys, time
from pathlib import Path
import chex, jax, jax.numpy as jnp, numpy as np, optax
sys.path.insert(0, sys.argv[1])
from conftest import SCENE
from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.diffusion.priors.analytic import analytic_prior
from dreamfusion_jax.diffusion.priors.prior import Condition
from dreamfusion_jax.distillation.objective import Objective, draw_noise, predict_eps_x0
from dreamfusion_jax.runs import loop
from dreamfusion_jax.runs.options import RunOptions
from dreamfusion_jax.toybox.view_scheme import SCHEMES
from dreamfusion_jax.training.optimizer import make_optimizer
from dreamfusion_jax.training.options import TrainOptions
from dreamfusion_jax.training.step import make_train_step

gaussian = analytic_prior(0.2, 0.3)

def encode_text(prompts):
    words = jnp.asarray([[[float(len(prompt))]] for prompt in prompts])
    return Condition(words, vector=jnp.zeros((len(prompts), 1)))

def with_pose(condition, pose):
    return condition._replace(vector=jnp.cos(jnp.deg2rad(pose.azimuth_deg))[:, None])

def predict(params, z_t, t, condition):
    pairs = z_t.reshape(-1, 2, *z_t.shape[1:])
    other = pairs[:, ::-1].reshape(z_t.shape)  # the group's other view
    shift = 0.01 * condition.vector.mean(-1)[:, None, None, None]
    return gaussian.predict({}, 0.9 * z_t + 0.1 * other, t, condition) + shift

prior = gaussian._replace(
    encode_text=encode_text, with_pose=with_pose, predict=predict, joint_views=2
)

def learned_baseline(prior, options):
    def residual(params, prior_params, batch):
        eps = draw_noise(batch)
        return predict_eps_x0(prior, prior_params, batch, eps, options)[0] - eps

    def gradient(params, prior_params, batch):
        r = jax.lax.stop_gradient(residual(params, prior_params, batch) - params["mean"])
        return r, {"residual_rms": jnp.sqrt(jnp.mean(r**2)), "t": jnp.mean(batch.t)}

    def loss(params, prior_params, batch):
        r = jax.lax.stop_gradient(residual(params, prior_params, batch))
        return jnp.mean((r - params["mean"]) ** 2)

    return Objective(lambda key, prior_params: {"mean": jnp.zeros(3)}, gradient, loss)

STEPS = 6

def configured(workdir=""):
    return Config(
        scene=SCENE,
        train=TrainOptions(prompt="a cup", steps=STEPS, render_size=(6,), views_per_device=2),
        run=RunOptions(workdir=str(workdir), log_every=1, checkpoint_every=3),
    )

@functools.cache
def prepared():
    config, devices = configured(), jax.local_devices()
    assert len(devices) == 2
    setup = loop.make_setup(config, prior, SCHEMES)
    setup = setup._replace(objective=learned_baseline(prior, config.distillation))
    optimizer = make_optimizer(config.optimizer, STEPS)
    table = loop.embed_prompts(setup, config)
    step = make_train_step(setup, optimizer, devices)
    return loop.Run(Path(), setup, {}, table, optimizer, devices, step)

def train(workdir, steps):
    config, run = configured(workdir), prepared()._replace(workdir=workdir)
    if steps < STEPS:
        def stop(*_):
            raise KeyboardInterrupt
        loop.images.preview, loop.FIRST_PREVIEW_STEP = stop, steps + 1
    else:
        loop.images.preview = lambda *_: np.zeros((8, 32, 3), np.uint8)
    loop.FIRST_PREVIEW_SECONDS = 1e9
    try:
        return loop.train(config, run, time.monotonic())
    except KeyboardInterrupt:
        return None

folder = Path(sys.argv[2])
for name in ("once", "twice"):
    (folder / name).mkdir()
once = train(folder / "once", STEPS)
assert train(folder / "twice", 3) is None
twice = train(folder / "twice", STEPS)
chex.assert_trees_all_equal(once, twice)
mean = once.params["objective"]["mean"]
assert np.all(np.abs(mean) > 1e-4), mean
assert int(once.step) == STEPS and int(once.skipped) == 0
"""


def test_a_new_prior_and_objective_train_and_resume_to_the_bit(tmp_path):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES, str(Path(__file__).parent), str(tmp_path)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
