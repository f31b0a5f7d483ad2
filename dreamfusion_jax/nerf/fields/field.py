"""The field interface: pure functions from Gaussians to density and albedo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

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


class Head(Protocol):
    """Turns a network's raw outputs into a field's values: `Density` or `SignedDistance`."""

    def __call__(
        self, raw: jax.Array, position: jax.Array, step: jax.Array | None = None
    ) -> jax.Array:
        """Returns the density [...] of raw outputs [...] at positions [..., 3].

        Without a step, as proposals call it, no schedule applies.
        """

    def output(self, raw: jax.Array, position: jax.Array, step: jax.Array) -> FieldOutput:
        """Returns a field's values from a network's four outputs [..., 4]."""


class Field(NamedTuple):
    """A field as a pair of pure functions.

    Attributes:
      init: key -> params.
      query: params, mean [..., 3], covariance_diag [..., 3], step [] -> FieldOutput. The step
        drives schedules.
    """

    init: Callable[[jax.Array], Params]
    query: Callable[[Params, jax.Array, jax.Array, jax.Array], FieldOutput]


def with_own_texture(field: Field) -> Field:
    """Makes a field of two copies of `field`: "geometry" says all but the albedo, "texture" that.

    They start alike, and each can learn without the other.
    """

    def init(key: jax.Array) -> Params:
        return {"geometry": field.init(key), "texture": field.init(key)}

    def query(
        params: Params, mean: jax.Array, covariance_diag: jax.Array, step: jax.Array
    ) -> FieldOutput:
        out = field.query(params["geometry"], mean, covariance_diag, step)
        texture = field.query(params["texture"], mean, covariance_diag, step)
        return out._replace(albedo=texture.albedo)

    return Field(init, query)
