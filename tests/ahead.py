"""The training step, lowered for devices that are not there: what tests/tpu.py and gpu.py share.

What is compiled is the program that a run would use, `training.step.make_train_step`: JAX's pmap
is a jitted shard_map over its devices, which may be a topology's. All arguments are shapes alone,
so that a full-size prior needs neither files nor memory. `device.compiling_for` makes what is
chosen by the machine (the prior's number format, blocks of rays, tiles, kernels) the target's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.diffusion.loading.model_files import read_config
from dreamfusion_jax.diffusion.models.clip import CLIPTextModel
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.models.vae import AutoencoderKL
from dreamfusion_jax.diffusion.priors.latent import latent_prior
from dreamfusion_jax.diffusion.priors.options import PriorOptions
from dreamfusion_jax.diffusion.priors.pixel import pixel_prior
from dreamfusion_jax.diffusion.priors.prior import Condition, Prior, PriorParams
from dreamfusion_jax.diffusion.schedule import schedule_from_config
from dreamfusion_jax.distillation import view_prompts
from dreamfusion_jax.runs import loop
from dreamfusion_jax.runs.open_prior import TOYBOX, prior_dtypes
from dreamfusion_jax.toybox.view_scheme import SCHEMES
from dreamfusion_jax.training.optimizer import make_optimizer
from dreamfusion_jax.training.state import init_state
from dreamfusion_jax.training.step import DeviceInput, make_train_step, weights_format
from tests import floyd, mvdream, pipelines

PRESETS = ("toybox", "paper", "sd", "if", "mvdream", "refine")
VIEWS = 4  # that MVDream denoises together


class Networks(NamedTuple):
    """The configurations of a diffusion model, as diffusers' files hold them.

    Attributes:
      vae: None of a prior on pixels.
      text_encoder: as far as it shapes the embeddings: hidden_size, max_position_embeddings.
      unet_options: attributes of the U-Net that its file does not hold.
    """

    unet: Mapping[str, Any]
    vae: Mapping[str, Any] | None
    text_encoder: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    unet_options: Mapping[str, Any] = {}


class Compiled(NamedTuple):
    """The program of each of so many devices, and how long XLA took to make it, in seconds."""

    program: jax.stages.Compiled
    devices: int
    seconds: float


SMALL = Networks(
    {
        "block_out_channels": [16],
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
        "attention_head_dim": 2,
        "cross_attention_dim": 16,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "sample_size": 8,
    },
    {
        "block_out_channels": [16],
        "down_block_types": ["DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"],
        "norm_num_groups": 8,
    },
    {"hidden_size": 16, "max_position_embeddings": 12},
    {"beta_schedule": "scaled_linear"},
)


def config_of(preset: str, arguments: Sequence[str] = ()) -> Config:
    """Returns the settings of a preset, with further flags."""
    values = flags.FlagValues()
    configs.define_flags(flag_values=values)
    given = [f"--preset={preset}", "--prompt=a red chair", *arguments]
    configs.parse_flags(["", *given], values)
    return configs.config_from_flags(values)


def networks_of(preset: str) -> Networks:
    """Returns the network configurations of the preset's prior."""
    if preset == "if":
        text = {"hidden_size": floyd.T5_XXL["d_model"], "max_position_embeddings": 77}
        return Networks(floyd.IF_XL, None, text, floyd.SCHEDULER)
    if preset in ("sd", "mvdream"):
        parts = pipelines.MODELS["1.5" if preset == "sd" else "2.1-base"]
        scheduler = {**pipelines.SCHEDULER, "prediction_type": parts["prediction_type"]}
        networks = Networks(parts["unet"], pipelines.VAE, parts["text"], scheduler)
        return networks if preset == "sd" else _multi_view(networks)
    return Networks(
        *(read_config(TOYBOX / name) for name in ("unet", "vae", "text_encoder")),
        read_config(TOYBOX / "scheduler", "scheduler_config.json"),
    )


def _multi_view(networks: Networks) -> Networks:
    unet = {**networks.unet, "sample_size": mvdream.CONFIG["image_size"]}
    options = {"camera_dim": mvdream.CAMERA_DIM, "joint_views": VIEWS}
    return networks._replace(unet=unet, unet_options=options)


def lower_step(
    config: Config, prior: Prior, prior_params: PriorParams, devices: list[jax.Device]
) -> jax.stages.Lowered:
    """The step on `devices`, traced with the shapes of what it is called with."""
    setup = loop.make_setup(config, prior, SCHEMES)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    text = config.train.prompt, config.view_prompts, setup.scheme
    table = jax.eval_shape(lambda: view_prompts.text_table(prior, *text))
    state = jax.eval_shape(
        lambda: init_state(setup.scene, optimizer, config.train.seed, setup.objective, prior_params)
    )
    each = jax.ShapeDtypeStruct((len(devices),), jnp.int32)
    step: Any = make_train_step(setup, optimizer, devices)
    placed = jax.tree.map(lambda leaf: _placed(leaf, devices), prior_params)
    return step.lower(DeviceInput(each, each), state, placed, table)


def _placed(leaf: Any, devices: list[jax.Device]) -> jax.ShapeDtypeStruct:
    sharding: Any = weights_format(leaf, devices)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def abstract_prior(options: PriorOptions, networks: Networks) -> tuple[Prior, PriorParams]:
    """The prior, whose texts are all zeros, and the shapes of its params."""
    dtype, vae_dtype = prior_dtypes(options)
    unet = UNet2DConditionModel.from_config(networks.unet, dtype).clone(**networks.unet_options)
    text = CLIPTextModel.from_config(networks.text_encoder)
    embedding = (text.max_position_embeddings, text.hidden_size)
    schedule = schedule_from_config(networks.scheduler)
    params = {"unet": _param_shapes(unet, dtype)}

    def encode_text(prompts: Sequence[str]) -> Condition:
        return Condition(jnp.zeros((len(prompts), *embedding)))

    if networks.vae is None:
        return pixel_prior(unet, schedule, encode_text), params
    vae = AutoencoderKL.from_config(networks.vae, vae_dtype)
    params["vae"] = _param_shapes(vae, vae_dtype)
    return latent_prior(unet, vae, schedule, encode_text), params


def _param_shapes(module: Any, dtype: Any) -> Any:
    params = jax.eval_shape(
        lambda: module.init(jax.random.key(0), *module.dummy_inputs())["params"]
    )
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), params)


def report_of(program: str) -> Any:
    """Runs a Python program that compiles a step, and returns the JSON of its last line.

    It has a process of its own, which keeps JAX on the CPU while a plugin is loaded, and imports
    what the tests of the training step share.
    """
    here = Path(__file__).parent
    places = (here / "training", here.parent, os.environ.get("PYTHONPATH", ""))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
