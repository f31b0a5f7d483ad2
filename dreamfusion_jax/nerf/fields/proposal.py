"""A cheap density grid that proposes where to sample the field."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dreamfusion_jax.nerf.fields.field import Head, Params
from dreamfusion_jax.nerf.fields.grid import corner_table, look_up

# A step of Adam moves a grid node by the learning rate, but an MLP's output by far more. With the
# same rate for both, this gain lets the proposal keep up (interlevel loss after 400 steps: 0.0017,
# and 0.068 without it).
_PROPOSAL_GAIN = 10.0

# `jax.checkpoint` saves values of this name instead of recomputing them: few numbers that take many
# lookups.
CHECKPOINT_NAME = "proposal_lookup"


class ProposalGrid(NamedTuple):
    """A cheap density that proposes where to sample the field.

    Attributes:
      init: -> params.
      table: params -> the table that `density` reads, computed once per image.
      density: table, positions [..., 3] -> [...] in 1 / length.
    """

    init: Callable[[], Params]
    table: Callable[[Params], jax.Array]
    density: Callable[[jax.Array, jax.Array], jax.Array]


def proposal_grid(resolution: int, bound_radius: float, head: Head) -> ProposalGrid:
    """Makes a proposal that starts as the blob or sphere of `head`, as an untrained field does."""

    def init() -> Params:
        return {"grid": jnp.zeros((resolution,) * 3 + (1,))}

    def table(params: Params) -> jax.Array:
        return corner_table(params["grid"][..., 0])

    def query(table: jax.Array, position: jax.Array) -> jax.Array:
        raw = checkpoint_name(look_up(table, position / bound_radius), CHECKPOINT_NAME)
        return head(_PROPOSAL_GAIN * raw, position)

    return ProposalGrid(init, table, query)
