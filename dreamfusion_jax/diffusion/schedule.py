"""The noise schedule and the conversions between what networks predict.

All follows from one line, z_t = alpha z + sigma eps with alpha^2 + sigma^2 = 1 (diffusers'
sqrt(alphas_cumprod) and its complement), and from v = alpha eps - sigma z (Salimans & Ho, 2022).

Letters: t diffusion time in [0, 1], index = round(t (T - 1)) the integer that the network was
trained on; z clean latent, z_t noisy latent, eps noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.diffusion.loading.options import module_options, require_members
from dreamfusion_jax.runtime.errors import PriorError

NAME = "scheduler"
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "trailing", "linspace")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "set_alpha_to_one": True,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
}
REQUIRED: dict[str, Any] = {
    "timestep_type": "discrete",
    "use_dynamic_shifting": False,
    "use_flow_sigmas": False,
}
# Options of other samplers: they do not change the noise that the network was trained on.
IGNORED = (
    *("algorithm_type", "corrector_order", "disable_corrector"),
    *("euler_at_final", "final_sigmas_type", "flow_shift", "interpolation_type"),
    *("lambda_min_clipped", "lower_order_final", "noise_sampler_seed", "original_inference_steps"),
    *("predict_x0", "predictor_order", "shift_terminal", "sigma_max"),
    *("sigma_min", "skip_prk_steps", "solver_order", "solver_p", "solver_type", "steps_offset"),
    *("tau_func", "time_shift_type", "timestep_scaling", "use_beta_sigmas"),
    *("use_exponential_sigmas", "use_karras_sigmas", "use_lu_lambdas", "variance_type"),
)
# Schedulers of the same process, and where the defaults of a class are others than those above.
_SD_BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012}
_LINSPACE: dict[str, Any] = {"timestep_spacing": "linspace"}
_CLIPPED: dict[str, Any] = {"clip_sample": True}
_CONSISTENCY = _SD_BETAS | {"beta_schedule": "scaled_linear"}
CLASS_DEFAULTS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": _CLIPPED,
    "DDIMInverseScheduler": _CLIPPED,
    "DDIMParallelScheduler": _CLIPPED,
    "DDPMScheduler": _CLIPPED,
    "DDPMParallelScheduler": _CLIPPED,
    "DEISMultistepScheduler": _LINSPACE,
    "DPMSolverMultistepScheduler": _LINSPACE,
    "DPMSolverMultistepInverseScheduler": _LINSPACE,
    "DPMSolverSDEScheduler": _SD_BETAS | _LINSPACE,
    "DPMSolverSinglestepScheduler": {},
    "EulerAncestralDiscreteScheduler": _LINSPACE,
    "EulerDiscreteScheduler": _LINSPACE,
    "HeunDiscreteScheduler": _SD_BETAS | _LINSPACE,
    "KDPM2AncestralDiscreteScheduler": _SD_BETAS | _LINSPACE,
    "KDPM2DiscreteScheduler": _SD_BETAS | _LINSPACE,
    "LCMScheduler": _CONSISTENCY,
    "LMSDiscreteScheduler": _LINSPACE,
    "PNDMScheduler": {"set_alpha_to_one": False},
    "SASolverScheduler": _LINSPACE,
    "TCDScheduler": _CONSISTENCY,
    "UniPCMultistepScheduler": _LINSPACE,
}


class Schedule(NamedTuple):
    """Host-side constants of a diffusion process with T discrete times.

    Attributes:
      alphas_cumprod: [T] float32, alpha^2 at every index; falls from about 1 to about 0.
      prediction_type: what the network predicts: epsilon, v_prediction or sample (that is, z).
      timestep_spacing: how a sampler of fewer steps picks its indices (see sampling.py).
      set_alpha_to_one: whether a sampler's last step ends at the clean latent, or at index 0.
      clip_sample_range: a sampler clips its estimates of z to plus or minus this; None: not.
      thresholding: instead, it clips each to this quantile of its sizes, between 1 and this
        maximum, and divides by it (dynamic thresholding, Saharia et al., 2022); None: not.
      steps_offset: of a sampler's indices where they are "leading".
    """

    alphas_cumprod: np.ndarray
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    set_alpha_to_one: bool = True
    clip_sample_range: float | None = None
    thresholding: tuple[float, float] | None = None
    steps_offset: int = 1  # StableDiffusionPipeline forces it upon every scheduler's config


def schedule_from_config(config: Mapping[str, Any]) -> Schedule:
    """Reads a diffusers scheduler_config.json.

    An absent option has the default of the class that `_class_name` names; without one, DEFAULTS.

    Raises:
      PriorError: an option, or its value, is not supported.
    """
    given = module_options(NAME, config, DEFAULTS, REQUIRED, IGNORED)
    class_name = config.get("_class_name")
    if class_name is not None:
        require_members(NAME, "_class_name", [class_name], set(CLASS_DEFAULTS))
    options = DEFAULTS | CLASS_DEFAULTS.get(class_name or "", {}) | given
    for key, allowed in (
        ("prediction_type", PREDICTION_TYPES),
        ("timestep_spacing", SPACINGS),
        ("beta_schedule", BETA_SCHEDULES),
    ):
        require_members(NAME, key, [options[key]], set(allowed))
    with np.errstate(all="ignore"):  # the result is checked below
        alphas_cumprod = _alphas_cumprod(options)
    if not _is_schedule(alphas_cumprod):
        raise PriorError("scheduler config: its betas are no variances between 0 and 1.")
    return Schedule(
        alphas_cumprod.astype(np.float32),
        options["prediction_type"],
        options["timestep_spacing"],
        bool(options["set_alpha_to_one"]),
        float(options["clip_sample_range"]) if options["clip_sample"] else None,
        _thresholding(options) if options["thresholding"] else None,
    )


def _thresholding(options: Mapping[str, Any]) -> tuple[float, float]:
    ratio, maximum = options["dynamic_thresholding_ratio"], options["sample_max_value"]
    if not (0.0 <= ratio <= 1.0 <= maximum):
        raise PriorError(
            f"scheduler config: dynamic_thresholding_ratio={ratio} and sample_max_value={maximum} "
            "are not supported, only a quantile and a maximum of 1 or more are."
        )
    return float(ratio), float(maximum)


def _is_schedule(alphas_cumprod: np.ndarray) -> bool:
    """Returns whether it falls from at most 1 to at least 0; with NaN it does not."""
    ends = np.concatenate([[1.0], alphas_cumprod, [0.0]]) if alphas_cumprod.ndim == 1 else None
    return ends is not None and bool(np.all(ends[:-1] >= ends[1:])) and len(ends) > 2


def _alphas_cumprod(options: Mapping[str, Any]) -> np.ndarray:
    alphas_cumprod = np.cumprod(1.0 - _betas(options))
    if options["rescale_betas_zero_snr"]:
        if options["prediction_type"] == "epsilon":
            raise PriorError(
                "scheduler config: rescale_betas_zero_snr=True is not supported with "
                "prediction_type='epsilon': at zero signal, noise does not determine it."
            )
        return zero_terminal_snr(alphas_cumprod)
    return alphas_cumprod


def zero_terminal_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Shifts and scales alpha [T] so that the last is 0 and the first stays (Lin et al., 2024).

    Takes and returns alpha^2, as diffusers keeps it.
    """
    alpha = np.sqrt(alphas_cumprod)
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2


