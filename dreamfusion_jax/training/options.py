"""Options of the optimization: its target and length, how views are drawn, learning rates."""

from __future__ import annotations

import dataclasses
import itertools

from dreamfusion_jax.nerf.options import SceneOptions
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.settings import MAX_STEPS, Range, WholeNumbers, setting


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Options of the optimization's target and length, and of how a step's views are drawn."""

    prompt: str = setting("", "what to make, for example 'a red chair'")
    steps: int = setting(1000, "optimization steps (paper: 15000)", 1, MAX_STEPS)
    second_stage_steps: int = setting(
        0,
        "steps of a second stage, which refines the scene of --field=sdf in the same folder as"
        " --preset=refine does (0: none)",
        0,
        MAX_STEPS,
    )
    seed: int = setting(0, "seed of everything random", 0, 2**31 - 1)
    init_from: str = setting(
        "",
        "folder of a run, or of one of its checkpoints, from whose scene to start (empty: from"
        " the blob or sphere)",
    )
    init_mesh: str = setting(
        "", "GLB, OBJ or PLY file to which the distance of --field=sdf is fitted before step 1"
    )
    init_mesh_radius: float = setting(
        0.8,
        "distance of that mesh's farthest vertex from the middle, as a share of --bound_radius",
        1e-2,
        1,
    )
    views_per_device: int = setting(
        1, "views a step on each device (paper: 1 on each of four)", 1, 4096
    )
    render_size: WholeNumbers = setting(
        (0,),
        "side of a training render in pixels, or several with a step of --render_milestones between"
        " each two (0: the prior's own image size; paper: 64; ProlificDreamer: 64,512)",
        0,
        4096,
    )
    render_milestones: WholeNumbers = setting(
        (0,),
        "steps from which the next of several --render_size is rendered (0: none; ProlificDreamer:"
        " 5000)",
        0,
        MAX_STEPS,
    )
    half_size_steps: int = setting(
        400,
        "steps before this render an image of half the side and enlarge it (paper: 0)",
        0,
        MAX_STEPS,
    )
    opacity_weight: float = setting(
        0.0,
        "weight of sqrt(opacity^2 + 0.01), a mean over all pixels, beside a residual that is a sum"
        " over the latent (paper: 1e-3 to 5e-3, as a sum over 64 x 64 pixels: 4.1 to 20;"
        " threestudio: 1)",
        0,
        1e9,
    )
    orientation_weight: float = setting(
        0.0,
        "weight of the penalty on normals that face away from the camera, a mean over the rays that"
        " hit something, in every view (paper: 1e-2, as a sum over 64 x 64 pixels: 41;"
        " threestudio: 1000)",
        0,
        1e9,
    )
    orientation_start: float = setting(
        0.0,
        "that weight at the first step; it rises linearly (paper: 1e-4, as a sum: 0.41;"
        " threestudio: 10)",
        0,
        1e9,
    )
    orientation_steps: int = setting(1, "steps over which it rises (paper: 5000)", 1, MAX_STEPS)
    distortion_weight: float = setting(
        0.0, "weight of the spread along each ray, a mean over all rays", 0, 1e9
    )
    entropy_weight: float = setting(
        0.0, "weight of the entropy of each pixel's opacity, a mean over all pixels", 0, 1e9
    )
    interlevel_weight: float = setting(
        1.0,
        "weight of the loss that teaches the proposal grid where the scene is, a mean over all"
        " rays",
        0,
        1e9,
    )
    eikonal_weight: float = setting(
        10.0,
        "weight of (|gradient| - 1)^2 of the distance of --field=sdf, a mean over random points"
        " (paper: 0)",
        0,
        1e9,
    )
    smoothness_weight: float = setting(
        3.0,
        "weight of the squared difference of normals of --field=sdf 0.05 apart, a mean over random"
        " points near the surface (paper: 0)",
        0,
        1e9,
    )
    shading_start_step: int = setting(
        200, "steps before this show the unlit albedo (paper: 1000)", 0, MAX_STEPS
    )
    lit_probability: float = setting(
        0.5, "share of later views lit by a point light (paper: 0.75)", 0, 1
    )
    textureless_probability: float = setting(
        0.3, "share of lit views with a white albedo (paper: 0.5)", 0, 1
    )
    ambient: Range = setting(
        (0.1, 0.5), "range of ambient light; the rest is diffuse (paper: 0.1)", 0, 1
    )
    light_distance: Range = setting(
        (0.8, 1.5), "range of the light's distance from the origin (paper: 0.8,1.5)", 1e-2, 1e3
    )
    solid_background_share: float = setting(
        0.5,
        "share of views with a plain color in place of --background=mlp (paper: 0), so that the"
        " background does not paint the object",
        0,
        1,
    )


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """Options of the optimizer and its learning rates."""

    optimizer: str = setting(
        "adam",
        "how gradients become updates (paper: Distributed Shampoo, with no maintained library)",
        choices=("adam", "adan"),
    )
    learning_rate: float = setting(
        0.0,
        "learning rate at the first step after the warm-up (0: what suits the field: 1e-2 for hash"
        " tables and grids, 3e-4 for the residual MLP, 5e-3 for the plain one; paper: 1e-4 of"
        " Shampoo's, of which a step is about ten times Adam's)",
        0,
        10,
    )
    learning_rate_final: float = setting(
        0.0,
        "learning rate at the last step (0: that of the first for tables and grids, a tenth of it"
        " for MLPs; paper: 1e-6 of Shampoo's)",
        0,
        10,
    )
    learning_rate_decay: str = setting(
        "exponential", "how it falls in between (paper: cosine)", choices=("exponential", "cosine")
    )
    warmup_steps: int = setting(
        -1,
        "steps over which the learning rate first rises, linearly (-1: 100 for the residual MLP,"
        " else none; paper: 3000)",
        -1,
        MAX_STEPS,
    )
    warmup_learning_rate: float = setting(
        1e-9, "learning rate that the warm-up starts from (paper: 1e-9)", 0, 10
    )
    adam_b1: float = setting(0.9, "Adam's decay of the first moment", 0, 0.999999)
    adam_b2: float = setting(0.999, "Adam's decay of the second moment", 0, 0.999999)
    adam_eps: float = setting(1e-8, "Adam's and Adan's epsilon", 1e-30, 1)
    gradient_clip: float = setting(
        0.0, "greatest norm of the scene's gradients together (0: any)", 0, 1e12
    )
    proposal_rate: float = setting(
        1.0, "the proposal's learning rate as a multiple of the others'", 0, 1e3
    )
    background_rate: float = setting(
        1.0,
        "the learned background's learning rate as a multiple of the others' (threestudio: 0.1)",
        0,
        1e3,
    )
    objective_learning_rate: float = setting(
        1e-4,
        "AdamW's learning rate of what --objective=vsd trains (ProlificDreamer: 1e-4)",
        0,
        10,
    )
    objective_weight_decay: float = setting(
        0.01, "its weight decay (ProlificDreamer: torch's 0.01)", 0, 1
    )
    freeze: str = setting(
        "none",
        "what does not learn, of a scene with --texture=own: its geometry or its texture",
        choices=("none", "geometry", "texture"),
    )
    freeze_steps: int = setting(0, "steps after which that learns, too (0: never)", 0, MAX_STEPS)
    network_rate: float = setting(
        1.0, "the same of the MLP behind --field=hash, whose tables keep the full rate", 0, 1e3
    )

    def suited_to(self, scene: SceneOptions) -> OptimizerOptions:
        """Returns the options with the unset rates filled in for the scene's field.

        Hash tables train at Adam's 1e-2 (Instant-NGP, threestudio); five residual blocks of 128
        units do not: their density saturates within 50 steps, where gradients vanish.
        """
        tables = scene.encoding in ("hash", "grid")
        residual = scene.encoding == "mip" and scene.network == "residual"
        highest = self.learning_rate or (1e-2 if tables else 3e-4 if residual else 5e-3)
        return dataclasses.replace(
            self,
            learning_rate=highest,
            learning_rate_final=self.learning_rate_final or (highest if tables else 0.1 * highest),
            warmup_steps=self.warmup_steps if self.warmup_steps >= 0 else 100 * residual,
        )


def render_stages(options: TrainOptions) -> list[int]:
    """Returns the first step, counted from 0, of each of the render sizes."""
    return [0, *options.render_milestones][: len(options.render_size)]


def check_stages(options: TrainOptions) -> None:
    """Raises a UserError unless there is a milestone between each two render sizes, in order."""
    sizes, milestones = options.render_size, options.render_milestones
    if milestones == (0,) and len(sizes) == 1:
        return
    if len(milestones) != len(sizes) - 1:
        raise UserError(
            f"--render_milestones must be {len(sizes) - 1} steps, one between each two of"
            f" --render_size ({len(sizes)} given), not {len(milestones)}."
        )
    if any(a >= b for a, b in itertools.pairwise([0, *milestones])):
        raise UserError(
            f"--render_milestones must rise from one to the next, not {_joined(milestones)}, so"
            " that every --render_size has its steps."
        )


def _joined(numbers: WholeNumbers) -> str:
    return ",".join(map(str, numbers))
