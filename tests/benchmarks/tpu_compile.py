"""The training step as XLA compiles it for TPUs that are not there: memory, arithmetic, traffic.

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

from dreamfusion_jax import config as configs
from dreamfusion_jax import entry
from dreamfusion_jax.config import Config
from dreamfusion_jax.diffusion.weights import read_config
from dreamfusion_jax.errors import UserError
from dreamfusion_jax.training.loop import TOYBOX
from tests import pipelines, tpu
from tests.benchmarks import measure

STEPS = ("toybox", "sd")
HEADERS = (
    *("step", "topology", "devices", "HBM, GB", "code, GB", "% of the chip", "GFLOP"),
    *("collectives, MB", "XLA's estimate, ms", "compiled in, s"),
)

_TOPOLOGIES = flags.DEFINE_multi_enum(
    "topology", list(tpu.TOPOLOGIES), list(tpu.TOPOLOGIES), "Which TPUs; may be given repeatedly."
)
_STEPS = flags.DEFINE_multi_enum("step", STEPS, STEPS, "Whose step; may be given repeatedly.")
_DTYPE = flags.DEFINE_string("prior_dtype", "auto", "Of the U-Net, as of the main program.")
_JSON = flags.DEFINE_string("json", "", "Also write the numbers to this file.")


def config_of(step: str) -> Config:
    """The settings of a preset."""
    values = flags.FlagValues()
    configs.define_flags(flag_values=values)
    asked = [f"--preset={step}", "--prompt=a red chair", f"--prior_dtype={_DTYPE.value}"]
    configs.parse_flags(["", *asked], values)
    return configs.config_from_flags(values)


def networks_of(step: str) -> tpu.Networks:
    """The configurations of the preset's prior."""
    if step == "toybox":
        return tpu.Networks(
            *(read_config(TOYBOX / name) for name in ("unet", "vae", "text_encoder")),
            read_config(TOYBOX / "scheduler", "scheduler_config.json"),
        )
    parts = pipelines.MODELS["1.5"]
    scheduler = {**pipelines.SCHEDULER, "prediction_type": parts["prediction_type"]}
    return tpu.Networks(parts["unet"], pipelines.VAE, parts["text"], scheduler)


def measured(step: str, topology: str) -> dict[str, float]:
    """All that is told of a step's program."""
    compiled = tpu.compile_step(config_of(step), networks_of(step), topology)
    return {
        "devices": compiled.devices,
        **tpu.counts(compiled.program),
        "compile_seconds": compiled.seconds,
    }


def row(step: str, topology: str, numbers: dict[str, float]) -> tuple[Any, ...]:
    """The line of the table, in the order of `HEADERS`."""
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
    if not Path(_JSON.value).parent.is_dir():
        raise UserError(f"--json={_JSON.value} is in no folder that exists.")
    tpu.require_libtpu()
    versions = {"jax": jax.__version__, "libtpu": importlib.metadata.version("libtpu")}
    numbers: dict[str, Any] = {step: {} for step in _STEPS.value}
    rows = []
    for step in _STEPS.value:
        for topology in _TOPOLOGIES.value:
            numbers[step][topology] = measured(step, topology)
            rows.append(row(step, topology, numbers[step][topology]))
            # Each is minutes of work: what is known is kept.
            if _JSON.value:
                text = json.dumps({**versions, **numbers}, indent=2)
                Path(_JSON.value).write_text(text + "\n")
    print(versions)
    print(measure.table(HEADERS, rows))
    return 0


if __name__ == "__main__":
    entry.run(main)
