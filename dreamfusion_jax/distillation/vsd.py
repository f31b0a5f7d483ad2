"""Variational Score Distillation (ProlificDreamer, Wang et al. 2023, arXiv:2305.16213).

    r = w(t) (e_s(z_t, t, y_view) - e_phi(z_t, t, y, c))                          (eq. 9)
    L(phi) = |e_phi(alpha z + sigma eps', t', y, c) - eps'|^2,    t' ~ U(0, 1)    (eq. 11)

Where SDS subtracts the noise, VSD subtracts the score of the renders: phi, the prior with low-rank
updates of its attention and an embedding of the camera c, learns it while the scene is optimized.
The prompt of phi has no words for views, as it knows the camera. The authors weigh by sigma^2 at
guidance 7.5, of rank 4, without the camera in a tenth of what phi learns from, and train phi by
AdamW at 1e-4. One scene stands for their particles.

The camera's embedding ends in zeros here, where the authors draw it at random, so that phi starts
as the prior itself.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.lora import init_lora
from dreamfusion_jax.diffusion.priors.prior import Condition, Pose, Prior, PriorParams
from dreamfusion_jax.diffusion.schedule import alpha_sigma, velocity
from dreamfusion_jax.distillation.objective import (
    Batch,
    Metrics,
    Objective,
    Params,
    Query,
    draw_noise,
    draw_uniform,
    finish,
    noised,
    predict_eps_x0,
    predict_noise,
    with_other_keys,
)
from dreamfusion_jax.distillation.options import DistillationOptions
from dreamfusion_jax.distillation.sds import sds_residual
from dreamfusion_jax.distillation.weighting import timestep_weight
from dreamfusion_jax.runtime.errors import ArgumentError

CAMERA_NUMBERS = 16  # of the flattened camera-to-world matrix
_LEARNING, _DROPOUT = 2, 3  # folded into the keys of what phi learns from


def vsd(prior: Prior, options: DistillationOptions) -> Objective:
    """Makes Variational Score Distillation; its own params are phi's {"lora", "camera"}.

    Raises:
      ArgumentError: the prior takes cameras of its own.
    """
    if prior.joint_views > 1:
        raise ArgumentError(
            "objective=vsd gives its network the camera, which this prior takes already: choose"
            " another objective."
        )

    def gradient(
        params: Params, prior_params: PriorParams, batch: Batch
    ) -> tuple[jax.Array, Metrics]:
        alpha, sigma = alpha_sigma(prior.schedule, batch.t)
        weight = timestep_weight(options.weighting, alpha, sigma, options.weight_cap)
        eps = draw_noise(batch)
        guided, x0 = predict_eps_x0(prior, prior_params, batch, eps, options)
        z_t = noised(prior, batch.z, batch.t, eps)
        query = Query(z_t, batch.t, camera_condition(batch, camera_vector(batch.pose)))
        (render,) = predict_noise(prior, adapted(prior_params, params), [query])
        residual = sds_residual(weight, guided, render)
        return finish(residual, batch, eps, guided, x0, weight, options)

    def loss(params: Params, prior_params: PriorParams, batch: Batch) -> jax.Array:
        batch = with_other_keys(batch, _LEARNING)
        t, eps = draw_uniform(batch), draw_noise(batch)
        kept = draw_uniform(with_other_keys(batch, _DROPOUT)) >= options.vsd_camera_dropout
        camera = jnp.where(kept[:, None], camera_vector(batch.pose), 0.0)
        z = jax.lax.stop_gradient(batch.z)
        prediction = prior.predict(
            adapted(prior_params, params),
            noised(prior, z, t, eps),
            t,
            camera_condition(batch, camera),
        )
        error = prediction - training_target(prior, z, eps, t)
        # A sum over the latent, as the residual is: a mean would underflow in half precision.
        return jnp.sum(error**2) / len(z)

    return Objective(lambda key, prior_params: init_phi(key, prior_params, options), gradient, loss)


def init_phi(key: jax.Array, prior_params: PriorParams, options: DistillationOptions) -> Params:
    """Makes phi's params, with which it is the prior.

    Raises:
      ArgumentError: the prior is no U-Net.
    """
    if "unet" not in (prior_params or {}):
        raise ArgumentError("objective=vsd trains updates of a U-Net, and this prior has none.")
    lora_key, camera_key = jax.random.split(key)
    unet = prior_params["unet"]
    width = unet["time_embedding"]["linear_2"]["kernel"].shape[-1]
    first = jax.random.normal(camera_key, (CAMERA_NUMBERS, width)) / CAMERA_NUMBERS**0.5
    return {
        "lora": init_lora(lora_key, unet, options.vsd_lora_rank),
        "camera": {
            "linear_1": {"kernel": first, "bias": jnp.zeros(width)},
            "linear_2": {"kernel": jnp.zeros((width, width)), "bias": jnp.zeros(width)},
        },
    }


def adapted(prior_params: PriorParams, params: Params) -> Any:
    """Returns phi's params: the prior's own arrays, low-rank updates and the camera's embedding."""
    unet = {**prior_params.get("unet", {}), "class_embedding": params["camera"]}
    return {**prior_params, "unet": unet, "lora": params["lora"]}


def camera_condition(batch: Batch, camera: jax.Array) -> Condition:
    """Returns what phi is conditioned on: the prompt without words for views, camera [B, 16]."""
    condition = batch.view_independent
    if condition.vector is not None:  # the prior's own comes first
        camera = jnp.concatenate([condition.vector, camera], axis=-1)
    return condition._replace(vector=camera)


def camera_vector(pose: Pose) -> jax.Array:
    """Returns the flattened 4 x 4 camera-to-world matrices [B, 16]."""
    top = pose.camera_to_world
    last = jnp.broadcast_to(jnp.array([0.0, 0.0, 0.0, 1.0]), (*top.shape[:-2], 1, 4))
    return jnp.concatenate([top, last], axis=-2).reshape(-1, CAMERA_NUMBERS)


def training_target(prior: Prior, z: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
    """Returns what the network should have predicted at t [B]: eps, the velocity, or z."""
    match prior.schedule.prediction_type:
        case "epsilon":
            return eps
        case "v_prediction":
            return velocity(z, eps, *alpha_sigma(prior.schedule, t))
    return z
