"""A learned background: a color for each direction."""

from __future__ import annotations

import flax.linen as nn
import jax

from dreamfusion_jax.nerf.encoding import positional_encoding


class Background(nn.Module):
    """A small MLP from the encoded unit direction [..., 3] to a color [..., 3]."""

    width: int = 32
    max_degree: int = 4

    @nn.compact
    def __call__(self, direction: jax.Array) -> jax.Array:
        features = positional_encoding(direction, 0, self.max_degree)
        hidden = nn.relu(nn.Dense(self.width, name="hidden")(features))
        return nn.sigmoid(nn.Dense(3, name="color")(hidden))
