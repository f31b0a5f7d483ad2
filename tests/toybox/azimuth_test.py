"""The azimuth classifier: mirror images, what it is taught, and that it has learned it."""

import jax
import numpy as np
import pytest

from dreamfusion_jax.nerf import cameras
from dreamfusion_jax.toybox import azimuth, captions, objects, recipes, shapes


@pytest.mark.parametrize("kind", ["chair", "mug"])
def test_a_mirror_image_is_the_view_from_the_mirrored_azimuth(kind):
    parts = objects.build(np.random.default_rng(0), captions.Subject(kind, "red", None))
    (side,) = azimuth.mirrored_azimuth(np.array([captions.KINDS.index(kind)]), np.array([7]))

    def render(azimuth_deg):
        camera = cameras.orbit_camera(azimuth_deg, 20.0, 3.0, 40.0)
        light = shapes.Light(np.ones(3), np.ones(()), np.zeros(()))
        scene = (shapes.stack(parts), camera, light, np.zeros((2, 3)))
        batch = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32)[None], scene)
        return np.asarray(shapes.render_batch(tuple(p.shape for p in parts), *batch, 32))[0]

    seen, expected = render(315.0)[:, ::-1], render(45.0 * side)
    another = np.mean(np.abs(seen - render(315.0)))
    assert another > 5e-3
    assert np.mean(np.abs(seen - expected)) < 0.1 * another


def test_the_classifier_is_taught_kinds_with_a_front(mugs_and_chairs):
    classifier = azimuth.AzimuthClassifier.from_config(recipes.AZIMUTH)
    task = azimuth.azimuth_task(classifier, mugs_and_chairs)
    batch = task.batch(np.random.default_rng(0), 32)
    assert set(batch.side) <= set(range(8))
    assert {captions.KINDS[kind] for kind in batch.kind} == {"mug", "chair"}
    loss, metrics = jax.jit(task.loss)(task.init(jax.random.key(0)), batch, jax.random.key(0))
    assert abs(loss - np.log(8)) < 1.5
    assert 0.0 <= metrics["accuracy"] <= 0.6


def test_the_shipped_classifier_names_azimuths(mugs_and_chairs):
    rgb = np.float32(mugs_and_chairs.image / 255.0)
    named = azimuth.load_azimuth_classifier()(rgb, mugs_and_chairs.kind)
    assert np.mean(named == azimuth.azimuth_of(mugs_and_chairs)) > 0.6
