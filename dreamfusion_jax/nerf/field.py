"""From position to density and albedo.

A field sees Gaussians (mean and diagonal covariance), returns density `tau` per unit length and
albedo `rho` in [0, 1]. The raw density is biased by a blob around the origin before its activation,
so that an untrained scene already has something in its middle to look at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from dreamfusion_jax.errors import UserError
from dreamfusion_jax.nerf.encoding import integrated_positional_encoding, positional_encoding
from dreamfusion_jax.nerf.vectors import inner

# A step of Adam moves a grid's node by the learning rate, but an MLP's output by far more. With the
# same rate for both, this lets the proposal keep up (interlevel loss after 400 steps: 0.0017, and
# 0.068 without it).
_PROPOSAL_GAIN = 10.0

_CORNERS = tuple(itertools.product((0, 1), repeat=3))  # of a cell, along x, y, z

# The name of what `jax.checkpoint` should keep instead of computing it again: few numbers that
# many lookups have brought together.
KEPT = "kept"


class Field(NamedTuple):
    """A pair of pure functions.

    Attributes:
      init: key -> params.
      query: params, mean [..., 3], covariance_diag [..., 3], step [] -> density [...], albedo
        [..., 3]. The step is there for schedules.
    """

    init: Callable[[jax.Array], Any]
    query: Callable[[Any, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


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
        return 1.0 + (self.factor - 1.0) * _progress(step, self.start, self.steps)


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
        raise UserError(f"--density_activation={self.activation}: use softplus or exp.")

    def _pivot(self) -> float:
        """The biased raw output whose density is the one that sharpening leaves as it is."""
        activated = self.sharpening.density / self.scale
        if self.activation == "exp":
            return math.log(activated)
        return activated + math.log(-math.expm1(-activated))  # log(expm1) without its overflow

    def blob(self, position: jax.Array) -> jax.Array:
        """The bias [...] at positions [..., 3], largest at the origin."""
        squared = inner(position, position)
        match self.blob_shape:
            case "linear":  # Magic3D, Lin et al. 2023; the tiny term makes its tip differentiable.
                distance = jnp.sqrt(squared + 1e-8)
                return self.blob_scale * (1.0 - distance / self.blob_radius)
            case "gaussian":  # DreamFusion, appendix A.2.
                return self.blob_scale * jnp.exp(-squared / (2.0 * self.blob_radius**2))
        raise UserError(f"--blob_shape={self.blob_shape}: use linear or gaussian.")


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


class MipField(nn.Module):
    """Encoded Gaussians [N, C] to a raw density and three albedo logits, [N, 4]."""

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
    """The same by DreamFusion's network: residual blocks, LayerNorm between them, swish (A.2).

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


class Blur(NamedTuple):
    """An isotropic variance added to every Gaussian, falling linearly over the first steps.

    It damps the high frequencies of the encoding until the coarse shape stands, and less at the
    end: without it scenes come out rippled (Poole et al. 2022, appendix A.2).
    """

    start: float = 0.0
    end: float = 0.0
    steps: int = 1

    def __call__(self, step: jax.Array) -> jax.Array:
        """The variance [] at `step`."""
        return self.start + (self.end - self.start) * _progress(step, 0, self.steps)


def _progress(step: jax.Array, start: int, steps: int) -> jax.Array:
    """0 until step `start`, 1 from `steps` later on, linear between: []."""
    return jnp.clip((jnp.asarray(step, jnp.float32) - start) / steps, 0.0, 1.0)


