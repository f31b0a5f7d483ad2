"""The pictures: reproducible, labeled rightly, and free of what is held out."""

import chex
import numpy as np

from dreamfusion_jax.toybox import captions, dataset

KINDS = ("mug", "chair")
COLORS = tuple(captions.COLORS)


def pairs(pictures: dataset.Pictures) -> set[tuple[str, str]]:
    subjects = [pictures.subject(i) for i in range(pictures.count)]
    return {(subject.color, subject.kind) for subject in subjects if subject.color}


def test_the_same_seed_makes_the_same_pictures_and_no_held_out_pair():
    first = dataset.make(128, seed=3, kinds=KINDS)
    again = dataset.make(128, seed=3, kinds=KINDS)
    chex.assert_trees_all_equal(first.columns(), again.columns())
    assert first.image.shape == (128, 64, 64, 3)
    assert not pairs(first) & captions.held_out_pairs()
    assert 0.05 < np.mean(first.color < 0) < 0.3
    hidden = dataset.make(16, seed=3, pairs="held_out", kinds=KINDS)
    assert pairs(hidden) <= captions.held_out_pairs()


def test_the_background_is_plain_and_gray_renders_are_gray():
    pictures = dataset.make(64, seed=5, kinds=("mug",))
    image = pictures.image.astype(float) / 255.0
    corners = image[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.ptp(corners, axis=1).max() < 0.02
    for i in range(pictures.count):
        if pictures.color[i] < 0:
            middle = image[i, 28:36, 28:36]  # an outline may cross it, hence the median
            assert np.median(np.ptp(middle, axis=-1)) < 0.01


def test_spheres_are_round_and_of_their_color():
    spheres = dataset.plain_spheres(64, seed=1)
    assert np.all(spheres.kind == -1)
    lit = spheres.image[:, 32, 32].astype(float)
    painted = np.array(list(captions.COLORS.values()))[spheres.color]
    shade = lit / np.maximum(255.0 * painted, 1.0)
    assert np.median(np.std(shade, axis=1)) < 0.02, "light scales all channels alike"
    centered = spheres.image.astype(float)
    mirrored = np.abs(centered - centered[:, :, ::-1]).max(axis=-1) > 60.0
    assert mirrored.mean() < 0.02, "but for the shade, left is right"
