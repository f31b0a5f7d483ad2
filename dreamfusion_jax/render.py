"""Renders a run's images again from its newest checkpoint, at any size, and updates its page.

python -m dreamfusion_jax.render --workdir=workdir/a-red-chair --turntable_size=256
"""

from __future__ import annotations

from absl import flags

from dreamfusion_jax.config import cli
from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.runs import outputs
from dreamfusion_jax.runs.checkpoint import open_scene

_FLAGS = ("workdir", "platform", "poster_size", "sheet_size", "turntable_size", "turntable_frames")


def main() -> int:
    """Renders the images; returns the exit code."""
    cli.use_platform(flags.FLAGS.platform)
    workdir, run = open_scene(flags.FLAGS.workdir, "there are no sides to render")
    step, config = int(run.state.step), configs.override_run(run.config, _FLAGS)
    failed = outputs.write_images(workdir, run.scene, run.state.scene_params, step, config)
    outputs.update(workdir, run.config, step, outputs.IMAGE_FILES, failed)
    print("Made " + ", ".join(str(workdir / name) for name in outputs.IMAGE_FILES))
    return 0


if __name__ == "__main__":
    configs.define_flags(_FLAGS)
    cli.run(main)
