"""The training step, compiled for TPUs that are not there: see ahead.py.

libtpu holds XLA's compiler for TPUs, and compiles on a CPU for the devices of a named topology.
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
from jax.experimental import topologies

from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.runtime.device import compiling_for
from dreamfusion_jax.runtime.errors import RunError
from tests.ahead import Compiled, Networks, abstract_prior, lower_step

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
