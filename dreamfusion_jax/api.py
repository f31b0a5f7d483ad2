"""Text to 3D from Python: a prompt in, an `Asset` out, by the same code as the command.

  import dreamfusion_jax

  asset = dreamfusion_jax.text_to_3d("a red chair")
  frames = asset.turntable(size=128, frames=48)
  asset.mesh().export("chair.glb")
  asset.save("chair")

Every flag of `python -m dreamfusion_jax.main` is a keyword here, under its own name. Jobs of
several processes need the command.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import trimesh

from dreamfusion_jax.config import cli
from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.config.folder_names import slug
from dreamfusion_jax.config.from_python import (
    called_from_python,
    refuse_jobs,
    require_settings_of_prior,
    settings_at_fault,
)
from dreamfusion_jax.mesh import formats
from dreamfusion_jax.nerf.cameras import orbit_camera
from dreamfusion_jax.rendering import images
from dreamfusion_jax.runs import checkpoint, job, loop, mesh_files, prior_cache, two_stages
from dreamfusion_jax.runs.checkpoint import SavedRun, load_run, save_state, steps_done
from dreamfusion_jax.runs.outputs import make_outputs
from dreamfusion_jax.runs.sampling import Guidance, draw_samples
from dreamfusion_jax.runs.workdir import copy_record, require_same_run, store_config
from dreamfusion_jax.runtime.arguments import (
    check_choice,
    check_color,
    check_number,
    check_whole,
)
from dreamfusion_jax.runtime.errors import SettingError, UserError
from dreamfusion_jax.runtime.files import AnyPath, absolute, as_path
from dreamfusion_jax.runtime.png import encode_png
from dreamfusion_jax.runtime.progress import Progress
from dreamfusion_jax.toybox.view_scheme import SCHEMES

_MAX_SIZE = 8192  # side of an image
_PATIENCE_S = 2  # before a progress bar appears
# trimesh uses glTF's axes, y up; cameras and fields use the world's, z up.
_AXES = {"y": formats.WORLD_TO_GLTF, "z": np.eye(3)}


def text_to_3d(
    prompt: str,
    prior: str | os.PathLike[str] | None = None,
    *,
    steps: int | None = None,
    workdir: str | os.PathLike[str] | None = None,
    preset: str = "toybox",
    **settings: Any,
) -> Asset:
    """Optimizes a scene until it looks like the prompt from every side.

    The same call with the same `workdir` continues a run that was stopped, and only reads one that
    is finished. Calls that differ only in prompt and folder share one prior and one compiled step,
    which stay in memory until a call differs in more.

    Args:
      prompt: what to make, for example "a red chair".
      prior: "toybox" (embedded), or a Stable Diffusion in the diffusers layout: a folder or a hub
        id. None: the preset's.
      steps: optimization steps. None: the preset's, 1,000 of the toybox.
      workdir: folder of the run, or a bucket's: checkpoints, metrics, previews. None: a temporary
        one, which is deleted with the asset, or when Python ends.
      preset: settings to start from: "toybox", "paper", "sd" or "refine".
      **settings: any other flag of `python -m dreamfusion_jax.main`, by its name without dashes. A
        range is a pair of numbers, or one number.

    Returns:
      The asset.

    Raises:
      SettingError: a ValueError: there is no such setting, or its value is wrong.
      UserError: any other failure, in one sentence: a prior's files, the folder, the disk, memory,
        numbers that are not finite.
      KeyboardInterrupt: on Ctrl-C or an interrupted kernel, after the current step is saved. The
        message names the folder, which stays even if it is temporary: the same call with this
        `workdir` continues, and `Asset.load` shows the current scene.
    """
    temporary = workdir is None
    named: dict[str, Any] = {"prior": prior, "steps": steps}
    given = {name: value for name, value in named.items() if value is not None}
    with called_from_python():
        refuse_jobs(settings)
        given |= {"prompt": prompt, "workdir": workdir or ""}
        with settings_at_fault():
            config = configs.config_from_settings(preset, {**settings, **given})
            cli.use_platform(config.run.platform)
        if temporary:
            folder = tempfile.mkdtemp(prefix=f"dreamfusion_jax-{slug(prompt)[:40]}-")
        else:  # The caller may change the current folder.
            folder = str(absolute(as_path(config.run.workdir)))
        run = dataclasses.replace(config.run, workdir=folder)
        config = dataclasses.replace(config, run=run)
        asset = Asset(as_path(config.run.workdir), _optimized(config, temporary))
    if temporary:
        weakref.finalize(asset, shutil.rmtree, config.run.workdir, ignore_errors=True)
    return asset


def _optimized(config: Config, temporary: bool) -> SavedRun:
    jax_config: Any = jax.config  # of whose attributes not every version of JAX has types
    if not jax_config.jax_compilation_cache_dir:  # The program's own choice has priority.
        cli.use_compilation_cache(config.run.compilation_cache)
    workdir = as_path(config.run.workdir)
    if config.train.second_stage_steps:
        if not two_stages.is_first_done(config):
            first = _optimized_stage(config, temporary)
            make_outputs(workdir, first, prior_cache.prior_sampler, two_stages.FIRST_FILES)
            two_stages.set_aside(config)
        config = two_stages.refined(config)
    return _optimized_stage(config, temporary)


def _optimized_stage(config: Config, temporary: bool) -> SavedRun:
    workdir = as_path(config.run.workdir)
    require_same_run(workdir, config)
    if steps_done(workdir) >= config.train.steps:  # It may be read-only.
        return load_run(workdir)._replace(config=config)
    try:
        with job.at_work(config):
            common = dataclasses.replace(
                config,
                train=dataclasses.replace(config.train, prompt=""),
                run=configs.RunOptions(devices=config.run.devices, wandb=config.run.wandb),
            )
            return job.optimize(config, SCHEMES, prior_cache.prepared_run(common, SCHEMES))[1]
    except loop.Interrupted as stopped:
        folder = repr(str(workdir))
        raise KeyboardInterrupt(
            f"Stopped {stopped}; it is saved. The same call with workdir={folder} continues;"
            f" Asset.load({folder}) loads the current state."
        ) from None
    except BaseException as error:
        if temporary and not steps_done(workdir):
            shutil.rmtree(workdir, ignore_errors=True)
        elif temporary and isinstance(error, UserError):
            error.args = (f"{error} It is in {workdir}.",)
        raise


def text_to_images(
    prompt: str,
    prior: str | os.PathLike[str] = "toybox",
    *,
    samples: int = 4,
    steps: int = 25,
    guidance_scale: float = 6.0,
    seed: int = 0,
    negative_prompt: str = "",
    dtype: str = "auto",
    **settings: Any,
) -> np.ndarray:
    """Draws samples of the prior itself: [samples, size, size, 3] uint8.

    The prior and the compiled sampler stay in memory until a call names another prior or other
    settings of it; a prior that `text_to_3d` holds is not loaded again.

    Args:
      prompt: what to draw; the toybox wants the view in words: "a red chair, front view".
      prior: as in `text_to_3d`.
      samples: how many images.
      steps: of the sampler, which is DDIM unless the prior predicts a variance.
      guidance_scale: classifier-free guidance as in diffusers; 1 is none.
      seed: decides the initial noise.
      negative_prompt: what the images should not show.
      dtype: number format of the prior's U-Net: "auto", "float32", "float16" or "bfloat16".
      **settings: any other setting of the prior, by the name of its flag: revision, variant, lora,
        embedding, prediction_type, vae_dtype.

    Raises:
      SettingError: a value is wrong, or there is no such setting of a prior.
      UserError: the prior's files are missing or at fault, or memory runs out.
    """
    with called_from_python():
        require_settings_of_prior(settings)
        given = {"prompt": prompt, "prior": prior, "guidance_scale": guidance_scale, "seed": seed}
        check_choice("dtype", dtype, ("auto", "float32", "float16", "bfloat16"))
        check_whole("samples", samples, 1, 4096)
        check_whole("steps", steps, 1, 10**6)
        given |= {"negative_prompt": negative_prompt, "prior_dtype": dtype, "variant": ""}
        given |= settings
        with settings_at_fault():
            config = configs.config_from_settings("toybox", given)
        rows = draw_samples(
            prior_cache.prior_sampler(config.prior),
            [prompt],
            Guidance(config.distillation.guidance_scale, 0.0, negative_prompt),
            samples,
            steps,
            config.train.seed,
        )
    return images.to_uint8(rows[0])


@dataclasses.dataclass(frozen=True, eq=False)
class Asset:
    """A scene optimized for a prompt, and the folder of its run.

    Attributes:
      workdir: the folder: checkpoints, metrics, previews, config.json.
      saved: the settings, the scene and its newest state.
    """

    workdir: AnyPath
    saved: SavedRun

    @classmethod
    def load(cls, workdir: str | os.PathLike[str]) -> Asset:
        """Loads the newest state from the folder of a run, finished or not.

        Raises:
          UserError: the folder holds none.
        """
        with called_from_python():
            folder = absolute(as_path(os.fspath(workdir), "workdir"))
            return cls(folder, load_run(folder))

    @property
    def prompt(self) -> str:
        """The prompt that the scene was optimized for."""
        return self.saved.config.train.prompt

    @property
    def step(self) -> int:
        """The number of steps done."""
        return int(self.saved.state.step)

    def __repr__(self) -> str:
        return f"<Asset {self.prompt!r} after {self.step} steps in {str(self.workdir)!r}>"

    def _repr_png_(self) -> bytes:
        """Renders four sides, for notebooks."""
        sides = [self.render(azimuth_deg, size=128) for azimuth_deg in images.PREVIEW_AZIMUTHS_DEG]
        return encode_png(np.concatenate(sides, axis=1))

    def render(
        self,
        azimuth_deg: float = images.POSTER_AZIMUTH_DEG,
        elevation_deg: float = images.ELEVATION_DEG,
        size: int = 256,
        *,
        show: str = "color",
        distance: float | None = None,
        fov_deg: float | None = None,
        background: Sequence[float] = images.WHITE,
    ) -> np.ndarray:
        """Renders an image, [size, size, 3] uint8.

        Args:
          azimuth_deg: of the camera: 0 sees the front; positive is counter-clockwise from above.
          elevation_deg: of the camera: 90 looks straight down.
          size: side of the image in pixels.
          show: "color" (softly lit), "albedo", "normals", "depth" or "opacity".
          distance, fov_deg: of the camera, in units of the scene and degrees; None: the middle of
            the training cameras'.
          background: RGB in [0, 1], behind color and albedo.
        """
        check_whole("size", size, 1, _MAX_SIZE)
        check_choice("show", show, images.SHOWN)
        check_number("azimuth_deg", azimuth_deg)
        check_number("elevation_deg", elevation_deg)
        if distance is not None:
            check_number("distance", distance, 0.0)
        if fov_deg is not None:
            check_number("fov_deg", fov_deg, 0.0, 180.0)
        check_color("background", background)
        config, scene, state = self.saved
        with called_from_python():
            orbit = images.training_orbit(config.camera)
            camera = orbit_camera(
                azimuth_deg,
                elevation_deg,
                orbit.distance if distance is None else distance,
                orbit.fov_deg if fov_deg is None else fov_deg,
            )
            return images.render_view(
                scene, state.scene_params, camera, size, self.step, show, background
            )

    def turntable(
        self, size: int = 128, frames: int = 48, *, show: str = "color"
    ) -> list[np.ndarray]:
        """Renders the scene once around: `frames` images [size, size, 3] uint8.

        `dreamfusion_jax.rendering.images` has `encode_gif` and `encode_mp4` for them.

        Args:
          show: "color", "depth" or "normals".
        """
        check_whole("size", size, 1, _MAX_SIZE)
        check_whole("frames", frames, 1, 3600)
        check_choice("show", show, images.Turntable._fields)
        self._require_sides()
        config, scene, state = self.saved
        orbit = images.training_orbit(config.camera)
        total = frames * images.tiles(size)
        shown = Progress(total, "rendering", "tile", patience_s=_PATIENCE_S, leave=False)
        with called_from_python(), shown as bar:
            around = images.turntable(
                scene, state.scene_params, size, frames, self.step, orbit, bar.update
            )
        return getattr(around, show)

    def mesh(
        self,
        *,
        mesh_resolution: int | None = None,
        mesh_threshold: float | None = None,
        mesh_faces: int | None = None,
        texture_size: int | None = None,
        up: str = "y",
    ) -> trimesh.Trimesh:
        """Extracts the surface, closed except at texture seams, with texture and normals.

        Args:
          mesh_resolution, mesh_threshold, mesh_faces, texture_size: as the flags of these names;
            None: the run's own.
          up: "y", as in mesh.glb and as trimesh's viewers and exporters expect, front towards +z;
            or "z", the world of the cameras, front towards +x.

        Raises:
          SettingError: a value is wrong, or the asset is a flat image.
          UserError: there is no surface, or memory runs out.
        """
        check_choice("up", up, tuple(_AXES))
        self._require_sides()
        given = {
            "mesh_resolution": mesh_resolution,
            "mesh_threshold": mesh_threshold,
            "mesh_faces": mesh_faces,
            "texture_size": texture_size,
        }
        config, scene, state = self.saved
        with called_from_python():
            config = configs.with_run(config, {n: v for n, v in given.items() if v is not None})
            mesh = mesh_files.make_mesh(scene, state.scene_params, self.step, config)
        return formats.to_trimesh(mesh.textured, _AXES[up])

    def save(self, folder: str | os.PathLike[str]) -> AnyPath:
        """Writes the command's outputs: images, turntables, mesh, page, checkpoint, settings.

        The folder is then a run's: `Asset.load` and the commands render, export and main (with more
        steps) accept it.

        Returns:
          The folder.

        Raises:
          UserError: the folder holds another run or a newer state, or cannot be written to.
        """
        config, scene, state = self.saved
        with called_from_python():
            target = absolute(as_path(os.fspath(folder)))
        run = dataclasses.replace(config.run, workdir=str(target))
        config = dataclasses.replace(config, run=run)
        with called_from_python(), job.at_work(config):
            checkpoint.require_not_newer(target, self.step)
            store_config(config)
            copy_record(self.workdir, target)
            save_state(target, state)
            make_outputs(target, SavedRun(config, scene, state), prior_cache.prior_sampler)
        return target

    def _require_sides(self) -> None:
        if configs.is_flat(self.saved.config):
            raise SettingError("The asset is a flat image: it has no sides and no mesh.")
