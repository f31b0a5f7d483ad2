"""Trains the embedded prior: `python -m dreamfusion_jax.toybox.train --workdir=DIR --stage=all`.

Stages, each resumable: images (rendered once, shard by shard), vae, diffusion (text encoder and
U-Net), judge, azimuth. The weights are written in the diffusers / transformers layout to --output
as each stage ends.
"""

from __future__ import annotations

import json
import pathlib
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from dreamfusion_jax.config import cli
from dreamfusion_jax.config.flags import define_flags
from dreamfusion_jax.diffusion import schedule as schedules
from dreamfusion_jax.diffusion.loading.text_encoder import load_tokenizer
from dreamfusion_jax.diffusion.loading.weights import (
    read_component,
    weights_digest,
    write_component,
)
from dreamfusion_jax.diffusion.models.clip import CLIPModel, CLIPTextModel
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.models.vae import AutoencoderKL
from dreamfusion_jax.toybox import captions, dataset, recipes, tasks, tokenizer
from dreamfusion_jax.toybox.azimuth import AzimuthClassifier, azimuth_task
from dreamfusion_jax.toybox.fit import fit
from dreamfusion_jax.toybox.image_ops import from_signed, grid, in_chunks, to_signed
from dreamfusion_jax.toybox.judge_task import judge_task
from dreamfusion_jax.toybox.obedience import draw_prompts, measure_obedience
from dreamfusion_jax.toybox.reconstruction import thin_part_iou
from dreamfusion_jax.toybox.warm_start import inner_blocks, transplant

_HOME = pathlib.Path(__file__).parent
_STAGES = ("images", "vae", "diffusion", "judge", "azimuth")
_WORKDIR = flags.DEFINE_string("workdir", "workdir/toybox", "Where checkpoints and images go.")
_OUTPUT = flags.DEFINE_string(
    "output", "", "Where weights/, clip_weights/ and azimuth_weights/ go; empty: <workdir>/trained."
)
_STAGE = flags.DEFINE_enum("stage", "all", ("all", *_STAGES), "Which stage to run.")
_SHARDS = flags.DEFINE_integer(
    "shards", recipes.SHARDS, f"Shards of {recipes.SHARD_SIZE} training images to render.", 1
)
_STEPS = flags.DEFINE_integer("steps", 0, "Steps of the stage; 0: the recipe's.", 0)
_INIT = flags.DEFINE_string(
    "init",
    str(_HOME),
    "Holds the weights/, clip_weights/ and azimuth_weights/ to start from, as far as shapes allow;"
    " empty: random ones. The embedded ones by default.",
)
_SEED = flags.DEFINE_integer("seed", 1, "Seed of images, weights, batches and noise.", 0, 2**31 - 1)
_STORED_DTYPE = jnp.float16


def main() -> int:
    cli.use_platform(flags.FLAGS.platform)
    workdir = pathlib.Path(_WORKDIR.value)
    output = pathlib.Path(_OUTPUT.value or workdir / "trained")
    shards = workdir / "images"
    dataset.render_shards(
        shards, _SHARDS.value, recipes.SHARD_SIZE, _SEED.value, recipes.IMAGE_SIZE
    )
    runs = {
        "vae": (train_vae, output / "weights"),
        "diffusion": (train_diffusion, output / "weights"),
        "judge": (train_judge, output / "clip_weights"),
        "azimuth": (train_azimuth, output / "azimuth_weights"),
    }
    for name, (run, target) in runs.items():
        if _STAGE.value in ("all", name):
            print(f"Stage {name}: {_SHARDS.value} shards.", flush=True)
            run(shards, workdir / name, target)
    return 0


def train_vae(shards: pathlib.Path, workdir: pathlib.Path, output: pathlib.Path) -> None:
    """Writes vae/ with its scaling_factor measured on the images' latents."""
    images = dataset.load_shards(shards, _SHARDS.value)
    vae = AutoencoderKL.from_config(recipes.VAE)
    task = tasks.vae_task(vae, images, recipes.CROP_SIZE)

    @jax.jit
    def reconstruct(params: Any, image: jax.Array) -> jax.Array:
        return from_signed(vae.apply({"params": params}, to_signed(image)))

    def measure(params: Any) -> dict[str, float]:
        return thin_part_iou(
            lambda image: np.asarray(reconstruct(params, image)), recipes.IMAGE_SIZE
        )

    task = _warm(task._replace(measure=measure), {"": "weights/vae"})
    params = fit(task, _stage("vae"), workdir, _SEED.value)
    latents = encode(vae, params, images.image[:2048])
    config = recipes.VAE | {"scaling_factor": round(float(1.0 / latents.std()), 5)}
    write_component(output / "vae", config, params, _STORED_DTYPE)


