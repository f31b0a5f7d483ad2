"""Images that several tests look at, drawn once."""

import pytest

from dreamfusion_jax.toybox import dataset


@pytest.fixture(scope="session")
def mugs_and_chairs() -> dataset.LabeledImages:
    return dataset.make(128, seed=3, kinds=("mug", "chair"))
