"""Writes a coarse mesh of a run's newest checkpoint to a file, without touching the run's folder.

python -m dreamfusion_jax.webui.draft_mesh --workdir=workdir/a-red-chair --file=draft.glb
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from dreamfusion_jax.config import cli
from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.mesh import formats
from dreamfusion_jax.runs import mesh_files
from dreamfusion_jax.runs.checkpoint import open_scene
from dreamfusion_jax.runtime.files import atomic_write

_COARSE = {"mesh_resolution": 40, "mesh_faces": 3000, "texture_size": 256, "mesh_threshold": 0.0}


def main() -> int:
    """Writes the mesh; returns the exit code."""
    cli.use_platform("cpu")  # An accelerator's memory is the run's.
    _, run = open_scene(flags.FLAGS.workdir, "it has no mesh")
    cli.use_compilation_cache(run.config.run.compilation_cache)
    config = configs.with_run(run.config, _COARSE)
    mesh = mesh_files.make_mesh(run.scene, run.state.scene_params, int(run.state.step), config)
    atomic_write(Path(flags.FLAGS.file), formats.glb_bytes(mesh.textured))
    return 0


if __name__ == "__main__":
    configs.define_flags(["workdir"])
    flags.DEFINE_string("file", "draft.glb", "the file, in glTF's binary format")
    cli.run(main)
