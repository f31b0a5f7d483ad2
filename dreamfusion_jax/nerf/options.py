"""Options of a scene. Lengths are in world units, angles in degrees."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any

from dreamfusion_jax.runtime.settings import MAX_STEPS, setting


@dataclasses.dataclass(frozen=True)
class SceneOptions:
    """Options of a scene; the defaults are the toybox's."""

    field: str = setting(
        "mip",
        "mip: a density by an MLP on integrated positions; sdf: a signed distance to a surface, by"
        " that MLP or hash grids; grid: a density in a voxel grid; hash: one by hash grids and a"
        " small MLP; image: no scene but a flat image, which shows quickly what a prior pulls"
        " towards",
        choices=("mip", "sdf", "grid", "hash", "image"),
    )
    sdf_encoding: str = setting(
        "mip",
        "network behind --field=sdf: mip (an MLP on integrated positions) or hash (hash grids)",
        choices=("mip", "hash"),
    )
    sdf_beta_start: float = setting(
        0.1, "width of the density's edge of --field=sdf at the first step, in length", 1e-4, 10
    )
    sdf_beta_end: float = setting(
        0.012, "the same from --sdf_beta_steps on; it falls exponentially", 1e-4, 10
    )
    sdf_beta_steps: int = setting(900, "steps over which that width falls", 1, MAX_STEPS)
    surface_points: int = setting(
        1024, "random points per view for the eikonal and smoothness losses", 1, 2**20
    )
    render: str = setting(
        "volume",
        "volume: densities along each ray; surface: one point a ray, where it meets the surface of"
        " --field=sdf",
        choices=("volume", "surface"),
    )
    shading: str = setting(
        "samples",
        "samples: the normal of every sample lights it (as the paper does); deferred: one normal a"
        " ray, where it is absorbed on average, lights its composited albedo: half the cost in lit"
        " views",
        choices=("samples", "deferred"),
    )
    trace_steps: int = setting(
        32, "steps along a ray in which --render=surface looks for the surface", 1, 1024
    )
    silhouette_width: float = setting(
        1.0, "width of the soft silhouette of --render=surface, in pixels", 1e-2, 100
    )
    texture: str = setting(
        "shared",
        "shared: one network says shape and albedo; own: the albedo has a network of its own, so"
        " that --freeze can hold one of them",
        choices=("shared", "own"),
    )
    bound_radius: float = setting(
        1.0, "radius of the sphere that holds the scene (paper: 1.4)", 0.1, 100
    )
    width: int = setting(64, "units in a hidden layer of the MLP (paper: 128)", 1, 4096)
    depth: int = setting(
        3, "hidden layers of the MLP, or its residual blocks (paper: 5 blocks)", 1, 64
    )
    network: str = setting(
        "plain",
        "the MLP: plain layers with ReLU, or residual blocks with swish and LayerNorm (paper:"
        " residual)",
        choices=("plain", "residual"),
    )
    field_dtype: str = setting(
        "auto",
        "number format of the products of the field's MLP (auto: bfloat16 for densities on GPU,"
        " else float32; all else is in float32)",
        choices=("auto", "float32", "bfloat16"),
    )
    min_degree: int = setting(0, "lowest positional frequency, 2^min_degree (paper: 0)", 0, 16)
    max_degree: int = setting(5, "positional frequencies end before 2^max_degree (paper: 8)", 1, 24)
    blur_start: float = setting(
        5e-2, "variance added to each sample's Gaussian at the first step (paper: 0.05)", 0, 1e2
    )
    blur_end: float = setting(
        5e-3, "the same after --blur_steps steps; it falls linearly (paper: 0.002)", 0, 1e2
    )
    blur_steps: int = setting(
        500, "steps over which that variance falls (paper: 5000)", 1, MAX_STEPS
    )
    density_activation: str = setting(
        "softplus", "activation of the density (paper: exp)", choices=("softplus", "exp")
    )
    density_scale: float = setting(
        20.0, "density per unit length at activation 1 (paper: 1)", 1e-3, 1e4
    )
    blob_scale: float = setting(
        4.0, "height of the density blob that the scene starts as (paper: 5)", 0, 1e3
    )
    blob_radius: float = setting(
        0.5, "radius of that blob; if gaussian, its standard deviation (paper: 0.2)", 1e-3, 100
    )
    blob_shape: str = setting(
        "linear",
        "linear: scale (1 - r / radius); gaussian: scale exp(-r^2 / (2 radius^2))"
        " (paper: gaussian)",
        choices=("linear", "gaussian"),
    )
    density_bias: float = setting(
        0.0,
        "added to the field's raw output before the activation; about -3 keeps an exp field from"
        " starting as fog (the paper names none; multinerf: -1)",
        -30,
        30,
    )
    sharpening: float = setting(
        4.0,
        "final factor on the steepness of the density's edges: haze becomes solid or clear"
        " (paper: 1, unchanged)",
        1,
        100,
    )
    sharpening_density: float = setting(
        5.0, "density per unit length that sharpening leaves unchanged", 1e-3, 1e4
    )
    sharpening_start: int = setting(500, "step at which sharpening begins", 0, MAX_STEPS)
    sharpening_steps: int = setting(
        400, "steps over which the factor rises to --sharpening", 1, MAX_STEPS
    )
    proposal_samples: int = setting(
        32, "cheap samples per ray and round on the proposal grid (paper: 64; 0: none)", 0, 1024
    )
    proposal_rounds: int = setting(
        1, "rounds of such samples, each placed by the one before (paper: 2)", 1, 8
    )
    proposal_resolution: int = setting(
        32, "nodes along a side of the proposal grid (paper: an MLP instead)", 2, 128
    )
    fine_samples: int = setting(20, "samples of the field per ray (paper: 32)", 1, 1024)
    grid_resolution: int = setting(64, "cells along a side of --field=grid", 2, 512)
    fd_epsilon: float = setting(
        0.0,
        "normals by finite differences over this length (paper: 0, analytic)",
        0,
        1,
        former_name="normal_spacing",
    )
    hash_levels: int = setting(16, "levels (grids) of --field=hash", 1, 32)
    hash_features: int = setting(2, "features per corner of a hash grid", 1, 16)
    hash_log2_rows: int = setting(19, "base-2 logarithm of the rows of each level's table", 4, 24)
    hash_coarsest: int = setting(16, "cells along a side of the coarsest grid", 1, 4096)
    hash_finest: int = setting(4096, "cells along a side of the finest grid", 1, 65535)
    hash_start_level: int = setting(8, "levels active from the first step on", 1, 32)
    hash_start_step: int = setting(
        2000, "step at which the next level begins to fade in", 0, MAX_STEPS
    )
    hash_level_steps: int = setting(
        500, "steps over which each further level fades in", 1, MAX_STEPS
    )
    image_size: int = setting(
        64, "side of --field=image in pixels: the prior's image size, or a little more", 8, 4096
    )
    background: str = setting(
        "solid",
        "solid: a new random color every step; mlp: learned from the direction (paper: mlp)",
        choices=("solid", "mlp"),
    )

    @property
    def encoding(self) -> str:
        """The network that the field reads: "mip", "grid" or "hash"; "image" for a flat image."""
        return self.sdf_encoding if self.field == "sdf" else self.field

    def shape(self) -> dict[str, Any]:
        """Returns the settings by name without which the scene's parameters mean another scene."""
        names = ["field", "bound_radius", "blob_radius", "background", *_OF_ENCODING[self.encoding]]
        names += ["sdf_encoding"] if self.field == "sdf" else _OF_DENSITY
        names += ["proposal_resolution"] if self.proposal_samples else ["proposal_samples"]
        return {name: getattr(self, name) for name in names}

    def detail(self, step: int) -> dict[str, Any]:
        """Returns the settings by name that give a run at its start the detail of `step` here."""
        match self.encoding:
            case "mip":
                fallen = min(step / self.blur_steps, 1.0)
                blur = self.blur_start + (self.blur_end - self.blur_start) * fallen
                return {"blur_start": round(blur, 9)}
            case "hash":
                risen = max(step - self.hash_start_step, 0) / self.hash_level_steps
                active = math.ceil(self.hash_start_level + risen)
                return {"hash_start_level": min(active, self.hash_levels)}
        return {}


# Settings behind the shapes of each encoding's parameters, and of what they mean.
_OF_ENCODING: Mapping[str, tuple[str, ...]] = types.MappingProxyType(
    {
        "mip": ("width", "depth", "network", "min_degree", "max_degree"),
        "grid": ("grid_resolution",),
        "hash": (
            *("width", "depth", "hash_levels", "hash_features"),
            *("hash_log2_rows", "hash_coarsest", "hash_finest"),
        ),
        "image": ("image_size",),
    }
)
_OF_DENSITY = ["density_activation", "density_scale", "blob_scale", "blob_shape", "density_bias"]
