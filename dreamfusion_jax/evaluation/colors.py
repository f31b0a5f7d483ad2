"""How far an asset's colors are from those that its prior draws for the same words, in CIELAB.

Compared are the mean colors of the object's pixels: of eight lit views of the asset, and of the
prior's own samples with the words of those views. The light is that of posters and turntables, and
on average that of the embedded prior's pictures, of which some are unlit. The distance is CIE
1976's, of which 2.3 is just noticeable; lightness and chroma are told apart, because distillation
errs in each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.distillation.view_prompts import ViewScheme, completed, known_schemes
from dreamfusion_jax.evaluation.chroma import foreground, lab
from dreamfusion_jax.evaluation.views import AZIMUTHS_DEG, BACKGROUND, ELEVATION_DEG
from dreamfusion_jax.nerf.view import lit_view
from dreamfusion_jax.rendering import images
from dreamfusion_jax.rendering.images import render_image, training_orbit
from dreamfusion_jax.runs.checkpoint import SavedRun
from dreamfusion_jax.runs.sampling import Guidance, draw_samples, open_sampler

SAMPLES_PER_VIEW = 4  # 32 samples in all
SAMPLING_STEPS, SAMPLING_GUIDANCE = 25, 6.0
_LIGHT = {"ambient": images.AMBIENT, "diffuse": images.DIFFUSE}
_OPAQUE = 0.5  # opacity from which a pixel is the object's

# Run's settings -> the prior's samples for its words, [N, S, S, 3] in [0, 1].
DrawSamples = Callable[[Config], np.ndarray]


class Colors(NamedTuple):
    """The mean colors of an asset and of the prior's samples, each L*, a*, b* [3]."""

    asset: np.ndarray
    samples: np.ndarray

    @property
    def difference(self) -> float:
        """The distance Delta E of CIE 1976."""
        return float(np.linalg.norm(self.asset - self.samples))

    @property
    def lightness(self) -> float:
        """How much lighter the asset is; negative: darker."""
        return float(self.asset[0] - self.samples[0])

    @property
    def chroma(self) -> float:
        """How much more saturated the asset is."""
        return float(np.hypot(*self.asset[1:]) - np.hypot(*self.samples[1:]))


def compare(run: SavedRun, draw: DrawSamples) -> Colors:
    """Compares the colors of an asset, rendered at its prior's size, with the prior's."""
    samples = draw(run.config)
    return Colors(asset_color(run, samples.shape[1]), sample_color(samples))


def asset_color(run: SavedRun, size: int) -> np.ndarray:
    """Returns the mean L*, a*, b* [3] of the object's pixels in eight lit views."""
    background, orbit = np.array(BACKGROUND), training_orbit(run.config.camera)
    pixels = []
    for azimuth_deg in AZIMUTHS_DEG:
        camera = orbit.camera(azimuth_deg, ELEVATION_DEG)
        view = lit_view(camera, jnp.array(BACKGROUND), **_LIGHT)
        step = int(run.state.step)
        image, opacity, *_ = render_image(run.scene, run.state.scene_params, view, size, step)
        opaque = opacity > _OPAQUE
        share = opacity[opaque, None]
        pixels.append((image[opaque] - (1.0 - share) * background) / share)
    return _mean_lab(pixels)


def sample_color(rgb: np.ndarray) -> np.ndarray:
    """Returns the mean L*, a*, b* [3] of what images [N, H, W, 3] show, without its outline."""
    inner = (ndimage.binary_erosion(foreground(image)) for image in rgb)
    return _mean_lab([image[shown] for image, shown in zip(rgb, inner, strict=True)])


def _mean_lab(pixels: Sequence[np.ndarray]) -> np.ndarray:
    """Averages over the pixels of each image, then over the images that have any."""
    means = [lab(np.clip(colors, 0.0, 1.0)).mean(axis=0) for colors in pixels if len(colors)]
    return np.mean(means, axis=0) if means else np.full(3, np.nan)


def sampler(schemes: Mapping[str, ViewScheme], samples: int = SAMPLES_PER_VIEW) -> DrawSamples:
    """Returns a function that draws samples of a run's prior; runs with equal words share them.

    Args:
      schemes: further choices of --view_words beside "paper" and "none", by name.
      samples: for each of eight views.
    """
    opened = functools.cache(open_sampler)
    drawn: dict[tuple, np.ndarray] = {}

    def draw(config: Config) -> np.ndarray:
        scheme = known_schemes(schemes)[config.view_prompts.view_words]
        prompts = tuple(view_prompts(config.train.prompt, scheme))
        if (key := (config.prior, prompts)) not in drawn:
            guidance = Guidance(SAMPLING_GUIDANCE)
            rows = draw_samples(opened(config.prior), prompts, guidance, samples, SAMPLING_STEPS, 0)
            drawn[key] = np.concatenate(rows)
        return drawn[key]

    return draw


def view_prompts(prompt: str, scheme: ViewScheme) -> list[str]:
    """Returns the prompt with the words of each of the eight views."""
    rows = jax.device_get(scheme.nearest(jnp.array(AZIMUTHS_DEG), jnp.array(ELEVATION_DEG)))
    return [completed(prompt, scheme.phrases[row]) for row in rows]
