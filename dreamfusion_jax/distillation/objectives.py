"""Chooses an objective by its name."""

from __future__ import annotations

from dreamfusion_jax.diffusion.priors.prior import Prior
from dreamfusion_jax.distillation.asd import asd
from dreamfusion_jax.distillation.csd import csd
from dreamfusion_jax.distillation.full_gradient import full_gradient
from dreamfusion_jax.distillation.ism import ism
from dreamfusion_jax.distillation.nfsd import nfsd
from dreamfusion_jax.distillation.objective import Objective
from dreamfusion_jax.distillation.options import OBJECTIVES, DistillationOptions
from dreamfusion_jax.distillation.sdi import sdi
from dreamfusion_jax.distillation.sds import sds
from dreamfusion_jax.distillation.vsd import vsd


def make_objective(prior: Prior, options: DistillationOptions) -> Objective:
    """Makes the objective that `options.objective` names.

    Raises:
      ValueError: there is none of that name.
    """
    match options.objective:
        case "sds":
            return sds(prior, options)
        case "csd":
            return csd(prior, options)
        case "nfsd":
            return nfsd(prior, options)
        case "ism":
            return ism(prior, options)
        case "sdi":
            return sdi(prior, options)
        case "asd":
            return asd(prior, options)
        case "vsd":
            return vsd(prior, options)
        case "sds_without_baseline":
            return sds(prior, options, with_baseline=False)
        case "full":
            return full_gradient(prior, options)
    raise ValueError(f"objective {options.objective!r} is not one of {', '.join(OBJECTIVES)}")
