"""Trains the embedded prior: `python -m dreamfusion_jax.toybox.train --workdir=DIR --stage=all`.

Stages, each resumable: images (the first shards), vae, diffusion (text encoder and U-Net), judge,
azimuth. The other shards are rendered as the diffusion stage comes to need them. The weights are
written in the diffusers / transformers layout to --output as each stage ends. A checkpoint saved
on a CPU goes on on a GPU, and the other way round.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from dreamfusion_jax.config import cli
from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.diffusion import schedule as schedules
from dreamfusion_jax.diffusion.loading.model_files import read_config
from dreamfusion_jax.diffusion.loading.text_encoder import load_tokenizer
from dreamfusion_jax.diffusion.loading.weights import read_component, write_component
from dreamfusion_jax.diffusion.models.clip import CLIPModel, CLIPTextModel
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.models.vae import AutoencoderKL
from dreamfusion_jax.runtime.files import local_path
from dreamfusion_jax.toybox import captions, dataset, latents, recipes, tasks, tokenizer
from dreamfusion_jax.toybox.azimuth import AzimuthClassifier, azimuth_task
from dreamfusion_jax.toybox.fit import fit
from dreamfusion_jax.toybox.image_ops import from_signed, grid, to_signed
from dreamfusion_jax.toybox.judge_task import judge_task
from dreamfusion_jax.toybox.obedience import draw_prompts, measure_obedience
from dreamfusion_jax.toybox.reconstruction import thin_part_iou
from dreamfusion_jax.toybox.warm_start import Params, inner_blocks, transplant

_HOME = pathlib.Path(__file__).parent
_STAGES = ("images", "vae", "diffusion", "judge", "azimuth")
_STORED_DTYPE = jnp.float16


class Setup(NamedTuple):
    """Where a stage reads and writes, and from what it starts.

    Attributes:
      workdir: of images, latents, checkpoints and logs.
      output: gets weights/, clip_weights/ and azimuth_weights/.
      init: holds weights of the same names to start from; None: random ones.
      shards: of training images, in all.
      first_shards: of them, those there before any training.
      workers: processes that render them.
      seed: of images, weights, batches and noise.
      steps, batch_size: of the stage; 0: the recipe's.
    """

    workdir: pathlib.Path
    output: pathlib.Path
    init: pathlib.Path | None
    shards: int
    first_shards: int
    seed: int
    workers: int = 1
    steps: int = 0
    batch_size: int = 0

    @property
    def images(self) -> pathlib.Path:
        """Returns where the shards are."""
        return self.workdir / "images"

    def shards_at(self, step: int) -> int:
        """Returns how many shards a step of the diffusion stage draws from."""
        return min(self.first_shards + step // recipes.STEPS_PER_SHARD, self.shards)


def main() -> int:
    """Trains one stage or all; returns the exit code."""
    values = flags.FLAGS
    cli.use_platform(values.platform)
    workdir = local_path(values.workdir, "workdir")
    output = local_path(values.output, "output") if values.output else workdir / "trained"
    setup = Setup(
        workdir=workdir,
        output=output,
        init=local_path(values.init, "init") if values.init else None,
        shards=values.shards,
        first_shards=min(values.first_shards, values.shards),
        seed=values.seed,
        workers=values.workers,
        steps=values.steps,
        batch_size=values.batch_size,
    )
    render_images(setup, setup.first_shards)
    runs = {
        "vae": train_vae,
        "diffusion": train_diffusion,
        "judge": train_judge,
        "azimuth": train_azimuth,
    }
    for name, run in runs.items():
        if values.stage in ("all", name):
            print(f"Stage {name}.", flush=True)
            run(setup)
    return 0


def render_images(setup: Setup, shards: int) -> None:
    """Renders those of the first shards that are not there yet."""
    dataset.render_shards(
        setup.images,
        shards,
        recipes.SHARD_SIZE,
        setup.seed,
        recipes.IMAGE_SIZE,
        workers=setup.workers,
    )


def train_vae(setup: Setup) -> None:
    """Writes vae/.

    Its scaling_factor is that of the autoencoder whose latents the first channels are; without one,
    it is measured on the images' latents.
    """
    images = dataset.load_shards(setup.images, setup.first_shards)
    vae = AutoencoderKL.from_config(recipes.VAE)
    donor = setup.init and setup.init / "weights" / "vae"
    anchor = latents.smaller_encoder(donor, vae.downscale) if donor else None
    task = tasks.vae_task(vae, images, recipes.CROP_SIZE, anchor)

    @jax.jit
    def reconstruct(params: Any, image: jax.Array) -> jax.Array:
        return from_signed(vae.apply({"params": params}, to_signed(image)))

    def measure(params: Any) -> dict[str, float]:
        return thin_part_iou(
            lambda image: np.asarray(reconstruct(params, image)), recipes.IMAGE_SIZE
        )

    params = _fit("vae", task._replace(measure=measure), setup, {"": "weights/vae"})
    if donor:
        scale = read_config(donor)["scaling_factor"]
    else:
        mean = latents.encoder(vae, params)(images.image[:2048])
        scale = round(float(1.0 / mean.std()), 5)
    config = recipes.VAE | {"scaling_factor": scale}
    write_component(setup.output / "weights" / "vae", config, params, _STORED_DTYPE)


def train_diffusion(setup: Setup) -> None:
    """Writes unet/, text_encoder/, tokenizer/, scheduler/ and model_index.json."""
    output = setup.output / "weights"
    tokenizer.write(output / "tokenizer", setup.init and setup.init / "weights" / "tokenizer")
    text_config = recipes.TEXT_ENCODER | tokenizer.sizes(output / "tokenizer")
    text_encoder = CLIPTextModel.from_config(text_config)
    unet = UNet2DConditionModel.from_config(recipes.UNET)
    load = latents.shard_loader(setup.images, output / "vae", setup.workdir / "latents")

    def render_and_load(index: int) -> latents.Shard:
        render_images(setup, index + 1)
        return load(index)

    def publish(params: Any) -> None:
        write_component(output / "unet", recipes.UNET, params["unet"], _STORED_DTYPE)
        # transformers keeps the stored precision where diffusers loads float32: they must agree.
        write_component(output / "text_encoder", text_config, params["text_encoder"])
        _write_json(output / "scheduler" / "scheduler_config.json", recipes.SCHEDULER)
        _write_json(output / "model_index.json", recipes.MODEL_INDEX)

    def draw(params: Any) -> np.ndarray:
        publish(params)  # a run cut short leaves a prior that can be used
        return draw_samples(output)

    task = tasks.diffusion_task(
        unet,
        text_encoder,
        schedules.schedule_from_config(recipes.SCHEDULER),
        latents.growing(render_and_load, setup.shards_at),
        load_tokenizer(output / "tokenizer", tokenizer.MAX_LENGTH),
        draw,
        lambda _: measure_obedience(output),  # of what the preview has just written
    )
    sources = {"unet": "weights/unet", "text_encoder": "weights/text_encoder"}
    publish(_fit("diffusion", task, setup, sources))


def train_judge(setup: Setup) -> None:
    """Writes a transformers CLIPModel with its tokenizer."""
    output = setup.output / "clip_weights"
    tokenizer.write(output, setup.init and setup.init / "clip_weights")
    text_config = recipes.JUDGE["text_config"] | tokenizer.sizes(output)
    config = recipes.JUDGE | {"text_config": text_config}
    side = recipes.JUDGE["vision_config"]["image_size"]
    render_images(setup, setup.shards)
    task = judge_task(
        CLIPModel.from_config(config),
        dataset.load_shards(setup.images, setup.shards, side),
        dataset.plain_spheres(recipes.SPHERES, setup.seed, side),
        load_tokenizer(output, tokenizer.MAX_LENGTH),
    )
    params = _fit("judge", task, setup, {"": "clip_weights"})
    write_component(output, config, params, _STORED_DTYPE)


def train_azimuth(setup: Setup) -> None:
    """Writes the classifier of azimuths."""
    render_images(setup, setup.shards)
    images = dataset.load_shards(setup.images, setup.shards, recipes.AZIMUTH["image_size"])
    task = azimuth_task(AzimuthClassifier.from_config(recipes.AZIMUTH), images)
    params = _fit("azimuth", task, setup, {"": "azimuth_weights"})
    write_component(setup.output / "azimuth_weights", recipes.AZIMUTH, params, _STORED_DTYPE)


def draw_samples(directory: pathlib.Path) -> np.ndarray:
    """Draws every kind from its front left, and a chair from six sides."""
    colors, hidden = tuple(captions.COLORS), captions.held_out_pairs()
    prompts = []
    for number, kind in enumerate(captions.KINDS):
        shown = [color for color in colors if (color, kind) not in hidden]
        prompts.append(f"a {shown[3 * number % len(shown)]} {kind}, front left view, medium angle")
    prompts += [f"a red chair, {side}, medium angle" for side in captions.AZIMUTH_PHRASES[2:]]
    rgb = draw_prompts(directory, [captions.with_article(prompt) for prompt in prompts])
    return grid((rgb * 255.0).round().astype(np.uint8), columns=8)


def _fit(stage: str, task: tasks.Task, setup: Setup, sources: dict[str, str]) -> Params:
    """Trains from the weights in `setup.init`, as far as names and shapes agree.

    Args:
      sources: part of the parameters ("" for all of them) -> directory below `setup.init`.
    """
    donors, random_init = setup.init, task.init

    def init(key: jax.Array) -> Params:
        params = random_init(key)
        for part, directory in sources.items():
            params = _with_donor(params, part, donors / directory) if donors else params
        return params

    recipe = recipes.STAGES[stage]
    recipe = recipe._replace(
        steps=setup.steps or recipe.steps, batch_size=setup.batch_size or recipe.batch_size
    )
    return fit(task._replace(init=init), recipe, setup.workdir / stage, setup.seed)


def _with_donor(params: Params, part: str, directory: pathlib.Path) -> Params:
    """Returns the parameters with what fits of the network in `directory` put into `part`."""
    config, donor = read_component(directory)
    recipe = {"UNet2DConditionModel": recipes.UNET, "AutoencoderKL": recipes.VAE}
    rename: Callable[[str], str] = str
    if grown := recipe.get(config.get("_class_name", "")):
        levels = len(config["block_out_channels"])
        rename = inner_blocks(len(grown["block_out_channels"]) - levels, levels)
    if not part:
        return transplant(params, donor, rename)
    return {**params, part: transplant(params[part], donor, rename)}


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def define_flags() -> None:
    """Defines the flags of the stages, the folders and the platform."""
    configs.define_flags(("platform",))
    flags.DEFINE_string("workdir", "workdir/toybox", "folder of checkpoints and images")
    flags.DEFINE_string(
        "output",
        "",
        "folder of weights/, clip_weights/ and azimuth_weights/ (empty: <workdir>/trained)",
    )
    flags.DEFINE_enum("stage", "all", ("all", *_STAGES), "stage to run")
    flags.DEFINE_integer(
        "shards", recipes.SHARDS, f"shards of {recipes.SHARD_SIZE} training images to render", 1
    )
    flags.DEFINE_integer(
        "first_shards",
        recipes.FIRST_SHARDS,
        "of --shards, those rendered before any training; with all of them, training never waits",
        1,
    )
    flags.DEFINE_integer("workers", 1, "processes that render images", 1)
    flags.DEFINE_integer("steps", 0, "steps of the stage (0: the recipe's)", 0)
    flags.DEFINE_integer("batch_size", 0, "batch size of the stage (0: the recipe's)", 0)
    flags.DEFINE_string(
        "init",
        str(_HOME),
        "folder of the weights/, clip_weights/ and azimuth_weights/ to start from, as far as shapes"
        " allow (empty: random ones); the embedded ones by default",
    )
    flags.DEFINE_integer("seed", 1, "seed of images, weights, batches and noise", 0, 2**31 - 1)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
