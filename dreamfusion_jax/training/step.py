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
from typing import Any, NamedTuple

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
from dreamfusion_jax.training.views import Draw, draw_view, orientation_weight

AXIS = "devices"


class DeviceInput(NamedTuple):
    """What differs from device to device, each [D]; [] on the device itself.

    Attributes:
      place: int32, which of all devices of all processes it is.
      stop: int32, 1 where its process was asked to stop, and else 0.
    """

    place: jax.Array
    stop: jax.Array


# device input, state, weights, table -> state, metrics
TrainStep = Callable[
    [DeviceInput, TrainState, Any, TextTable], tuple[TrainState, dict[str, jax.Array]]
]


# scene's params -> (latents [V, h, w, c], weighted regularizers []), the renders [V, ...]
Forward = Callable[[Any], tuple[tuple[jax.Array, jax.Array], Render]]


def make_train_step(
    config: Config,
    scene: Scene,
    prior: Prior,
    optimizer: optax.GradientTransformation,
    devices: list[jax.Device],
) -> TrainStep:
    """The pmapped step on `devices`, those of all processes. It donates the state it is given.

    The state, the prior's weights and the text table are the same on every device, so they carry no
    leading axis but are broadcast (in_axes None): place them with `replicate` before the first
    call, or every step would copy them. Only `DeviceInput` is mapped, see `place_input`.
    """
    return jax.pmap(
        device_step(config, scene, prior, optimizer),
        axis_name=AXIS,
        in_axes=(0, None, None, None),
        out_axes=(None, None),
        devices=devices,
        donate_argnums=1,
    )


def device_step(
    config: Config, scene: Scene, prior: Prior, optimizer: optax.GradientTransformation
) -> TrainStep:
    """What each device does in a step, under a mapped axis named `AXIS`.

    A step whose residual or gradient is not finite changes nothing but the counters. The metrics
    tell of it (`skipped_steps` so far, `skipped_in_row`), and whether any process was asked to
    stop (`stop`), to every process alike.
    """

    def train_step(
        device: DeviceInput, state: TrainState, weights: Any, table: TextTable
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        count = config.train.views_per_device
        view_indices = device.place * count + jnp.arange(count)
        draws = jax.vmap(lambda index: draw_view(config, state.step, index))(view_indices)
        grads, metrics = sds_gradient(config, scene, prior, weights, table, state, draws)
        grads, metrics = jax.lax.pmean((grads, metrics), AXIS)
        metrics["gradient_norm"] = optax.global_norm(grads)
        for group, gradient in grads.items():
            metrics[f"gradient_norm/{group}"] = optax.global_norm(gradient)
        finite = jnp.isfinite(metrics["gradient_norm"] + metrics["residual_rms"])
        state = updated(optimizer, state, grads, finite)
        metrics |= {"skipped_steps": state.skipped, "skipped_in_row": state.skipped_in_row}
        metrics["stop"] = jax.lax.pmax(device.stop, AXIS)
        return state, metrics

    return train_step


def updated(
    optimizer: optax.GradientTransformation, state: TrainState, grads: Any, finite: jax.Array
) -> TrainState:
    """The state after a step with these gradients; where they are not finite, as good as before."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    after = (optax.apply_updates(state.params, updates), opt_state)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), after, (state.params, state.opt_state)
    )
    skipped = 1 - finite.astype(jnp.int32)
    in_row = (state.skipped_in_row + 1) * skipped
    return TrainState(state.step + 1, params, opt_state, state.skipped + skipped, in_row)


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
    forward = make_forward(config, scene, prior, weights, state.step, draws)
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


def make_forward(
    config: Config, scene: Scene, prior: Prior, weights: Any, step: jax.Array, draws: Draw
) -> Forward:
    """Returns what the gradient is pulled back through: the drawn views' latents and penalty."""
    size = render_size(config, prior)

    def render(params: Any, draw: Draw) -> Render:
        return scene.render(params, draw.view, size, size, step, draw.render_key)

    def forward(params: Any) -> tuple[tuple[jax.Array, jax.Array], Render]:
        # A loop over the views, not vmap: under vmap `lax.cond` would compute the normals always.
        rendered = jax.lax.map(lambda draw: render(params, draw), draws)
        # The mean of the latent distribution (no key): noise there would only add variance.
        z = prior.encode(weights, rendered.image, None).astype(jnp.float32)
        return (z, regularization(config.train, rendered.regularizers, step)), rendered

    return forward


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
        weights["orientation"] = orientation_weight(config, step)
    terms = (
        weights[name] * jnp.mean(value) for name, value in regularizers.items() if name in weights
    )
    return sum(terms, jnp.zeros(()))


def replicate(tree: Any, devices: list[jax.Device]) -> Any:
    """Puts one copy of every leaf on each of `devices` that is this process's own, for good."""
    return jax.device_put(tree, NamedSharding(_mesh(_own(devices)), PartitionSpec()))


def place_input(devices: list[jax.Device], stop: bool = False) -> DeviceInput:
    """This process's part of the step's mapped input: its own devices' places in `devices`."""
    own = _own(devices)
    place = np.array([devices.index(device) for device in own], np.int32)
    sharding = NamedSharding(_mesh(own), PartitionSpec(AXIS))
    return DeviceInput(*jax.device_put((place, np.full_like(place, stop)), sharding))


def across_processes(tree: Any, devices: list[jax.Device]) -> Any:
    """The same arrays as `replicate` gave, as copies on the devices of all processes."""
    sharding = NamedSharding(_mesh(devices), PartitionSpec())

    def join(array: jax.Array) -> jax.Array:
        copies = [shard.data for shard in array.addressable_shards]
        return jax.make_array_from_single_device_arrays(array.shape, sharding, copies)

    return jax.tree.map(join, tree)


def _own(devices: list[jax.Device]) -> list[jax.Device]:
    return [device for device in devices if device.process_index == jax.process_index()]


def _mesh(devices: list[jax.Device]) -> Mesh:
    return Mesh(np.array(devices), (AXIS,))
