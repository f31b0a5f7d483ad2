"""A renderable scene: joins rays, intervals, field, light and compositing.

Every function acts on one view without a batch axis. Map several views with `jax.lax.map`: under
`jax.vmap` an unlit view would also compute the normals of the lit branch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from dreamfusion_jax.nerf import low_res, regularizers
from dreamfusion_jax.nerf.cameras import pixel_rays
from dreamfusion_jax.nerf.fields.background import Background
from dreamfusion_jax.nerf.fields.density import Density, Sharpening
from dreamfusion_jax.nerf.fields.field import (
    Field,
    FieldOutput,
    Head,
    Params,
    with_own_texture,
)
from dreamfusion_jax.nerf.fields.grid import grid_field
from dreamfusion_jax.nerf.fields.hash_grid import HashGrid, hash_field
from dreamfusion_jax.nerf.fields.mip import CovarianceAnnealing, mip_field
from dreamfusion_jax.nerf.fields.proposal import proposal_grid
from dreamfusion_jax.nerf.fields.sdf import SignedDistance, surface_regularizers
from dreamfusion_jax.nerf.options import SceneOptions
from dreamfusion_jax.nerf.ray_chunks import render_in_chunks
from dreamfusion_jax.nerf.ray_rendering import QueryNormals, RayOutputs, render_volume
from dreamfusion_jax.nerf.shading import density_normals, finite_difference_normals
from dreamfusion_jax.nerf.surface_rendering import (
    POINTS_PER_RAY,
    Crossing,
    render_surface,
    trace,
)
from dreamfusion_jax.nerf.view import View
from dreamfusion_jax.nerf.view_rays import (
    BoundedRays,
    bounded_rays,
    choose_intervals,
    draw_stratified_noise,
)
from dreamfusion_jax.nerf.volume_rendering import over
from dreamfusion_jax.runtime.device import platform

# Width of a bare point, about one training pixel: the field resolves nothing finer.
_POINT_STD = 0.01


class Render(NamedTuple):
    """A rendered image.

    Attributes:
      image: [H, W, 3] in [0, 1].
      opacity: [H, W] in [0, 1].
      depth: [H, W] mean distance along the ray; 0 where the ray meets nothing.
      normals: [H, W, 3] composited unit normals; zeros where none were computed.
      regularizers: scalars "opacity", "distortion", "entropy", "interlevel", means over all rays,
        and "orientation", the mean over the rays that hit something (0 without normals).
    """

    image: jax.Array
    opacity: jax.Array
    depth: jax.Array
    normals: jax.Array
    regularizers: dict[str, jax.Array]


class LevelSet(NamedTuple):
    """A surface in a field: where `value` is `level`, inside where it is greater.

    Attributes:
      value: FieldOutput -> [...].
      level: None: to be chosen such that the surface's silhouettes match the opaque parts.
    """

    value: Callable[[FieldOutput], jax.Array]
    level: float | None


def _density(out: FieldOutput) -> jax.Array:
    return out.density


def _depth_below_surface(out: FieldOutput) -> jax.Array:
    assert out.sdf is not None, "the field is a signed distance"
    return -out.sdf


DENSITY_LEVELS = LevelSet(_density, level=None)
ZERO_DISTANCE = LevelSet(_depth_below_surface, level=0.0)


class RenderFn(Protocol):
    """Renders one view of `height` x `width` pixels.

    Without a key (None) samples lie in the middle of their strata and the image is deterministic.
    Where `half_size` [] bool is given and true, the rays of an image of half the side are traced
    and the result is enlarged; one compiled program serves both sizes.
    """

    def __call__(
        self,
        params: Params,
        view: View,
        height: int,
        width: int,
        step: jax.Array,
        key: jax.Array | None,
        half_size: jax.Array | None = None,
    ) -> Render: ...


class Scene(NamedTuple):
    """A family of scenes as pure functions; the parameters select one.

    Attributes:
      init: key -> params, a dict of "field" and, if the scene has them, "proposal", "background".
      render: params, view, height, width, step, key[, half_size] -> Render, see `RenderFn`.
      query: params, points [..., 3], step -> FieldOutput. The density is 0 outside the bounding
        sphere, where no ray is sampled.
      normals: params, points [..., 3], step -> outward unit normals [..., 3].
      level_set: the surface that a mesh extracts.
      flat: true for a flat image, the same for every camera.
    """

    init: Callable[[jax.Array], Params]
    render: RenderFn
    query: Callable[[Params, jax.Array, jax.Array], FieldOutput]
    normals: Callable[[Params, jax.Array, jax.Array], jax.Array]
    level_set: LevelSet = DENSITY_LEVELS
    flat: bool = False


# function that rises inwards, points -> its value, the function's other output, normals
NormalsFn = Callable[..., tuple[jax.Array, Any, jax.Array]]


def make_scene(options: SceneOptions) -> Scene:
    """Makes the scene of the field, proposal and background that `options` select.

    Raises:
      ValueError: the field or the background is unknown.
    """
    head = _make_head(options)
    field = _make_field(options, head)
    if options.texture == "own":
        field = with_own_texture(field)
    proposal = proposal_grid(options.proposal_resolution, options.bound_radius, head)
    background = _make_background(options)
    signed, surface = options.field == "sdf", options.render == "surface"
    if surface and not signed:
        raise ValueError(f"surfaces are rendered of signed distances, not of {options.field}")
    level_set = ZERO_DISTANCE if signed else DENSITY_LEVELS
    normals_fn: NormalsFn = density_normals
    if options.fd_epsilon:
        normals_fn = functools.partial(finite_difference_normals, spacing=options.fd_epsilon)
    query_normals = functools.partial(_query_normals, normals_fn, level_set)

    def init(key: jax.Array) -> Params:
        field_key, background_key = jax.random.split(key)
        params = {"field": field.init(field_key)}
        if options.proposal_samples:
            params["proposal"] = proposal.init()
        if background is not None:
            params["background"] = background.init(background_key, jnp.zeros((1, 3)))["params"]
        return params

    def render(
        params: Params,
        view: View,
        height: int,
        width: int,
        step: jax.Array,
        key: jax.Array | None,
        half_size: jax.Array | None = None,
    ) -> Render:
        size = (height, width)
        full = pixel_rays(view.camera, height, width)
        bounded, inactive = bounded_rays(options, view.camera, full, half_size)
        proposal_density = None
        if options.proposal_samples:
            table = proposal.table(params["proposal"])
            proposal_density = functools.partial(proposal.density, table)

        def query(mean: jax.Array, covariance_diag: jax.Array) -> FieldOutput:
            return field.query(params["field"], mean, covariance_diag, step)

        def query_surface(params: Params, points: jax.Array) -> FieldOutput:
            covariance = _point_covariance(options, points)
            return field.query(params["field"], points, covariance, step)

        def render_chunk(query_normals: QueryNormals | None, chunk: tuple[Any, Any]) -> RayOutputs:
            if surface:
                at_surface = functools.partial(query_surface, params)
                return render_surface(options, at_surface, query_normals, view, *chunk)
            bounded, noise = chunk
            intervals = choose_intervals(options, proposal_density, bounded, noise)
            return render_volume(options, query, query_normals, view, bounded.rays, intervals)

        def trace_chunk(bounded: BoundedRays) -> Crossing:
            constant = functools.partial(query_surface, jax.lax.stop_gradient(params))
            return trace(constant, bounded, options.trace_steps)

        in_chunks = functools.partial(
            render_in_chunks,
            inactive=inactive,
            points_per_ray=POINTS_PER_RAY if surface else options.fine_samples,
        )
        if surface:
            rest = in_chunks([trace_chunk], index=jnp.int32(0), rays=bounded)
        else:
            rest = draw_stratified_noise(options, size, key)
        outputs = in_chunks(
            # Normals double the cost, so the first branch leaves them out.
            [functools.partial(render_chunk, None), functools.partial(render_chunk, query_normals)],
            index=jnp.where((view.diffuse > 0.0) | view.with_normals, 1, 0),
            rays=(bounded, rest),
        )
        if half_size is not None:
            outputs = low_res.tree_where(half_size, low_res.enlarge(outputs, size), outputs)
        background_color = view.background
        if background is not None:
            learned = _background_color(background, params["background"], full.direction)
            background_color = jnp.where(view.solid_background, background_color, learned)
        rendered = _composite_over(outputs, background_color)
        if not signed or key is None:
            return rendered
        terms = surface_regularizers(
            lambda points: -level_set.value(query_points(params, points, step)),
            options.bound_radius,
            options.surface_points,
            jax.random.fold_in(key, 2),
        )
        return rendered._replace(regularizers={**rendered.regularizers, **terms})

    def query_points(params: Params, points: jax.Array, step: jax.Array) -> FieldOutput:
        out = field.query(params["field"], points, _point_covariance(options, points), step)
        inside = jnp.sum(points**2, axis=-1) <= options.bound_radius**2
        return out._replace(density=jnp.where(inside, out.density, 0.0))

    def normals(params: Params, points: jax.Array, step: jax.Array) -> jax.Array:
        covariance = _point_covariance(options, points)

        def query(points: jax.Array) -> FieldOutput:
            return field.query(params["field"], points, covariance, step)

        return query_normals(query, points)[1]

    return Scene(init, render, query_points, normals, level_set)


def _make_head(options: SceneOptions) -> Head:
    if options.field == "sdf":
        return SignedDistance(
            options.blob_radius,
            options.sdf_beta_start,
            options.sdf_beta_end,
            options.sdf_beta_steps,
        )
    return Density(
        options.density_activation,
        options.density_scale,
        options.blob_scale,
        options.blob_radius,
        options.blob_shape,
        options.density_bias,
        Sharpening(
            options.sharpening,
            options.sharpening_density,
            options.sharpening_start,
            options.sharpening_steps,
        ),
    )


def _make_field(options: SceneOptions, head: Head) -> Field:
    match options.encoding:
        case "mip":
            return mip_field(
                options.width,
                options.depth,
                options.min_degree,
                options.max_degree,
                head,
                CovarianceAnnealing(options.blur_start, options.blur_end, options.blur_steps),
                residual=options.network == "residual",
                dtype=_mlp_dtype(options),
            )
        case "grid":
            return grid_field(options.grid_resolution, options.bound_radius, head)
        case "hash":
            names = HashGrid._fields
            grid = HashGrid(**{name: getattr(options, f"hash_{name}") for name in names})
            network = (options.width, options.depth)
            return hash_field(grid, *network, options.bound_radius, head, _mlp_dtype(options))
    raise ValueError(f"field {options.field!r} is not mip, grid, hash or sdf")


def _mlp_dtype(options: SceneOptions) -> Any:
    """Returns the number format of the products of the field's MLP, on this platform.

    A TPU rounds the factors of float32 products by itself; a program in bfloat16 was no smaller.
    A distance that is rounded to 1 part in 256 has dents of a few thousandths of the scene.
    """
    small = platform() == "gpu" and options.field != "sdf"
    auto = "bfloat16" if small else "float32"
    return jnp.dtype(auto if options.field_dtype == "auto" else options.field_dtype)


def _query_normals(
    normals_fn: NormalsFn,
    level_set: LevelSet,
    query: Callable[[jax.Array], FieldOutput],
    points: jax.Array,
) -> tuple[FieldOutput, jax.Array]:
    """Returns the field's values at points [..., 3] and the outward normals there [..., 3]."""

    def rising(points: jax.Array) -> tuple[jax.Array, FieldOutput]:
        out = query(points)
        return level_set.value(out), out

    _, out, normals = normals_fn(rising, points)
    return out, normals


