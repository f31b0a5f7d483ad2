"""The training step, compiled for TPUs that are not there.

libtpu holds XLA's compiler for TPUs, and compiles on a CPU for the devices of a named topology.
What is compiled is the program that a run would use, `training.step.make_train_step`: JAX's pmap
is a jitted shard_map over its devices, which may be a topology's. All arguments are shapes alone,
so that a full-size prior needs neither files nor memory. `device.compiling_for` makes what is
chosen by the machine (the prior's number format, blocks of rays, tiles, kernels) a TPU's.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.diffusion.models.clip import CLIPTextModel
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.models.vae import AutoencoderKL
from dreamfusion_jax.diffusion.priors.latent import latent_prior
from dreamfusion_jax.diffusion.priors.options import PriorOptions
from dreamfusion_jax.diffusion.priors.prior import Condition, Prior, PriorParams
from dreamfusion_jax.diffusion.schedule import schedule_from_config
from dreamfusion_jax.runs import loop
from dreamfusion_jax.runs.open_prior import prior_dtypes
from dreamfusion_jax.runtime.device import compiling_for
from dreamfusion_jax.runtime.errors import RunError
from dreamfusion_jax.toybox.view_scheme import SCHEMES
from dreamfusion_jax.training.optimizer import make_optimizer
from dreamfusion_jax.training.state import init_state
from dreamfusion_jax.training.step import DeviceInput, make_train_step

# libtpu would ask the cloud's metadata server what machine this is, and wait for an answer; and it
# is for one process at a time, which matters where there is a TPU.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Collectives of an HLO text, which may be split into a start and an end.
_COLLECTIVE = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?(%[\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*?)\)", re.M)
_ARRAY = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\]")


class Topology(NamedTuple):
    """A slice of TPUs.

    Attributes:
      hbm_gb: of one chip, as Google's documentation has it.
      options: of `get_topology_desc`. JAX takes the two cores of a v4 chip as one device.
    """

    hbm_gb: int
    options: Mapping[str, Any] = {}


TOPOLOGIES: Mapping[str, Topology] = {
    "v4:2x2x1": Topology(32, {"chip_config_name": "megacore"}),
    "v5e:2x2": Topology(16),
    "v5p:2x2x1": Topology(95),
    "v6e:2x2": Topology(32),
    "v5e:4x4": Topology(16),
}


class Networks(NamedTuple):
    """The configurations of a latent diffusion model, as diffusers' files hold them."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    scheduler: Mapping[str, Any]


class Compiled(NamedTuple):
    """The program of each of so many devices, and how long XLA took to make it, in seconds."""

    program: jax.stages.Compiled
    devices: int
    seconds: float


def require_libtpu() -> None:
    """Keeps JAX on the CPU, and libtpu from asking the network. To be called before any array.

    Raises:
      RunError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise RunError('libtpu is not installed: pip install "dreamfusion_jax[tpu]", or libtpu.')
    os.environ.update(ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")


def compile_step(config: Config, networks: Networks, name: str) -> Compiled:
    """The step on every device of a topology, one of `TOPOLOGIES`."""
    devices = topologies.get_topology_desc(name, "tpu", **TOPOLOGIES[name].options).devices
    with compiling_for("tpu"):
        lowered = lower_step(config, *abstract_prior(config.prior, networks), list(devices))
        start = time.perf_counter()
        program = lowered.compile()
        return Compiled(program, len(devices), time.perf_counter() - start)


def lower_step(
    config: Config, prior: Prior, prior_params: PriorParams, devices: list[jax.Device]
) -> jax.stages.Lowered:
    """The step on `devices`, traced with the shapes of what it is called with."""
    setup = loop.make_setup(config, prior, SCHEMES)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    table = jax.eval_shape(lambda: loop.embed_prompts(setup, config))
    state = jax.eval_shape(
        lambda: init_state(setup.scene, optimizer, config.train.seed, setup.objective, prior_params)
    )
    each = jax.ShapeDtypeStruct((len(devices),), jnp.int32)
    step: Any = make_train_step(setup, optimizer, devices)
    return step.lower(DeviceInput(each, each), state, prior_params, table)


def abstract_prior(options: PriorOptions, networks: Networks) -> tuple[Prior, PriorParams]:
    """The prior, whose texts are all zeros, and the shapes of its params."""
    dtype, vae_dtype = prior_dtypes(options)
    unet = UNet2DConditionModel.from_config(networks.unet, dtype)
    vae = AutoencoderKL.from_config(networks.vae, vae_dtype)
    text = CLIPTextModel.from_config(networks.text_encoder)
    embedding = (text.max_position_embeddings, text.hidden_size)
    prior = latent_prior(
        unet,
        vae,
        schedule_from_config(networks.scheduler),
        lambda prompts: Condition(jnp.zeros((len(prompts), *embedding))),
    )
    return prior, {"unet": _param_shapes(unet, dtype), "vae": _param_shapes(vae, vae_dtype)}


def _param_shapes(module: Any, dtype: Any) -> Any:
    params = jax.eval_shape(
        lambda: module.init(jax.random.key(0), *module.dummy_inputs())["params"]
    )
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), params)


def counts(program: jax.stages.Compiled) -> dict[str, float]:
    """What the compiler says of one device's program.

    hbm_bytes: of arguments, outputs that take no argument's place, and temporaries at their peak.
    code_bytes: of the program itself, which lies in the same memory.
    flops: of all instructions; a loop's body counts once, of a branch the dearer one.
    optimal_seconds: XLA's own estimate of the time.
    collective_bytes: that the device puts into collectives.
    """
    memory, cost = program.memory_analysis(), program.cost_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return {
        "hbm_bytes": held - memory.alias_size_in_bytes + memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "flops": cost["flops"],
        "optimal_seconds": cost.get("optimal_seconds", math.nan),
        "collective_bytes": collective_bytes(program.as_text()),
    }


def collective_bytes(hlo: str) -> int:
    """The bytes of all operands of the collectives in an HLO text."""
    instructions = _INSTRUCTION.findall(hlo)
    sizes = {name: _array_bytes(kind) for name, kind, _, _ in instructions}
    return sum(
        sizes[operand]
        for _, _, opcode, operands in instructions
        if re.fullmatch(f"({_COLLECTIVE})(-start)?", opcode)
        for operand in re.findall(r"%[\w.\-]+", operands)
    )


def _array_bytes(kind: str) -> int:
    """Of a type in an HLO text, such as f32[3,4]{1,0} or a tuple of such."""
    bits = 0
    for _, width, shape in _ARRAY.findall(kind):
        bits += int(width or 8) * math.prod(int(side) for side in shape.split(",") if side)
    return bits // 8  # pred, without a width, takes a byte
