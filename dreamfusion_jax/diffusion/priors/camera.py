"""The camera as MVDream takes it (Shi et al., 2024)."""

from __future__ import annotations

import jax.numpy as jnp

from dreamfusion_jax.diffusion.priors.prior import Condition, Pose

CAMERA_DIM = 16


def with_camera(condition: Condition, pose: Pose) -> Condition:
    """Returns the condition with the camera-to-world matrix [B, 16], row by row, as its vector.

    Its position is scaled to a distance of 1 from the origin: the network knows directions alone.
    """
    rotation, position = pose.camera_to_world[..., :3], pose.camera_to_world[..., 3:]
    distance = jnp.linalg.norm(position, axis=-2, keepdims=True)
    rows = jnp.concatenate([rotation, position / jnp.maximum(distance, 1e-8)], axis=-1)
    last = jnp.broadcast_to(jnp.array([0.0, 0.0, 0.0, 1.0]), (*rows.shape[:-2], 1, 4))
    matrix = jnp.concatenate([rows, last], axis=-2)
    return condition._replace(vector=matrix.reshape(*matrix.shape[:-2], CAMERA_DIM))