def mip_field(
    width: int,
    depth: int,
    min_degree: int,
    max_degree: int,
    density: Density,
    blur: Blur = Blur(),  # noqa: B008 (immutable)
    residual: bool = False,
) -> Field:
    """mip-NeRF's field: integrated positional encoding, an MLP, no view dependence."""
    network = (ResidualMipField if residual else MipField)(width, depth)

    def init(key: jax.Array) -> Any:
        return network.init(key, jnp.zeros((1, 6 * (max_degree - min_degree))))["params"]

    def query(
        params: Any, mean: jax.Array, covariance_diag: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        covariance_diag = covariance_diag + blur(step)
        # One long list of points: one matrix product a layer.
        features = integrated_positional_encoding(
            mean.reshape(-1, 3), covariance_diag.reshape(-1, 3), min_degree, max_degree
        )
        raw = jnp.reshape(network.apply({"params": params}, features), (*mean.shape[:-1], 4))
        return density(raw[..., 0], mean, step), nn.sigmoid(raw[..., 1:])

    return Field(init, query)


def trilinear(grid: jax.Array, position: jax.Array) -> jax.Array:
    """Interpolates `grid` [R, R, R, C], which spans [-1, 1]^3, at `position` [..., 3] -> [..., C].

    Positions outside take the value of the nearest face.
    """
    resolution, channels = grid.shape[0], grid.shape[-1]
    rows, value = grid.reshape(-1, channels), jnp.float32(0.0)
    for corner, share in cell_corners(0.5 * (position + 1.0), jnp.uint32(resolution - 1)):
        x, y, z = (corner[..., axis] for axis in range(3))
        value += share * rows[(x * resolution + y) * resolution + z]
    return value


def cell_corners(position: jax.Array, cells: jax.Array) -> Iterator[tuple[jax.Array, jax.Array]]:
    """The eight corners [..., 3] (uint32) of the cell that `position` [..., 3] lies in, each with
    its share [..., 1] in the trilinear interpolation, on a grid of `cells` a side over [0, 1]^3.

    Positions outside count as the nearest ones inside. One corner after another: with an axis of
    eight XLA on CPU keeps all of them in memory, and takes many times as long.
    """
    lowest, fraction = _cell(position, cells)
    for corner in _CORNERS:
        sides = (
            fraction[..., axis] if upper else 1.0 - fraction[..., axis]
            for axis, upper in enumerate(corner)
        )
        share = math.prod(sides, start=jnp.float32(1.0))[..., None]
        yield lowest + np.array(corner, np.uint32), share


def corner_table(grid: jax.Array) -> jax.Array:
    """`grid` [R, R, R] as cells [R-1, R-1, R-1, 8], each with the values at its corners.

    Worth its size where many points are looked up in a small grid: each takes one row then, not
    eight values from eight places, and XLA on CPU computes what leads to it once instead of eight
    times, forward and backward.
    """
    cells = grid.shape[0] - 1
    corners = (jax.lax.dynamic_slice(grid, corner, (cells, cells, cells)) for corner in _CORNERS)
    return jnp.stack(list(corners), axis=-1)


def look_up(table: jax.Array, position: jax.Array) -> jax.Array:
    """What `trilinear` says of the grid [R, R, R, 1] that a `corner_table` was made of: [...]."""
    cells = table.shape[0]
    lowest, fraction = _cell(0.5 * (position + 1.0), jnp.uint32(cells))
    x, y, z = (lowest[..., axis] for axis in range(3))
    values = table.reshape(-1, 8)[(x * cells + y) * cells + z]
    upper = np.array(_CORNERS, np.float32)
    # By axes, each corner's share is f where it is the upper one and 1 - f where it is the lower.
    sides = ((1 - u) + (2 * u - 1) * fraction[..., axis, None] for axis, u in enumerate(upper.T))
    return jnp.sum(values * math.prod(sides, start=jnp.float32(1.0)), axis=-1)


def _cell(position: jax.Array, cells: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Lowest corner [..., 3] (uint32) of the cell that a position is in, and where in it it is."""
    scaled = jnp.clip(position, 0.0, 1.0) * cells
    lowest = jnp.minimum(jnp.floor(scaled), cells.astype(jnp.float32) - 1.0)
    return lowest.astype(jnp.uint32), scaled - lowest


def grid_field(resolution: int, bound_radius: float, density: Density) -> Field:
    """Raw density and albedo logits on a trilinear grid over the bounding cube; no prefilter."""

    def init(key: jax.Array) -> Any:
        return {"grid": 0.1 * jax.random.normal(key, (resolution,) * 3 + (4,))}

    def query(
        params: Any, mean: jax.Array, covariance_diag: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        del covariance_diag
        raw = trilinear(params["grid"], mean / bound_radius)
        return density(raw[..., 0], mean, step), nn.sigmoid(raw[..., 1:])

    return Field(init, query)


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
        raw = checkpoint_name(look_up(table, position / bound_radius), KEPT)
        return density(_PROPOSAL_GAIN * raw, position)

    return ProposalGrid(init, table, query)


class Background(nn.Module):
    """A colour for each direction: a small MLP on the encoded unit vector [..., 3] -> [..., 3]."""

    width: int = 32
    max_degree: int = 4

    @nn.compact
    def __call__(self, direction: jax.Array) -> jax.Array:
        features = positional_encoding(direction, 0, self.max_degree)
        hidden = nn.relu(nn.Dense(self.width, name="hidden")(features))
        return nn.sigmoid(nn.Dense(3, name="colour")(hidden))
