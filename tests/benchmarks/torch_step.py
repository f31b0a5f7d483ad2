"""The training step in careful torch, for comparison in versus_torch.

The same mathematics as dreamfusion_jax's step for one view: proposal grid, 32 + 20 samples,
integrated positional encoding, MLP, light, compositing, diffusers' AutoencoderKL and U-Net, the SDS
residual, Adam. Autograd goes through encoder and renderer, never through the U-Net. Only what the
toybox's settings use is here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from dreamfusion_jax.config.flags import Config

PROPOSAL_GAIN = 10.0


class TorchView(NamedTuple):
    """One view with all its random choices, as tensors.

    Attributes:
      origin, direction, radius: [N, 3], [N, 3], [N, 1] rays of the picture's pixels.
      light, background: [3].
      lit: whether there is diffuse light; without it no normals are needed.
      ambient, diffuse: [].
      eps: [1, 4, h, w].
      text: [2, L, D], the empty one first.
      index: [1] of the timestep, int64.
      alpha, sigma, weight: [] at that timestep.
      blur: [] the variance added to every Gaussian.
      sharpening: [] the factor on raw densities.
    """

    origin: Tensor
    direction: Tensor
    radius: Tensor
    light: Tensor
    background: Tensor
    lit: bool
    ambient: Tensor
    diffuse: Tensor
    eps: Tensor
    text: Tensor
    index: Tensor
    alpha: Tensor
    sigma: Tensor
    weight: Tensor
    blur: Tensor
    sharpening: Tensor


class Renderer(torch.nn.Module):
    """Rays to pixels. Called with a view it returns [N, 3] and the interlevel loss []."""

    def __init__(self, config: Config, params: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config.scene
        network = params["field"]
        names = [f"trunk_{i}" for i in range(self.config.depth)] + ["density_and_albedo"]
        self.layers = torch.nn.ModuleList(_linear(network[name]) for name in names)
        grid = torch.from_numpy(np.array(params["proposal"]["grid"])).permute(3, 0, 1, 2)
        self.grid = torch.nn.Parameter(grid[None].contiguous())

    def forward(self, view: TorchView) -> tuple[Tensor, Tensor]:
        near, far = self.bounds(view)
        samples = self.config.proposal_samples
        fraction = torch.linspace(0.0, 1.0, samples + 1, device=near.device)
        proposal_edges = near + (far - near) * fraction
        middle = 0.5 * (proposal_edges[:, 1:] + proposal_edges[:, :-1])
        points = view.origin[:, None] + middle[..., None] * view.direction[:, None]
        proposal = weights_of(self.proposal_density(points), proposal_edges)
        edges = resample(proposal_edges, proposal.detach(), self.config.fine_samples)
        mean, covariance = gaussians(view, edges)
        if view.lit:
            mean.requires_grad_(True)
            tau, rho = self.query(mean, covariance + view.blur, view.sharpening)
            (slope,) = torch.autograd.grad(tau.sum(), mean, create_graph=True)
            normals = -F.normalize(slope, dim=-1, eps=1e-6)
            to_light = F.normalize(view.light - mean, dim=-1, eps=1e-6)
            cosine = (normals * to_light).sum(-1, keepdim=True).clamp_min(0.0)
            color = rho * (view.diffuse * cosine + view.ambient)
        else:
            tau, rho = self.query(mean, covariance + view.blur, view.sharpening)
            color = rho * view.ambient
        weights = weights_of(tau, edges)
        opacity = weights.sum(-1, keepdim=True)
        image = (weights[..., None] * color).sum(-2) + (1.0 - opacity) * view.background
        return image, interlevel(edges, weights.detach(), proposal_edges, proposal)

    def bounds(self, view: TorchView) -> tuple[Tensor, Tensor]:
        towards = -(view.origin * view.direction).sum(-1, keepdim=True)
        closest = view.origin + towards * view.direction
        half_squared = self.config.bound_radius**2 - (closest**2).sum(-1, keepdim=True)
        half = half_squared.clamp_min(0.0).sqrt()
        near = (towards - half).clamp_min(0.0)
        return near, torch.maximum(towards + half, near)

    def proposal_density(self, points: Tensor) -> Tensor:
        # grid_sample wants the last axis first.
        place = (points / self.config.bound_radius).flip(-1)[None, None]
        raw = F.grid_sample(self.grid, place, padding_mode="border", align_corners=True)
        return self.density(PROPOSAL_GAIN * raw[0, 0, 0], points)

    def query(self, mean: Tensor, variance: Tensor, sharpening: Tensor) -> tuple[Tensor, Tensor]:
        features = encode(mean, variance, self.config.min_degree, self.config.max_degree)
        for layer in self.layers[:-1]:
            features = F.relu(layer(features))
        raw = self.layers[-1](features)
        return self.density(raw[..., 0], mean, sharpening), torch.sigmoid(raw[..., 1:])

    def density(self, raw: Tensor, points: Tensor, sharpening: Tensor | None = None) -> Tensor:
        distance = ((points**2).sum(-1) + 1e-8).sqrt()
        blob = self.config.blob_scale * (1.0 - distance / self.config.blob_radius)
        raw = raw + blob
        if sharpening is not None:
            pivot = math.log(math.expm1(self.config.sharpening_density / self.config.density_scale))
            raw = pivot + sharpening * (raw - pivot)
        return self.config.density_scale * F.softplus(raw)


def weights_of(density: Tensor, edges: Tensor) -> Tensor:
    depth = density * edges.diff(dim=-1)
    before = F.pad(depth[..., :-1].cumsum(-1), (1, 0))
    return torch.exp(-before) * -torch.expm1(-depth)


def resample(edges: Tensor, weights: Tensor, samples: int) -> Tensor:
    padded = weights + 0.01
    cdf = F.pad((padded / padded.sum(-1, keepdim=True)).cumsum(-1), (1, 0))
    u = (torch.arange(samples, device=cdf.device) + 0.5) / samples
    u = u.expand(len(cdf), samples).contiguous()
    above = torch.searchsorted(cdf, u, right=True).clamp(1, cdf.shape[-1] - 1)
    c0, c1 = cdf.gather(-1, above - 1), cdf.gather(-1, above)
    s0, s1 = edges.gather(-1, above - 1), edges.gather(-1, above)
    center = s0 + (s1 - s0) * ((u - c0) / (c1 - c0)).clamp(0.0, 1.0)
    middle = 0.5 * (center[:, 1:] + center[:, :-1])
    first = torch.maximum(2.0 * center[:, :1] - middle[:, :1], edges[:, :1])
    last = torch.minimum(2.0 * center[:, -1:] - middle[:, -1:], edges[:, -1:])
    return torch.cat([first, middle, last], dim=-1)


def gaussians(view: TorchView, edges: Tensor) -> tuple[Tensor, Tensor]:
    m, h = 0.5 * (edges[:, 1:] + edges[:, :-1]), 0.5 * edges.diff(dim=-1)
    m2, h2 = m**2, h**2
    ratio = h2 / (3.0 * m2 + h2).clamp_min(1e-12)
    along = m + 2.0 * m * ratio
    variance_s = h2 / 3.0 - (4.0 / 15.0) * ratio**2 * (12.0 * m2 - h2)
    variance_r = view.radius**2 * (m2 / 4.0 + (5.0 / 12.0) * h2 - (4.0 / 15.0) * h2 * ratio)
    direction = view.direction[:, None]
    mean = view.origin[:, None] + along[..., None] * direction
    squared = direction**2
    return mean, variance_s[..., None] * squared + variance_r[..., None] * (1.0 - squared)


def encode(mean: Tensor, variance: Tensor, min_degree: int, max_degree: int) -> Tensor:
    features = []
    for degree in range(min_degree, max_degree):
        if (degree - min_degree) % 4 == 0:
            sine, cosine = torch.sin(2.0**degree * mean), torch.cos(2.0**degree * mean)
            damping = torch.exp(-0.5 * 4.0**degree * variance)
        else:
            sine, cosine = 2.0 * sine * cosine, 1.0 - 2.0 * sine**2
            damping = damping.square().square()
        features += [damping * sine, damping * cosine]
    return torch.cat(features, dim=-1)


def interlevel(edges: Tensor, weights: Tensor, outer_edges: Tensor, outer: Tensor) -> Tensor:
    cumulative = F.pad(outer.cumsum(-1), (1, 0))
    last = outer.shape[-1]
    low = torch.searchsorted(outer_edges, edges[:, :-1].contiguous(), right=True) - 1
    high = torch.searchsorted(outer_edges, edges[:, 1:].contiguous())
    bound = cumulative.gather(-1, high.clamp(0, last)) - cumulative.gather(-1, low.clamp(0, last))
    return (((weights - bound).clamp_min(0.0)) ** 2 / (weights + 1e-5)).sum(-1).mean()


class TorchStep:
    """The whole step, eager or with its parts compiled.

    Args:
      config: what of it the toybox's preset sets to something else than the defaults is not here.
      params: of the scene, as dreamfusion_jax has them.
      weights: a pipeline's directory, with the files of `config.prior.variant`.
      dtype: of the prior; the scene is float32.
      device: where everything is.
    """

    def __init__(
        self,
        config: Config,
        params: Mapping[str, Any],
        weights: Path,
        compiled: bool = False,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        self.scale, self.dtype = config.distillation.guidance_scale, dtype
        self.renderer = Renderer(config, params).to(device)
        how = {"torch_dtype": dtype, "variant": config.prior.variant or None}
        vae = AutoencoderKL.from_pretrained(weights / "vae", **how)
        unet = UNet2DConditionModel.from_pretrained(weights / "unet", **how)
        vae, unet = (x.to(device).eval().requires_grad_(False) for x in (vae, unet))
        scheduler = json.loads((weights / "scheduler" / "scheduler_config.json").read_text())
        self.says_velocity = scheduler.get("prediction_type") == "v_prediction"
        self.image_size = unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1)
        self.scaling = vae.config.scaling_factor
        self.optimizer = torch.optim.Adam(
            self.renderer.parameters(), config.optimizer.learning_rate, fused=True
        )
        self._vae = vae
        compile = torch.compile if compiled else lambda module: module
        # torch.compile takes no derivative of a derivative, so lit views stay eager.
        self.render_lit = self.renderer
        self.render_unlit = compile(self.renderer)
        self.encoder, self.unet = compile(self.encode), compile(unet)

    def encode(self, image: Tensor) -> Tensor:
        """Encodes [1, 3, H, W] in [0, 1] to the mean latent."""
        if image.shape[-1] != self.image_size:
            image = F.interpolate(image, (self.image_size,) * 2, mode="bilinear")
        image = (2.0 * image - 1.0).to(self.dtype)
        return self._vae.encode(image).latent_dist.mean.float() * self.scaling

    def gradient(self, view: TorchView) -> None:
        """Accumulates the step's gradient in the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        image, penalty = (self.render_lit if view.lit else self.render_unlit)(view)
        side = int(len(image) ** 0.5)
        z = self.encoder(image.reshape(1, side, side, 3).permute(0, 3, 1, 2))
        with torch.no_grad():
            z_t = view.alpha * z + view.sigma * view.eps
            twice, text = torch.cat([z_t, z_t]).to(self.dtype), view.text.to(self.dtype)
            noise = self.unet(twice, view.index.expand(2), encoder_hidden_states=text).sample
            without, with_text = noise.float().chunk(2)
            eps_hat = without + self.scale * (with_text - without)
            if self.says_velocity:
                eps_hat = view.alpha * eps_hat + view.sigma * z_t
            residual = view.weight * (eps_hat - view.eps)
        torch.autograd.backward([z, penalty], [residual, torch.ones_like(penalty)])

    def step(self, view: TorchView) -> None:
        self.gradient(view)
        self.optimizer.step()

    def gradients(self) -> dict[str, np.ndarray]:
        """Returns the gradients by dreamfusion_jax's names and shapes."""
        *trunk, last = self.renderer.layers
        layers = {f"trunk_{i}": layer for i, layer in enumerate(trunk)}
        layers["density_and_albedo"] = last
        gradients = {"proposal/grid": self.renderer.grid.grad[0].permute(1, 2, 3, 0)}
        for name, layer in layers.items():
            gradients[f"field/{name}/kernel"] = layer.weight.grad.T
            gradients[f"field/{name}/bias"] = layer.bias.grad
        return {name: gradient.detach().cpu().numpy() for name, gradient in gradients.items()}


def _linear(layer: Mapping[str, Any]) -> torch.nn.Linear:
    kernel, bias = (torch.from_numpy(np.array(layer[name])) for name in ("kernel", "bias"))
    linear = torch.nn.Linear(*kernel.shape)
    linear.weight.data, linear.bias.data = kernel.T.contiguous(), bias
    return linear
