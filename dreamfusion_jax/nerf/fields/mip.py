"""mip-NeRF's field: an MLP on integrated positions (Barron et al. 2021; DreamFusion, A.2)."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamfusion_jax.nerf.encoding import integrated_positional_encoding
from dreamfusion_jax.nerf.fields.density import progress
from dreamfusion_jax.nerf.fields.field import Field, FieldOutput, Head, Params


class RoundedDense(nn.Module):
    """linen's Dense with factors, and a product, in `dtype`; the bias is added in float32.

    So bias gradients, sums over all points, are summed in float32, while what lies in memory
    between the products has half the size.
    """

    features: int
    dtype: Any
    kernel_init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        product = jnp.matmul(x.astype(self.dtype), kernel.astype(self.dtype))
        return product.astype(jnp.float32) + bias


def dense(features: int, name: str, dtype: Any, **options: Any) -> nn.Module:
    """Makes a layer of a field's MLP: linen's Dense in float32, or a rounded one."""
    if dtype == jnp.float32:
        return nn.Dense(features, name=name, **options)
    return RoundedDense(features, dtype, name=name, **options)


class MipField(nn.Module):
    """An MLP from encoded Gaussians [N, C] to a raw density and three albedo logits, [N, 4].

    `dtype` is that of its products; its output is in float32.
    """

    width: int
    depth: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        x = features
        he_uniform = nn.initializers.he_uniform()
        for layer in range(self.depth):
            name = f"trunk_{layer}"
            x = nn.relu(dense(self.width, name, self.dtype, kernel_init=he_uniform)(x))
        return dense(4, "density_and_albedo", self.dtype)(x)


class ResidualMipField(nn.Module):
    """DreamFusion's network: residual blocks, LayerNorm between them, swish (A.2).

    The paper leaves a block's inside open: here two layers, each followed by a swish.
    `dtype` is that of its products and of the residual sums; its output is in float32.
    """

    width: int
    depth: int  # blocks
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        layer = lambda name: dense(self.width, name, self.dtype)  # noqa: E731
        x = layer("embedding")(features)
        for block in range(self.depth):
            if block:
                x = nn.LayerNorm(use_fast_variance=False, name=f"norm_{block}")(x)
            x = x.astype(self.dtype)
            h = nn.swish(layer(f"first_{block}")(x))
            x = x + nn.swish(layer(f"second_{block}")(h))
        return dense(4, "density_and_albedo", self.dtype)(x)


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
    dtype: Any = jnp.float32,
) -> Field:
    """Makes mip-NeRF's field: integrated positional encoding, an MLP, no view dependence."""
    network = (ResidualMipField if residual else MipField)(width, depth, dtype)

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
