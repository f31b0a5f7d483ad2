"""What a pipeline consists of before any weights are read, and how it becomes a prior."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dreamfusion_jax.diffusion.loading.embedding_files import read_embeddings
from dreamfusion_jax.diffusion.loading.ldm_names import unet_table
from dreamfusion_jax.diffusion.loading.lora_files import Lora, Shapes, lora_changes
from dreamfusion_jax.diffusion.loading.names import params_to_torch
from dreamfusion_jax.diffusion.loading.text_encoder import Tower, load_text_encoder
from dreamfusion_jax.diffusion.loading.weights import (
    DevicePutFn,
    Source,
    expected_specs,
    load_source,
    reraise_as_prior_error,
)
from dreamfusion_jax.diffusion.loading.xl_encoder import load_xl_encoder
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.models.vae import AutoencoderKL
from dreamfusion_jax.diffusion.priors.latent import latent_prior
from dreamfusion_jax.diffusion.priors.pixel import pixel_prior
from dreamfusion_jax.diffusion.priors.prior import EncodeText, Prior, PriorParams
from dreamfusion_jax.diffusion.priors.unet_predictor import sample_side
from dreamfusion_jax.diffusion.schedule import Schedule
from dreamfusion_jax.runtime.errors import PriorError

TEXT_NETWORKS = ("text_encoder", "text_encoder_2")


class Additions(NamedTuple):
    """What users add to a model: low-rank updates of its weights, and files of new words."""

    loras: Sequence[Lora] = ()
    embeddings: Sequence[Path] = ()


NOTHING_ADDED = Additions()


class Text(NamedTuple):
    """What reads a pipeline's texts.

    Attributes:
      width, pooled_width: of its hidden states and of its pooled vector (0: it gives none).
      source: where the configs say the width, for messages.
      towers: the CLIPs; none where it is a T5.
      load: reads the weights of these towers.
      digest: of its files, where its results are worth keeping.
    """

    width: int
    pooled_width: int
    source: str
    towers: tuple[Tower, ...]
    load: Callable[[Sequence[Tower]], EncodeText]
    digest: Callable[[], str] | None = None


class Parts(NamedTuple):
    """The parts of a pipeline.

    Attributes:
      where: what messages call the place that describes the U-Net.
      unet, vae: the networks; vae: None in pixel space.
      sources: of their weights, by name.
    """

    where: Path
    unet: UNet2DConditionModel
    vae: AutoencoderKL | None
    text: Text
    schedule: Schedule
    sources: Mapping[str, Source]


def clip_text(tower: Tower) -> Text:
    """Makes what reads the texts of a Stable Diffusion: one CLIP."""
    width = tower.text_config.hidden_size
    return Text(width, 0, f"hidden_size ({width})", (tower,), _load_clip)


def _load_clip(towers: Sequence[Tower]) -> EncodeText:
    return load_text_encoder(towers[0])


def xl_text(towers: tuple[Tower, Tower], image_size: int, empty_is_zero: bool) -> Text:
    """Makes what reads the texts of an SDXL; see `load_xl_encoder`."""
    first, second = (tower.text_config.hidden_size for tower in towers)
    load = functools.partial(load_xl_encoder, image_size=image_size, empty_is_zero=empty_is_zero)
    source = f"sum of both hidden_size ({first} + {second})"
    return Text(first + second, towers[1].module.projection_dim, source, towers, load)


def load_parts(
    parts: Parts, dtype: Any, place: DevicePutFn, additions: Additions
) -> tuple[Prior, PriorParams]:
    """Reads the weights, with what is added to them; returns the prior and its params."""
    check_fit(parts)
    parts = with_additions(parts, additions)
    unet, vae, text = parts.unet, parts.vae, parts.text
    encode_text = text.load(text.towers)
    params = {"unet": load_source(unet, parts.sources["unet"], dtype, place)}
    if vae is None:
        prior = pixel_prior(unet, parts.schedule, encode_text)
    else:
        params["vae"] = load_source(vae, parts.sources["vae"], vae.dtype, place)
        prior = latent_prior(unet, vae, parts.schedule, encode_text)
    return prior._replace(text_digest=text.digest), params


def with_additions(parts: Parts, additions: Additions) -> Parts:
    """Returns the parts with updates to be merged into their weights, and with new words."""
    towers = list(parts.text.towers)
    sources = dict(parts.sources)
    if additions.loras:
        networks = {"unet": _shapes(parts.unet)}
        names = TEXT_NETWORKS[: len(towers)]
        networks |= {n: _shapes(tower.module) for n, tower in zip(names, towers, strict=True)}
        changes = lora_changes(additions.loras, networks, _aliases(parts.unet))
        sources["unet"] = sources["unet"]._replace(change=changes.get("unet"))
        towers = [
            tower._replace(source=tower.source._replace(change=changes.get(name)))
            for name, tower in zip(names, towers, strict=True)
        ]
    if additions.embeddings:
        if not towers:
            raise PriorError(
                f"{additions.embeddings[0]} is an embedding of a CLIP's, but this prior's texts are"
                " read by a T5: leave it out."
            )
        widths = [tower.text_config.hidden_size for tower in towers]
        words = read_embeddings(additions.embeddings, widths)
        towers = [tower._replace(words=words, place=i) for i, tower in enumerate(towers)]
    text = parts.text._replace(towers=tuple(towers))
    return parts._replace(text=text, sources=sources)


def _aliases(unet: UNet2DConditionModel) -> dict[str, str]:
    """Returns a U-Net's weights by the names of LDM, where it has such."""
    is_ldm = (
        type(unet.layers_per_block) is int
        and unet.mid_block_type == UNet2DConditionModel.mid_block_type
    )
    return unet_table(unet) if is_ldm else {}


def _shapes(module: Any) -> Shapes:
    """Returns the shapes of a network's weights by their names in torch."""
    return {name: spec.shape for name, spec in params_to_torch(expected_specs(module)).items()}


def check_fit(parts: Parts) -> None:
    """Raises PriorError unless the networks belong together; no weights have been read yet."""
    unet, text, vae = parts.unet, parts.text, parts.vae
    channels = vae.latent_channels if vae else 3
    with reraise_as_prior_error(parts.where):
        sample_side(unet)
        if unet.text_width != text.width:
            key = "encoder_hid_dim" if unet.encoder_hid_dim else "cross_attention_dim"
            raise PriorError(
                f"{key}={unet.text_width} is not the {text.source} that text_encoder/config.json "
                "gives."
            )
        if unet.pooled_width and unet.pooled_width != text.pooled_width:
            raise PriorError(
                f"projection_class_embeddings_input_dim={unet.projection_class_embeddings_input_dim}"
                f" has {unet.pooled_width} left for a text's vector, but the text encoders give "
                f"{text.pooled_width or 'none'}."
            )
        if unet.in_channels != channels:
            raise PriorError(
                f"in_channels={unet.in_channels} is not supported, only the {channels} of what is "
                "denoised are: networks for inpainting, depth or upscaling are no priors."
            )
        if unet.out_channels not in (channels, 2 * channels if vae is None else channels):
            raise PriorError(
                f"out_channels={unet.out_channels} is not supported, only as many as in_channels "
                f"({unet.in_channels}) are, or in pixel space twice as many, with a variance."
            )
