"""From a network's raw output to a density, and its schedules.

The raw output is biased by a blob around the origin before its activation, so that an untrained
scene already has something in its middle to look at.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamfusion_jax.nerf.linalg import dot


class Sharpening(NamedTuple):
    """How surfaces come out of mist: what is denser than `density` gets denser, the rest clearer.

    The factor rises linearly from 1 to `factor` within `steps` steps after step `start`. It spreads
    raw densities about that of `density`, which makes edges steeper by as much: an MLP's own slopes
    are bounded by its frequencies and its learning rate. Signed-distance fields are sharpened so by
    the falling scale of their densities (NeuS, Wang et al. 2021; VolSDF, Yariv et al. 2021).
    """

    factor: float = 1.0
    density: float = 5.0
    start: int = 0
    steps: int = 1

    def __call__(self, step: jax.Array) -> jax.Array:
        """The factor [] at `step`."""
        return 1.0 + (self.factor - 1.0) * progress(step, self.start, self.steps)


class Density(NamedTuple):
    """How a raw output becomes a density: scale activation(raw + bias + blob(position)), sharpened.

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
        """Density [...] of raw outputs [...] at positions [..., 3]; with a step, sharpened."""
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

    def _pivot(self) -> float:
        """The biased raw output whose density is the one that sharpening leaves as it is."""
        activated = self.sharpening.density / self.scale
        if self.activation == "exp":
            return math.log(activated)
        return activated + math.log(-math.expm1(-activated))  # log(expm1) without its overflow

    def blob(self, position: jax.Array) -> jax.Array:
        """The bias [...] at positions [..., 3], largest at the origin."""
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
    """exp(x) that stays finite, and whose slope stops growing at x = 15 (but never vanishes)."""
    return jnp.exp(jnp.minimum(x, 80.0))


@safe_exp.defjvp
def _safe_exp_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    return safe_exp(x), jnp.exp(jnp.minimum(x, 15.0)) * tangent


def progress(step: jax.Array, start: int, steps: int) -> jax.Array:
    """Returns 0 until step `start`, 1 from `steps` later on, linear between: []."""
    return jnp.clip((jnp.asarray(step, jnp.float32) - start) / steps, 0.0, 1.0)
