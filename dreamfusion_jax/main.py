"""Turns a text prompt into a 3D asset, or a file of prompts into one asset after another.

  python -m dreamfusion_jax.main --prompt="a red chair"
  python -m dreamfusion_jax.main --flagfile=experiments/chair.cfg
  python -m dreamfusion_jax.main --prompts_file=prompts.txt --workdir=gs://bucket/assets

The same command continues a run that was stopped, and does not repeat a finished one. Exit codes:
0 done; 2 bad input; 1 any other fault; 130 interrupted by Ctrl-C, SIGTERM or SIGHUP, with the
state saved.
"""

from __future__ import annotations

import shlex
import sys

from absl import flags

from dreamfusion_jax.config import cli
from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.config.folder_names import folder_names
from dreamfusion_jax.config.prompts_file import read_prompts
from dreamfusion_jax.runs import distributed, job, loop
from dreamfusion_jax.runtime import device
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.toybox.view_scheme import SCHEMES


def define_flags() -> None:
    """Defines a flag for every setting, and --prompts_file."""
    configs.define_flags()
    flags.DEFINE_string(
        "prompts_file",
        "",
        "instead of --prompt: a text file with one prompt per line, each made in its own folder of"
        " --workdir; lines that begin with # are skipped, a repeated prompt is made once",
    )


def main() -> int:
    """Makes one asset or many; returns the exit code."""
    many = read_configs(flags.FLAGS.prompts_file) if flags.FLAGS.prompts_file else []
    config = many[0] if many else configs.config_from_flags()
    cli.use_compilation_cache(config.run.compilation_cache)
    device.use(config.run.platform)
    distributed.start(config.run)
    device.require(config.run.platform)
    try:
        with distributed.abort_on_peer_failure():
            if many:
                return job.make_assets(many, SCHEMES)
            job.make_asset(config, SCHEMES)
            return 0
    except loop.Interrupted as stopped:
        distributed.print_primary(f"Stopped {stopped}; it is saved. To go on:", file=sys.stderr)
        arguments = shlex.join(sys.argv[1:])
        distributed.print_primary(f"  python -m dreamfusion_jax.main {arguments}", file=sys.stderr)
        return cli.EXIT_INTERRUPTED


def read_configs(name: str) -> list[Config]:
    """Returns a configuration for every prompt in a file.

    Raises:
      UserError: the file cannot be read or has no prompt.
    """
    if flags.FLAGS.prompt:
        raise UserError("--prompt contradicts --prompts_file; give one of them.")
    root = flags.FLAGS.workdir or "workdir"
    prompts = read_prompts(name)
    return [
        configs.config_from_flags(prompt=prompt, workdir=f"{root}/{folder}")
        for prompt, folder in zip(prompts, folder_names(prompts), strict=True)
    ]


if __name__ == "__main__":
    define_flags()
    cli.run(main)
