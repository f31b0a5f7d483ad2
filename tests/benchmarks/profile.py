"""The time of a step's XLA instructions by jax.profiler, grouped by the code they come from.

  python -m tests.benchmarks.profile                     the toybox
  taskset -c 0 python -m tests.benchmarks.profile        the work alone, without waiting for threads

Times are summed over threads. An instruction is named by the last of JAX's names that went into it,
so a fused one may hold more than its name says; names of the backward pass begin with `transpose`.
"""

from __future__ import annotations

import collections
import re
import tempfile
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.runs import loop
from dreamfusion_jax.toybox.view_scheme import SCHEMES
from tests.benchmarks import measure
from tests.benchmarks.step import first_dear_step, step_arguments

_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = (.*?op_name="([^"]*)"|.*)', re.MULTILINE)
# They contain other instructions, whose time would count twice.
_CONTAINERS = ("while", "conditional", "cond", "call")
# Layers of jit and loops, the same for all.
_WRAPPING = re.compile(r"jit\(\w*\)/|(?:while/body/)?closed_call/|shard_map/|checkpoint/")


def instruction_names(program: str) -> dict[str, str]:
    """Maps each instruction's name in an HLO text to the code that it comes from."""
    matches = ((m[1], m[3] or "") for m in _INSTRUCTION.finditer(program))
    return {name: _WRAPPING.sub("", code) for name, code in matches}


def milliseconds(folder: Path, names: dict[str, str]) -> collections.Counter[str]:
    """Returns each instruction's time in the newest trace under `folder`, over all threads."""
    trace = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    spent: collections.Counter[str] = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            for event in line.events:
                if event.name in names and not event.name.startswith(_CONTAINERS):
                    spent[event.name] += event.duration_ns / 1e6  # type: ignore[assignment]
    return spent


def main(_: list[str]) -> None:
    config, repeats = configs.config_from_flags(), flags.FLAGS.repeats
    run = loop.prepare(config, SCHEMES)
    device, state, *frozen = step_arguments(run, first_dear_step(config))
    train_step: Any = run.step
    program = train_step.lower(device, state, *frozen).compile()
    names = instruction_names(program.as_text())
    for _ in range(3):
        state, _metrics = program(device, state, *frozen)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                state, _metrics = program(device, state, *frozen)
            jax.block_until_ready(state)
        spent = milliseconds(Path(folder), names)
    by_code: collections.Counter[str] = collections.Counter()
    for name, ms in spent.items():
        by_code[names[name]] += ms / repeats  # type: ignore[assignment]
    total = sum(by_code.values())
    rows = [(ms, 100.0 * ms / total, code[-100:]) for code, ms in by_code.most_common(40)]
    print(measure.table(("ms a step", "%", "code"), rows))
    print(f"{measure.machine()}: {total:.1f} ms a step, summed over threads")


if __name__ == "__main__":
    configs.define_flags()
    flags.FLAGS.set_default("prompt", "a red chair")
    flags.DEFINE_integer("repeats", 10, "steps that are traced")
    app.run(main, flags_parser=configs.parse_flags)
