"""The time from the command to the first step and preview, with a cold and a warm cache.

python -m tests.benchmarks.startup --json=startup.json
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

from tests.benchmarks import measure

# The program's output when its first step is done, and when the first preview is written.
SIGNS = {"first_step_s": b"optimizing", "first_preview_s": b"First preview"}

_JSON = flags.DEFINE_string("json", "", "Also write the numbers to this file.")


def start(cache: Path, workdir: Path) -> dict[str, float]:
    """Returns the seconds from a new process's start until each of the signs; then stops it."""
    command = [sys.executable, "-m", "dreamfusion_jax.main", "--prompt=a red chair"]
    arguments = [f"--compilation_cache={cache}", f"--workdir={workdir}"]
    began, output, seen = time.perf_counter(), b"", {}
    with subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
    ) as process:
        assert process.stdout is not None
        while len(seen) < len(SIGNS):
            piece = process.stdout.read(4096)
            if not piece:
                raise RuntimeError(f"It ended too soon: {output.decode()}")
            output += piece
            for name, sign in SIGNS.items():
                if sign in output:
                    seen.setdefault(name, time.perf_counter() - began)
        process.kill()
    return seen


def imports() -> float:
    """Returns the seconds that Python and all imports take."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import dreamfusion_jax.main"], check=True)
    return time.perf_counter() - began


def main(_: list[str]) -> None:
    numbers: dict[str, object] = {"imports_s": min(imports() for _ in range(3))}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "warm"):
            numbers[name] = start(Path(folder) / "cache", Path(folder) / name)
    rows = [(name, *numbers[name].values()) for name in ("cold", "warm")]  # type: ignore[attr-defined]
    print(f"Python and imports alone: {numbers['imports_s']:.1f} s")
    print(measure.table(("compilation cache", "first step, s", "first preview, s"), rows))
    measure.write_json(_JSON.value, numbers)


if __name__ == "__main__":
    app.run(main)
