"""Density from a network's raw output: blob, bias, sharpening schedule and activation.

A blob around the origin is added to the raw output before the activation, so that an untrained
scene already has an object in its middle.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamfusion_jax.nerf.fields.field import FieldOutput
from dreamfusion_jax.nerf.linalg import dot


class Sharpening(NamedTuple):
    """A schedule that turns haze into surfaces: densities above `density` rise, those below fall.

    The factor rises linearly from 1 to `factor` within `steps` steps after step `start`. It scales
    raw outputs about the one of `density`, which makes edges steeper by as much: an MLP's own
    slopes are bounded by its frequencies and its learning rate. Signed-distance fields are
    sharpened likewise by the falling scale of their densities (NeuS, Wang et al. 2021;
    VolSDF, Yariv et al. 2021).
    """

    factor: float = 1.0
    density: float = 5.0
    start: int = 0
    steps: int = 1

    def __call__(self, step: jax.Array) -> jax.Array:
        """Returns the factor [] at `step`."""
        return 1.0 + (self.factor - 1.0) * progress(step, self.start, self.steps)


class Density(NamedTuple):
    """Density of a raw output: scale activation(raw + bias + blob(position)), sharpened.

    A negative `bias` starts the scene as empty space around the blob, where exp(0) = 1 per unit
    length would be fog (multinerf's `density_bias` is -1).
    """

    activation: str = "softplus"
    scale: float = 20.0
    blob_scale: float = 4.0
    blob_radius: float = 0.5
    blob_shape: str = "linear"
    bias: float = 0.0
    sharpening: Sharpening = Sharpening()

    def __call__(
        self, raw: jax.Array, position: jax.Array, step: jax.Array | None = None
    ) -> jax.Array:
        """Computes densities [...] of `raw` at `position` [..., 3], sharpened if given a step."""
        raw = raw + self.blob(position)
        if self.bias:
            raw = raw + self.bias
        if step is not None and self.sharpening.factor != 1.0:
            pivot = self._pivot()
            raw = pivot + self.sharpening(step) * (raw - pivot)
        match self.activation:
            case "softplus":
                return self.scale * jax.nn.softplus(raw)
            case "exp":
                return self.scale * safe_exp(raw)
        raise ValueError(f"activation {self.activation!r} is not softplus or exp")

    def output(self, raw: jax.Array, position: jax.Array, step: jax.Array) -> FieldOutput:
        """Returns a field's values from a network's four outputs [..., 4]."""
        return FieldOutput(self(raw[..., 0], position, step), jax.nn.sigmoid(raw[..., 1:]))

    def _pivot(self) -> float:
        """Returns the biased raw output whose density sharpening leaves unchanged."""
        activated = self.sharpening.density / self.scale
        if self.activation == "exp":
            return math.log(activated)
        return activated + math.log(-math.expm1(-activated))  # log(expm1) without its overflow

    def blob(self, position: jax.Array) -> jax.Array:
        """Returns the blob [...] at `position` [..., 3], largest at the origin."""
        squared = dot(position, position)
        match self.blob_shape:
            case "linear":  # Magic3D, Lin et al. 2023; the tiny term makes its tip differentiable.
                distance = jnp.sqrt(squared + 1e-8)
                return self.blob_scale * (1.0 - distance / self.blob_radius)
            case "gaussian":  # DreamFusion, appendix A.2.
                return self.blob_scale * jnp.exp(-squared / (2.0 * self.blob_radius**2))
        raise ValueError(f"blob shape {self.blob_shape!r} is not linear or gaussian")


@jax.custom_jvp
def safe_exp(x: jax.Array) -> jax.Array:
    """Computes exp(x), kept finite; its slope stops growing at x = 15 but never vanishes."""
    return jnp.exp(jnp.minimum(x, 80.0))


@safe_exp.defjvp
def _safe_exp_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    return safe_exp(x), jnp.exp(jnp.minimum(x, 15.0)) * tangent


def progress(step: jax.Array, start: int, steps: int) -> jax.Array:
    """Returns a linear ramp []: 0 until step `start`, 1 from `start + steps` on."""
    return jnp.clip((jnp.asarray(step, jnp.float32) - start) / steps, 0.0, 1.0)
