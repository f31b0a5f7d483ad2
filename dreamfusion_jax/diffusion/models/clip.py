"""CLIP's text and vision transformers in transformers' layout (Radford et al., 2021).

Stable Diffusion reads the text tower's last hidden states, SDXL those of two towers before their
last layers; the whole CLIPModel scores images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.loading.options import module_defaults, require_kind
from dreamfusion_jax.diffusion.models.layers import Dtype, Linear, dot_product_attention, layer_norm
from dreamfusion_jax.runtime.errors import PriorError

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "gelu": lambda x: nn.gelu(x, approximate=False),
}
# Of the images that the published CLIPs were trained on, RGB in [0, 1].
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
LEGACY_EOS_TOKEN_ID = 2  # in old configs, whatever the vocabulary; pooling handles it


class TextStates(NamedTuple):
    """What a text tower makes of ids [B, L].

    Attributes:
      last: [B, L, D] hidden states after the last layer and the norm behind it.
      pooled: [B, D] of them, those at the end of the text.
      penultimate: [B, L, D] hidden states before the last layer, without a norm.
    """

    last: jax.Array
    pooled: jax.Array
    penultimate: jax.Array


class CLIPTextModel(nn.Module):
    """CLIP's text transformer: a vector for each token, and one for the text."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407
    dtype: Dtype = jnp.float32

    @classmethod
    def from_config(cls, config: Mapping[str, Any], dtype: Dtype = jnp.float32) -> CLIPTextModel:
        """Builds the network of a transformers config.json (or of its `text_config`)."""
        return cls(**_tower_options(cls, config), dtype=dtype)

    def dummy_inputs(self) -> tuple[jax.Array]:
        """Returns arguments small enough to initialize or to trace shapes with."""
        return (jnp.zeros((1, 2), jnp.int32),)

    @nn.compact
    def __call__(self, ids: jax.Array) -> TextStates:
        """Maps ids [B, L] to hidden states."""
        h = TextEmbeddings(
            self.vocab_size,
            self.max_position_embeddings,
            self.hidden_size,
            self.dtype,
            name="embeddings",
        )(ids)
        h, penultimate = _encoder(self, causal=True)(h)
        h = layer_norm("final_layer_norm", self.dtype, self.layer_norm_eps)(h)
        if self.eos_token_id == LEGACY_EOS_TOKEN_ID:
            end = jnp.argmax(ids, axis=-1)  # the end token was the vocabulary's last
        else:
            end = jnp.argmax(ids == self.eos_token_id, axis=-1)  # the first of them
        pooled = jnp.take_along_axis(h, end[:, None, None], axis=1)[:, 0]
        return TextStates(h, pooled, penultimate)


class CLIPTextModelWithProjection(nn.Module):
    """A text tower, and its projection into the space where CLIP compares texts with images."""

    text_config: CLIPTextModel
    projection_dim: int = 512
    dtype: Dtype = jnp.float32

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], dtype: Dtype = jnp.float32
    ) -> CLIPTextModelWithProjection:
        """Builds the network of a transformers config.json."""
        projection_dim = config.get("projection_dim", cls.projection_dim)
        require_kind(cls.__name__, "projection_dim", projection_dim, cls.projection_dim)
        return cls(CLIPTextModel.from_config(config, dtype), projection_dim, dtype)

    def dummy_inputs(self) -> tuple[jax.Array]:
        """Returns arguments small enough to initialize or to trace shapes with."""
        return self.text_config.dummy_inputs()

    def setup(self) -> None:
        # A clone without a parent takes the name of the attribute that it is bound to.
        self.text_model = self.text_config.clone(parent=None, name=None)
        self.text_projection = Linear(self.projection_dim, use_bias=False, dtype=self.dtype)

    def __call__(self, ids: jax.Array) -> TextStates:
        """Maps ids [B, L] to hidden states, of which those pooled are projected [B, P]."""
        states = self.text_model(ids)
        return states._replace(pooled=self.text_projection(states.pooled))