def _betas(options: Mapping[str, Any]) -> np.ndarray:
    """Returns the variances [T] of the forward process's single steps."""
    if options["trained_betas"] is not None:
        return np.asarray(options["trained_betas"])
    steps = int(options["num_train_timesteps"])
    start, end = float(options["beta_start"]), float(options["beta_end"])
    if options["beta_schedule"] == "linear":
        return np.linspace(start, end, steps)
    if options["beta_schedule"] == "scaled_linear":  # Stable Diffusion's
        return np.linspace(math.sqrt(start), math.sqrt(end), steps) ** 2
    # squaredcos_cap_v2: the cosine schedule of Nichol & Dhariwal, 2021.
    time = np.arange(steps + 1) / steps
    alpha_bar = np.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


STABLE_DIFFUSION = schedule_from_config(
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
)


def time_index(schedule: Schedule, t: jax.Array) -> jax.Array:
    """Returns the integer timestep of t in [0, 1], of the shape of t."""
    last = len(schedule.alphas_cumprod) - 1
    return jnp.clip(jnp.round(t * last).astype(jnp.int32), 0, last)


def alpha_sigma(schedule: Schedule, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns alpha and sigma at t in [0, 1], each of the shape of t."""
    alpha_squared = jnp.asarray(schedule.alphas_cumprod)[time_index(schedule, t)]
    return jnp.sqrt(alpha_squared), jnp.sqrt(1.0 - alpha_squared)


def add_noise(z: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """Returns z_t = alpha z + sigma eps; z, eps, z_t [B, ...], alpha, sigma [B]."""
    return _like(alpha, z) * z + _like(sigma, z) * eps


def velocity(z: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """Returns v = alpha eps - sigma z, the target of a v_prediction network."""
    return _like(alpha, z) * eps - _like(sigma, z) * z


def to_epsilon(
    prediction: jax.Array, z_t: jax.Array, alpha: jax.Array, sigma: jax.Array, prediction_type: str
) -> jax.Array:
    """Returns the noise that a prediction implies; prediction, z_t [B, ...], alpha, sigma [B]."""
    alpha, sigma = _like(alpha, z_t), _like(sigma, z_t)
    if prediction_type == "epsilon":
        return prediction
    if prediction_type == "v_prediction":
        return alpha * prediction + sigma * z_t
    return (z_t - alpha * prediction) / sigma


def to_x0(
    prediction: jax.Array, z_t: jax.Array, alpha: jax.Array, sigma: jax.Array, prediction_type: str
) -> jax.Array:
    """Returns the clean latent that a prediction implies; [B, ...], alpha, sigma [B]."""
    alpha, sigma = _like(alpha, z_t), _like(sigma, z_t)
    if prediction_type == "epsilon":
        return (z_t - sigma * prediction) / alpha
    if prediction_type == "v_prediction":
        return alpha * z_t - sigma * prediction
    return prediction


def from_x0(
    z: jax.Array, z_t: jax.Array, alpha: jax.Array, sigma: jax.Array, prediction_type: str
) -> jax.Array:
    """Returns the prediction that implies a clean latent: the inverse of `to_x0` in z."""
    alpha, sigma = _like(alpha, z_t), _like(sigma, z_t)
    if prediction_type == "epsilon":
        return (z_t - alpha * z) / sigma
    if prediction_type == "v_prediction":
        return (alpha * z_t - z) / sigma
    return z


def estimate_x0(
    z_t: jax.Array, eps_hat: jax.Array, alpha: jax.Array, sigma: jax.Array
) -> jax.Array:
    """The clean latent that a noise estimate implies; z_t, eps_hat [B, ...], alpha, sigma [B]."""
    return (z_t - _like(sigma, z_t) * eps_hat) / jnp.maximum(_like(alpha, z_t), 1e-3)


def to_velocity(
    prediction: jax.Array, z_t: jax.Array, alpha: jax.Array, sigma: jax.Array, prediction_type: str
) -> jax.Array:
    """Returns the velocity that a prediction implies; [B, ...], alpha, sigma [B]."""
    if prediction_type == "v_prediction":
        return prediction
    alpha, sigma = _like(alpha, z_t), _like(sigma, z_t)
    if prediction_type == "epsilon":
        return (prediction - sigma * z_t) / alpha
    return (alpha * z_t - prediction) / sigma


def _like(coefficient: jax.Array, z: jax.Array) -> jax.Array:
    """Reshapes [B] to [B, 1, ...] with as many axes as z; scalars stay scalars."""
    coefficient = jnp.asarray(coefficient)
    return coefficient.reshape(coefficient.shape + (1,) * (z.ndim - coefficient.ndim))
