"""Samples of a prior, with a bar and with advice where memory runs out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.diffusion.priors.options import PriorOptions
from dreamfusion_jax.diffusion.priors.prior import Condition, Prior
from dreamfusion_jax.diffusion.sampling import ddim_indices, make_sampler, sample_keys
from dreamfusion_jax.runs import memory_advice
from dreamfusion_jax.runs.open_prior import open_prior
from dreamfusion_jax.runtime import oom
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.progress import Progress


class Guidance(NamedTuple):
    """How samples are guided.

    Attributes:
      scale: classifier-free guidance as in diffusers; 1 is none.
      rescale: share of Lin et al.'s rescaled guidance, in [0, 1].
      negative_prompt: what guidance leads away from; empty: from no text.
    """

    scale: float = 6.0
    rescale: float = 0.0
    negative_prompt: str = ""


def draw_samples(
    options: PriorOptions,
    prompts: Sequence[str],
    guidance: Guidance,
    samples: int,
    steps: int,
    seed: int,
    eta: float = 0.0,
) -> list[np.ndarray]:
    """Draws of every prompt so many samples, [B, size, size, 3] in [0, 1], with a bar.

    Args:
      options: the prior.
      steps: of DDIM.
      eta: share of fresh noise in each of them.

    Raises:
      UserError: the prior, or its files, are no good, or memory runs out.
    """
    prior, params = open_prior(options)
    check_steps(prior, steps)
    keys = sample_keys(seed, samples)
    uncond = prior.encode_text([guidance.negative_prompt])
    with (
        oom.oom_context("samples were drawn", lambda: memory_advice.sample_remedies(samples)),
        Progress(len(prompts) * steps, "sampling", "step") as progress,
    ):
        scales = guidance.scale, guidance.rescale
        draw = make_sampler(prior, steps, scales, progress.update, eta)
        return [draw(params, _repeated(prior, p, samples), uncond, keys) for p in prompts]


def check_steps(prior: Prior, steps: int) -> None:
    """Raises a UserError unless the prior can be sampled in so many steps."""
    try:
        ddim_indices(prior.schedule, steps)
    except ValueError as error:
        raise UserError(f"--steps={steps}: {error}.") from None


def _repeated(prior: Prior, prompt: str, samples: int) -> Condition:
    """Encodes a prompt once for all its samples."""
    once = prior.encode_text([prompt])
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (samples, *leaf.shape[1:])), once)
