"""Trains the embedded prior: `python -m dreamfusion_jax.toybox.train --workdir=DIR --stage=all`.

Stages, each resumable: pictures (rendered once), vae, diffusion (text encoder and U-Net), views
(the same two, taught to obey the view words), judge, azimuth. The weights are written in the
diffusers / transformers layout to --output as each stage ends.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from dreamfusion_jax.config import cli
from dreamfusion_jax.config.flags import define_flags
from dreamfusion_jax.diffusion import schedule as schedules
from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.diffusion.loading.text_encoder import load_tokenizer
from dreamfusion_jax.diffusion.loading.weights import read_component, write_component
from dreamfusion_jax.diffusion.models.clip import CLIPModel, CLIPTextModel
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.models.vae import AutoencoderKL
from dreamfusion_jax.diffusion.priors.prior import Condition
from dreamfusion_jax.diffusion.sampling import ddim_sample
from dreamfusion_jax.runtime.files import local_path
from dreamfusion_jax.toybox import captions, dataset, recipes, tasks, tokenizer
from dreamfusion_jax.toybox.azimuth import AzimuthClassifier, azimuth_task
from dreamfusion_jax.toybox.fit import fit
from dreamfusion_jax.toybox.image_ops import grid, in_chunks, to_signed
from dreamfusion_jax.toybox.judge_task import judge_task

_STAGES = ("pictures", "vae", "diffusion", "views", "judge", "azimuth")
_WORKDIR = flags.DEFINE_string("workdir", "workdir/toybox", "Where checkpoints and pictures go.")
_OUTPUT = flags.DEFINE_string(
    "output", "", "Where weights/, clip_weights/ and azimuth_weights/ go; empty: <workdir>/trained."
)
_STAGE = flags.DEFINE_enum("stage", "all", ("all", *_STAGES), "Which stage to run.")
_PICTURES = flags.DEFINE_integer("pictures", recipes.PICTURES, "Training pictures to render.", 1)
_STEPS = flags.DEFINE_integer("steps", 0, "Steps of the stage; 0: the recipe's.", 0)
_WARM_START = flags.DEFINE_bool(
    "warm_start", False, "Start from the weights in --output, not from random ones."
)
_SEED = flags.DEFINE_integer(
    "seed", 1, "Seed of pictures, weights, batches and noise.", 0, 2**31 - 1
)
_STORED_DTYPE = jnp.float16


def main() -> int:
    cli.use_platform(flags.FLAGS.platform)
    workdir = local_path(_WORKDIR.value, "workdir")
    output = local_path(_OUTPUT.value, "output") if _OUTPUT.value else workdir / "trained"
    pictures = dataset.load_or_make(workdir / "pictures.npz", _PICTURES.value, _SEED.value)
    runs = {
        "vae": (train_vae, output / "weights"),
        "diffusion": (train_diffusion, output / "weights"),
        "views": (train_views, output / "weights"),
        "judge": (train_judge, output / "clip_weights"),
        "azimuth": (train_azimuth, output / "azimuth_weights"),
    }
    for name, (run, target) in runs.items():
        if _STAGE.value in ("all", name):
            print(f"Stage {name}: {pictures.count} pictures.", flush=True)
            run(pictures, workdir / name, target)
    return 0


def train_vae(pictures: dataset.Pictures, workdir: pathlib.Path, output: pathlib.Path) -> None:
    """Writes vae/ with its scaling_factor measured on the pictures' latents."""
    vae = AutoencoderKL.from_config(recipes.VAE)
    task = tasks.vae_task(vae, pictures)
    task = _start(task, lambda: read_component(output / "vae")[1], _WARM_START.value)
    params = fit(task, _stage("vae"), workdir, _SEED.value)
    latents = encode(vae, params, pictures.image[:4096])
    config = recipes.VAE | {"scaling_factor": round(float(1.0 / latents.std()), 5)}
    write_component(output / "vae", config, params, _STORED_DTYPE)


def train_diffusion(
    pictures: dataset.Pictures, workdir: pathlib.Path, output: pathlib.Path
) -> None:
    """Writes unet/, text_encoder/, tokenizer/, scheduler/ and model_index.json."""
    _train_denoiser("diffusion", tasks.SamplingBias(), _WARM_START.value, pictures, workdir, output)


