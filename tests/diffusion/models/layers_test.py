from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamfusion_jax.diffusion.models import layers
from dreamfusion_jax.runtime.device import compiling_for

attention = jax.jit(layers.dot_product_attention, static_argnames=("heads", "causal"))


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_group_norm_keeps_its_digits_where_the_mean_is_large(name):
    x = (300.0 + np.random.default_rng(0).standard_normal((2, 5, 3, 8))).astype(np.float32)
    scale, bias = np.linspace(0.5, 2.0, 8), np.linspace(-1.0, 1.0, 8)
    params = {"scale": jnp.float32(scale), "bias": jnp.float32(bias)}
    with compiling_for(name):
        out = layers.GroupNorm(4, 1e-5).apply({"params": params}, x)

    groups = x.astype(np.float64).reshape(2, 15, 4, 2)
    mean, var = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    expected = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape) * scale + bias
    chex.assert_trees_all_close(out, expected.astype(np.float32), atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 5, 3, 8), (1, 7, 8)])
def test_group_norm_has_the_same_derivatives_on_a_gpu(shape):
    """There it reads once for both moments, and has its derivative in closed form."""
    x, out = 3.0 + jax.random.normal(jax.random.key(0), (2, *shape))
    params = {"scale": jnp.linspace(0.5, 2.0, 8), "bias": jnp.linspace(-1.0, 1.0, 8)}

    def loss(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        return jnp.sum(out * layers.GroupNorm(4, 1e-5).apply({"params": params}, x) ** 2)

    by_operations = jax.grad(loss, (0, 1))(params, x)
    with compiling_for("gpu"):
        closed = jax.grad(loss, (0, 1))(params, x)
    chex.assert_trees_all_close(closed, by_operations, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("convolution", [False, True])
def test_linear_is_a_matrix_product_on_the_last_axis(convolution):
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    params = layers.Linear(6, convolution=convolution).init(jax.random.key(1), x)["params"]
    params["bias"] = jnp.arange(6.0)
    out = layers.Linear(6, convolution=convolution).apply({"params": params}, x)
    assert params["kernel"].shape == ((1, 1, 5, 6) if convolution else (5, 6))
    expected = jnp.einsum("bhwc,cd->bhwd", x, params["kernel"].reshape(5, 6)) + jnp.arange(6.0)
    chex.assert_trees_all_close(out, expected, atol=1e-5)


def test_doubling_is_the_general_nearest_neighbor_resize():
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 4))
    doubled = layers.resize_nearest(x, 6, 4)
    chex.assert_trees_all_equal(doubled, jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))
    chex.assert_trees_all_equal(layers.resize_nearest(x, 5, 4)[:, :4], doubled[:, :4])


def test_attention_averages_the_values_where_all_keys_agree():
    query, value = jax.random.normal(jax.random.key(0), (2, 2, 7, 12))
    out = attention(query, jnp.ones_like(query), value, heads=3)
    mean = jnp.broadcast_to(value.mean(1, keepdims=True), value.shape)
    chex.assert_trees_all_close(out, mean, atol=1e-6)


def test_attention_heads_do_not_mix():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 5, 12))
    out = attention(q, k, v, heads=3)
    for part in jnp.split(jnp.arange(12), 3):
        alone = attention(q[..., part], k[..., part], v[..., part], heads=1)
        chex.assert_trees_all_close(out[..., part], alone, atol=1e-5)


def test_attention_in_pieces_is_attention(monkeypatch):
    q = jax.random.normal(jax.random.key(0), (2, 7, 12))
    k, v = jax.random.normal(jax.random.key(1), (2, 2, 5, 12))
    whole = layers.dot_product_attention(q, k, v, heads=3)
    seen = []
    attend = layers._attend
    monkeypatch.setattr(layers, "SCORES_BYTES", 4 * 2 * 3 * 5 * 2)  # the scores of two queries
    monkeypatch.setattr(layers, "_attend", lambda q, *rest: seen.append(q) or attend(q, *rest))
    chex.assert_trees_all_close(layers.dot_product_attention(q, k, v, 3), whole, atol=1e-6)
    assert [piece.shape[2] for piece in seen] == [2, 2, 2, 1]


