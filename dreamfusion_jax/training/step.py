"""One optimisation step as one XLA program on every device.

Score Distillation Sampling (Poole et al. 2022, equation 3) for V views on all devices together,
with z(params) the encoded render of a view:

  grad = 1/V sum_views  w(t) (eps_hat(alpha z + sigma eps) - eps)  dz/dparams

The residual is summed over the elements of z, not averaged: it is the gradient of a
squared distance in latent space, whatever the picture's size, and Adam makes the overall scale
matter only against the regularisers' weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dreamfusion_jax.config import Config, is_flat
from dreamfusion_jax.diffusion.guidance import Against
from dreamfusion_jax.diffusion.prior import Prior
from dreamfusion_jax.distillation import Distillation, Noised, latent_gradient
from dreamfusion_jax.nerf.scene import Render, Scene
from dreamfusion_jax.prompts import TextTable, embed
from dreamfusion_jax.settings import PriorConfig, TrainConfig
from dreamfusion_jax.training.state import TrainState
from dreamfusion_jax.training.views import Draw, draw_view

AXIS = "devices"

# device_index [D], state, weights, table -> state, metrics
TrainStep = Callable[
    [jax.Array, TrainState, Any, TextTable], tuple[TrainState, dict[str, jax.Array]]
]


def make_train_step(
    config: Config,
    scene: Scene,
    prior: Prior,
    optimizer: optax.GradientTransformation,
    devices: list[jax.Device],
) -> TrainStep:
    """The pmapped step. It donates the state it is given.

    The state, the prior's weights and the text table are the same on every device, so they carry no
    leading axis but are broadcast (in_axes None): place them with `replicate` before the first
    call, or every step would copy them. Only `device_index` is mapped, see `place_index`.
    """

    def train_step(
        device_index: jax.Array, state: TrainState, weights: Any, table: TextTable
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        count = config.train.views_per_device
        view_indices = device_index * count + jnp.arange(count)
        draws = jax.vmap(lambda index: draw_view(config, state.step, index))(view_indices)
        grads, metrics = sds_gradient(config, scene, prior, weights, table, state, draws)
        grads, metrics = jax.lax.pmean((grads, metrics), AXIS)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics["gradient_norm"] = optax.global_norm(grads)
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.pmap(
        train_step,
        axis_name=AXIS,
        in_axes=(0, None, None, None),
        out_axes=(None, None),
        devices=devices,
        donate_argnums=1,
    )


def sds_gradient(
    config: Config,
    scene: Scene,
    prior: Prior,
    weights: Any,
    table: TextTable,
    state: TrainState,
    draws: Draw,
) -> tuple[Any, dict[str, jax.Array]]:
    """The mean gradient over this device's views, `draws` with a leading axis [V], and metrics.

    The diffusion model only ever runs forward (unless `--gradient=full`): its residual is pulled
    back through the render and the encoder alone.
    """
    size = render_size(config, prior)

    def render(params: Any, draw: Draw) -> Render:
        return scene.render(params, draw.view, size, size, state.step, draw.render_key)

    def forward(params: Any) -> tuple[tuple[jax.Array, jax.Array], Render]:
        # A loop over the views, not vmap: under vmap `lax.cond` would compute the normals always.
        rendered = jax.lax.map(lambda draw: render(params, draw), draws)
        # The mean of the latent distribution (no key): noise there would only add variance.
        z = prior.encode(weights, rendered.image, None).astype(jnp.float32)
        return (z, regularization(config.train, rendered.regularizers, state.step)), rendered

    (z, penalty), pull, rendered = jax.vjp(forward, state.params, has_aux=True)
    noised = add_draws(config, table, draws, z)
    residual, scalars = latent_gradient(prior, weights, noised, distillation(config.prior))
    (grads,) = pull((residual / residual.shape[0], jnp.ones_like(penalty)))
    metrics = {
        **scalars,
        "opacity_mean": jnp.mean(rendered.opacity),
        **{f"regularizer/{name}": jnp.mean(x) for name, x in rendered.regularizers.items()},
    }
    return grads, metrics


def add_draws(config: Config, table: TextTable, draws: Draw, z: jax.Array) -> Noised:
    """The latents z [V, h, w, c] of the views with what was drawn for them: t, noise, text."""
    eps = jax.vmap(lambda key: jax.random.normal(key, z.shape[1:]))(draws.noise_key)
    text, empty_text, against = embed(table, draws.text)
    noised = Noised(z, draws.t, eps, text, empty_text)
    if not config.train.perp_neg:
        return noised
    return noised._replace(against=Against(against, draws.text.against_weights))


def render_size(config: Config, prior: Prior) -> int:
    """The side of a training render in pixels; of a flat picture all of its own."""
    if is_flat(config):
        return config.scene.image_size
    return config.train.render_size or prior.image_size


def distillation(config: PriorConfig) -> Distillation:
    """What the settings say of the gradient in latent space."""
    return Distillation(**{name: getattr(config, name) for name in Distillation._fields})


def regularization(
    config: TrainConfig, regularizers: dict[str, jax.Array], step: jax.Array
) -> jax.Array:
    """The weighted sum [] of the regularisers, each [V], averaged over the views."""
    constant = {
        "opacity": config.opacity_weight,
        "distortion": config.distortion_weight,
        "entropy": config.entropy_weight,
        "interlevel": config.interlevel_weight,
    }
    # What weighs nothing is left out: times 0 it would still be pulled back.
    weights: dict[str, Any] = {name: weight for name, weight in constant.items() if weight}
    if config.orientation_start or config.orientation_weight:
        weights["orientation"] = optax.linear_schedule(
            config.orientation_start, config.orientation_weight, config.orientation_steps
        )(step)
    terms = (
        weights[name] * jnp.mean(value) for name, value in regularizers.items() if name in weights
    )
    return sum(terms, jnp.zeros(()))


def replicate(tree: Any, devices: list[jax.Device]) -> Any:
    """Puts one copy of every leaf on every device, for good."""
    return jax.device_put(tree, NamedSharding(_mesh(devices), PartitionSpec()))


def place_index(devices: list[jax.Device]) -> jax.Array:
    """[D]: to each device its own index."""
    sharding = NamedSharding(_mesh(devices), PartitionSpec(AXIS))
    return jax.device_put(np.arange(len(devices), dtype=np.int32), sharding)


def _mesh(devices: list[jax.Device]) -> Mesh:
    return Mesh(np.array(devices), (AXIS,))
