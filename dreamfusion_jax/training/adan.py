"""Adan, adaptive Nesterov momentum (Xie et al. 2022, arXiv 2208.06677, algorithm 1).

With the gradients g_t, where g_0 = g_1, and decays b (element by element):

  m_t = b1 m_{t-1} + (1 - b1) g_t
  v_t = b2 v_{t-1} + (1 - b2) (g_t - g_{t-1})
  n_t = b3 n_{t-1} + (1 - b3) (g_t + b2 (g_t - g_{t-1}))^2
  direction = (m_t / (1 - b1^t) + b2 v_t / (1 - b2^t)) / (sqrt(n_t / (1 - b3^t)) + eps)

The decays are those of the authors' code (github.com/sail-sg/Adan, adan.py) with its defaults,
0.98, 0.92 and 0.99; what the paper calls beta is 1 - b. As in that code the moments start at 0 and
their bias is corrected; the paper corrects none, but starts them at the first gradients. Its
restarts and its weight decay, both optional, are left out.

optax 0.2.8 has an Adan, too, but weighs the gradients' difference by 1 - b2 = 0.08 where paper and
code have 0.92 (its pull request 1715), so that hardly any of Nesterov's momentum is left.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class AdanState(NamedTuple):
    """Adan's moments; each tree has arrays shaped like the parameters.

    The letters are the paper's and optax's, so that checkpoints made with optax's can be read.

    Attributes:
      m: tree, the moving mean of the gradients.
      v: tree, that of the differences between one gradient and the next.
      n: tree, that of the squared gradients, each extrapolated by its difference.
      g: tree, the gradients before.
      t: [] int32, the steps done.
    """

    m: Any
    v: Any
    n: Any
    g: Any
    t: jax.Array


def scale_by_adan(
    b1: float = 0.98, b2: float = 0.92, b3: float = 0.99, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Makes a transformation of gradients to Adan's directions, to be scaled by minus the rate.

    Args:
      b1, b2, b3: decays in [0, 1) of the gradients, of their differences and of the squares.
      eps: added to the denominator, outside of the root.
    """

    def init(params: Any) -> AdanState:
        m, v, n, g = (jax.tree.map(jnp.zeros_like, params) for _ in range(4))
        return AdanState(m, v, n, g, jnp.zeros([], jnp.int32))

    def update(gradients: Any, state: AdanState, params: Any = None) -> tuple[Any, AdanState]:
        del params
        t = state.t + 1
        # Before the first gradient there is none: the first is its own predecessor.
        change = jax.tree.map(lambda g, g_0: jnp.where(t == 1, 0.0, g - g_0), gradients, state.g)
        ahead = jax.tree.map(lambda g, d: (g + b2 * d) ** 2, gradients, change)
        m = _moving_mean(state.m, gradients, b1)
        v = _moving_mean(state.v, change, b2)
        n = _moving_mean(state.n, ahead, b3)

        def direction(m: jax.Array, v: jax.Array, n: jax.Array) -> jax.Array:
            momentum = m / (1.0 - b1**t) + b2 * v / (1.0 - b2**t)
            return momentum / (jnp.sqrt(n / (1.0 - b3**t)) + eps)

        return jax.tree.map(direction, m, v, n), AdanState(m, v, n, gradients, t)

    return optax.GradientTransformation(init, update)


def _moving_mean(old: Any, new: Any, decay: float) -> Any:
    """Blends two trees, with the share `decay` of the old one."""
    return jax.tree.map(lambda x, y: decay * x + (1.0 - decay) * y, old, new)
