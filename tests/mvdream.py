"""MVDream of random weights: as the folder of its port to diffusers, and as one file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.single_files import Tensors, under, unet_to_ldm

CAMERA_DIM = 16
# unet/config.json of ashawkey/mvdream-sd2.1-diffusers, as far as it is read.
CONFIG: dict[str, Any] = {
    "_class_name": "MultiViewUNetModel",
    "camera_dim": CAMERA_DIM,
    "image_size": 32,
    "in_channels": 4,
    "num_head_channels": 64,
}
UNET_FILE = "diffusion_pytorch_model.safetensors"


def camera_tensors(width: int, seed: int = 0) -> Tensors:
    """Draws the layers that embed a camera into `width` channels."""
    draw = np.random.default_rng(seed).standard_normal
    return {
        "camera_embed.0.weight": 0.3 * draw((width, CAMERA_DIM)).astype(np.float32),
        "camera_embed.0.bias": 0.3 * draw(width).astype(np.float32),
        "camera_embed.2.weight": draw((width, width)).astype(np.float32) / width**0.5,
        "camera_embed.2.bias": 0.3 * draw(width).astype(np.float32),
    }


def from_sd2(pipeline: Path, single_file: Path | None, output: Path, image_size: int = 32) -> Path:
    """Makes an MVDream of a Stable Diffusion 2.x, as a folder and beside it as a file.

    Args:
      pipeline: the folder of the model in diffusers' layout.
      single_file: the same as one file; None: none is written.
      output: is made.
    """
    shutil.copytree(pipeline, output)
    config = json.loads((output / "unet" / "config.json").read_text())
    unet = load_file(output / "unet" / UNET_FILE)
    camera = camera_tensors(4 * config["block_out_channels"][0])
    renamed = unet_to_ldm(unet, config) | camera
    save_file(under("", renamed), output / "unet" / UNET_FILE)
    (output / "unet" / "config.json").write_text(json.dumps(CONFIG | {"image_size": image_size}))
    index = json.loads((output / "model_index.json").read_text())
    index |= {"_class_name": "MVDreamPipeline", "unet": ["mv_unet", "MultiViewUNetModel"]}
    (output / "model_index.json").write_text(json.dumps(index))
    path = output / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "epsilon"}))
    if single_file is not None:
        held = load_file(single_file) | under("model.diffusion_model.", camera)
        save_file(held, output / "model.safetensors")
    return output
