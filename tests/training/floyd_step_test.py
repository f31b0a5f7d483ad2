"""A DeepFloyd IF goes through the real step: on one device and on four, to the same gradient."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.floyd import write_tiny

STEPS = """
import dataclasses, json, sys
import jax
from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.diffusion.priors.options import PriorOptions
from dreamfusion_jax.distillation.options import DistillationOptions, ViewPromptOptions
from dreamfusion_jax.nerf.options import SceneOptions
from dreamfusion_jax.runs import loop
from dreamfusion_jax.runs.options import RunOptions
from dreamfusion_jax.training.options import TrainOptions
from dreamfusion_jax.training.state import init_state
from dreamfusion_jax.training.step import place_input, replicate

scene = SceneOptions(
    width=8, depth=1, max_degree=2, proposal_samples=6, proposal_resolution=4, fine_samples=6
)
found = []
for devices in (1, 4):
    config = Config(
        scene=scene,
        prior=PriorOptions(prior=sys.argv[1]),
        distillation=DistillationOptions(guidance_scale=21.0, weighting="sigma2"),
        view_prompts=ViewPromptOptions(view_words="paper"),
        train=TrainOptions(
            prompt="a cup", steps=3, views_per_device=4 // devices, render_size=8
        ),
        run=RunOptions(workdir=sys.argv[2], devices=devices),
    )
    run = loop.prepare(config, {})
    assert run.prior.latent_shape == (8, 8, 3)
    state = init_state(run.scene, run.optimizer, 0, run.setup.objective)
    inputs = place_input(run.devices)
    placed = replicate((state, run.prior_params, run.table), run.devices)
    before = jax.device_get(placed[0].params)
    state, metrics = run.step(inputs, *placed)
    moved = jax.tree.map(lambda a, b: abs(a - b).max(), before, jax.device_get(state.params))
    metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
    found.append(metrics | {"moved": float(max(map(float, jax.tree.leaves(moved))))})
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_floyd_is_distilled_alike_on_one_and_four_devices(tmp_path):
    folder, workdir = write_tiny(tmp_path / "floyd"), tmp_path / "run"
    workdir.mkdir()
    # Compiling is most of the time; how fast the programs are does not matter.
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    flags += " --xla_llvm_disable_expensive_passes=true"
    done = subprocess.run(
        [sys.executable, "-c", STEPS, str(folder), str(workdir)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    one, four = json.loads(done.stdout.splitlines()[-1])
    assert one["skipped_steps"] == 0 and one["moved"] > 0
    for name in ("gradient_norm", "opacity_mean", "t"):
        assert one[name] > 0
        np.testing.assert_allclose(one[name], four[name], rtol=1e-3)
    # Four phrases, the prompt alone and the empty one.
    assert len(list(Path(workdir / "text_embeddings").glob("*.npz"))) == 6
