"""One optimization step as one XLA program on every device.

For V views on all devices together, with z(params) the encoded render of a view and r the constant
that the objective computes from it (distillation/), the scene's gradient is

  grad = 1/V sum_views  r  dz/dparams,    of SDS: r = w(t) (eps_hat(alpha z + sigma eps) - eps)

The residual is summed over the elements of z, not averaged: it is the gradient of a
squared distance in latent space, whatever the image's size, and Adam makes the overall scale
matter only against the regularizers' weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dreamfusion_jax.config.flags import Config, is_flat
from dreamfusion_jax.diffusion.priors.prior import Prior, PriorParams
from dreamfusion_jax.distillation import view_prompts
from dreamfusion_jax.distillation.objective import Batch, Objective
from dreamfusion_jax.distillation.view_prompts import TextTable, ViewScheme
from dreamfusion_jax.nerf.scene import Render, Scene
from dreamfusion_jax.runtime.device import platform
from dreamfusion_jax.training.options import TrainOptions
from dreamfusion_jax.training.state import TrainState
from dreamfusion_jax.training.views import Draw, draw_view, orientation_weight

AXIS = "devices"


class Setup(NamedTuple):
    """The static inputs that a step is compiled for.

    Attributes:
      config: the run's settings.
      scene, prior, objective: the pure functions.
      scheme: the words for views that the prior knows.
    """

    config: Config
    scene: Scene
    prior: Prior
    objective: Objective
    scheme: ViewScheme


class DeviceInput(NamedTuple):
    """The input that differs between devices, each [D]; [] on the device itself.

    Attributes:
      place: int32, the device's index among those of all processes.
      stop: int32, 1 if its process received a request to stop, else 0.
    """

    place: jax.Array
    stop: jax.Array


# device input, state, prior params, table -> state, metrics
TrainStep = Callable[
    [DeviceInput, TrainState, PriorParams, TextTable], tuple[TrainState, dict[str, jax.Array]]
]

# the scene's params -> (latents [V, h, w, c], weighted regularizers []), the renders [V, ...]
Forward = Callable[[Any], tuple[tuple[jax.Array, jax.Array], Render]]


def make_train_step(
    setup: Setup, optimizer: optax.GradientTransformation, devices: list[jax.Device]
) -> TrainStep:
    """Makes the pmapped step on `devices`, those of all processes. It donates its state.

    The state, the prior's params and the text table are the same on every device, so they carry no
    leading axis but are broadcast (in_axes None): place them with `replicate` before the first
    call, or every step would copy them. Only `DeviceInput` is mapped, see `place_input`.

    Raises:
      ValueError: a device's views do not make whole groups of those that the prior sees together.
    """
    views, joint = setup.config.train.views_per_device, setup.prior.joint_views
    if views % joint:
        raise ValueError(f"{views} views a device do not make whole groups of {joint}")
    return jax.pmap(
        device_step(setup, optimizer),
        axis_name=AXIS,
        in_axes=(0, None, None, None),
        out_axes=(None, None),
        devices=devices,
        donate_argnums=1,
    )


def device_step(setup: Setup, optimizer: optax.GradientTransformation) -> TrainStep:
    """Makes the function that each device runs in a step, under a mapped axis named `AXIS`.

    A step whose residual or gradient is not finite changes only the counters. The metrics report,
    equally to all processes, skipped steps (`skipped_steps`, `consecutive_skipped`) and whether
    any process was requested to stop (`stop`).
    """

    def train_step(
        device: DeviceInput, state: TrainState, prior_params: PriorParams, table: TextTable
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        count = setup.config.train.views_per_device
        view_indices = device.place * count + jnp.arange(count)
        draws = draw_views(setup, state.step, view_indices)
        grads, metrics = gradients(setup, prior_params, table, state, draws)
        grads, metrics = jax.lax.pmean((grads, metrics), AXIS)
        metrics["gradient_norm"] = optax.tree.norm(grads)
        for group, gradient in grads["scene"].items():
            metrics[f"gradient_norm/{group}"] = optax.tree.norm(gradient)
        finite = jnp.isfinite(metrics["gradient_norm"] + metrics["residual_rms"])
        state = apply_gradients(optimizer, state, grads, finite)
        metrics |= {
            "skipped_steps": state.skipped,
            "consecutive_skipped": state.consecutive_skipped,
        }
        metrics["stop"] = jax.lax.pmax(device.stop, AXIS)
        return state, metrics

    return train_step


def draw_views(setup: Setup, step: jax.Array, view_indices: jax.Array) -> Draw:
    """Draws the views with these global indices [V]; every leaf gets that leading axis."""
    prior = setup.prior

    def draw(index: jax.Array) -> Draw:
        return draw_view(setup.config, step, index, prior.joint_views, prior.schedule)

    return jax.vmap(draw)(view_indices)


def apply_gradients(
    optimizer: optax.GradientTransformation, state: TrainState, grads: Any, finite: jax.Array
) -> TrainState:
    """Returns the state after a step; params and moments are unchanged if it was not `finite`."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    after = (optax.apply_updates(state.params, updates), opt_state)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), after, (state.params, state.opt_state)
    )
    skipped = 1 - finite.astype(jnp.int32)
    consecutive = (state.consecutive_skipped + 1) * skipped
    return TrainState(state.step + 1, params, opt_state, state.skipped + skipped, consecutive)


