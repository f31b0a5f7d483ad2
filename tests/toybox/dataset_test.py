"""The images: reproducible, labelled rightly, and free of what is held out."""

import chex
import numpy as np

from dreamfusion_jax.toybox import captions, dataset

KINDS = ("mug", "chair")
COLORS = tuple(captions.COLORS)


def pairs(images: dataset.LabeledImages) -> set[tuple[str, str]]:
    subjects = [images.subject(i) for i in range(images.count)]
    return {(subject.color, subject.kind) for subject in subjects if subject.color}


def test_a_seed_makes_the_same_images():
    first, again = (dataset.make(16, seed=3, kinds=KINDS) for _ in range(2))
    chex.assert_trees_all_equal(first.columns(), again.columns())
    assert first.image.shape == (16, 64, 64, 3)


def test_training_sees_no_held_out_pairs(mugs_and_chairs):
    assert not pairs(mugs_and_chairs) & captions.held_out_pairs()
    assert 0.05 < np.mean(mugs_and_chairs.color < 0) < 0.3
    hidden = dataset.make(16, seed=3, pairs="held_out", kinds=KINDS)
    assert pairs(hidden) <= captions.held_out_pairs()


def test_backgrounds_are_plain_or_gradients_gray_is_gray():
    made = dataset.make(64, seed=5, kinds=("mug",))
    image = made.image.astype(float) / 255.0
    corners = image[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    left, right = corners[:, [0, 2]], corners[:, [1, 3]]
    assert np.abs(left - right).max() < 0.02
    plain = np.ptp(corners, axis=1).max(axis=-1) < 0.02
    assert 0.4 < plain.mean() < 0.95
    for i in range(made.count):
        if made.color[i] < 0:
            middle = image[i, 28:36, 28:36]  # an outline may cross it, hence the median
            assert np.median(np.ptp(middle, axis=-1)) < 0.01


def test_spheres_are_round_and_of_their_color():
    spheres = dataset.plain_spheres(64, seed=1)
    assert np.all(spheres.kind == -1)
    image = spheres.image.astype(float)
    lit = image[:, 32, 32]
    bright = lit.max(axis=-1) > 60.0  # where rounding to 8 bits matters little
    painted = np.array(list(captions.COLORS.values()))[spheres.color]
    shade = (lit / np.maximum(255.0 * painted, 1.0))[bright]
    assert bright.mean() > 0.4
    assert np.median(np.std(shade, axis=1)) < 0.02, "light scales all channels alike"
    outline = np.abs(image - image[:, :, :1]).max(axis=-1) > 12.0
    mismatch = (outline != outline[:, :, ::-1]).mean(axis=(1, 2))
    assert np.median(mismatch) < 0.01, "left is right"


def test_materials_are_named_and_painted(mugs_and_chairs):
    made = dataset.make(64, seed=3, kinds=("mug",), materials=True)
    subjects = [made.subject(i) for i in range(made.count)]
    assert {subject.material for subject in subjects} == {None, *captions.MATERIALS}
    for subject, words in zip(subjects, made.draw_captions(np.random.default_rng(0)), strict=True):
        assert (subject.material or "mug") in words
        assert subject.material != "wooden" or subject.color is None
    assert np.all(mugs_and_chairs.material == -1)


def test_shards_go_on_where_they_were_cut_short(tmp_path, monkeypatch):
    sizes = {"shard_size": 4, "seed": 1, "size": 64, "kinds": ("mug", "chair")}
    dataset.render_shards(tmp_path / "straight", 3, **sizes)
    dataset.render_shards(tmp_path / "resumed", 1, **sizes)
    kept = dataset.shard_path(tmp_path / "resumed", 0).stat().st_mtime_ns
    (tmp_path / "resumed" / "00001.partial.npz").write_bytes(b"cut short")
    dataset.render_shards(tmp_path / "resumed", 3, **sizes)
    assert dataset.shard_path(tmp_path / "resumed", 0).stat().st_mtime_ns == kept
    straight, resumed = (
        dataset.load_shards(tmp_path / name, 3) for name in ("straight", "resumed")
    )
    chex.assert_trees_all_equal(straight.columns(), resumed.columns())
    assert straight.image.shape == (12, 64, 64, 3)
    assert not np.array_equal(straight.image[:4], straight.image[4:8])
    # In several processes, which are one here, a kind is rendered for all shards at once.
    monkeypatch.setattr(dataset, "_in_processes", lambda make, jobs, _: list(map(make, jobs)))
    dataset.render_shards(tmp_path / "together", 3, **sizes, workers=2)
    together = dataset.load_shards(tmp_path / "together", 3)
    chex.assert_trees_all_equal(straight.columns(), together.columns())
    shrunk = dataset.load_shards(tmp_path / "straight", 3, size=8)
    assert shrunk.image.shape == (12, 8, 8, 3)
    chex.assert_trees_all_equal(shrunk.columns()[1:], straight.without_pixels().columns()[1:])
