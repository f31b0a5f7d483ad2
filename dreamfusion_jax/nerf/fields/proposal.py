"""A density alone, on a grid, to say where the field is worth asking."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dreamfusion_jax.nerf.fields.density import Density
from dreamfusion_jax.nerf.fields.grid import corner_table, look_up

# A step of Adam moves a grid's node by the learning rate, but an MLP's output by far more. With the
# same rate for both, this lets the proposal keep up (interlevel loss after 400 steps: 0.0017, and
# 0.068 without it).
_PROPOSAL_GAIN = 10.0

# The name of what `jax.checkpoint` should keep instead of computing it again: few numbers that
# many lookups have brought together.
CHECKPOINT_NAME = "kept"


class ProposalGrid(NamedTuple):
    """A density alone, to say where the field is worth asking.

    Attributes:
      init: -> params.
      table: params -> what `density` reads, made once a picture.
      density: table, positions [..., 3] -> [...] in 1 / length.
    """

    init: Callable[[], Any]
    table: Callable[[Any], jax.Array]
    density: Callable[[jax.Array, jax.Array], jax.Array]


def proposal_grid(resolution: int, bound_radius: float, density: Density) -> ProposalGrid:
    """Starts as the density's own blob, which is where an untrained field is dense, too."""

    def init() -> Any:
        return {"grid": jnp.zeros((resolution,) * 3 + (1,))}

    def table(params: Any) -> jax.Array:
        return corner_table(params["grid"][..., 0])

    def query(table: jax.Array, position: jax.Array) -> jax.Array:
        raw = checkpoint_name(look_up(table, position / bound_radius), CHECKPOINT_NAME)
        return density(_PROPOSAL_GAIN * raw, position)

    return ProposalGrid(init, table, query)
