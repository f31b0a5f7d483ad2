"""What the judge is taught: the targets are the captions of what the images show."""

import jax
import numpy as np
import pytest

from dreamfusion_jax.diffusion.loading.text_encoder import load_tokenizer
from dreamfusion_jax.diffusion.models.clip import CLIPModel
from dreamfusion_jax.toybox import captions, dataset, judge_task, recipes, tokenizer

SPHERES, IMAGES = 2, 30


@pytest.fixture(scope="module")
def task(tmp_path_factory, mugs_and_chairs):
    folder = tmp_path_factory.mktemp("judge")
    tokenizer.write(folder)
    sizes = tokenizer.sizes(folder)
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = recipes.JUDGE | {
        "text_config": recipes.JUDGE["text_config"] | tower | sizes,
        "vision_config": recipes.JUDGE["vision_config"] | tower | {"num_attention_heads": 1},
    }
    spheres = dataset.plain_spheres(64, seed=2)
    tokenize = load_tokenizer(folder, tokenizer.MAX_LENGTH)
    return judge_task.judge_task(CLIPModel.from_config(config), mugs_and_chairs, spheres, tokenize)


@pytest.fixture(scope="module")
def batch(task):
    return task.batch(np.random.default_rng(0), SPHERES + IMAGES)


def test_a_sphere_has_the_caption_of_every_kind_of_its_color(mugs_and_chairs, batch):
    words = np.array(judge_task.subject_captions())
    assert batch.image.shape == (32, 64, 64, 3) and batch.image.dtype == np.uint8
    np.testing.assert_allclose(batch.subject.sum(axis=1), 1.0, rtol=1e-6)
    # Which images a batch shows is its first draw.
    shown = np.random.default_rng(0).integers(mugs_and_chairs.count, size=IMAGES)
    for row, kind in enumerate(mugs_and_chairs.kind[shown]):
        (caption,) = words[batch.subject[row] > 0]
        assert captions.KINDS[kind] in caption
    for row in range(IMAGES, SPHERES + IMAGES):
        named = words[batch.subject[row] > 0]
        assert len(named) >= 20 and len({name.split()[-1] for name in named}) == len(named)


def test_held_out_pairs_are_neither_right_nor_wrong(task, batch):
    hidden = [pair in captions.held_out_pairs() for pair in captions.all_pairs()]
    never = np.concatenate([np.zeros(len(captions.KINDS), bool), hidden])
    assert not batch.subject[:, never].any()


def test_images_without_color_are_gray(batch):
    gray = batch.subject[:, : len(captions.KINDS)].any(axis=1)
    assert 3 <= gray.sum() < 20


def test_the_loss_of_a_fresh_judge_is_that_of_guessing(task, batch):
    params = task.init(jax.random.key(0))
    loss, metrics = jax.jit(task.loss)(params, batch, jax.random.key(0))
    asked = len(captions.KINDS) + len(captions.all_pairs()) - captions.HELD_OUT_COUNT
    assert abs(loss - np.log(asked)) < 1.0
    assert 0.0 <= metrics["accuracy"] < 0.3