def gradients(
    setup: Setup,
    prior_params: PriorParams,
    table: TextTable,
    state: TrainState,
    draws: Draw,
) -> tuple[Any, dict[str, jax.Array]]:
    """Returns the mean gradient over this device's views, `draws` with a leading axis [V], and
    metrics.

    The diffusion model only runs forward, unless the objective differentiates it: the objective's
    cotangent is pulled back through the encoder and the render alone.
    """
    forward = make_forward(setup, prior_params, state.step, draws)
    (z, penalty), pull, rendered = jax.vjp(forward, state.params["scene"], has_aux=True)
    batch = make_batch(setup, table, draws, z, state.step)
    own = state.params["objective"]
    residual, metrics = setup.objective.gradient(own, prior_params, batch)
    (scene_grads,) = pull((residual / residual.shape[0], jnp.ones_like(penalty)))
    own_grads = own
    if jax.tree.leaves(own):
        loss = jax.value_and_grad(setup.objective.loss)
        metrics["objective_loss"], own_grads = loss(own, prior_params, batch)
    metrics = {
        **metrics,
        "opacity_mean": jnp.mean(rendered.opacity),
        **{f"regularizer/{name}": jnp.mean(x) for name, x in rendered.regularizers.items()},
    }
    return {"scene": scene_grads, "objective": own_grads}, metrics


def make_forward(setup: Setup, prior_params: PriorParams, step: jax.Array, draws: Draw) -> Forward:
    """Makes the function from the scene's params to the views' latents and regularization."""
    size = render_size(setup.config, setup.prior)

    def render(params: Any, draw: Draw) -> Render:
        half_size = draw.half_size if setup.config.train.half_size_steps else None
        return setup.scene.render(params, draw.view, size, size, step, draw.render_key, half_size)

    def forward(params: Any) -> tuple[tuple[jax.Array, jax.Array], Render]:
        # A loop over the views, not vmap: under vmap `lax.cond` would always compute the normals.
        rendered = jax.lax.map(lambda draw: render(params, draw), draws)
        # The mean of the latent distribution (no key): sampling would only add variance.
        z = setup.prior.encode(prior_params, rendered.image, None).astype(jnp.float32)
        penalty = regularization(setup.config.train, rendered.regularizers, step)
        return (z, penalty), rendered

    return forward


def make_batch(setup: Setup, table: TextTable, draws: Draw, z: jax.Array, step: jax.Array) -> Batch:
    """Joins the latents z [V, h, w, c] with their views' times, keys, poses and conditions."""
    options, pose = setup.config.view_prompts, draws.pose
    text = view_prompts.view_text(
        options, setup.scheme, pose.azimuth_deg, pose.elevation_deg, draws.view.textureless
    )

    def with_pose(condition: Any) -> Any:
        full = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(z), *x.shape[1:])), condition)
        return setup.prior.with_pose(full, pose)

    perp_neg = None
    if options.perp_neg:
        perp_neg = view_prompts.perp_neg(table, text)
    return Batch(
        z=z,
        t=draws.t,
        key=draws.noise_key,
        step=step,
        pose=pose,
        cond=with_pose(view_prompts.mixed(table, text)),
        uncond=with_pose(table.empty),
        negative=with_pose(view_prompts.negatives(table, text)),
        view_independent=with_pose(table.plain),
        perp_neg=perp_neg,
    )


