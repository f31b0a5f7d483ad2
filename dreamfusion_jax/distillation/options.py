"""Options of the objective, and of the words for views."""

from __future__ import annotations

import dataclasses

from dreamfusion_jax.runtime.settings import MAX_STEPS, setting

OBJECTIVES = (
    *("sds", "csd", "nfsd", "ism", "sdi", "asd", "vsd"),
    *("sds_without_baseline", "full"),
)


@dataclasses.dataclass(frozen=True)
class DistillationOptions:
    """Options that turn the prior's estimate into a gradient."""

    guidance_scale: float = setting(
        6.0, "classifier-free guidance as diffusers counts it (1: none; paper: 101)", 0, 1e3
    )
    guidance_rescale: float = setting(
        0.0, "share of the guided prediction that keeps the unguided one's spread", 0, 1
    )
    x0_rescale: float = setting(
        0.0,
        "share of the guided estimate of the clean latent that keeps the unguided one's spread,"
        " over all views of a group (MVDream: 0.5)",
        0,
        1,
    )
    guidance_scale_end: float = setting(
        0.0, "guidance from --guidance_anneal_steps on, reached linearly (0: the same)", 0, 1e3
    )
    guidance_anneal_steps: int = setting(
        5000, "steps over which --guidance_scale becomes --guidance_scale_end", 1, MAX_STEPS
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
    objective: str = setting(
        "sds",
        "what pulls the scene to the prior: sds (the paper's), csd (classifier score), nfsd (noise"
        " free), ism (interval matching), sdi (inversion), asd (asynchronous), vsd (variational,"
        " which trains low-rank updates of the prior on the renders); for study:"
        " sds_without_baseline, and full, the diffusion loss's own with the network's derivative",
        choices=OBJECTIVES,
        former_name="gradient",
    )
    csd_negative_start: float = setting(
        0.0, "csd: the negative prompt's share of what is subtracted, at the first step", 0, 1
    )
    csd_negative_end: float = setting(
        0.0,
        "csd: that share from --csd_negative_steps on; the rest is the empty prompt's (authors: 1"
        " for DeepFloyd IF, 0.5 for the second stage)",
        0,
        1,
    )
    csd_negative_steps: int = setting(
        5000, "csd: steps over which that share changes (authors: 5000)", 1, MAX_STEPS
    )
    ism_interval: float = setting(
        0.1, "ism: interval between the two times at the first step (authors: 0.1)", 0, 1
    )
    ism_interval_end: float = setting(
        0.08, "ism: that interval from --ism_interval_steps on (authors: 0.08)", 0, 1
    )
    ism_interval_steps: int = setting(
        1500, "ism: steps over which the interval shrinks (authors: 1500)", 1, MAX_STEPS
    )
    ism_stride: float = setting(
        0.2, "ism: stride of the DDIM inversion, in diffusion time (authors: 0.2)", 0.01, 1
    )
    sdi_steps: int = setting(10, "sdi: steps of the DDIM inversion (authors: 10)", 1, 1000)
    sdi_inversion_guidance: float = setting(
        -7.5, "sdi: guidance scale of the inversion (authors: -7.5)", -1e3, 1e3
    )
    sdi_eta: float = setting(
        0.3, "sdi: share of fresh noise after each step of the inversion (authors: 0.3)", 0, 1
    )
    sdi_beyond: float = setting(
        0.1, "sdi: the inversion ends up to this far beyond t (authors: 0.1)", 0, 1
    )
    asd_gamma: float = setting(
        0.1, "asd: how far beyond t the render's score is taken, relative to t (authors: 0.1)", 0, 1
    )
    vsd_lora_rank: int = setting(
        4, "vsd: rank of the updates of the prior's attention (authors: 4)", 1, 1024
    )
    vsd_camera_dropout: float = setting(
        0.1,
        "vsd: share of views of which the updates learn without a camera (authors: 0.1)",
        0,
        1,
    )
    time_schedule: str = setting(
        "uniform",
        "how t is drawn: uniform between --t_min and the falling maximum; linear, hifa (square"
        " root) or dreamtime (non-increasing, most steps at middle noise): one t a step, from"
        " --t_max_start down",
        choices=("uniform", "linear", "hifa", "dreamtime"),
    )
    t_min: float = setting(0.02, "least diffusion time t in (0, 1) (paper: 0.02)", 1e-4, 0.9999)
    t_min_start: float = setting(
        0.0,
        "least t at the first step, from where it falls to --t_min (0: --t_min; MVDream: 0.98)",
        0,
        0.9999,
    )
    t_max_start: float = setting(0.95, "greatest t at the first step (paper: 0.98)", 1e-4, 0.9999)
    t_max_end: float = setting(
        0.3, "greatest t at the last step, reached linearly (paper: 0.98)", 1e-4, 0.9999
    )
    t_anneal_steps: int = setting(
        0, "steps over which the bounds of t move (0: all; MVDream: 8000 of 10000)", 0, MAX_STEPS
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
