"""Every setting of a run: frozen dataclasses, one section for each part of it.

A setting is declared once, with its default, its help text and the values it accepts; its flag, its
check and its place in config.json follow from that (config.py). The defaults are the toybox's: the
embedded prior on a laptop. "(paper: ...)" is DreamFusion's own value, which `--preset=paper` sets.
Angles are in degrees, lengths in units of the scene (whose bounding sphere has the radius
`--bound_radius`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

Range = tuple[float, float]
MAX_STEPS = 10_000_000

_CACHE_HELP = "folder for compiled programs ('auto': in the user's cache folder; 'none': no cache)"


def _setting(
    default: Any,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field that knows how to explain and check itself."""
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """What is in the scene: the fields of `nerf.scene.SceneOptions`, and a flat picture's size."""

    field: str = _setting(
        "mip",
        "scene: an MLP on integrated positions, a voxel grid, or hashed grids with a small MLP;"
        " image: no scene but one flat picture, for a quick look at what a prior pulls towards",
        choices=("mip", "grid", "hash", "image"),
    )
    bound_radius: float = _setting(
        1.0, "radius of the sphere that holds the scene (paper: 1.4)", 0.1, 100
    )
    width: int = _setting(64, "units in a hidden layer of the MLP (paper: 128)", 1, 4096)
    depth: int = _setting(
        3, "hidden layers of the MLP, or its residual blocks (paper: 5 blocks)", 1, 64
    )
    network: str = _setting(
        "plain",
        "the MLP: plain layers with relu, or residual blocks with swish and LayerNorm (paper:"
        " residual)",
        choices=("plain", "residual"),
    )
    min_degree: int = _setting(0, "lowest positional frequency, 2^min_degree (paper: 0)", 0, 16)
    max_degree: int = _setting(
        5, "positional frequencies end before 2^max_degree (paper: 8)", 1, 24
    )
    blur_start: float = _setting(
        5e-2, "variance added to each sample's Gaussian at the first step (paper: 0.05)", 0, 1e2
    )
    blur_end: float = _setting(
        5e-3, "the same from --blur_steps on; it falls linearly (paper: 0.002)", 0, 1e2
    )
    blur_steps: int = _setting(
        500, "steps over which that variance falls (paper: 5000)", 1, MAX_STEPS
    )
    density_activation: str = _setting(
        "softplus", "what makes the density positive (paper: exp)", choices=("softplus", "exp")
    )
    density_scale: float = _setting(
        20.0, "density per unit length at activation 1 (paper: 1)", 1e-3, 1e4
    )
    blob_scale: float = _setting(
        4.0, "height of the density blob the scene starts as (paper: 5)", 0, 1e3
    )
    blob_radius: float = _setting(
        0.5, "radius of that blob; its width, if gaussian (paper: 0.2)", 1e-3, 100
    )
    blob_shape: str = _setting(
        "linear",
        "linear: scale (1 - r / radius); gaussian: scale exp(-r^2 / (2 radius^2))"
        " (paper: gaussian)",
        choices=("linear", "gaussian"),
    )
    density_bias: float = _setting(
        0.0,
        "added to the field's raw output before the activation; about -3 keeps an exp field from"
        " starting as fog (the paper names none; multinerf: -1)",
        -30,
        30,
    )
    sharpening: float = _setting(
        4.0,
        "how many times as steep the density's edges get in the end: mist becomes solid or clear"
        " (paper: 1, not at all)",
        1,
        100,
    )
    sharpening_density: float = _setting(
        5.0, "density per unit length that sharpening leaves as it is", 1e-3, 1e4
    )
    sharpening_start: int = _setting(500, "step at which sharpening begins", 0, MAX_STEPS)
    sharpening_steps: int = _setting(400, "steps over which it rises to --sharpening", 1, MAX_STEPS)
    proposal_samples: int = _setting(
        32, "cheap samples a ray and round on the proposal grid (paper: 64; 0: none)", 0, 1024
    )
    proposal_rounds: int = _setting(
        1, "rounds of such samples, each placed by the one before (paper: 2)", 1, 8
    )
    proposal_resolution: int = _setting(
        32, "nodes along a side of the proposal grid (paper: an MLP instead)", 2, 128
    )
    fine_samples: int = _setting(20, "samples of the field a ray (paper: 32)", 1, 1024)
    grid_resolution: int = _setting(64, "cells along a side of --field=grid", 2, 512)
    normal_spacing: float = _setting(
        0.0, "normals by finite differences over this length (0: analytic, as in the paper)", 0, 1
    )
    hash_levels: int = _setting(16, "grids of --field=hash", 1, 32)
    hash_features: int = _setting(2, "numbers that each of its corners holds", 1, 16)
    hash_log2_rows: int = _setting(19, "logarithm of the rows of each grid's table", 4, 24)
    hash_coarsest: int = _setting(16, "cells along a side of the coarsest grid", 1, 4096)
    hash_finest: int = _setting(4096, "cells along a side of the finest grid", 1, 65535)
    hash_start_level: int = _setting(8, "grids that are seen from the first step on", 1, 32)
    hash_start_step: int = _setting(2000, "step at which the next grid fades in", 0, MAX_STEPS)
    hash_level_steps: int = _setting(500, "steps that each further grid takes", 1, MAX_STEPS)
    image_size: int = _setting(
        64, "side of --field=image in pixels: the prior's own size, or a little more", 8, 4096
    )
    background: str = _setting(
        "solid",
        "solid: a new random colour every step; mlp: learned from the direction (paper: mlp)",
        choices=("solid", "mlp"),
    )


