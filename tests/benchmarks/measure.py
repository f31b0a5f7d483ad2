"""Utilities of the benchmarks: clocks, the machine's ceilings, XLA's costs, tables, JSON."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp

from dreamfusion_jax.nerf import ray_chunks


class Ceilings(NamedTuple):
    """The measured limits of this machine: GFLOP/s of a large product, GB/s of a large copy."""

    gflops: float
    gbytes: float


def seconds(run: Callable[[], Any], repeats: int) -> list[float]:
    """Returns the wall time of each of `repeats` calls, after one that compiles."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return times


def median_ms(run: Callable[[], Any], repeats: int) -> float:
    """Returns the median of `seconds`, in milliseconds."""
    return 1e3 * statistics.median(seconds(run, repeats))


def ceilings(dtype: Any = jnp.float32, side: int = 0, megabytes: int = 0) -> Ceilings:
    """Measures the ceilings, best of ten, in this process: machines vary from hour to hour.

    On a CPU a product of 2048 x 2048 and a copy of 256 MB, elsewhere 8192 x 8192 and 2 GB.
    """
    small = jax.default_backend() == "cpu"
    side, megabytes = side or (2048 if small else 8192), megabytes or (256 if small else 2048)
    matrix = jnp.ones((side, side), dtype)
    numbers = jnp.ones(megabytes * 2**18, jnp.float32)
    product, copy = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1.0)
    fastest = min(seconds(lambda: product(matrix), 10))
    quickest = min(seconds(lambda: copy(numbers), 10))
    return Ceilings(2.0 * side**3 / fastest / 1e9, 2.0 * numbers.nbytes / quickest / 1e9)


def peak_gigabytes() -> float:
    """Returns the accelerator's peak memory, or on a CPU this process's peak resident size."""
    statistics_of_device = jax.local_devices()[0].memory_stats()
    if statistics_of_device:
        return statistics_of_device["peak_bytes_in_use"] / 1e9
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9


def xla_cost(function: Callable[..., Any], *arguments: Any) -> dict[str, float]:
    """Returns XLA's cost of a program, {"gflop", "gbyte"}; of a `lax.cond` the costlier branch.

    A loop's body is counted once, so the scene is lowered as one chunk. Bytes are those that all
    instructions access, cached or not, without recomputation.
    """
    with mock.patch.multiple(ray_chunks, _CHUNK_POINTS=2**40, _CHUNK_POINTS_CPU=2**40):
        compiled = jax.jit(lambda *args: function(*args)).lower(*arguments).compile()
    counts = compiled.cost_analysis()
    counts = counts[0] if isinstance(counts, list) else counts
    return {"gflop": counts["flops"] / 1e9, "gbyte": counts["bytes accessed"] / 1e9}


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Formats columns as plain text; floats to three digits."""
    text = [list(headers)] + [[_number(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in text) for i in range(len(headers))]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in text]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Returns the device and version measured on."""
    device = jax.local_devices()[0]
    return {"device": device.device_kind, "platform": device.platform, "jax": jax.__version__}


def write_json(path: str, numbers: dict[str, Any]) -> None:
    """Writes the numbers; does nothing where `path` is empty."""
    if path:
        Path(path).write_text(json.dumps({**machine(), **numbers}, indent=2) + "\n")


def _number(cell: Any) -> str:
    return (
        f"{cell:.3g}"
        if isinstance(cell, float) and cell < 100
        else (f"{cell:.0f}" if isinstance(cell, float) else str(cell))
    )