def train_views(pictures: dataset.Pictures, workdir: pathlib.Path, output: pathlib.Path) -> None:
    """Goes on with what `train_diffusion` wrote, with every view named."""
    _train_denoiser("views", tasks.VIEWS, True, pictures, workdir, output)


def _train_denoiser(
    stage: str,
    bias: tasks.SamplingBias,
    warm_start: bool,
    pictures: dataset.Pictures,
    workdir: pathlib.Path,
    output: pathlib.Path,
) -> None:
    tokenizer.write(output / "tokenizer")
    text_config = recipes.TEXT_ENCODER | tokenizer.sizes(output / "tokenizer")
    text_encoder = CLIPTextModel.from_config(text_config)
    unet = UNet2DConditionModel.from_config(recipes.UNET)
    vae_config, vae_params = read_component(output / "vae")
    vae = AutoencoderKL.from_config(vae_config)
    latents = vae_config["scaling_factor"] * encode(vae, vae_params, pictures.image)

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
        pictures,
        load_tokenizer(output / "tokenizer", tokenizer.MAX_LENGTH),
        draw,
        bias,
    )
    task = _start(
        task,
        lambda: {name: read_component(output / name)[1] for name in ("unet", "text_encoder")},
        warm_start,
    )
    publish(fit(task, _stage(stage), workdir, _SEED.value))


def train_judge(pictures: dataset.Pictures, workdir: pathlib.Path, output: pathlib.Path) -> None:
    """Writes a transformers CLIPModel with its tokenizer."""
    tokenizer.write(output)
    sizes = tokenizer.sizes(output)
    text_config = recipes.JUDGE["text_config"] | sizes
    config = recipes.JUDGE | {"text_config": text_config}
    model = CLIPModel.from_config(config)
    spheres = dataset.plain_spheres(recipes.SPHERES, _SEED.value)
    tokenize = load_tokenizer(output, tokenizer.MAX_LENGTH)
    task = judge_task(model, pictures, spheres, tokenize)
    task = _start(task, lambda: read_component(output)[1], _WARM_START.value)
    params = fit(task, _stage("judge"), workdir, _SEED.value)
    write_component(output, config, params, _STORED_DTYPE)


def train_azimuth(pictures: dataset.Pictures, workdir: pathlib.Path, output: pathlib.Path) -> None:
    """Writes the classifier of azimuths."""
    task = azimuth_task(AzimuthClassifier.from_config(recipes.AZIMUTH), pictures)
    task = _start(task, lambda: read_component(output)[1], _WARM_START.value)
    params = fit(task, _stage("azimuth"), workdir, _SEED.value)
    write_component(output, recipes.AZIMUTH, params, _STORED_DTYPE)


def draw_samples(directory: pathlib.Path) -> np.ndarray:
    """What the prior in `directory` draws: some subjects, and a chair and a car turning."""
    colors = tuple(captions.COLORS)
    prompts = [f"a {colors[i % len(colors)]} {kind}" for i, kind in enumerate(captions.KINDS[:16])]
    for subject in ("a red chair", "a blue car"):
        prompts += [f"{subject}, {side}, medium angle" for side in captions.AZIMUTH_PHRASES]
    prior, weights = load_prior(directory)
    text, empty = prior.encode_text(prompts), prior.encode_text([""] * len(prompts))

    @jax.jit
    def draw(weights: Any, text: Condition, empty: Condition) -> jax.Array:
        latents = ddim_sample(prior, weights, text, empty, jax.random.key(0), 20, 4.0)
        return prior.decode(weights, latents)

    return grid(np.asarray(draw(weights, text, empty) * 255.0).astype(np.uint8), columns=8)


def encode(vae: AutoencoderKL, params: Any, image: np.ndarray) -> np.ndarray:
    """Latent means [N, h, w, c] of uint8 pictures, unscaled."""

    @jax.jit
    def mean(params: Any, image: jax.Array) -> jax.Array:
        return vae.apply({"params": params}, to_signed(image), method="encode")[0]

    return in_chunks(lambda chunk: mean(params, chunk), image)


def _start(task: tasks.Task, read: Callable[[], Any], warm: bool) -> tasks.Task:
    """The task; where `warm`, starting from the weights that `read` finds."""
    if not warm:
        return task
    params = read()
    return task._replace(init=lambda key: params)


def _stage(name: str) -> recipes.Stage:
    stage = recipes.STAGES[name]
    return stage._replace(steps=_STEPS.value) if _STEPS.value else stage


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    define_flags(("platform",))
    cli.run(main)
