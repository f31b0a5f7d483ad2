"""Priors of every make go through the real step: on one device and on four, to one gradient."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.floyd import write_tiny
from tests.mvdream import from_sd2

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
    **{"field": "mip", "width": 8, "depth": 1, "max_degree": 2},
    **{"proposal_samples": 6, "proposal_resolution": 4, "fine_samples": 6},
)
found, views = [], int(sys.argv[3])
for devices in (1, 4):
    config = Config(
        scene=scene,
        prior=PriorOptions(prior=sys.argv[1]),
        distillation=DistillationOptions(guidance_scale=21.0, weighting="sigma2"),
        view_prompts=ViewPromptOptions(view_words="paper"),
        train=TrainOptions(
            prompt="a cup", steps=3, views_per_device=views // devices, render_size=(8,)
        ),
        run=RunOptions(workdir=sys.argv[2], devices=devices),
    )
    run = loop.prepare(config, {})
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


def write_sd(folder: Path, kind: str) -> Path:
    """Writes a tiny Stable Diffusion of a kind; returns its folder, with the file in it."""
    from tests.diffusion.loading.single_file_test import write_pair

    return write_pair(folder, kind, lambda module: module.eval())


def write_distilled(folder: Path) -> Path:
    """Writes a tiny Stable Diffusion 1.x whose U-Net has no mid block."""
    import diffusers

    from tests.diffusion.loading.single_file_test import UNETS

    pipeline = write_sd(folder, "1") / "pipeline"
    unet = diffusers.UNet2DConditionModel(**UNETS["1"] | {"mid_block_type": None})
    unet.save_pretrained(pipeline / "unet")
    return shrink(pipeline)


def shrink(pipeline: Path) -> Path:
    """Makes a pipeline one of latents of 8 x 8."""
    path = pipeline / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": 8}))
    return pipeline


def write_mvdream(folder: Path) -> Path:
    pair = write_sd(folder / "sd2", "2")
    return from_sd2(pair / "pipeline", None, folder / "mvdream", image_size=8)


# What is written, and how many views all devices have together.
PRIORS = {
    "if-m": (write_tiny, 4),
    "sdxl": (lambda folder: shrink(write_sd(folder, "xl") / "pipeline"), 4),
    "mvdream": (write_mvdream, 16),
    "tiny-sd": (write_distilled, 4),
    "1.5-single-file": (lambda folder: write_sd(folder, "1") / "model.safetensors", 4),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_is_distilled_alike_on_one_and_four_devices(name, tmp_path):
    write, views = PRIORS[name]
    (tmp_path / "prior").mkdir()
    prior, workdir = write(tmp_path / "prior"), tmp_path / "run"
    workdir.mkdir()
    # Compiling is most of the time; how fast the programs are does not matter.
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    flags += " --xla_llvm_disable_expensive_passes=true"
    done = subprocess.run(
        [sys.executable, "-c", STEPS, str(prior), str(workdir), str(views)],
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
    # Of a T5, four phrases, the prompt alone and the empty one.
    kept = 6 if name == "if-m" else 0
    assert len(list(Path(workdir / "text_embeddings").glob("*.npz"))) == kept
