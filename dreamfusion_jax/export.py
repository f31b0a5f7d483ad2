"""Exports a run's mesh again from its newest checkpoint: GLB and OBJ with texture, PLY, an image.

python -m dreamfusion_jax.export --workdir=workdir/a-red-chair --mesh_resolution=128
"""

from __future__ import annotations

from absl import flags

from dreamfusion_jax.config import cli
from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.runs import mesh_files, outputs
from dreamfusion_jax.runs.checkpoint import open_scene

_FLAGS = ("workdir", "platform", "mesh_resolution", "mesh_threshold", "mesh_faces", "texture_size")


def main() -> int:
    """Exports the mesh; returns the exit code."""
    cli.use_platform(flags.FLAGS.platform)
    workdir, run = open_scene(flags.FLAGS.workdir, "it has no mesh")
    step, config = int(run.state.step), configs.override_run(run.config, _FLAGS)
    failed = outputs.write_mesh(workdir, run.scene, run.state.scene_params, step, config)
    outputs.update(workdir, run.config, step, mesh_files.MESH_FILES, failed)
    print("Made " + ", ".join(str(workdir / name) for name in mesh_files.MESH_FILES))
    return 0


if __name__ == "__main__":
    configs.define_flags(_FLAGS)
    cli.run(main)
