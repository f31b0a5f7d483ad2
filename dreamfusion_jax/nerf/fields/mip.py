"""mip-NeRF's field: an MLP on integrated positions (Barron et al. 2021; DreamFusion, A.2)."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamfusion_jax.nerf.encoding import integrated_positional_encoding
from dreamfusion_jax.nerf.fields.density import progress
from dreamfusion_jax.nerf.fields.field import Field, FieldOutput, Head, Params


class MipField(nn.Module):
    """An MLP from encoded Gaussians [N, C] to a raw density and three albedo logits, [N, 4]."""

    width: int
    depth: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        x = features
        for layer in range(self.depth):
            x = nn.relu(
                nn.Dense(
                    self.width, kernel_init=nn.initializers.he_uniform(), name=f"trunk_{layer}"
                )(x)
            )
        return nn.Dense(4, name="density_and_albedo")(x)


class ResidualMipField(nn.Module):
    """DreamFusion's network: residual blocks, LayerNorm between them, swish (A.2).

    The paper leaves a block's inside open: here two layers, each followed by a swish.
    """

    width: int
    depth: int  # blocks

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        x = nn.Dense(self.width, name="embedding")(features)
        for block in range(self.depth):
            if block:
                x = nn.LayerNorm(use_fast_variance=False, name=f"norm_{block}")(x)
            h = nn.swish(nn.Dense(self.width, name=f"first_{block}")(x))
            x = x + nn.swish(nn.Dense(self.width, name=f"second_{block}")(h))
        return nn.Dense(4, name="density_and_albedo")(x)


class CovarianceAnnealing(NamedTuple):
    """An isotropic variance added to every Gaussian, falling linearly over the first steps.

    It damps the high frequencies of the encoding until the coarse shape is formed, and less at the
    end: without it surfaces become rippled (Poole et al. 2022, appendix A.2).
    """

    start: float = 0.0
    end: float = 0.0
    steps: int = 1

    def __call__(self, step: jax.Array) -> jax.Array:
        """Returns the variance [] at `step`."""
        return self.start + (self.end - self.start) * progress(step, 0, self.steps)


def mip_field(
    width: int,
    depth: int,
    min_degree: int,
    max_degree: int,
    head: Head,
    blur: CovarianceAnnealing = CovarianceAnnealing(),  # noqa: B008 (immutable)
    residual: bool = False,
) -> Field:
    """Makes mip-NeRF's field: integrated positional encoding, an MLP, no view dependence."""
    network = (ResidualMipField if residual else MipField)(width, depth)

    def init(key: jax.Array) -> Params:
        return network.init(key, jnp.zeros((1, 6 * (max_degree - min_degree))))["params"]

    def query(
        params: Params, mean: jax.Array, covariance_diag: jax.Array, step: jax.Array
    ) -> FieldOutput:
        covariance_diag = covariance_diag + blur(step)
        # Flattened to one list of points: one matrix product per layer.
        features = integrated_positional_encoding(
            mean.reshape(-1, 3), covariance_diag.reshape(-1, 3), min_degree, max_degree
        )
        raw = jnp.reshape(network.apply({"params": params}, features), (*mean.shape[:-1], 4))
        return head.output(raw, mean, step)

    return Field(init, query)