class CLIPVisionModel(nn.Module):
    """CLIP's vision transformer: normalized images to their class tokens."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    dtype: Dtype = jnp.float32

    @classmethod
    def from_config(cls, config: Mapping[str, Any], dtype: Dtype = jnp.float32) -> CLIPVisionModel:
        """Builds the network of a transformers config.json (or of its `vision_config`)."""
        return cls(**_tower_options(cls, config), dtype=dtype)

    def dummy_inputs(self) -> tuple[jax.Array]:
        """Returns arguments to initialize or to trace shapes with."""
        return (jnp.zeros((1, self.image_size, self.image_size, self.num_channels)),)

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Maps pixels [B, image_size, image_size, 3] to pooled vectors [B, hidden_size]."""
        h = VisionEmbeddings(self.patch_size, self.hidden_size, self.dtype, name="embeddings")(
            pixels
        )
        h = layer_norm("pre_layrnorm", self.dtype, self.layer_norm_eps)(h)  # transformers' spelling
        h, _ = _encoder(self, causal=False)(h)
        return layer_norm("post_layernorm", self.dtype, self.layer_norm_eps)(h[:, 0])


class CLIPModel(nn.Module):
    """Both towers and the projections into the space where texts and images are compared."""

    text_config: CLIPTextModel
    vision_config: CLIPVisionModel
    projection_dim: int = 512
    logit_scale_init_value: float = 2.6592
    dtype: Dtype = jnp.float32

    @classmethod
    def from_config(cls, config: Mapping[str, Any], dtype: Dtype = jnp.float32) -> CLIPModel:
        """Builds the network of a transformers CLIPConfig's config.json."""
        return cls(
            CLIPTextModel.from_config(_tower_config(config, "text"), dtype),
            CLIPVisionModel.from_config(_tower_config(config, "vision"), dtype),
            config.get("projection_dim", cls.projection_dim),
            config.get("logit_scale_init_value", cls.logit_scale_init_value),
            dtype,
        )

    def dummy_inputs(self) -> tuple[jax.Array, jax.Array]:
        """Returns arguments to initialize or to trace shapes with."""
        return self.vision_config.dummy_inputs() + self.text_config.dummy_inputs()

    def setup(self) -> None:
        # A clone without a parent takes the name of the attribute that it is bound to.
        self.text_model = self.text_config.clone(parent=None, name=None)
        self.vision_model = self.vision_config.clone(parent=None, name=None)
        project = lambda: Linear(self.projection_dim, use_bias=False, dtype=self.dtype)  # noqa: E731
        self.visual_projection, self.text_projection = project(), project()
        initial = self.logit_scale_init_value
        self.logit_scale = self.param("logit_scale", lambda _: jnp.float32(initial))

    def image_embeds(self, pixels: jax.Array) -> jax.Array:
        """Maps normalized pixels [B, H, W, 3] to unit vectors [B, P]."""
        return _unit(self.visual_projection(self.vision_model(pixels)))

    def text_embeds(self, ids: jax.Array) -> jax.Array:
        """Maps ids [B, L] to unit vectors [B, P]."""
        return _unit(self.text_projection(self.text_model(ids).pooled))

    def __call__(self, pixels: jax.Array, ids: jax.Array) -> jax.Array:
        """Returns logits [images, texts]: exp(logit_scale) times the cosine."""
        cosine = self.image_embeds(pixels) @ self.text_embeds(ids).T
        return jnp.exp(self.logit_scale) * cosine


class TextEmbeddings(nn.Module):
    """Token plus position embeddings."""

    vocab_size: int
    positions: int
    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        tokens = _embedding(self.vocab_size, self.features, self.dtype, "token_embedding")
        positions = _embedding(self.positions, self.features, self.dtype, "position_embedding")
        return tokens(ids) + positions(jnp.arange(ids.shape[-1]))


