"""Makes assets by the main program, in a process of its own that loads the prior and compiles once.

The main program goes on with what was stopped and leaves alone what is finished, so making assets
again costs next to nothing.
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
from dreamfusion_jax.config.flags import slug
from dreamfusion_jax.config.prompts_file import read_prompts
from dreamfusion_jax.runtime.errors import RunError, UserError
from dreamfusion_jax.runtime.files import AnyPath, atomic_write

PROMPTS = "prompts_made.txt"
# Each asset has its own.
_OWN_FLAGS = ("prompt", "workdir", "seed")
_INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def asset_folders(workdir: AnyPath, prompts: Sequence[str], seed: int = 0) -> list[AnyPath]:
    """Where the assets are: <workdir>/<prompt>, those of another seed in <workdir>/seed_<seed>/."""
    folder = workdir / f"seed_{seed}" if seed else workdir
    return [folder / slug(prompt) for prompt in prompts]


def check_run_flags(text: str, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """The flags for all runs, from one string that is read as a shell would.

    Raises:
      UserError: no run would take them.
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
            raise UserError(f"--run_flags must not hold --{name}: each asset has its own.")
    for seed in seeds:
        for prompt in prompts:
            configs.config_from_flags(values, prompt=prompt, workdir="-", seed=seed)
    return arguments


def make_assets(
    prompts: Sequence[str], workdir: AnyPath, seed: int = 0, arguments: Sequence[str] = ()
) -> list[AnyPath]:
    """Makes every asset that is not there yet; returns their folders.

    Args:
      arguments: further flags of the main program.

    Raises:
      KeyboardInterrupt: the program was told to stop, and what was begun is saved.
      UserError: not all could be made; the program has said why.
    """
    folders = asset_folders(workdir, prompts, seed)
    root = folders[0].parent
    root.mkdir(parents=True, exist_ok=True)
    atomic_write(root / PROMPTS, "".join(f"{prompt}\n" for prompt in prompts).encode())
    if read_prompts(str(root / PROMPTS)) != list(prompts):
        raise UserError("A prompt must be one line, not begin with #, and be given once.")
    command = [sys.executable, "-m", "dreamfusion_jax.main", f"--prompts_file={root / PROMPTS}"]
    code = _run([*command, f"--workdir={root}", f"--seed={seed}", *arguments])
    if code == 0:
        return folders
    made = sum((folder / "outputs.json").exists() for folder in folders)
    kept = f"{made} of {len(folders)} assets in {root} are finished"
    if code in (EXIT_INTERRUPTED, -signal.SIGTERM):
        print(f"{kept}, and what was begun is kept.", file=sys.stderr)
        raise KeyboardInterrupt
    error = UserError if code == 2 else RunError
    raise error(f"{kept}, the others not: see the lines above; the same command tries again.")


def _run(command: Sequence[str]) -> int:
    """The exit code of a program; it hears the interruptions that this process is sent, once each.

    Ctrl-C in a terminal reaches a whole process group, so the program has one of its own.
    """
    with subprocess.Popen(command, process_group=0) as program, _handed_on(program):
        return program.wait()


@contextlib.contextmanager
def _handed_on(program: subprocess.Popen) -> Iterator[None]:
    def hand_on(number: int, frame: Any) -> None:
        program.send_signal(signal.SIGTERM)

    old = {number: signal.signal(number, hand_on) for number in _INTERRUPTIONS}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
