"""A batch of latents without text, for tests of objectives."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dreamfusion_jax.diffusion.priors.prior import Condition, Pose
from dreamfusion_jax.distillation.objective import Batch


def make_batch(z: jax.Array, t: jax.Array, key: jax.Array, **given: Any) -> Batch:
    """Makes a batch of z [B, h, w, c] at t [B] with keys [B]; without text by default."""
    count = len(z)
    none = Condition(jnp.zeros((count, 1, 1)))
    pose = Pose(jnp.zeros((count, 3, 4)), *(jnp.zeros(count) for _ in range(4)))
    texts = dict.fromkeys(("cond", "uncond", "negative", "view_independent"), none)
    return Batch(z, t, key, jnp.int32(0), pose, **{**texts, **given})


@pytest.fixture(scope="session")
def batch() -> Callable[..., Batch]:
    return make_batch
