import numpy as np
import pytest
import trimesh

from dreamfusion_jax.mesh import texture

RADIUS = 0.5
SHARP = 1e4  # density of an opaque solid


def colored(points: np.ndarray) -> np.ndarray:
    """Each place has its own color, of which no channel is darker than 0.4."""
    return 0.7 + 0.3 * np.clip(points / RADIUS, -1.0, 1.0)


def ball(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A field: density and albedo of a ball with a hard edge."""
    return SHARP * (np.linalg.norm(points, axis=-1) < RADIUS), colored(points)


@pytest.fixture(scope="session")
def surface() -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions=3, radius=RADIUS)


@pytest.fixture(scope="session")
def textured(surface) -> texture.TexturedMesh:
    return texture.add_texture(surface, texture.layers(surface, ball, 1.0), ball, 256)
