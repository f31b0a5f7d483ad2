"""The training step compiled for NVIDIA GPUs, without one: kernels, arithmetic, traffic, memory.

  python -m tests.benchmarks.gpu_compile --json=gpu.json
  python -m tests.benchmarks.gpu_compile --gpu=a100 --step=sd --setting=prior_dtype=bfloat16
  python -m tests.benchmarks.gpu_compile --step=sd --hlo=sd.hlo --top=20

It needs JAX's CUDA plugin and no GPU: see tests/gpu.py. The steps are those of the presets, `sd`
with Stable Diffusion 1.5 at 512 pixels, `if` with IF-XL, `mvdream` with Stable Diffusion 2.1's
network at 256 pixels, the others with the toybox. `--setting` gives each a flag of
dreamfusion_jax.main beside its preset.

One program serves lit and unlit views: each row takes one side of its branches. The roofline is the
sum over the kernels of what each needs at least (tests/hlo.py), by what such a GPU is known to
reach: a lower bound that no gap, launch or small grid is part of. Graphs and launches are of the
whole program, a launch being a kernel outside of all graphs. Temporaries are XLA's account.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import jax
from absl import flags

from dreamfusion_jax.config import cli
from dreamfusion_jax.runtime.errors import UserError
from tests import gpu, hlo
from tests.ahead import PRESETS, config_of, networks_of
from tests.benchmarks import measure

SIDES = {"unlit": -2, "lit": -1}  # the branch of each conditional; before them may be an empty one
HEADERS = (
    *("step", "views", "part", "roofline, ms", "kernels", "TFLOP", "GB"),
    *("attention", "convolutions", "gemms", "copies"),
)
WHOLE = (
    *("step", "graphs", "launches", "temporaries, GB", "arguments, GB", "f64", "transfers"),
    "compiled in, s",
)


def measured(step: str, name: str, given: list[str], path: str) -> tuple[dict[str, Any], list[Any]]:
    """Returns the numbers of a step's program, and the kernels of each side by name."""
    compiled, graphs = gpu.compile_step(config_of(step, given), networks_of(step), name)
    text, memory = compiled.program.as_text(), compiled.program.memory_analysis()
    if path:
        Path(path).write_text(text)
    program, rates = hlo.parse(text), gpu.GPUS[name].rates
    kernels = {side: hlo.kernels(program, branch) for side, branch in SIDES.items()}
    return {
        **{side: _parts(found, rates) for side, found in kernels.items()},
        "graphs": graphs.graphs,
        "launches": graphs.single,
        "temp_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        **gpu.whole(text),
        "compile_seconds": compiled.seconds,
    }, kernels["lit"]


def _parts(kernels: list[hlo.Kernel], rates: hlo.Rates) -> dict[str, Any]:
    """Returns the counts of all kernels, and under "parts" those of each part of the step."""
    grouped: dict[str, list[hlo.Kernel]] = {name: [] for name in (*gpu.PARTS, "rest")}
    for kernel in kernels:
        grouped[gpu.part(kernel)].append(kernel)
    parts = {name: gpu.counts(found, rates) for name, found in grouped.items()}
    return {**gpu.counts(kernels, rates), "parts": parts}


def rows(step: str, numbers: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Returns rows of the table, in the order of `HEADERS`."""
    return [
        (step, side, name, *counts.values())
        for side in SIDES
        for name, counts in [
            ("all", {k: v for k, v in numbers[side].items() if k != "parts"}),
            *numbers[side]["parts"].items(),
        ]
    ]


def whole_row(step: str, numbers: dict[str, Any]) -> tuple[Any, ...]:
    """Returns a row of the second table, in the order of `WHOLE`."""
    sizes = [numbers[name] / 1e9 for name in ("temp_bytes", "argument_bytes")]
    others = (numbers[name] for name in ("f64", "transfers", "compile_seconds"))
    return step, numbers["graphs"], numbers["launches"], *sizes, *others


def print_top(kernels: list[hlo.Kernel], rates: hlo.Rates, count: int) -> None:
    """Prints the kernels that take most of a lit step."""
    for kernel in sorted(kernels, key=lambda x: -x.seconds(rates))[:count]:
        size, flops = kernel.bytes / 1e6, sum(kernel.flops.values()) / 1e9
        milliseconds = 1e3 * kernel.seconds(rates)
        print(f"{milliseconds:8.3f} ms {kernel.times} x {size:.1f} MB {flops:.1f} GFLOP", end=" ")
        print(kernel.kind, kernel.name, kernel.source[-100:])


def main() -> int:
    values = flags.FLAGS
    if not Path(values.json).parent.is_dir():
        raise UserError(f"--json={values.json} is not in an existing folder.")
    gpu.require_plugin()
    plugin = importlib.metadata.version("jax-cuda12-plugin")
    numbers: dict[str, Any] = {"jax": jax.__version__, "plugin": plugin, "gpu": values.gpu}
    given = [f"--{setting}" for setting in values.setting]
    by_part, by_step = [], []
    for step in values.step:
        numbers[step], kernels = measured(step, values.gpu, given, values.hlo)
        by_part += rows(step, numbers[step])
        by_step.append(whole_row(step, numbers[step]))
        print_top(kernels, gpu.GPUS[values.gpu].rates, values.top)
        # Each takes minutes: results so far are written.
        if values.json:
            Path(values.json).write_text(json.dumps(numbers, indent=2) + "\n")
    print(measure.table(HEADERS, by_part))
    print(measure.table(WHOLE, by_step))
    return 0


if __name__ == "__main__":
    flags.DEFINE_enum("gpu", "h100", list(gpu.GPUS), "for which GPU")
    flags.DEFINE_multi_enum("step", PRESETS, PRESETS, "whose step; may be repeated")
    flags.DEFINE_multi_string("setting", [], "NAME=VALUE, on top of the preset; may be repeated")
    flags.DEFINE_string("hlo", "", "also write the last step's optimized HLO to this file")
    flags.DEFINE_integer("top", 0, "also print so many of the longest kernels of a lit step")
    flags.DEFINE_string("json", "", "also write the numbers to this file")
    cli.run(main)
