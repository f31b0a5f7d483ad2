"""What the studio's visitors cost the run that they watch: its step time, alone and under requests.

python -m tests.benchmarks.studio_load --pairs=6 --rate=200 --json=studio_load.json

A studio and a run of the default settings, each a process of its own. Windows without and with
requests alternate, as the machine's speed changes; requests are for the page and its settings.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

from dreamfusion_jax.runs import metrics
from tests.benchmarks import measure

_PAIRS = flags.DEFINE_integer("pairs", 6, "Windows without requests, and as many with them.")
_RATE = flags.DEFINE_integer("rate", 200, "Requests a second.")
_WINDOW_S = flags.DEFINE_float("window_s", 10.0, "Seconds of a window.")
_JSON = flags.DEFINE_string("json", "", "Also write the numbers to this file.")

PATHS = ("/", "/config")
_PATIENCE_S = 600.0
_TIMEOUT_S = 30.0


class Answers(NamedTuple):
    """Seconds that each answered request took, and what went wrong with the others."""

    times: list[float]
    failures: list[str]


async def request(port: int, path: str, answers: Answers) -> None:
    """Asks for a page over a connection of its own and notes how it was answered."""
    began = time.perf_counter()
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
    except (OSError, TimeoutError) as error:
        answers.failures.append(repr(error))
        return
    if not answer.split(b"\r\n", 1)[0].endswith(b"200 OK"):
        answers.failures.append(repr(answer[:80]))
    answers.times.append(time.perf_counter() - began)


async def ask(port: int, rate: int, seconds: float) -> Answers:
    """Makes `rate` requests a second, whether or not the earlier ones are answered."""
    answers, began = Answers([], []), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(began + number / rate - time.perf_counter(), 0.0))
            group.create_task(request(port, PATHS[number % len(PATHS)], answers))
    return answers


class Watch:
    """The time of a step between two moments, from the run's metrics."""

    def __init__(self, workdir: Path) -> None:
        self._file = workdir / metrics.FILE
        self._before = self._newest()

    def step_s(self) -> float:
        """Returns the seconds of a step since the last call, or since the start."""
        before, self._before = self._before, self._newest()
        (step, seconds), (first, began) = self._before, before
        return (seconds - began) / max(step - first, 1.0)

    def _newest(self) -> tuple[float, float]:
        line = metrics.read_metrics(self._file)[-1]
        return line["step"], line["seconds"]


@contextlib.contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a module of the package until the end of the `with`."""
    line = [sys.executable, "-m", *command]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def await_file_or_port(path: Path, port: int) -> None:
    """Waits for the run's first metrics and for the studio's port."""
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError, IndexError):
            Watch(path)
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.5)
    raise TimeoutError("the run or the studio did not start")


def cpu_s(process: int) -> float:
    """Returns the CPU seconds of a process so far (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_windows(studio: int, workdir: Path, port: int) -> dict[str, object]:
    """Returns the step times of both kinds of windows, and how the requests fared."""
    rate, window_s = _RATE.value, _WINDOW_S.value
    quiet, busy, answers, cost_s = [], [], Answers([], []), 0.0
    for _ in range(_PAIRS.value):
        watch = Watch(workdir)
        time.sleep(window_s)
        quiet.append(watch.step_s())
        before = cpu_s(studio)
        for kept, new in zip(answers, asyncio.run(ask(port, rate, window_s)), strict=True):
            kept.extend(new)  # type: ignore[arg-type]
        cost_s += cpu_s(studio) - before
        busy.append(watch.step_s())
    growth = [100.0 * (after / before - 1.0) for before, after in zip(quiet, busy, strict=True)]
    times = sorted(answers.times)
    return {
        "quiet_step_ms": 1e3 * statistics.median(quiet),
        "busy_step_ms": 1e3 * statistics.median(busy),
        "growth_percent": growth,
        "median_growth_percent": statistics.median(growth),
        "requests": len(times) + len(answers.failures),
        "failures": answers.failures[:10],
        "failed": len(answers.failures),
        "median_ms": 1e3 * statistics.median(times),
        "slowest_ms": 1e3 * times[-1],
        "studio_cpu_ms_a_request": 1e3 * cost_s / (rate * window_s * _PAIRS.value),
    }


def main(_: list[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as root, contextlib.ExitStack() as stack:
        workdir = Path(root) / "chair"
        studio = stack.enter_context(
            started("dreamfusion_jax.studio", f"--root={root}", f"--port={port}")
        )
        run = ("--prompt=a red chair", "--steps=1000000", "--log_every=2", f"--workdir={workdir}")
        stack.enter_context(started("dreamfusion_jax.main", *run))
        await_file_or_port(workdir, port)
        numbers = measure_windows(studio.pid, workdir, port)
    for name, value in numbers.items():
        print(f"{name}: {value}")
    measure.write_json(_JSON.value, numbers)


if __name__ == "__main__":
    app.run(main)