def test_causal_attention_does_not_see_the_future():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 6, 4))
    before = attention(q, k, v, heads=2, causal=True)
    after = attention(q, k.at[:, 4:].set(9.0), v.at[:, 4:].set(9.0), heads=2, causal=True)
    chex.assert_trees_all_equal(before[:, :4], after[:, :4])
    assert not np.allclose(before[:, 4:], after[:, 4:])
    chex.assert_trees_all_close(before[:, 0], v[:, 0], atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_the_fused_kernel_computes_the_same_attention(causal, monkeypatch):
    """Its reference implementation stands in for the kernel, which only some GPUs have."""
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 5, 12))
    plain = layers.dot_product_attention(q, k, v, 3, causal)
    implementations = []

    def reference(*args, implementation, **options):
        implementations.append(implementation)
        return fused(*args, **options)

    fused = jax.nn.dot_product_attention
    monkeypatch.setattr(layers, "_has_fused_kernel", lambda query: True)
    monkeypatch.setattr(jax.nn, "dot_product_attention", reference)
    chex.assert_trees_all_close(layers.dot_product_attention(q, k, v, 3, causal), plain, atol=1e-6)
    assert implementations == ["cudnn"]


def test_odd_numbers_have_the_plain_gradient_when_fused(monkeypatch):
    """cuDNN only differentiates even numbers of queries and keys; others are padded."""
    q, key = jax.random.normal(jax.random.key(0), (2, 5, 12)), jax.random.key(1)
    k, v, out = jax.random.normal(key, (3, 2, 7, 12))

    def gradients() -> tuple[jax.Array, ...]:
        attend = lambda *qkv: jnp.sum(out[:, :5] * layers.dot_product_attention(*qkv, 3))  # noqa: E731
        return jax.grad(attend, (0, 1, 2))(q, k, v)

    def reference(q, k, v, implementation, **options):
        assert implementation == "cudnn"
        numbers.append((q.shape[1], k.shape[1]))
        return fused(q, k, v, **options)

    plain, numbers = gradients(), []
    fused = jax.nn.dot_product_attention
    monkeypatch.setattr(layers, "_has_fused_kernel", lambda query: True)
    monkeypatch.setattr(jax.nn, "dot_product_attention", reference)
    chex.assert_trees_all_close(gradients(), plain, atol=1e-6)
    assert numbers == [(6, 8)]


@pytest.mark.parametrize(
    ("dtype", "capability", "fused"),
    [
        (jnp.float16, "8.0", True),
        (jnp.bfloat16, "9.0", True),
        (jnp.float16, "7.5", False),
        (jnp.float32, "8.0", False),
    ],
)
def test_half_precision_has_a_fused_kernel_on_newer_nvidia_gpus(
    dtype, capability, fused, monkeypatch
):
    query = jnp.zeros((1, 4, 2, 40), dtype)
    assert not layers._has_fused_kernel(query), "a CPU has none"
    client = SimpleNamespace(platform_version="cuda 12090")
    device = SimpleNamespace(compute_capability=capability, client=client, platform="gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert layers._has_fused_kernel(query) == fused
    with compiling_for("cpu"):
        assert not layers._has_fused_kernel(query)


def test_attention_follows_the_compile_target():
    query = jnp.zeros((1, 4, 2, 40), jnp.float16)
    for name, capability, fused in (
        ("gpu", 9.0, True),
        ("gpu", 7.5, False),
        ("gpu", 0.0, False),
        ("tpu", 0.0, False),
    ):
        with compiling_for(name, capability):
            assert layers._has_fused_kernel(query) == fused


def test_attention_scores_keep_their_digits_in_half_precision():
    """Scores near 400: bfloat16 would round them to a multiple of two."""
    q = jnp.full((1, 1, 4), 10.0, jnp.bfloat16)
    k = jnp.stack([q[0, 0] * 2.0, q[0, 0] * 2.0 - 0.125])[None]
    v = jnp.array([[[1.0] * 4, [0.0] * 4]], jnp.bfloat16)
    gap = 10.0 * (np.float32(k[0, 0]) - np.float32(k[0, 1])).sum() / 2.0
    assert gap > 0.0
    out = np.float32(attention(q, k, v, heads=1))
    np.testing.assert_allclose(out, 1.0 / (1.0 + np.exp(-gap)), rtol=1e-2)


def test_timestep_embedding_of_zero_is_ones_and_zeros():
    index = jnp.zeros((1,), jnp.int32)
    one, zero = np.ones((1, 4), np.float32), np.zeros((1, 4), np.float32)
    flipped = layers.timestep_embedding(index, 8, flip_sin_to_cos=True, freq_shift=0)
    chex.assert_trees_all_equal(flipped, jnp.concatenate([one, zero], axis=1))
    plain = layers.timestep_embedding(index, 8, flip_sin_to_cos=False, freq_shift=0)
    chex.assert_trees_all_equal(plain, jnp.concatenate([zero, one], axis=1))
