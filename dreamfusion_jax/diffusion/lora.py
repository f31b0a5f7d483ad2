"""Low-rank updates (LoRA, Hu et al. 2021, arXiv:2106.09685) of a U-Net's attention.

    kernel + a b,    a [in, rank], b [rank, out]

for the query, key, value and output of every attention. The updates are a tree beside the params,
whose kernels they find by their paths: the layers add x a b to x kernel where the tree has factors
for them (`Linear` in models/layers.py), so the frozen kernels are neither copied nor rounded again.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out_0")


def init_lora(key: jax.Array, unet_params: Any, rank: int) -> Any:
    """Makes updates that change nothing yet: a ~ N(0, 1 / rank^2) as diffusers draws it, b = 0.

    Args:
      unet_params: a tree of arrays, or of their shapes.
    """
    kernels = {
        path[:-1]: leaf.shape
        for path, leaf in traverse_util.flatten_dict(unet_params).items()
        if path[-1] == "kernel" and path[-2] in PROJECTIONS
    }
    keys = jax.random.split(key, max(len(kernels), 1))
    factors: dict[tuple[str, ...], jax.Array] = {}
    for own, (path, (rows, columns)) in zip(keys, sorted(kernels.items()), strict=False):
        factors[*path, "a"] = jax.random.normal(own, (rows, rank)) / rank
        factors[*path, "b"] = jnp.zeros((rank, columns))
    return traverse_util.unflatten_dict(factors)
