"""Draws samples of a prior, with a progress bar, and with advice when memory runs out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.diffusion.priors.options import PriorOptions
from dreamfusion_jax.diffusion.priors.prior import Condition, Pose, Prior, PriorParams
from dreamfusion_jax.diffusion.sampling import Sample, ddim_indices, make_sampler, sample_keys
from dreamfusion_jax.nerf.cameras import look_at, orbit_position
from dreamfusion_jax.runs import memory_advice
from dreamfusion_jax.runs.open_prior import open_prior
from dreamfusion_jax.runtime import oom
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.finite import require_finite
from dreamfusion_jax.runtime.progress import Progress

# Of a prior that knows cameras: what MVDream's authors sample at.
_ELEVATION_DEG, _FOV_DEG = 15.0, 40.0
_REMEDY = (
    "give --prior_dtype=float32 and --vae_dtype=float32 where they are others, or check the prior's"
    " weights"
)


class Guidance(NamedTuple):
    """How samples are guided.

    Attributes:
      scale: classifier-free guidance as in diffusers; 1 is none.
      rescale: share of Lin et al.'s rescaled guidance, in [0, 1].
      negative_prompt: what to guide away from; empty: the unconditional prediction.
    """

    scale: float = 6.0
    rescale: float = 0.0
    negative_prompt: str = ""


class PriorSampler(NamedTuple):
    """A loaded prior and the function that samples it, compiled once for each number of samples."""

    prior: Prior
    params: PriorParams
    sample: Sample


def open_sampler(options: PriorOptions) -> PriorSampler:
    """Loads a prior for sampling.

    Raises:
      UserError: the prior, or one of its files, is wrong, or memory runs out.
    """
    prior, params = open_prior(options)
    return PriorSampler(prior, params, make_sampler(prior))


def shared_sampler(prior: Prior, params: PriorParams) -> PriorSampler:
    """Returns a sampler of a prior that is on the devices already; it copies no weights."""
    first = jax.tree.map(lambda leaf: leaf.addressable_data(0), params)
    return PriorSampler(prior, first, make_sampler(prior))


def draw_samples(
    sampler: PriorSampler,
    prompts: Sequence[str],
    guidance: Guidance,
    samples: int,
    steps: int,
    seed: int,
    eta: float | None = None,
) -> list[np.ndarray]:
    """Draws `samples` images of every prompt, [B, size, size, 3] in [0, 1], with a progress bar.

    Args:
      steps: of the sampler.
      eta: share of fresh noise in each of them; None: 1 where the prior predicts a variance, as
        diffusers samples DeepFloyd IF, else 0, which is DDIM.

    Raises:
      UserError: the prior has fewer steps, or memory runs out.
    """
    prior, params, sample = sampler
    check_steps(prior, steps)
    if eta is None:
        eta = float(prior.predict_variance is not None)
    keys = sample_keys(seed, samples)
    if samples % prior.joint_views:
        raise UserError(
            f"--samples={samples} must be a multiple of {prior.joint_views}: this prior draws as"
            " many views of an object together."
        )
    uncond = prior.encode_text([guidance.negative_prompt])
    if prior.joint_views > 1:
        uncond = _repeated(prior, guidance.negative_prompt, samples)
    scales = guidance.scale, guidance.rescale
    with (
        oom.oom_context("samples were drawn", lambda: memory_advice.sample_remedies(samples)),
        Progress(len(prompts) * steps, "sampling", "step") as progress,
    ):
        conds = (_repeated(prior, prompt, samples) for prompt in prompts)
        counted = steps, scales, eta, progress.update
        rows = [sample(params, cond, uncond, keys, *counted) for cond in conds]
    return [require_finite(row, "A sample of --prior", _REMEDY) for row in rows]


def check_steps(prior: Prior, steps: int) -> None:
    """Raises UserError unless the prior can be sampled in `steps` steps."""
    try:
        ddim_indices(prior.schedule, steps)
    except ValueError as error:
        raise UserError(f"--steps={steps}: {error}.") from None


def _repeated(prior: Prior, prompt: str, samples: int) -> Condition:
    """Encodes a prompt once for all its samples; views of an object are spread around it."""
    cond = prior.encode_text([prompt])
    full = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (samples, *leaf.shape[1:])), cond)
    return full if prior.joint_views == 1 else prior.with_pose(full, _around(prior, samples))


def _around(prior: Prior, samples: int) -> Pose:
    """Returns the poses [samples] of groups of views around an object, the first one's front."""
    azimuth_deg = jnp.arange(samples) % prior.joint_views * (360.0 / prior.joint_views)
    elevation_deg = jnp.full_like(azimuth_deg, _ELEVATION_DEG)
    distance = jnp.ones_like(azimuth_deg)
    position = jax.vmap(orbit_position)(azimuth_deg, elevation_deg, distance)
    poses = jax.vmap(look_at, (0, None, None))(position, jnp.zeros(3), jnp.array([0.0, 0.0, 1.0]))
    fov_deg = jnp.full_like(azimuth_deg, _FOV_DEG)
    return Pose(poses, fov_deg, azimuth_deg, elevation_deg, distance)
