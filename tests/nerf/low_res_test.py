import chex
import jax
import pytest

from dreamfusion_jax.nerf import low_res
from dreamfusion_jax.runtime.device import compiling_for


@pytest.mark.parametrize("size", [(8, 6), (2, 2), (7, 8)])
def test_a_gpu_enlarges_as_image_resize_does(size):
    packed = {"color": jax.random.normal(jax.random.key(0), (*size, 3))}
    with compiling_for("gpu"):
        doubled = low_res.enlarge(packed, size)
    chex.assert_trees_all_close(doubled, low_res.enlarge(packed, size), atol=1e-6)