@dataclasses.dataclass(frozen=True)
class CameraConfig:
    """Where the training cameras stand: the very fields of `nerf.cameras.CameraRanges`."""

    distance: Range = _setting(
        (2.3, 3.2), "range of distances from the origin (paper: 1,1.5)", 1e-2, 1e3
    )
    fov_deg: Range = _setting((40.0, 55.0), "range of fields of view, in degrees", 1, 170)
    elevation_deg: Range = _setting(
        (-10.0, 75.0), "range of elevations, in degrees (paper: -10,90)", -90, 90
    )
    azimuth_deg: Range = _setting(
        (0.0, 360.0), "range of azimuths, in degrees (paper: 0,360)", -360, 360
    )
    area_share: float = _setting(
        0.0,
        "share of cameras whose elevation is uniform by area, not by angle, between the same bounds"
        " (paper: 0.5, on the upper half-sphere)",
        0,
        1,
    )
    focal_multiplier: Range = _setting(
        (0.0, 0.0),
        "range of focal lengths in image widths (paper: 0.7,1.35; 0: from --fov_deg)",
        0,
        100,
    )
    position_jitter: float = _setting(
        0.0, "each coordinate of a camera is moved by up to this (paper: 0.1)", 0, 1e3
    )
    look_at_std: float = _setting(
        0.0, "spread, in each coordinate, of the point looked at (paper: 0.2)", 0, 1e3
    )
    up_std: float = _setting(0.0, "spread of the up vector about the vertical (paper: 0.02)", 0, 1)


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """The frozen text-to-image model, and how its score becomes a gradient."""

    prior: str = _setting(
        "toybox",
        "'toybox' (embedded), or a Stable Diffusion in the diffusers layout: a folder or a hub id",
    )
    revision: str = _setting("", "branch, tag or commit of a hub id (empty: its main branch)")
    variant: str = _setting(
        "", "which of several precisions to read, such as fp16 (empty: the full one if it is there)"
    )
    prior_dtype: str = _setting(
        "auto",
        "number format of the prior's U-Net (auto: float16 on GPU, float32 on TPU and CPU; guidance"
        " multiplies rounding errors, and bfloat16's are up to a third of its direction)",
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    vae_dtype: str = _setting(
        "auto",
        "number format of its autoencoder, whose errors nothing multiplies (auto: bfloat16 on GPU"
        " and TPU, float32 on CPU)",
        choices=("auto", "float32", "bfloat16"),
    )
    guidance_scale: float = _setting(
        6.0, "classifier-free guidance as diffusers counts it (1: none; paper: 101)", 0, 1e3
    )
    guidance_rescale: float = _setting(
        0.0, "share of the guided prediction that keeps the unguided one's spread", 0, 1
    )
    negative_prompt: str = _setting("", "what to guide away from (empty: from no text)")
    weighting: str = _setting(
        "sigma_over_alpha",
        "w(t): sigma_over_alpha takes the residual in x0; one; alpha_over_sigma; (paper: sigma2)",
        choices=("sigma_over_alpha", "sigma2", "one", "alpha_over_sigma"),
    )
    weight_cap: float = _setting(
        10.0, "upper bound of w(t) (paper: none, and sigma2 is at most 1)", 1e-6, 1e9
    )
    residual_clip: float = _setting(
        0.0, "greatest norm of the residual in any one latent pixel (0: any)", 0, 1e9
    )
    gradient: str = _setting(
        "sds",
        "sds: the paper's; for study: sds_without_baseline, and full, the diffusion loss's own with"
        " the network's derivative",
        choices=("sds", "sds_without_baseline", "full"),
    )
    t_min: float = _setting(0.02, "least diffusion time t in (0, 1) (paper: 0.02)", 1e-4, 0.9999)
    t_max_start: float = _setting(0.95, "greatest t at the first step (paper: 0.98)", 1e-4, 0.9999)
    t_max_end: float = _setting(
        0.3, "greatest t at the last step, reached linearly (paper: 0.98)", 1e-4, 0.9999
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What is optimised, for how long, and how the views of a step are drawn."""

    prompt: str = _setting("", "what to make, for example 'a red chair'")
    steps: int = _setting(1000, "optimisation steps (paper: 15000)", 1, MAX_STEPS)
    seed: int = _setting(0, "seed of everything random", 0, 2**31 - 1)
    views_per_device: int = _setting(
        1, "views a step on each device (paper: 1 on each of four)", 1, 4096
    )
    render_size: int = _setting(
        0, "side of a training render in pixels (0: the prior's own image size; paper: 64)", 0, 4096
    )
    half_size_steps: int = _setting(
        400,
        "steps before this render a picture of half the side and enlarge it (paper: 0)",
        0,
        MAX_STEPS,
    )
    opacity_weight: float = _setting(
        0.0,
        "weight of sqrt(opacity^2 + 0.01), a mean over all pixels, beside a residual that is a sum"
        " over the latent (paper: 1e-3 to 5e-3, as a sum over 64 x 64 pixels: 4.1 to 20;"
        " threestudio: 1)",
        0,
        1e9,
    )
    orientation_weight: float = _setting(
        0.0,
        "weight of the penalty on normals that face away from the camera, a mean over the rays that"
        " hit something, in every view (paper: 1e-2, as a sum over 64 x 64 pixels: 41;"
        " threestudio: 1000)",
        0,
        1e9,
    )
    orientation_start: float = _setting(
        0.0,
        "that weight at the first step; it rises linearly (paper: 1e-4, as a sum: 0.41;"
        " threestudio: 10)",
        0,
        1e9,
    )
    orientation_steps: int = _setting(1, "steps over which it rises (paper: 5000)", 1, MAX_STEPS)
    distortion_weight: float = _setting(
        0.0, "weight of the spread along each ray, a mean over all rays", 0, 1e9
    )
    entropy_weight: float = _setting(
        0.0, "weight of the entropy of each pixel's opacity, a mean over all pixels", 0, 1e9
    )
    interlevel_weight: float = _setting(
        1.0,
        "weight of the loss that teaches the proposal grid where the scene is, a mean over all"
        " rays",
        0,
        1e9,
    )
    shading_start_step: int = _setting(
        200, "steps before this show the unlit albedo (paper: 1000)", 0, MAX_STEPS
    )
    lit_probability: float = _setting(
        0.5, "share of later views lit by a point light (paper: 0.75)", 0, 1
    )
    textureless_probability: float = _setting(
        0.3, "share of lit views with a white albedo (paper: 0.5)", 0, 1
    )
    ambient: Range = _setting(
        (0.1, 0.5), "range of ambient light; the rest is diffuse (paper: 0.1)", 0, 1
    )
    light_distance: Range = _setting(
        (0.8, 1.5), "range of the light's distance from the origin (paper: 0.8,1.5)", 1e-2, 1e3
    )
    solid_background_share: float = _setting(
        0.5,
        "share of views before a plain colour although --background=mlp (paper: 0), lest the"
        " background paint what the object should be made of",
        0,
        1,
    )
    view_words: str = _setting(
        "toybox",
        "words added for the camera: toybox (eight azimuths, three elevations), paper"
        " (overhead, front, side, back) or none (paper: paper)",
        choices=("toybox", "paper", "none"),
    )
    interpolate_views: bool = _setting(
        False,
        "mix the embeddings of the two nearest views' words instead of taking the nearest (paper:"
        " on)",
    )
    negative_views: bool = _setting(
        False, "complete the negative prompt with all other views' words (--view_words=paper)"
    )
    perp_neg: bool = _setting(
        False,
        "Perp-Neg: guide away from neighboring views, too, and mix embeddings as"
        " --interpolate_views does, at twice the cost (--view_words=paper)",
    )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become updates, and at which rate."""

    optimizer: str = _setting(
        "adam",
        "how gradients become updates (paper: Distributed Shampoo, which has no kept library)",
        choices=("adam", "adan"),
    )
    learning_rate: float = _setting(
        0.0,
        "learning rate at the first step after the warm-up (0: what suits the field: 1e-2 for hash"
        " tables and grids, 3e-4 for the residual MLP, 5e-3 for the plain one; paper: 1e-4 of"
        " Shampoo's, of which a step is about ten times Adam's)",
        0,
        10,
    )
    learning_rate_final: float = _setting(
        0.0,
        "learning rate at the last step (0: that of the first for tables and grids, a tenth of it"
        " for MLPs; paper: 1e-6 of Shampoo's)",
        0,
        10,
    )
    learning_rate_decay: str = _setting(
        "exponential", "how it falls in between (paper: cosine)", choices=("exponential", "cosine")
    )
    warmup_steps: int = _setting(
        -1,
        "steps over which the learning rate first rises, linearly (-1: 100 for the residual MLP,"
        " else none; paper: 3000)",
        -1,
        MAX_STEPS,
    )
    warmup_learning_rate: float = _setting(
        1e-9, "learning rate that the warm-up starts from (paper: 1e-9)", 0, 10
    )
    adam_b1: float = _setting(0.9, "Adam's decay of the first moment", 0, 0.999999)
    adam_b2: float = _setting(0.999, "Adam's decay of the second moment", 0, 0.999999)
    adam_eps: float = _setting(1e-8, "Adam's and Adan's epsilon", 1e-30, 1)
    gradient_clip: float = _setting(
        0.0, "greatest norm of all gradients together (0: any)", 0, 1e12
    )
    proposal_rate: float = _setting(
        1.0, "the proposal's learning rate as a multiple of the others'", 0, 1e3
    )
    background_rate: float = _setting(
        1.0,
        "the learned background's learning rate as a multiple of the others' (threestudio: 0.1)",
        0,
        1e3,
    )
    network_rate: float = _setting(
        1.0, "the same of the MLP behind --field=hash, whose tables keep the full rate", 0, 1e3
    )

    def suited_to(self, scene: SceneConfig) -> OptimizerConfig:
        """Returns the same with the rates that were left open filled in.

        Hash tables bear Adam's 1e-2 (Instant-NGP, threestudio); five residual blocks of 128 units
        do not: their density saturates within 50 steps, and no gradient brings it back.
        """
        tables = scene.field in ("hash", "grid")
        residual = scene.field == "mip" and scene.network == "residual"
        highest = self.learning_rate or (1e-2 if tables else 3e-4 if residual else 5e-3)
        return dataclasses.replace(
            self,
            learning_rate=highest,
            learning_rate_final=self.learning_rate_final or (highest if tables else 0.1 * highest),
            warmup_steps=self.warmup_steps if self.warmup_steps >= 0 else 100 * residual,
        )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Where and how to run and what to leave behind. May change when a run is continued."""

    workdir: str = _setting("", "folder of the results (empty: workdir/<the prompt's words>)")
    platform: str = _setting(
        "auto",
        "what to compute on (auto: what JAX finds: a TPU before a GPU before the CPU)",
        choices=("auto", "cpu", "gpu", "tpu"),
    )
    devices: int = _setting(0, "devices of each process to use (0: all)", 0, 4096)
    distributed: str = _setting(
        "auto",
        "run as one of several processes (auto: on Cloud TPU and with --coordinator; on: JAX finds"
        " the cluster)",
        choices=("auto", "on", "off"),
    )
    coordinator: str = _setting("", "address of the first of several processes, as host:port")
    processes: int = _setting(0, "how many processes there are, with --coordinator", 0, 65536)
    process_index: int = _setting(0, "which of them this is, from 0", 0, 65535)
    peer_timeout: int = _setting(
        100, "seconds after which a process that is not heard of counts as dead", 5, 86400
    )
    max_skipped_steps: int = _setting(
        20, "steps in a row without finite numbers after which the run is given up", 1, MAX_STEPS
    )
    compilation_cache: str = _setting("auto", _CACHE_HELP)
    wandb: str = _setting(
        "", "project of Weights & Biases that also gets metrics and previews (empty: none)"
    )
    log_every: int = _setting(20, "steps between lines of metrics", 1, MAX_STEPS)
    preview_every: int = _setting(100, "steps between preview pictures", 1, MAX_STEPS)
    checkpoint_every: int = _setting(250, "steps between checkpoints", 1, MAX_STEPS)
    preview_size: int = _setting(64, "side of each preview picture, in pixels", 8, 2048)
    poster_size: int = _setting(384, "side of the poster, one large view, in pixels", 8, 8192)
    sheet_size: int = _setting(96, "side of each contact sheet picture, in pixels", 8, 2048)
    turntable_size: int = _setting(128, "side of the turntable, in pixels; even", 8, 2048)
    turntable_frames: int = _setting(48, "frames of the turntable, once around", 1, 3600)
    mesh_resolution: int = _setting(96, "grid points along a side to find the mesh on", 8, 1024)
    mesh_threshold: float = _setting(
        0.0,
        "density (per unit length) at which the mesh's surface lies (0: automatic, so that its"
        " silhouettes are those of what is opaque)",
        0,
        1e9,
    )
    mesh_faces: int = _setting(
        10_000, "most triangles of the mesh, to which it is decimated (0: all there are)", 0, 10**8
    )
    texture_size: int = _setting(1024, "side of the mesh's texture, in pixels", 16, 4096)
