"""The conditional U-Net of Stable Diffusion 1.x, 2.x and XL, and of DeepFloyd IF.

diffusers' UNet2DConditionModel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.loading.options import (
    module_defaults,
    module_options,
    require_kind,
    require_members,
)
from dreamfusion_jax.diffusion.models.embeddings import TextTimeEmbedding, TimestepEmbedding
from dreamfusion_jax.diffusion.models.layers import (
    ACTIVATIONS,
    Dtype,
    GroupNorm,
    Linear,
    conv3x3,
    timestep_embedding,
)
from dreamfusion_jax.diffusion.models.simple_blocks import (
    TEXT_GROUPS,
    SimpleCrossAttnDownBlock2D,
    SimpleCrossAttnUpBlock2D,
    UNetMidBlock2DSimpleCrossAttn,
)
from dreamfusion_jax.diffusion.models.unet_blocks import (
    BlockOptions,
    DownBlock2D,
    UNetMidBlock2D,
    UNetMidBlock2DCrossAttn,
    UpBlock2D,
)
from dreamfusion_jax.diffusion.models.unet_depths import Depths, down_depths, up_depths
from dreamfusion_jax.runtime.errors import PriorError

NAME = "UNet2DConditionModel"
# Options of diffusers with the only value implemented here, which is also the default there.
REQUIRED: dict[str, Any] = {
    "mid_block_only_cross_attention": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "num_class_embeds": None,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
}
# Attention scores are float32 here, so upcast_attention is always on.
IGNORED = ("dropout", "upcast_attention")
DOWN_BLOCKS: dict[str, Any] = {
    "DownBlock2D": DownBlock2D,
    "CrossAttnDownBlock2D": DownBlock2D,
    "ResnetDownsampleBlock2D": SimpleCrossAttnDownBlock2D,
    "SimpleCrossAttnDownBlock2D": SimpleCrossAttnDownBlock2D,
}
MID_BLOCKS: dict[str, Any] = {
    "UNetMidBlock2D": UNetMidBlock2D,
    "UNetMidBlock2DCrossAttn": UNetMidBlock2DCrossAttn,
    "UNetMidBlock2DSimpleCrossAttn": UNetMidBlock2DSimpleCrossAttn,
}
UP_BLOCKS: dict[str, Any] = {
    "UpBlock2D": UpBlock2D,
    "CrossAttnUpBlock2D": UpBlock2D,
    "ResnetUpsampleBlock2D": SimpleCrossAttnUpBlock2D,
    "SimpleCrossAttnUpBlock2D": SimpleCrossAttnUpBlock2D,
}
# Names that an option may have; a network may leave out those whose default is None.
CHOICES: dict[str, set[str]] = {
    "act_fn": set(ACTIVATIONS),
    "mid_block_type": set(MID_BLOCKS),
    "encoder_hid_dim_type": {"text_proj"},
    "addition_embed_type": {"text", "text_time"},
    "resnet_time_scale_shift": {"default", "scale_shift"},
    "cross_attention_norm": {"group_norm"},
}
SIZES = 6  # numbers that SDXL is told of an image's size
MAX_TRANSFORMERS = 64  # eight times Stable Diffusion's
# Of the residual stream, whatever `dtype` the blocks' products have: half precision would cost
# accuracy there (tests/benchmarks/prior_precision.py), and float16 would overflow there first.
RESIDUAL_DTYPE = jnp.float32
PER_BLOCK = ("attention_head_dim", "layers_per_block", "only_cross_attention")


class UNet2DConditionModel(nn.Module):
    """Predicts the noise (or velocity) in a latent, given the timestep and the text.

    The attributes are diffusers' own; `attention_head_dim` means the NUMBER of heads, as it does in
    the configs of Stable Diffusion, except in the "Simple" blocks, whose heads have that many
    channels. `dtype` is that of the factors of all products and of the
    prediction; the residual sums, which the norms read, are in RESIDUAL_DTYPE.

    Two attributes are MVDream's: the size of the camera that it embeds, and how many views, one
    after another in the batch, attend to each other.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1.0
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: Any = 1  # of all blocks, of each, or of each block's layers
    reverse_transformer_layers_per_block: Any = None  # the same on the way up; None: mirrored
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False
    act_fn: str = "silu"
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    encoder_hid_dim: int | None = None
    encoder_hid_dim_type: str | None = None
    addition_embed_type: str | None = None
    addition_embed_type_num_heads: int = 64
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    resnet_time_scale_shift: str = "default"
    cross_attention_norm: str | None = None
    camera_dim: int = 0
    joint_views: int = 1
    dtype: Dtype = jnp.float32

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], dtype: Dtype = jnp.float32
    ) -> UNet2DConditionModel:
        """Builds the network of a diffusers config.json; raises PriorError for others."""
        # What may be nested is checked in unet_depths.py; a distilled network has no mid block.
        known = module_defaults(cls) | {"transformer_layers_per_block": None}
        del known["camera_dim"], known["joint_views"]
        if config.get("mid_block_type", "") is None:
            known["mid_block_type"] = None
        options = module_options(NAME, config, known, REQUIRED, IGNORED, per_block=PER_BLOCK)
        unet = cls(**options, dtype=dtype)
        require_members(NAME, "down_block_types", unet.down_block_types, set(DOWN_BLOCKS))
        require_members(NAME, "up_block_types", unet.up_block_types, set(UP_BLOCKS))
        _check_text_options(unet)
        lists = (
            *(unet.down_block_types, unet.up_block_types),
            *(unet._head_dims, unet._only_cross, unet._layers),
        )
        if any(len(values) != len(unet.block_out_channels) for values in lists):
            raise PriorError(
                f"{NAME} config: down_block_types, up_block_types, attention_head_dim, "
                "only_cross_attention and layers_per_block must have as many entries as "
                "block_out_channels."
            )
        depths = unet._depths[0]
        if sum(sum(layers) for layers in depths) > MAX_TRANSFORMERS:
            raise PriorError(
                f"{NAME} config: layers_per_block={unet.layers_per_block} of "
                f"transformer_layers_per_block={unet.transformer_layers_per_block} are not "
                f"supported, only {MAX_TRANSFORMERS} transformers on the way down are."
            )
        return unet

    def dummy_inputs(self) -> tuple[jax.Array, ...]:
        """Returns arguments small enough to initialize or to trace shapes with."""
        side, count = 2 ** (len(self.block_out_channels) - 1), self.joint_views
        width = self.camera_dim + (self.pooled_width + SIZES if self.pooled_width else 0)
        return (
            jnp.zeros((count, side, side, self.in_channels)),
            jnp.zeros((count,), jnp.int32),
            jnp.zeros((count, 1, self.text_width)),
            *([jnp.zeros((count, width))] if width else []),
        )

    @property
    def pooled_width(self) -> int:
        """The width of the text's pooled vector, or 0 where the network takes none."""
        if self.addition_embed_type != "text_time":
            return 0
        whole, each = self.projection_class_embeddings_input_dim, self.addition_time_embed_dim
        return (whole or 0) - SIZES * (each or 0)

    @property
    def text_width(self) -> int:
        """The width of the text's embeddings."""
        return self.encoder_hid_dim or self.cross_attention_dim

    @nn.compact
    def __call__(
        self,
        sample: jax.Array,
        timestep: jax.Array,
        text: jax.Array,
        vector: jax.Array | None = None,
    ) -> jax.Array:
        """Maps sample [B, h, w, c], index [B] and text [B, L, D] to [B, h, w, out_channels].

        Where there is a `pooled_width`, vector [B, pooled_width + SIZES] holds the text's pooled
        vector and six sizes in pixels: height and width of the original image, top and left of the
        crop, height and width of the target. MVDream's camera [B, camera_dim] stands there instead.
        What follows, such as a camera of VSD's, is embedded by itself.
        """
        if self.center_input_sample:
            sample = 2.0 * sample - 1.0
        channels, blocks, layers = self.block_out_channels, self._block_options, self._layers
        down, up = self._depths
        text = text.astype(self.dtype)
        time = self._embed_time(timestep, text, vector)
        if self.encoder_hid_dim:
            text = Linear(self.cross_attention_dim, dtype=self.dtype, name="encoder_hid_proj")(text)

        h = conv3x3(channels[0], "conv_in", self.dtype)(sample).astype(RESIDUAL_DTYPE)
        skips = [h]
        for i, block_type in enumerate(self.down_block_types):
            h, new_skips = DOWN_BLOCKS[block_type](
                features=channels[i],
                layers=layers[i],
                heads=self._heads(block_type, i),
                only_cross_attention=self._only_cross[i],
                downsample=i < len(channels) - 1,
                options=blocks._replace(transformer_layers=down[i]),
                name=f"down_blocks_{i}",
            )(h, time, text)
            skips += new_skips
        if self.mid_block_type:
            h = MID_BLOCKS[self.mid_block_type](
                self._heads(self.mid_block_type, -1) or 1,
                self.only_cross_attention is True,
                self.mid_block_scale_factor,
                blocks._replace(transformer_layers=down[-1]),
                name="mid_block",
            )(h, time, text)
        for i, block_type in enumerate(self.up_block_types):
            mirror = len(channels) - 1 - i
            h, skips = UP_BLOCKS[block_type](
                features=channels[mirror],
                layers=layers[mirror] + 1,
                heads=self._heads(block_type, mirror, i),
                only_cross_attention=self._only_cross[mirror],
                upsample=mirror > 0,
                options=blocks._replace(transformer_layers=up[i]),
                name=f"up_blocks_{i}",
            )(h, skips, time, text)

        h = GroupNorm(self.norm_num_groups, self.norm_eps, h.dtype, name="conv_norm_out")(h)
        return conv3x3(self.out_channels, "conv_out", self.dtype)(ACTIVATIONS[self.act_fn](h))

    def _embed_time(
        self, timestep: jax.Array, text: jax.Array, vector: jax.Array | None
    ) -> jax.Array:
        """Maps index [B], text [B, L, D] and vector to what every residual block reads [B, E]."""
        first = self.block_out_channels[0]
        sinusoids = lambda x, width: timestep_embedding(  # noqa: E731
            x, width, self.flip_sin_to_cos, self.freq_shift
        )
        embed = TimestepEmbedding(4 * first, self.dtype, self.act_fn, name="time_embedding")
        time = embed(sinusoids(timestep, first))
        if self.addition_embed_type == "text":
            heads = self.addition_embed_type_num_heads
            pool = TextTimeEmbedding(4 * first, heads, self.dtype, name="add_embedding")
            time = time + pool(text)
        elif self.addition_embed_type == "text_time":
            assert vector is not None
            own = self.pooled_width + SIZES
            pooled, sizes, vector = jnp.split(vector, (self.pooled_width, own), axis=-1)
            waves = sinusoids(sizes.reshape(-1), self.addition_time_embed_dim)
            both = jnp.concatenate([pooled, waves.reshape(len(pooled), -1)], axis=-1)
            time = time + TimestepEmbedding(4 * first, self.dtype, name="add_embedding")(both)
        if self.camera_dim:
            assert vector is not None
            camera, vector = jnp.split(vector, (self.camera_dim,), axis=-1)
            embed = TimestepEmbedding(4 * first, self.dtype, name="camera_embed")
            time = time + embed(camera)
        if vector is not None and vector.shape[-1]:
            embed = TimestepEmbedding(4 * first, self.dtype, name="class_embedding")
            time = time + embed(vector)
        return time

    def _heads(self, block_type: str, place: int, size_place: int | None = None) -> int | None:
        """Returns the number of heads of a block's attentions, or None where it has none.

        Where the config lists them by block, diffusers reads numbers of heads backward on the way
        up, but their sizes forward, at `size_place`.
        """
        if "CrossAttn" not in block_type:
            return None
        if "Simple" not in block_type:
            return self._head_dims[place]
        size = self._head_dims[place if size_place is None else size_place]
        return self.block_out_channels[place] // size

    @property
    def _block_options(self) -> BlockOptions:
        return BlockOptions(
            self.norm_num_groups,
            self.norm_eps,
            (),
            self.use_linear_projection,
            self.downsample_padding,
            self.dtype,
            self.act_fn,
            self.resnet_time_scale_shift == "scale_shift",
            self.cross_attention_norm,
            self.joint_views,
        )

    @property
    def _head_dims(self) -> tuple[int, ...]:
        return _per_block(self.attention_head_dim, len(self.block_out_channels))

    @property
    def _layers(self) -> tuple[int, ...]:
        return _per_block(self.layers_per_block, len(self.block_out_channels))

    @property
    def _depths(self) -> tuple[Depths, Depths]:
        """The numbers of transformers of each layer of each block, down and up."""
        given, layers = self.transformer_layers_per_block, self._layers
        backward = self.reverse_transformer_layers_per_block
        return down_depths(given, layers), up_depths(given, backward, layers)

    @property
    def _only_cross(self) -> tuple[bool, ...]:
        return _per_block(self.only_cross_attention, len(self.block_out_channels))


