"""The training step, compiled for NVIDIA GPUs that are not there: see ahead.py.

JAX's plugin for CUDA compiles on a machine without a driver, for a GPU whose description it is
given, down to the machine code. What needs a GPU is left out: no kernel is timed, so that default
tiles and cuDNN's default algorithms stand where a GPU's own autotuner would choose.
"""

from __future__ import annotations

import importlib.util
import re
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.runtime.device import compiling_for
from dreamfusion_jax.runtime.errors import RunError
from tests import hlo
from tests.ahead import Compiled, Networks, abstract_prior, lower_step

PLUGIN = "jax_cuda12_plugin"
# What large products and copies reach of the data sheet's rates, on an H100: 798 of 989 TFLOP/s in
# half precision, 3.0 of 3.35 TB/s.
_REACHED_PRODUCT, _REACHED_MEMORY = 0.807, 0.895


class Gpu(NamedTuple):
    """What NVIDIA's data sheets and CUDA's tables of compute capabilities say of a GPU.

    Attributes:
      lanes: float32 units of a multiprocessor.
      threads: that a multiprocessor holds at once.
      shared_kb: shared memory of a multiprocessor; a block takes one KB less at most.
      half_tflops: dense products of half precision with float32 sums; TF32 is half of it.
    """

    model: str
    capability: float
    multiprocessors: int
    lanes: int
    threads: int
    clock_ghz: float
    memory_gb: int
    l2_mb: int
    shared_kb: int
    bandwidth_gb: int
    half_tflops: float

    @property
    def rates(self) -> hlo.Rates:
        """What a kernel can reach."""
        half = _REACHED_PRODUCT * 1e12 * self.half_tflops
        single = _REACHED_PRODUCT * 2e9 * self.lanes * self.multiprocessors * self.clock_ghz
        return hlo.Rates(half, half / 2.0, single, _REACHED_MEMORY * 1e9 * self.bandwidth_gb)


GPUS: Mapping[str, Gpu] = {
    "h100": Gpu("NVIDIA H100 SXM", 9.0, 132, 128, 2048, 1.98, 80, 50, 228, 3352, 989.4),
    "a100": Gpu("NVIDIA A100 SXM", 8.0, 108, 64, 2048, 1.41, 80, 40, 164, 2039, 312.0),
    "l4": Gpu("NVIDIA L4", 8.9, 58, 128, 1536, 2.04, 24, 48, 100, 300, 121.0),
    "rtx4090": Gpu("NVIDIA RTX 4090", 8.9, 128, 128, 1536, 2.52, 24, 72, 100, 1008, 165.2),
}
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 device_address_bits: 64
  shared_memory_per_core: {shared} shared_memory_per_block_optin: {shared_optin}
  threads_per_core_limit: {gpu.threads}
  core_count: {gpu.multiprocessors} fpus_per_core: {gpu.lanes}
  clock_rate_ghz: {gpu.clock_ghz} l2_cache_size: {l2}
  memory_bandwidth: {gpu.bandwidth_gb}000000000 device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {extension} }}
  device_vendor: "NVIDIA Corporation" name: "{gpu.model}"
  driver_version: "12.9.0" runtime_version: "12.9.0" compile_time_toolkit_version: "12.9.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{gpu.model}"
"""


class Graphs(NamedTuple):
    """How kernels are launched: CUDA graphs, and kernels outside of all graphs."""

    graphs: int
    single: int


def require_plugin() -> None:
    """Keeps JAX on the CPU. To be called before any array.

    Raises:
      RunError: JAX's CUDA plugin is not installed.
    """
    if importlib.util.find_spec(PLUGIN) is None:
        raise RunError(
            'JAX\'s CUDA plugin is not installed: pip install "dreamfusion_jax[cuda]", or its parts'
            " jax-cuda12-plugin, jax-cuda12-pjrt, nvidia-cuda-nvcc-cu12 and nvidia-cudnn-cu12."
        )
    jax.config.update("jax_platforms", "cpu")


def target_config(gpu: Gpu) -> str:
    """Returns XLA's description of a GPU, a GpuTargetConfigProto as text."""
    major, minor = divmod(round(10 * gpu.capability), 10)
    return _TARGET.format(
        gpu=gpu,
        major=major,
        minor=minor,
        extension="ACCELERATED_FEATURES" if major >= 9 else "NONE",
        shared=1024 * gpu.shared_kb,
        shared_optin=1024 * (gpu.shared_kb - 1),
        l2=2**20 * gpu.l2_mb,
        memory=2**30 * gpu.memory_gb,
    )