class VisionEmbeddings(nn.Module):
    """Patches and a class token in front, plus position embeddings."""

    patch_size: int
    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        side = (self.patch_size, self.patch_size)
        patches = nn.Conv(
            self.features,
            side,
            strides=side,
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
            name="patch_embedding",
        )(pixels)
        patches = patches.reshape(pixels.shape[0], -1, self.features)
        token = self.param("class_embedding", nn.initializers.normal(0.02), (self.features,))
        token = jnp.broadcast_to(token.astype(self.dtype), (pixels.shape[0], 1, self.features))
        h = jnp.concatenate([token, patches], axis=1)
        positions = _embedding(h.shape[1], self.features, self.dtype, "position_embedding")
        return h + positions(jnp.arange(h.shape[1]))


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer."""

    heads: int
    intermediate_size: int
    hidden_act: str
    epsilon: float
    causal: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = layer_norm("layer_norm1", self.dtype, self.epsilon)(x)
        x = x + SelfAttention(self.heads, self.causal, self.dtype, name="self_attn")(h)
        h = layer_norm("layer_norm2", self.dtype, self.epsilon)(x)
        return x + MLP(self.intermediate_size, self.hidden_act, self.dtype, name="mlp")(h)


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases everywhere."""

    heads: int
    causal: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = lambda name: Linear(x.shape[-1], dtype=self.dtype, name=name)  # noqa: E731
        q, k, v = dense("q_proj")(x), dense("k_proj")(x), dense("v_proj")(x)
        return dense("out_proj")(dot_product_attention(q, k, v, self.heads, self.causal))


class MLP(nn.Module):
    """Two linear layers."""

    intermediate_size: int
    hidden_act: str
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = Linear(self.intermediate_size, dtype=self.dtype, name="fc1")(x)
        return Linear(x.shape[-1], dtype=self.dtype, name="fc2")(ACTIVATIONS[self.hidden_act](h))


class Encoder(nn.Module):
    """The stack of layers."""

    layers: int
    heads: int
    intermediate_size: int
    hidden_act: str
    epsilon: float
    causal: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the output of the last layer, and its input."""
        before = x
        for i in range(self.layers):
            before, layer = (
                x,
                EncoderLayer(
                    self.heads,
                    self.intermediate_size,
                    self.hidden_act,
                    self.epsilon,
                    self.causal,
                    self.dtype,
                    name=f"layers_{i}",
                ),
            )
            x = layer(x)
        return x, before


def _encoder(tower: CLIPTextModel | CLIPVisionModel, causal: bool) -> Encoder:
    return Encoder(
        tower.num_hidden_layers,
        tower.num_attention_heads,
        tower.intermediate_size,
        tower.hidden_act,
        tower.layer_norm_eps,
        causal,
        tower.dtype,
        name="encoder",
    )


def _embedding(rows: int, features: int, dtype: Dtype, name: str) -> nn.Embed:
    return nn.Embed(
        rows, features, embedding_init=nn.initializers.normal(0.02), dtype=dtype, name=name
    )


def _tower_options(cls: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries that shape a tower.

    transformers' configs hold dozens of options of generation and training that no CLIP network
    reads, so unknown ones are ignored.
    """
    known = module_defaults(cls)
    options = {key: config[key] for key in known if config.get(key) is not None}
    for key, value in options.items():
        if key == "hidden_act":
            if value not in ACTIVATIONS:
                raise PriorError(
                    f"{cls.__name__} config: hidden_act={value!r} is not supported, "
                    f"only {' and '.join(ACTIVATIONS)} are."
                )
        else:
            require_kind(cls.__name__, key, value, known[key])
    return options


def _tower_config(config: Mapping[str, Any], tower: str) -> Mapping[str, Any]:
    """Returns the part that describes a tower; its old name, where present, has priority."""
    for name in (f"{tower}_config_dict", f"{tower}_config"):
        part = config.get(name)
        if isinstance(part, Mapping):
            return part
        if part is not None:
            raise PriorError(f"CLIPModel config: {name}={part!r:.200} is not an object.")
    return {}


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
