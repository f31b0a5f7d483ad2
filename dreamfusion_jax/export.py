"""Exports a run's mesh again from its newest checkpoint: GLB and OBJ with texture, PLY, an image.

python -m dreamfusion_jax.export --workdir=workdir/a-red-chair --mesh_resolution=128
"""

from __future__ import annotations

from absl import flags

from dreamfusion_jax.config import cli
from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.runs import mesh_files
from dreamfusion_jax.runs.checkpoint import open_scene
from dreamfusion_jax.runs.page import build

_FLAGS = ("workdir", "platform", "mesh_resolution", "mesh_threshold", "mesh_faces", "texture_size")


def main() -> int:
    """Exports the mesh; returns the exit code."""
    cli.use_platform(flags.FLAGS.platform)
    workdir, run = open_scene(flags.FLAGS.workdir, "it has no mesh")
    step, config = int(run.state.step), configs.override_run(run.config, _FLAGS)
    written = mesh_files.write_mesh(workdir, run.scene, run.state.scene_params, step, config)
    build.rewrite_page(workdir, run.config, step)
    print("Made " + ", ".join(map(str, written)))
    return 0


if __name__ == "__main__":
    configs.define_flags(_FLAGS)
    cli.run(main)