def _make_background(options: SceneOptions) -> Background | None:
    match options.background:
        case "solid":
            return None
        case "mlp":
            return Background()
    raise ValueError(f"background {options.background!r} is not solid or mlp")


def _background_color(background: Background, params: Params, direction: jax.Array) -> jax.Array:
    return jnp.asarray(background.apply({"params": params}, direction))


def _composite_over(outputs: RayOutputs, background: jax.Array) -> Render:
    """Joins what the rays [H, W] return with the background's color, [3] or [H, W, 3]."""
    opacity = outputs.opacity
    per_ray = {
        "opacity": regularizers.opacity_loss(opacity),
        "entropy": regularizers.entropy_loss(opacity),
        "distortion": outputs.regularizers["distortion"],
        "interlevel": outputs.regularizers["interlevel"],
    }
    orientation = regularizers.mean_over_hits(outputs.regularizers["orientation"], opacity)
    return Render(
        image=over(outputs.color, opacity, background),
        opacity=opacity,
        depth=outputs.depth,
        normals=outputs.normals,
        regularizers={
            "orientation": orientation,
            **{name: jnp.mean(term) for name, term in per_ray.items()},
        },
    )


def _point_covariance(options: SceneOptions, points: jax.Array) -> jax.Array:
    return jnp.full_like(points, (_POINT_STD * options.bound_radius) ** 2)