def render_size(config: Config, prior: Prior) -> int:
    """Returns the side of a training render in pixels; a flat image renders at its own size.

    Of several sizes it is the first: a step is compiled for one, see `stage_setups`.
    """
    if is_flat(config):
        return config.scene.image_size
    return config.train.render_size[0] or prior.image_size


def stage_setups(setup: Setup) -> list[Setup]:
    """Returns a setup for each of the render sizes, with that size alone."""
    sizes = setup.config.train.render_size
    return [setup if len(sizes) == 1 else _with_render_size(setup, size) for size in sizes]


def _with_render_size(setup: Setup, size: int) -> Setup:
    train = dataclasses.replace(setup.config.train, render_size=(size,), render_milestones=(0,))
    return setup._replace(config=dataclasses.replace(setup.config, train=train))


def regularization(
    config: TrainOptions, regularizers: dict[str, jax.Array], step: jax.Array
) -> jax.Array:
    """Returns the weighted sum [] of the regularizers, each [V], averaged over the views."""
    constant = {
        "opacity": config.opacity_weight,
        "distortion": config.distortion_weight,
        "entropy": config.entropy_weight,
        "interlevel": config.interlevel_weight,
        "eikonal": config.eikonal_weight,
        "smoothness": config.smoothness_weight,
    }
    # A regularizer of weight 0 is left out: multiplied by 0 it would still be differentiated.
    weights: dict[str, Any] = {name: weight for name, weight in constant.items() if weight}
    if config.orientation_start or config.orientation_weight:
        weights["orientation"] = orientation_weight(config, step)
    terms = (
        weights[name] * jnp.mean(value) for name, value in regularizers.items() if name in weights
    )
    return sum(terms, jnp.zeros(()))


def replicate(tree: Any, devices: list[jax.Device]) -> Any:
    """Places a copy of every leaf on each of `devices` that belongs to this process."""
    return jax.device_put(tree, NamedSharding(_mesh(_own(devices)), PartitionSpec()))


def place_weights(array: Any, devices: list[jax.Device]) -> jax.Array:
    """Places a copy of an array of the prior's weights as `replicate` does, in its own layout."""
    return jax.device_put(array, weights_format(array, devices))


def weights_format(array: Any, devices: list[jax.Device]) -> Format | NamedSharding:
    """Returns where an array of the prior's weights is kept for steps on `devices`, and how.

    cuDNN reads a convolution's kernel [h, w, in, out] with `out` first and `in` last. One that is
    kept otherwise would be transposed in every step.
    """
    sharding = NamedSharding(_mesh(_own(devices)), PartitionSpec())
    kernel = array.ndim == 4 and array.shape[0] > 1
    return Format(Layout((3, 0, 1, 2)), sharding) if kernel and platform() == "gpu" else sharding


def place_input(devices: list[jax.Device], stop: bool = False) -> DeviceInput:
    """Makes this process's part of the step's mapped input, for its own devices."""
    own = _own(devices)
    place = np.array([devices.index(device) for device in own], np.int32)
    sharding = NamedSharding(_mesh(own), PartitionSpec(AXIS))
    return DeviceInput(*jax.device_put((place, np.full_like(place, stop)), sharding))


def across_processes(tree: Any, devices: list[jax.Device]) -> Any:
    """Returns arrays that `replicate` placed, as replicated over the devices of all processes."""
    sharding = NamedSharding(_mesh(devices), PartitionSpec())

    def join(array: jax.Array) -> jax.Array:
        copies = [shard.data for shard in array.addressable_shards]
        return jax.make_array_from_single_device_arrays(array.shape, sharding, copies)

    return jax.tree.map(join, tree)


def _own(devices: list[jax.Device]) -> list[jax.Device]:
    return [device for device in devices if device.process_index == jax.process_index()]


def _mesh(devices: list[jax.Device]) -> Mesh:
    return Mesh(np.array(devices), (AXIS,))
