"""The CLIP that a user names, against transformers' own on the same files."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dreamfusion_jax.evaluation.clip_encoder import Preprocessing, load_clip, read_preprocessing
from dreamfusion_jax.rendering.images import to_uint8
from dreamfusion_jax.runtime.errors import PriorError

SIZE = 28
STANDARD = {
    "crop_size": SIZE,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "resample": 3,
    "size": SIZE,
}


def make_image(height, width):
    """Noise over a gradient: sharp edges for the filter, and a place for every pixel."""
    rng = np.random.default_rng(height * width)
    ramp = np.linspace(0, 200, height * width * 3).reshape(height, width, 3)
    return (ramp + rng.uniform(0, 55, ramp.shape)).astype(np.uint8)


@pytest.mark.parametrize("shape", [(224, 224), (64, 64), (300, 251), (225, 500), (97, 64), (9, 30)])
@pytest.mark.parametrize("size", [224, 28])
def test_pictures_are_made_ready_as_transformers_does(shape, size):
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    theirs = processor(make_image(*shape), return_tensors="np")["pixel_values"][0]
    ours = Preprocessing(size)(make_image(*shape))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.transpose(1, 2, 0), atol=1e-5)


def test_vectors_and_their_cosines_are_those_of_transformers(clip_folder, clip_model):
    rgb = (
        np.stack([make_image(40, 40), make_image(40, 40)[::-1], make_image(40, 40)[:, ::-1] // 2])
        / 255.0
    )
    texts = ["a red chair", "a chair", "a red chair " * 30, ""]
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    )
    tokenizer = transformers.CLIPTokenizer.from_pretrained(clip_folder)
    length = clip_model.config.text_config.max_position_embeddings
    ids = tokenizer(
        texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    pixels = processor(list(to_uint8(rgb)), return_tensors="np")["pixel_values"]
    theirs = clip_model(ids, torch.from_numpy(pixels))

    clip = load_clip(clip_folder)
    image_embeds, captions = clip.embed_images(rgb), clip.embed_texts(clip.tokenize(texts))
    np.testing.assert_allclose(image_embeds, theirs.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(captions, theirs.text_embeds.numpy(), atol=1e-5)
    assert np.linalg.norm(image_embeds[0] - image_embeds[1]) > 1e-2, "pictures matter"
    assert np.linalg.norm(captions[0] - captions[1]) > 1e-2, "words matter"


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_an_old_name_of_a_towers_config_still_holds(tower, clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    config[f"{tower}_config_dict"] = config[f"{tower}_config"]
    config[f"{tower}_config"] = {}
    (folder / "config.json").write_text(json.dumps(config))
    load_clip(folder)


def test_other_means_are_read_from_beside_the_weights(tmp_path):
    config = STANDARD | {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    preprocess = read_preprocessing(tmp_path, SIZE)
    white = preprocess(np.full((SIZE, SIZE, 3), 255, np.uint8))
    np.testing.assert_allclose(white[0, 0], [0.5 / 0.2, 0.6 / 0.3, 0.7 / 0.4], rtol=1e-6)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("resample", 2),
        ("size", 32),
        ("crop_size", {"height": 28, "width": 32}),
        ("do_center_crop", False),
        ("image_std", [0.2, 0.0, 0.2]),
        ("image_mean", "gray"),
    ],
)
def test_unsupported_preprocessing_is_refused_by_name(key, value, tmp_path):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(STANDARD | {key: value}))
    with pytest.raises(PriorError, match=f"^{path}.*" + ("" if value == "gray" else key)):
        read_preprocessing(tmp_path, SIZE)


def test_what_is_no_clip_model_is_told_in_one_sentence(clip_folder, tmp_path):
    with pytest.raises(PriorError, match="holds no config.json; it must hold a CLIPModel"):
        load_clip(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip_text_model"}')
    with pytest.raises(PriorError, match="'clip_text_model', where 'clip' is needed"):
        load_clip(tmp_path)
    shutil.copy(clip_folder / "config.json", tmp_path)
    with pytest.raises(PriorError, match="holds no weights"):
        load_clip(tmp_path)
    shutil.copytree(clip_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vision_config": 3}))
    with pytest.raises(PriorError, match="vision_config=3 is not an object"):
        load_clip(tmp_path)
