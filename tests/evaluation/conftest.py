"""A small CLIPModel of random weights, as transformers saves one."""

from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from dreamfusion_jax.toybox import tokenizer

torch.set_num_threads(1)
torch.set_grad_enabled(False)

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.fixture(scope="session")
def clip_model(tmp_path_factory: pytest.TempPathFactory) -> CLIPModel:
    """Its tokenizer is the toybox's, which reads 24 tokens; its pictures have 28 pixels a side."""
    torch.manual_seed(0)
    tokenizer.write(folder := tmp_path_factory.mktemp("vocabulary"))
    text = TOWER | tokenizer.sizes(folder)
    vision = TOWER | {"image_size": 28, "patch_size": 7}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    for parameter in model.parameters():  # large enough that pictures and texts differ
        parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="session")
def clip_folder(clip_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips") / "small-clip"
    clip_model.save_pretrained(folder)
    tokenizer.write(folder)
    return folder