def _check_text_options(unet: UNet2DConditionModel) -> None:
    """Raises PriorError for options of text and attention that do not fit each other."""
    for key, allowed in CHOICES.items():
        if (value := getattr(unet, key)) is not None:
            require_members(NAME, key, [value], allowed)
    if unet.encoder_hid_dim is not None:
        require_kind(NAME, "encoder_hid_dim", unet.encoder_hid_dim or "0", 1)
    elif unet.encoder_hid_dim_type is not None:
        raise PriorError(
            f"{NAME} config: encoder_hid_dim_type={unet.encoder_hid_dim_type!r} needs an "
            "encoder_hid_dim, the width of the text's embeddings."
        )
    for key in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
        if (size := getattr(unet, key)) is not None:
            require_kind(NAME, key, size, 1)
    if unet.addition_embed_type == "text_time" and unet.pooled_width < 1:
        raise PriorError(
            f"{NAME} config: projection_class_embeddings_input_dim="
            f"{unet.projection_class_embeddings_input_dim} leaves no room for a text beside "
            f"{SIZES} sizes of addition_time_embed_dim={unet.addition_time_embed_dim}."
        )
    heads = unet.addition_embed_type_num_heads
    if unet.addition_embed_type == "text" and (heads < 1 or unet.text_width % heads):
        raise PriorError(
            f"{NAME} config: addition_embed_type_num_heads={heads} does not divide the width of the"
            f" text's embeddings ({unet.text_width})."
        )
    if unet.cross_attention_norm and unet.cross_attention_dim % TEXT_GROUPS:
        raise PriorError(
            f"{NAME} config: cross_attention_dim={unet.cross_attention_dim} is not a multiple of "
            f"the {TEXT_GROUPS} groups that cross_attention_norm makes of it."
        )
    simple = any("Simple" in name for name in (*unet.down_block_types, *unet.up_block_types))
    widths = unet.block_out_channels
    for channels, size in zip(widths + widths[::-1], 2 * unet._head_dims, strict=False):
        if simple and (size < 1 or channels % size):
            raise PriorError(
                f"{NAME} config: attention_head_dim={size}, the channels of a head, does not divide"
                f" the {channels} of its block."
            )


def _per_block(value: Any, count: int) -> tuple:
    return value if isinstance(value, tuple) else (value,) * count
