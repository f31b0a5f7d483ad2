"""The training step compiled for TPUs, without one: memory, arithmetic, traffic.

  python -m tests.benchmarks.tpu_compile --json=tpu.json
  python -m tests.benchmarks.tpu_compile --topology=v5e:2x2 --step=sd
  python -m tests.benchmarks.tpu_compile --topology=v5e:2x2 --step=sd --prior_dtype=bfloat16

It needs libtpu, which `pip install "dreamfusion_jax[tpu]"` brings, and no TPU: see tests/tpu.py.
The step `sd` is that of `--preset=sd` with Stable Diffusion 1.5 at 512 pixels, `toybox` that of the
defaults, both with the U-Net in the number format that a TPU takes by itself, float32 (its products
are three of bfloat16 parts, and are counted as one), unless another is asked for. All numbers are
of one device, which takes one view; the program is the same on each. That a program compiles does
not say that it fits: XLA was seen to pass one of 17.8 GB for a chip of 16, so the memory is set
beside the chip's.

XLA's own estimate of a step's time, `optimal_seconds`, is told as it comes. It is not to be relied
on: for v4 and v5e it is below zero.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import jax
from absl import flags

from dreamfusion_jax.config import cli
from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.runtime.errors import UserError
from tests import tpu
from tests.ahead import config_of, networks_of
from tests.benchmarks import measure

STEPS = ("toybox", "sd")
HEADERS = (
    *("step", "topology", "devices", "HBM, GB", "code, GB", "% of the chip", "GFLOP"),
    *("collectives, MB", "XLA's estimate, ms", "compiled in, s"),
)


def measured(step: str, topology: str) -> dict[str, float]:
    """Returns the costs of a step's program."""
    given = [f"--prior_dtype={flags.FLAGS.prior_dtype}"]
    compiled = tpu.compile_step(config_of(step, given), networks_of(step), topology)
    return {
        "devices": compiled.devices,
        **tpu.counts(compiled.program),
        "compile_seconds": compiled.seconds,
    }


def row(step: str, topology: str, numbers: dict[str, float]) -> tuple[Any, ...]:
    """Returns a row of the table, in the order of `HEADERS`."""
    data, code = numbers["hbm_bytes"] / 1e9, numbers["code_bytes"] / 1e9
    return (
        step,
        topology,
        numbers["devices"],
        data,
        code,
        100.0 * (data + code) / tpu.TOPOLOGIES[topology].hbm_gb,
        numbers["flops"] / 1e9,
        numbers["collective_bytes"] / 1e6,
        1e3 * numbers["optimal_seconds"],
        numbers["compile_seconds"],
    )


def main() -> int:
    steps, path = flags.FLAGS.step, flags.FLAGS.json
    if not Path(path).parent.is_dir():
        raise UserError(f"--json={path} is not in an existing folder.")
    tpu.require_libtpu()
    versions = {"jax": jax.__version__, "libtpu": importlib.metadata.version("libtpu")}
    numbers: dict[str, Any] = {step: {} for step in steps}
    rows = []
    for step in steps:
        for topology in flags.FLAGS.topology:
            numbers[step][topology] = measured(step, topology)
            rows.append(row(step, topology, numbers[step][topology]))
            # Each takes minutes: results so far are written.
            if path:
                Path(path).write_text(json.dumps({**versions, **numbers}, indent=2) + "\n")
    print(versions)
    print(measure.table(HEADERS, rows))
    return 0


if __name__ == "__main__":
    topologies = list(tpu.TOPOLOGIES)
    flags.DEFINE_multi_enum("topology", topologies, topologies, "which TPUs; may be repeated")
    flags.DEFINE_multi_enum("step", STEPS, STEPS, "whose step; may be repeated")
    configs.define_flags(("prior_dtype",))
    flags.DEFINE_string("json", "", "also write the numbers to this file")
    cli.run(main)
