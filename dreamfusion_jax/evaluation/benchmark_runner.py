"""Makes assets by the command main, in one process that loads the prior and compiles once.

The command continues what was stopped and does not repeat what is finished, so that making the same
assets again costs almost nothing.
"""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.config.cli import EXIT_INTERRUPTED
from dreamfusion_jax.config.folder_names import folder_names
from dreamfusion_jax.config.prompts_file import read_prompts
from dreamfusion_jax.runs.outputs_record import read_record
from dreamfusion_jax.runtime import process
from dreamfusion_jax.runtime.errors import RunError, UserError
from dreamfusion_jax.runtime.files import AnyPath, atomic_write

PROMPTS = "prompts_made.txt"
# Flags that differ by asset.
_OWN_FLAGS = ("prompt", "workdir", "seed")


def asset_folders(workdir: AnyPath, prompts: Sequence[str], seed: int = 0) -> list[AnyPath]:
    """Returns the assets' folders: <workdir>/<prompt>, or <workdir>/seed_<seed>/<prompt>."""
    folder = workdir / f"seed_{seed}" if seed else workdir
    return [folder / name for name in folder_names(prompts)]


def check_run_flags(text: str, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Splits a string into the flags of all runs, as a shell would, and checks them.

    Raises:
      UserError: a run would refuse them.
    """
    try:
        arguments = shlex.split(text)
        values = flags.FlagValues()
        configs.define_flags(flag_values=values)
        stray = configs.parse_flags(["main", *arguments], values)[1:]
    except (flags.Error, ValueError, RecursionError) as error:
        raise UserError(f"--run_flags={text!r}: {error}") from None
    if stray:
        raise UserError(f"--run_flags={text!r}: {stray[0]} is not a flag.")
    for name in _OWN_FLAGS:
        if values[name].present:
            raise UserError(f"--run_flags must not contain --{name}, which differs by asset.")
    for seed in seeds:
        for prompt in prompts:
            configs.config_from_flags(values, prompt=prompt, workdir="-", seed=seed)
    return arguments


def make_assets(
    prompts: Sequence[str], workdir: AnyPath, seed: int = 0, arguments: Sequence[str] = ()
) -> list[AnyPath]:
    """Makes every missing asset; returns the folders of all.

    Args:
      arguments: further flags of the command main.

    Raises:
      KeyboardInterrupt: the command was interrupted, and its run is saved.
      UserError: not all could be made; the command has printed why.
    """
    folders = asset_folders(workdir, prompts, seed)
    root = folders[0].parent
    root.mkdir(parents=True, exist_ok=True)
    atomic_write(root / PROMPTS, "".join(f"{prompt}\n" for prompt in prompts).encode())
    if read_prompts(str(root / PROMPTS)) != list(prompts):
        raise UserError("A prompt must be one line, must not begin with #, and must be given once.")
    command = [sys.executable, "-m", "dreamfusion_jax.main", f"--prompts_file={root / PROMPTS}"]
    code = _run([*command, f"--workdir={root}", f"--seed={seed}", *arguments])
    if code == 0:
        return folders
    count = sum(_is_finished(folder) for folder in folders)
    finished = f"{count} of {len(folders)} assets in {root} are finished"
    if code in (EXIT_INTERRUPTED, -signal.SIGTERM):
        print(f"{finished}, and the run in progress is saved.", file=sys.stderr)
        raise KeyboardInterrupt
    error = UserError if code == 2 else RunError
    raise error(f"{finished}, the others not: see the lines above; the same command tries again.")


def _is_finished(folder: AnyPath) -> bool:
    record = read_record(folder)
    return record is not None and not record.missing


def _run(command: Sequence[str]) -> int:
    """Runs a program, forwards interruptions to it, and returns its exit code.

    Ctrl-C in a terminal reaches a whole process group, so the program has its own; else it would
    get each interruption twice.
    """
    with subprocess.Popen(command, process_group=0) as program, _forward_signals(program):
        return program.wait()


@contextlib.contextmanager
def _forward_signals(program: subprocess.Popen) -> Iterator[None]:
    def forward(number: int, frame: Any) -> None:
        program.send_signal(signal.SIGTERM)

    old = {number: signal.signal(number, forward) for number in process.stop_signals()}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
