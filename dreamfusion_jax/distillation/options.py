"""Options of the objective, and of the words for views."""

from __future__ import annotations

import dataclasses

from dreamfusion_jax.runtime.settings import setting


@dataclasses.dataclass(frozen=True)
class DistillationOptions:
    """Options that turn the prior's estimate into a gradient."""

    guidance_scale: float = setting(
        6.0, "classifier-free guidance as diffusers counts it (1: none; paper: 101)", 0, 1e3
    )
    guidance_rescale: float = setting(
        0.0, "share of the guided prediction that keeps the unguided one's spread", 0, 1
    )
    weighting: str = setting(
        "sigma_over_alpha",
        "w(t): sigma_over_alpha takes the residual in x0; one; alpha_over_sigma; (paper: sigma2)",
        choices=("sigma_over_alpha", "sigma2", "one", "alpha_over_sigma"),
    )
    weight_cap: float = setting(
        10.0, "upper bound of w(t) (paper: none, and sigma2 is at most 1)", 1e-6, 1e9
    )
    residual_clip: float = setting(
        0.0, "greatest norm of the residual in any one latent pixel (0: any)", 0, 1e9
    )
    gradient: str = setting(
        "sds",
        "sds: the paper's; for study: sds_without_baseline, and full, the diffusion loss's own with"
        " the network's derivative",
        choices=("sds", "sds_without_baseline", "full"),
    )
    t_min: float = setting(0.02, "least diffusion time t in (0, 1) (paper: 0.02)", 1e-4, 0.9999)
    t_max_start: float = setting(0.95, "greatest t at the first step (paper: 0.98)", 1e-4, 0.9999)
    t_max_end: float = setting(
        0.3, "greatest t at the last step, reached linearly (paper: 0.98)", 1e-4, 0.9999
    )


@dataclasses.dataclass(frozen=True)
class ViewPromptOptions:
    """Options of the words that describe views."""

    negative_prompt: str = setting("", "what to guide away from (empty: from no text)")
    view_words: str = setting(
        "toybox",
        "words added for the camera: toybox (eight azimuths, three elevations), paper"
        " (overhead, front, side, back) or none (paper: paper)",
        choices=("toybox", "paper", "none"),
    )
    interpolate_views: bool = setting(
        False,
        "mix the embeddings of the two nearest views' words instead of taking the nearest (paper:"
        " on)",
    )
    negative_views: bool = setting(
        False, "complete the negative prompt with all other views' words (--view_words=paper)"
    )
    perp_neg: bool = setting(
        False,
        "Perp-Neg: guide away from neighboring views, too, and mix embeddings as"
        " --interpolate_views does, at twice the cost (--view_words=paper)",
    )
