"""From a view to a picture: rays, intervals, field, light and compositing, joined.

Every function acts on one view without a batch axis. Take several views with `jax.lax.map`: under
`jax.vmap` an unlit view would pay for the normals of the lit branch as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dreamfusion_jax.errors import UserError
from dreamfusion_jax.nerf import regularizers
from dreamfusion_jax.nerf.cameras import Camera, Rays, pixel_rays
from dreamfusion_jax.nerf.encoding import frustum_gaussians
from dreamfusion_jax.nerf.field import (
    Background,
    Density,
    Field,
    ProposalGrid,
    grid_field,
    mip_field,
    proposal_grid,
)
from dreamfusion_jax.nerf.intervals import resample_edges, sphere_bounds, uniform_edges
from dreamfusion_jax.nerf.rendering import composite, compositing_weights, expected_depth, over
from dreamfusion_jax.nerf.shading import density_normals, point_light, safe_normalize

# A bare point is given the width of about one training pixel: the field knows nothing finer.
_POINT_STD = 0.01


class SceneOptions(NamedTuple):
    """Plain values; lengths are in world units."""

    field: str = "mip"  # mip | grid
    bound_radius: float = 1.0
    width: int = 64  # of the MLP
    depth: int = 3  # hidden layers
    min_degree: int = 0  # frequencies 2^min_degree ..
    max_degree: int = 6  # .. 2^(max_degree - 1)
    density_activation: str = "softplus"  # softplus | exp
    density_scale: float = 20.0
    blob_scale: float = 4.0
    blob_radius: float = 0.5
    blob_shape: str = "linear"  # linear | gaussian
    proposal_samples: int = 32  # 0: no proposal, the fine samples cover the sphere evenly
    proposal_resolution: int = 32
    fine_samples: int = 20
    grid_resolution: int = 64  # of --field=grid
    background: str = "solid"  # solid | mlp


class View(NamedTuple):
    """All that decides one picture of a given scene.

    Attributes:
      camera: where from.
      light_position: [3].
      ambient: [] l_ambient.
      diffuse: [] l_diffuse; exactly 0 means unlit, and then no normals are computed.
      textureless: [] bool; albedo 1 everywhere.
      background: [3] solid colour.
      solid_background: [] bool; use `background` even where the scene has learned one.
    """

    camera: Camera
    light_position: jax.Array
    ambient: jax.Array
    diffuse: jax.Array
    textureless: jax.Array
    background: jax.Array
    solid_background: jax.Array


class Render(NamedTuple):
    """One picture.

    Attributes:
      image: [H, W, 3] in [0, 1].
      opacity: [H, W] in [0, 1].
      depth: [H, W] mean distance along the ray; 0 where there is nothing.
      normals: [H, W, 3] composited unit normals; zeros where the view is not lit.
      regularizers: scalars "opacity", "orientation", "distortion", "entropy", "interlevel".
    """

    image: jax.Array
    opacity: jax.Array
    depth: jax.Array
    normals: jax.Array
    regularizers: dict[str, jax.Array]


class Scene(NamedTuple):
    """A family of scenes; the parameters choose one.

    Attributes:
      init: key -> params, a dict of "field" and, where there are such, "proposal", "background".
      render: params, view, height, width, step, key -> Render. Without a key (None) samples lie in
        the middle of their strata and the picture is deterministic.
      density_albedo: params, points [..., 3], step -> density [...], albedo [..., 3]. The density
        is 0 outside the bounding sphere, where no ray looks.
      normals: params, points [..., 3], step -> outward unit normals [..., 3].
    """

    init: Callable[[jax.Array], Any]
    render: Callable[[Any, View, int, int, jax.Array, jax.Array | None], Render]
    density_albedo: Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    normals: Callable[[Any, jax.Array, jax.Array], jax.Array]


class _Intervals(NamedTuple):
    """Where the field is asked, and the proposal that chose it ([..., S+1], [..., P+1], [..., P])."""

    edges: jax.Array
    proposal_edges: jax.Array | None
    proposal_weights: jax.Array | None


def make_scene(options: SceneOptions) -> Scene:
    """Joins the field, the proposal and the background that `options` names."""
    density = Density(
        options.density_activation,
        options.density_scale,
        options.blob_scale,
        options.blob_radius,
        options.blob_shape,
    )
    field = _make_field(options, density)
    proposal = proposal_grid(options.proposal_resolution, options.bound_radius, density)
    background = _make_background(options)

    def init(key: jax.Array) -> Any:
        field_key, background_key = jax.random.split(key)
        params = {"field": field.init(field_key)}
        if options.proposal_samples:
            params["proposal"] = proposal.init()
        if background is not None:
            params["background"] = background.init(background_key, jnp.zeros((1, 3)))["params"]
        return params

    def render(
        params: Any, view: View, height: int, width: int, step: jax.Array, key: jax.Array | None
    ) -> Render:
        rays = pixel_rays(view.camera, height, width)
        intervals = _choose_intervals(options, proposal, params, rays, key)
        means, covariances = frustum_gaussians(rays, intervals.edges)
        tau, rho, normals = _query(field, params["field"], means, covariances, step, view.diffuse)
        rho = jnp.where(view.textureless, 1.0, rho)
        colour = point_light(rho, normals, means, view.light_position, view.ambient, view.diffuse)
        weights = compositing_weights(tau, intervals.edges)
        opacity = jnp.sum(weights, axis=-1)
        behind = view.background
        if background is not None:
            learned = background.apply({"params": params["background"]}, rays.direction)
            behind = jnp.where(view.solid_background, behind, learned)
        return Render(
            image=over(composite(weights, colour), opacity, behind),
            opacity=opacity,
            depth=expected_depth(weights, intervals.edges),
            normals=composite(weights, normals),
            regularizers=_regularize(options, rays, intervals, weights, opacity, normals),
        )

    def density_albedo(
        params: Any, points: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        tau, rho = field.query(params["field"], points, _point_covariance(options, points), step)
        inside = jnp.sum(points**2, axis=-1) <= options.bound_radius**2
        return jnp.where(inside, tau, 0.0), rho

    def normals(params: Any, points: jax.Array, step: jax.Array) -> jax.Array:
        covariance = _point_covariance(options, points)
        return density_normals(
            lambda at: field.query(params["field"], at, covariance, step), points
        )[2]

    return Scene(init, render, density_albedo, normals)


def albedo_view(camera: Camera, background: jax.Array) -> View:
    """The view that shows the albedo alone over a solid `background` [3]."""
    return _view(camera, camera.pose[:, 3], background, ambient=1.0, diffuse=0.0)


def lit_view(
    camera: Camera,
    background: jax.Array,
    light_position: jax.Array | None = None,
    textureless: bool = False,
    ambient: float = 0.3,
    diffuse: float = 0.7,
) -> View:
    """A view under a point light [3]; None puts the light a little above the camera."""
    if light_position is None:
        position, up = camera.pose[:, 3], camera.pose[:, 1]
        light_position = position + 0.3 * jnp.linalg.norm(position) * up
    return _view(camera, light_position, background, ambient, diffuse, textureless)


def _view(
    camera: Camera,
    light_position: jax.Array,
    background: jax.Array,
    ambient: float,
    diffuse: float,
    textureless: bool = False,
) -> View:
    return View(
        camera=camera,
        light_position=jnp.asarray(light_position, jnp.float32),
        ambient=jnp.float32(ambient),
        diffuse=jnp.float32(diffuse),
        textureless=jnp.asarray(textureless),
        background=jnp.asarray(background, jnp.float32),
        solid_background=jnp.asarray(True),
    )


def _make_field(options: SceneOptions, density: Density) -> Field:
    match options.field:
        case "mip":
            return mip_field(
                options.width, options.depth, options.min_degree, options.max_degree, density
            )
        case "grid":
            return grid_field(options.grid_resolution, options.bound_radius, density)
    raise UserError(f"--field={options.field}: use mip or grid.")


def _make_background(options: SceneOptions) -> Background | None:
    match options.background:
        case "solid":
            return None
        case "mlp":
            return Background()
    raise UserError(f"--background={options.background}: use solid or mlp.")


def _choose_intervals(
    options: SceneOptions,
    proposal: ProposalGrid,
    params: Any,
    rays: Rays,
    key: jax.Array | None,
) -> _Intervals:
    """Fine intervals [H, W, S+1], dense where the proposal grid expects to see something."""
    uniform_key, resample_key = (None, None) if key is None else jax.random.split(key)
    near, far = sphere_bounds(rays, options.bound_radius)
    if not options.proposal_samples:
        return _Intervals(uniform_edges(near, far, options.fine_samples, uniform_key), None, None)
    edges = uniform_edges(near, far, options.proposal_samples, uniform_key)
    middle = 0.5 * (edges[..., 1:] + edges[..., :-1])
    points = rays.origin[..., None, :] + middle[..., None] * rays.direction[..., None, :]
    weights = compositing_weights(proposal.density(params["proposal"], points), edges)
    fine = resample_edges(edges, weights, options.fine_samples, resample_key)
    return _Intervals(fine, edges, weights)


def _query(
    field: Field,
    params: Any,
    mean: jax.Array,
    covariance_diag: jax.Array,
    step: jax.Array,
    diffuse: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Density, albedo and normals; normals cost more than all the rest, so only if there is light."""

    def lit() -> tuple[jax.Array, jax.Array, jax.Array]:
        return density_normals(
            lambda points: field.query(params, points, covariance_diag, step), mean
        )

    def unlit() -> tuple[jax.Array, jax.Array, jax.Array]:
        density, albedo = field.query(params, mean, covariance_diag, step)
        return density, albedo, jnp.zeros_like(mean)

    return jax.lax.cond(diffuse > 0.0, lit, unlit)


def _regularize(
    options: SceneOptions,
    rays: Rays,
    intervals: _Intervals,
    weights: jax.Array,
    opacity: jax.Array,
    normals: jax.Array,
) -> dict[str, jax.Array]:
    interlevel = jnp.float32(0.0)
    if intervals.proposal_edges is not None and intervals.proposal_weights is not None:
        interlevel = regularizers.interlevel_loss(
            intervals.edges, weights, intervals.proposal_edges, intervals.proposal_weights
        )
    return {
        "opacity": regularizers.opacity_loss(opacity),
        "orientation": regularizers.orientation_loss(weights, normals, rays.direction),
        # In units of the bounding sphere's diameter, so that a scene's size does not matter.
        "distortion": regularizers.distortion_loss(
            weights, intervals.edges / (2.0 * options.bound_radius)
        ),
        "entropy": regularizers.entropy_loss(opacity),
        "interlevel": interlevel,
    }


def _point_covariance(options: SceneOptions, points: jax.Array) -> jax.Array:
    return jnp.full_like(points, (_POINT_STD * options.bound_radius) ** 2)
