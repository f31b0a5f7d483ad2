"""Chooses an objective by its name."""

from __future__ import annotations

from dreamfusion_jax.diffusion.priors.prior import Prior
from dreamfusion_jax.distillation.full_gradient import full_gradient
from dreamfusion_jax.distillation.objective import Objective
from dreamfusion_jax.distillation.options import DistillationOptions
from dreamfusion_jax.distillation.sds import sds


def make_objective(prior: Prior, options: DistillationOptions) -> Objective:
    """Makes the objective that `options.gradient` names.

    Raises:
      ValueError: there is none of that name.
    """
    match options.gradient:
        case "sds":
            return sds(prior, options)
        case "sds_without_baseline":
            return sds(prior, options, with_baseline=False)
        case "full":
            return full_gradient(prior, options)
    raise ValueError(f"objective {options.gradient!r} is not sds, sds_without_baseline or full")
