"""The field interface: pure functions from Gaussians to density and albedo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Params = Any  # a pytree of arrays


class FieldOutput(NamedTuple):
    """A field's values at points.

    Attributes:
      density: [...] per unit length.
      albedo: [..., 3] in [0, 1].
      sdf: [...] signed distance, negative inside; None for fields without one.
    """

    density: jax.Array
    albedo: jax.Array
    sdf: jax.Array | None = None


class Field(NamedTuple):
    """A field as a pair of pure functions.

    Attributes:
      init: key -> params.
      query: params, mean [..., 3], covariance_diag [..., 3], step [] -> FieldOutput. The step
        drives schedules.
    """

    init: Callable[[jax.Array], Params]
    query: Callable[[Params, jax.Array, jax.Array, jax.Array], FieldOutput]
