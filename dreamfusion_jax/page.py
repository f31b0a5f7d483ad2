"""Builds a run's page again from the files in its work folder.

python -m dreamfusion_jax.page --workdir=workdir/a-red-chair
"""

from __future__ import annotations

from absl import flags

from dreamfusion_jax.config import cli
from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.runs import metrics
from dreamfusion_jax.runs.page import build
from dreamfusion_jax.runs.workdir import check_places
from dreamfusion_jax.runtime.files import as_path


def main() -> int:
    """Writes the page; returns the exit code."""
    workdir = as_path(flags.FLAGS.workdir)
    check_places(workdir)
    config = configs.read_config(workdir / "config.json")
    lines = metrics.read_metrics(workdir / metrics.FILE)
    build.rewrite_page(workdir, config, int(lines[-1]["step"]) if lines else 0)
    print(f"Made {workdir / build.FILE}")
    return 0


if __name__ == "__main__":
    configs.define_flags(("workdir",))
    cli.run(main)