def train_diffusion(shards: pathlib.Path, workdir: pathlib.Path, output: pathlib.Path) -> None:
    """Writes unet/, text_encoder/, tokenizer/, scheduler/ and model_index.json."""
    base = pathlib.Path(_INIT.value) / "weights" / "tokenizer" if _INIT.value else None
    tokenizer.write(output / "tokenizer", base)
    text_config = recipes.TEXT_ENCODER | tokenizer.sizes(output / "tokenizer")
    text_encoder = CLIPTextModel.from_config(text_config)
    unet = UNet2DConditionModel.from_config(recipes.UNET)
    latents, labels = _latents(shards, workdir, output / "vae")

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
        latents,
        labels,
        load_tokenizer(output / "tokenizer", tokenizer.MAX_LENGTH),
        draw,
        lambda _: measure_obedience(output),  # of what the preview has just written
    )
    task = _warm(task, {"unet": "weights/unet", "text_encoder": "weights/text_encoder"})
    publish(fit(task, _stage("diffusion"), workdir, _SEED.value))


def train_judge(shards: pathlib.Path, workdir: pathlib.Path, output: pathlib.Path) -> None:
    """Writes a transformers CLIPModel with its tokenizer."""
    tokenizer.write(output)
    sizes = tokenizer.sizes(output)
    text_config = recipes.JUDGE["text_config"] | sizes
    config = recipes.JUDGE | {"text_config": text_config}
    model = CLIPModel.from_config(config)
    side = recipes.JUDGE["vision_config"]["image_size"]
    images = dataset.load_shards(shards, _SHARDS.value, side)
    spheres = dataset.plain_spheres(recipes.SPHERES, _SEED.value, side)
    tokenize = load_tokenizer(output, tokenizer.MAX_LENGTH)
    task = judge_task(model, images, spheres, tokenize)
    params = fit(_warm(task, {"": "clip_weights"}), _stage("judge"), workdir, _SEED.value)
    write_component(output, config, params, _STORED_DTYPE)


def train_azimuth(shards: pathlib.Path, workdir: pathlib.Path, output: pathlib.Path) -> None:
    """Writes the classifier of azimuths."""
    images = dataset.load_shards(shards, _SHARDS.value, recipes.AZIMUTH["image_size"])
    task = azimuth_task(AzimuthClassifier.from_config(recipes.AZIMUTH), images)
    params = fit(_warm(task, {"": "azimuth_weights"}), _stage("azimuth"), workdir, _SEED.value)
    write_component(output, recipes.AZIMUTH, params, _STORED_DTYPE)


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


def encode(vae: AutoencoderKL, params: Any, image: np.ndarray) -> np.ndarray:
    """Returns the latents' means [N, h, w, c] of uint8 images, unscaled."""

    @jax.jit
    def mean(params: Any, image: jax.Array) -> jax.Array:
        return vae.apply({"params": params}, to_signed(image), method="encode")[0]

    return in_chunks(lambda chunk: mean(params, chunk), image)


def _latents(
    shards: pathlib.Path, workdir: pathlib.Path, vae_directory: pathlib.Path
) -> tuple[np.ndarray, dataset.LabeledImages]:
    """Returns scaled latents in float16, encoded once, and labels without their images."""
    config, params = read_component(vae_directory)
    vae = AutoencoderKL.from_config(config)
    cache = workdir / "latents" / weights_digest(vae_directory)[:12]
    cache.mkdir(parents=True, exist_ok=True)
    latents, labels = [], []
    for index in range(_SHARDS.value):
        images = dataset.load_shard(shards, index)
        checksum = zlib.crc32(dataset.shard_path(shards, index).read_bytes())
        path = cache / f"{index:05d}_{checksum:08x}.npy"
        if not path.exists():
            partial = path.with_suffix(".partial.npy")
            np.save(partial, encode(vae, params, images.image).astype(np.float16))
            partial.replace(path)
        latents.append(np.load(path) * np.float16(config["scaling_factor"]))
        labels.append(images.without_pixels())
    return np.concatenate(latents), dataset.join(labels)


def _warm(task: tasks.Task, sources: dict[str, str]) -> tasks.Task:
    """Returns the task, starting from the weights in --init as far as names and shapes agree.

    Args:
      sources: part of the parameters ("" for all of them) -> directory below --init.
    """
    if not _INIT.value:
        return task
    levels = len(recipes.UNET["block_out_channels"])

    def init(key: jax.Array) -> Any:
        params = task.init(key)
        for part, directory in sources.items():
            config, donor = read_component(pathlib.Path(_INIT.value) / directory)
            missing = levels - len(config["block_out_channels"]) if part == "unet" else 0
            grown = transplant(params[part] if part else params, donor, inner_blocks(missing))
            params = {**params, part: grown} if part else grown
        return params

    return task._replace(init=init)


def _stage(name: str) -> recipes.Stage:
    stage = recipes.STAGES[name]
    return stage._replace(steps=_STEPS.value) if _STEPS.value else stage


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    define_flags(("platform",))
    cli.run(main)