def devices(name: str) -> list[jax.Device]:
    """Returns the one device of a machine that is not there."""
    described = topologies.get_topology_desc(
        platform="cuda", topology="1x1x1", target_config=target_config(GPUS[name])
    )
    return list(described.devices)


def compile_step(config: Config, networks: Networks, name: str) -> tuple[Compiled, Graphs]:
    """The step on one GPU, one of `GPUS`, and how its kernels are launched."""
    with compiling_for("gpu", GPUS[name].capability, 2**30 * GPUS[name].memory_gb):
        prior, params = abstract_prior(config.prior, networks)
        lowered = lower_step(config, prior, params, devices(name))
        return compile_lowered(lowered)


def compile_lowered(lowered: jax.stages.Lowered) -> tuple[Compiled, Graphs]:
    """Compiles a program, and reads from what XLA writes down how its kernels are launched."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        program = lowered.compile(compiler_options={"xla_dump_to": folder})
        seconds = time.perf_counter() - start
        # The second is only written where the passes on it changed something.
        before, after = (
            sorted(Path(folder).glob(f"*.{name}.txt"))
            for name in ("thunk_sequence", "thunk_sequence_after_thunk_passes")
        )
        return Compiled(program, 1, seconds), graphs((after or before)[-1].read_text())


def graphs(thunks: str) -> Graphs:
    """Counts a sequence of thunks, one a line, those of a graph or a branch indented under it."""
    count, single, inside = 0, 0, -1
    for indent, kind in re.findall(r"^( *)\d+: k(\w+)", thunks, re.M):
        if inside >= 0 and len(indent) > inside:
            continue
        inside = len(indent) if kind == "CommandBuffer" else -1
        count += kind == "CommandBuffer"
        single += kind not in ("CommandBuffer", "Conditional", "While", "Sequential")
    return Graphs(count, single)


PARTS: Mapping[str, str] = {  # what the source of a kernel contains
    "unet": "UNet2DConditionModel",
    "encoder": "AutoencoderKL",
    "scene": "while/body",
}


def part(kernel: hlo.Kernel) -> str:
    """Returns which part of the step a kernel belongs to; the rest: views, text, optimizer."""
    return next((name for name, mark in PARTS.items() if mark in kernel.source), "rest")


def counts(kernels: list[hlo.Kernel], rates: hlo.Rates) -> dict[str, Any]:
    """Sums up kernels. See `hlo`; the roofline is in ms, the rest as its name says."""
    kinds = Counter({kind: 0 for kind in ("attention", "convolutions", "gemms", "copies")})
    for kernel in kernels:
        kinds[_kind(kernel)] += kernel.times
    return {
        "roofline_ms": 1e3 * sum(kernel.seconds(rates) for kernel in kernels),
        "kernels": sum(kernel.times for kernel in kernels),
        "tflop": sum(kernel.times * sum(kernel.flops.values()) for kernel in kernels) / 1e12,
        "gbytes": sum(kernel.times * kernel.bytes for kernel in kernels) / 1e9,
        **{name: kinds[name] for name in ("attention", "convolutions", "gemms", "copies")},
    }


def _kind(kernel: hlo.Kernel) -> str:
    if "fmha" in kernel.kind:
        return "attention"
    if "conv" in kernel.kind:
        return "convolutions"
    if kernel.flops:
        return "gemms"
    return "copies" if kernel.moves else "others"


def whole(text: str) -> dict[str, int]:
    """Counts what should not be in a program: float64, traffic with the host."""
    return {
        "f64": len(re.findall(r"\bf64\[", text)),
        "transfers": len(re.findall(r" (?:infeed|outfeed|send|recv)\(|S\(5\)|MoveToHost", text)),
    }
