"""Muon (Jordan et al., 2024): the momentum of a matrix is orthogonalized before it is applied."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

MOMENTUM = 0.95
UPDATE_RMS = 0.2  # about that of Adam's updates, so that one rate serves both
# Newton-Schulz iterations s -> a s + b s^3 + c s^5 of Jordan's code, applied to singular values.
_COEFFICIENTS = (3.4445, -4.775, 2.0315)
_ITERATIONS = 5


def muon(rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """Applies Muon to the kernels of layers, AdamW to norms, biases and embeddings."""
    matrices = optax.chain(
        optax.trace(MOMENTUM, nesterov=True),
        optax.stateless(lambda updates, _: jax.tree.map(orthogonalize, updates)),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(rate),
    )
    rest = optax.adamw(rate, b2=0.99, weight_decay=weight_decay)
    return optax.partition({"matrices": matrices, "rest": rest}, _labels)


def orthogonalize(update: jax.Array) -> jax.Array:
    """Returns the update [..., O] with nearly equal singular values, of root mean square 0.2.

    The iteration multiplies from one side by polynomials of the Gram matrix, which commute. Here
    they are multiplied with each other first: for a convolution, whose matrix is nine times as long
    as wide, that takes two fifths of the arithmetic.
    """
    matrix = update.reshape(-1, update.shape[-1])
    wide = matrix.shape[0] < matrix.shape[1]
    if wide:
        matrix = matrix.T
    matrix = matrix / (jnp.linalg.norm(matrix) + 1e-8)
    with jax.default_matmul_precision("highest"):
        orthogonal = matrix @ _inverse_root(matrix.T @ matrix)
    orthogonal = orthogonal * UPDATE_RMS * matrix.shape[0] ** 0.5
    return (orthogonal.T if wide else orthogonal).reshape(update.shape)


def _inverse_root(gram: jax.Array) -> jax.Array:
    """Returns about gram^(-1/2) [N, N]: the factor that makes a matrix orthogonal."""
    a, b, c = _COEFFICIENTS
    identity = jnp.eye(len(gram), dtype=gram.dtype)
    total = identity
    for iteration in range(_ITERATIONS):
        factor = a * identity + b * gram + c * gram @ gram
        total = total @ factor if iteration else factor
        if iteration < _ITERATIONS - 1:
            gram = factor @ gram @ factor
    return total


def _labels(params: Any) -> Any:
    def label(path: tuple[Any, ...], leaf: jax.Array) -> str:
        del leaf
        return "matrices" if path[-1].key == "kernel" else "rest"

    return jax.tree_util.tree_map_with_path(label, params)
