"""The rays of one view, bounded by the scene's sphere, and the intervals of their samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamfusion_jax.nerf import low_res
from dreamfusion_jax.nerf.cameras import Camera, Rays, pixel_rays
from dreamfusion_jax.nerf.options import SceneOptions
from dreamfusion_jax.nerf.ray_sampling import resample_edges, sphere_bounds, uniform_edges
from dreamfusion_jax.nerf.volume_rendering import compositing_weights


class BoundedRays(NamedTuple):
    """Rays and the distances [..., 1] at which they enter and leave the bounding sphere."""

    rays: Rays
    near: jax.Array
    far: jax.Array


def bounded_rays(
    options: SceneOptions, camera: Camera, full: Rays, half_size: jax.Array | None
) -> tuple[BoundedRays, jax.Array]:
    """Returns the rays [H, W] to trace, and which of them are inactive: those missing the scene.

    Args:
      full: [H, W] the camera's rays at full size.
      half_size: [] bool, trace the rays of half the side in the first places; None: never.
    """
    height, width, _ = full.radius.shape
    size = (height, width)
    rays, unused = full, jnp.asarray(False)
    if half_size is not None:
        small = pixel_rays(camera, *low_res.half(size))
        rays = low_res.tree_where(half_size, low_res.pack(small, size), full)
        unused = half_size & low_res.inactive_pixels(size)
    near, far = sphere_bounds(rays, options.bound_radius)
    return BoundedRays(rays, near, far), jnp.squeeze(far <= near, axis=-1) | unused


class StratifiedNoise(NamedTuple):
    """Random positions of the samples in their strata; None puts them in the middle.

    Attributes:
      uniform: [..., P-1] in [-1/2, 1/2), the shifts of the evenly spaced inner edges.
      rounds: for each resampling [..., S] in [0, 1), the position of a sample in its stratum.
    """

    uniform: jax.Array | None
    rounds: tuple[jax.Array | None, ...]


def draw_stratified_noise(
    options: SceneOptions, size: tuple[int, int], key: jax.Array | None
) -> StratifiedNoise:
    counts = _samples(options)
    if key is None:
        return StratifiedNoise(None, (None,) * (len(counts) - 1))
    uniform_key, resample_key = jax.random.split(key)
    shifts = jax.random.uniform(uniform_key, (*size, counts[0] - 1), minval=-0.5, maxval=0.5)
    last = len(counts) - 1
    rounds = (
        jax.random.uniform(jax.random.fold_in(resample_key, last - i), (*size, counts[i]))
        for i in range(1, len(counts))
    )
    return StratifiedNoise(shifts, tuple(rounds))


def _samples(options: SceneOptions) -> list[int]:
    """Returns the samples per ray of each round: the proposals', then the field's."""
    proposals = [options.proposal_samples] * options.proposal_rounds
    return [*(proposals if options.proposal_samples else []), options.fine_samples]


class Intervals(NamedTuple):
    """Edges [..., S+1] of the field's samples; per round the proposal's edges and weights."""

    edges: jax.Array
    proposals: tuple[tuple[jax.Array, jax.Array], ...]


def choose_intervals(
    options: SceneOptions,
    proposal_density: Callable[[jax.Array], jax.Array] | None,
    bounded: BoundedRays,
    noise: StratifiedNoise,
) -> Intervals:
    """Returns fine intervals [..., S+1], dense where `proposal_density` expects the scene."""
    rays, near, far = bounded
    first, *later = _samples(options)
    edges = uniform_edges(near, far, first, noise.uniform)
    proposals = []
    for samples, offset in zip(later, noise.rounds, strict=True):
        assert proposal_density is not None, "resampling needs a proposal"
        middle = 0.5 * (edges[..., 1:] + edges[..., :-1])
        points = rays.origin[..., None, :] + middle[..., None] * rays.direction[..., None, :]
        weights = compositing_weights(proposal_density(points), edges)
        proposals.append((edges, weights))
        edges = resample_edges(edges, weights, samples, offset)
    return Intervals(edges, tuple(proposals))
