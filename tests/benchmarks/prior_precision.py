"""How far each number format moves the direction of guidance, d = eps(text) - eps(empty text).

  python -m tests.benchmarks.prior_precision                        the toybox
  python -m tests.benchmarks.prior_precision --prior=DIR            any prior in diffusers' layout
  python -m tests.benchmarks.prior_precision --prior=sd --side=32   Stable Diffusion 1.5's U-Net
  python -m tests.benchmarks.prior_precision --prior=small          the same, an eighth as wide

Guidance multiplies d by up to 100, and d is a small difference of two large predictions: the
rounding errors of both are compared with d, not with eps. `sd` and `small` have random weights, in
which the effect of text is random, so text' = empty + s (text - empty) is set to make |d| a given
share of |eps|, the TARGETS: 0.15 and 0.03 are Stable Diffusion's at large and at small t.

All formats are computed on the local device. Half precision is the program's own, without excess
precision; formats of accelerators are emulated by rounding the factors of each product: to 10 bits
of mantissa as TF32 does, or into two bfloat16 parts, of which three products are summed, as a TPU
does for JAX's precision "high". All products are summed in float32.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from dreamfusion_jax.config import cli
from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.diffusion.loading.weights import load_module
from dreamfusion_jax.diffusion.models import unet as unet_module
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.sampling import ddim_sample
from dreamfusion_jax.diffusion.schedule import (
    Schedule,
    add_noise,
    alpha_sigma,
    schedule_from_config,
    time_index,
    to_epsilon,
)
from dreamfusion_jax.runs.open_prior import TOYBOX
from tests import pipelines
from tests.benchmarks import measure

PROMPTS = ("a red chair", "a blue car", "a yellow mushroom", "a green house")
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
TARGETS = (0.15, 0.03)
PRODUCTS = ("dot_general", "conv_general_dilated")
# Stable Diffusion 1.5's blocks, layers and heads, an eighth as wide.
SMALL = pipelines.SD15_UNET | {
    "block_out_channels": [40, 80, 160, 160],
    "cross_attention_dim": 96,
    "norm_num_groups": 8,
    "sample_size": 16,
}

Product = Callable[[jax.Array, jax.Array], jax.Array]


class Format(NamedTuple):
    """The number formats of a U-Net.

    Attributes:
      dtype: of its weights and its arithmetic.
      residual: of the sums that its blocks add to, of norms and activations between them.
      products: takes a product and its two factors, and computes it with rounded ones.
    """

    dtype: Any = jnp.float32
    residual: Any = jnp.float32
    products: Callable[[Product, jax.Array, jax.Array], jax.Array] | None = None


class Subject(NamedTuple):
    """A U-Net in float32, and its inputs.

    Attributes:
      unet, params: the network.
      schedule: of the network.
      z_t: [B, h, w, c].
      t: [B].
      text, empty: [B, L, D] embeddings.
    """

    unet: UNet2DConditionModel
    params: Any
    schedule: Schedule
    z_t: jax.Array
    t: jax.Array
    text: jax.Array
    empty: jax.Array


class Errors(NamedTuple):
    """The errors of one format against float32, for each of B latents.

    Attributes:
      of_eps: |eps' - eps| / |eps|, without text.
      of_d: |d' - d| / |eps|.
      share: |d' - d| / |d|.
    """

    of_eps: np.ndarray
    of_d: np.ndarray
    share: np.ndarray


def tf32(product: Product, a: jax.Array, b: jax.Array) -> jax.Array:
    """Rounds both factors to the 10 bits of mantissa that TF32 has."""
    return product(*(jax.lax.reduce_precision(x, 8, 10) for x in (a, b)))


def three_bfloat16(product: Product, a: jax.Array, b: jax.Array) -> jax.Array:
    """Splits factors into two bfloat16 numbers, and omits the product of the lower ones."""
    (a_high, a_low), (b_high, b_low) = _split(a), _split(b)
    return product(a_high, b_high) + (product(a_high, b_low) + product(a_low, b_high))


def one_bfloat16(product: Product, a: jax.Array, b: jax.Array) -> jax.Array:
    """Rounds both factors to bfloat16, as a TPU does to float32 by default."""
    return product(*(jax.lax.reduce_precision(x, 8, 7) for x in (a, b)))


def _split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    high = jax.lax.reduce_precision(x, 8, 7)
    return high, jax.lax.reduce_precision(x - high, 8, 7)


FORMATS: Mapping[str, Format] = {
    "bfloat16": Format(jnp.bfloat16, jnp.bfloat16),
    "bfloat16, residual float32": Format(jnp.bfloat16),
    "float16": Format(jnp.float16, jnp.float16),
    "float16, residual float32": Format(jnp.float16),
    "float32, TF32 products": Format(products=tf32),
    "float32, three bfloat16 products": Format(products=three_bfloat16),
    "float32, one bfloat16 product": Format(products=one_bfloat16),
}


def with_products(function: Callable[..., Any], products: Any) -> Callable[..., Any]:
    """Returns `function` with every product replaced by `products`, by evaluating its jaxpr."""

    def evaluate(*arguments: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        outputs = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(arguments), products)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return evaluate


def _evaluate(jaxpr: Jaxpr, consts: Any, arguments: Any, products: Any) -> list[Any]:
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))
    read = lambda atom: atom.val if isinstance(atom, Literal) else known[atom]  # noqa: E731
    for eqn in jaxpr.eqns:
        values = [read(atom) for atom in eqn.invars]
        inner = next((p for p in eqn.params.values() if isinstance(p, ClosedJaxpr)), None)
        if eqn.primitive.name in PRODUCTS:
            product = functools.partial(eqn.primitive.bind, **eqn.params)
            outputs = products(product, *values)
        elif inner is not None:  # a jitted function, or one with a derivative of its own
            outputs = _evaluate(inner.jaxpr, inner.consts, values, products)
        else:
            outputs = eqn.primitive.bind(*values, **eqn.params)
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


Predict = Callable[[Subject], np.ndarray]


def predictor(network: Subject, form: Format) -> Predict:
    """Compiles a network in a format: a subject -> predicted noise [B, h, w, c]."""
    unet, schedule = dataclasses.replace(network.unet, dtype=form.dtype), network.schedule
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, form.dtype), network.params)

    def predict(params: Any, z_t: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
        prediction = unet.apply({"params": params}, z_t, time_index(schedule, t), text)
        coefficients = alpha_sigma(schedule, t)
        prediction = prediction.astype(jnp.float32)
        return to_epsilon(prediction, z_t, *coefficients, schedule.prediction_type)

    function = with_products(predict, form.products) if form.products else predict
    # Otherwise XLA omits the rounding between two operations that it fuses.
    program = jax.jit(function, compiler_options={"xla_allow_excess_precision": False})

    def run(subject: Subject) -> np.ndarray:
        with (
            mock.patch.object(unet_module, "RESIDUAL_DTYPE", form.residual),
            jax.default_matmul_precision("highest"),
        ):
            return np.asarray(program(params, subject.z_t, subject.t, subject.text))

    return run


def with_and_without(predict: Predict, subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    """Returns the noise predicted with the subject's text, and with the empty one."""
    return predict(subject), predict(subject._replace(text=subject.empty))


def errors(noise: tuple[np.ndarray, np.ndarray], truth: tuple[np.ndarray, np.ndarray]) -> Errors:
    """Compares a format's noise, with text and without, with that in float32."""
    (text, empty), size = truth, _norm(truth[1])
    off = _norm((noise[0] - noise[1]) - (text - empty))
    return Errors(_norm(noise[1] - empty) / size, off / size, off / _norm(text - empty))


def ratio_of(truth: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Returns |d| / |eps| of each latent."""
    return _norm(truth[0] - truth[1]) / _norm(truth[1])


def at_ratio(predict: Predict, subject: Subject, target: float) -> Subject:
    """Moves the subject's texts towards or away from the empty one until |d| / |eps| = target.

    d is nearly linear in a small step, so a few corrections suffice.
    """
    empty, away = predict(subject._replace(text=subject.empty)), subject.text - subject.empty
    scale, moved = np.ones(len(empty), np.float32), subject
    for _ in range(4):
        scale = scale * np.clip(target / ratio_of((predict(moved), empty)), 0.1, 10.0)
        moved = subject._replace(text=subject.empty + scale[:, None, None] * away)
    return moved


def _norm(x: np.ndarray) -> np.ndarray:
    """Returns the norms [B] of [B, ...]."""
    return np.linalg.norm(x.reshape(len(x), -1), axis=1)


def loaded(directory: Path) -> Subject:
    """Loads a prior's U-Net, encodes texts, and draws latents for them from the prior."""
    prior, prior_params = load_prior(directory)
    unet, params = load_module(
        directory / "unet", UNet2DConditionModel, np.float32, "", jnp.asarray
    )
    text = prior.encode_text(PROMPTS)
    empty = prior.encode_text([""] * len(PROMPTS))
    draw = jax.jit(lambda w, key: ddim_sample(prior, w, text, empty, key, 25, 6.0))
    times, texts = (np.ravel(x) for x in np.meshgrid(TIMES, np.arange(len(PROMPTS))))
    z, t = draw(prior_params, jax.random.key(0))[texts], jnp.asarray(times, jnp.float32)
    eps = jax.random.normal(jax.random.key(1), z.shape)
    z_t = add_noise(z, eps, *alpha_sigma(prior.schedule, t))
    tokens, none = text.tokens[texts], empty.tokens[texts]
    return Subject(unet, params, prior.schedule, z_t, t, tokens, none)


def random(config: Mapping[str, Any], side: int, seed: int = 0) -> Subject:
    """Makes a U-Net of random weights with random texts, for noise of `side` x `side`.

    Matrices have the variance 1 / fan_in, which preserves the signal's scale; norms and biases are
    random, too.
    """
    unet = UNet2DConditionModel.from_config(config)
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(unet.init, jax.random.key(0), *unet.dummy_inputs())["params"]

    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))  # noqa: E731

    def draw(path: Any, leaf: Any) -> jax.Array:
        if leaf.ndim > 1:
            return normal(*leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        return 0.3 * normal(*leaf.shape) + (path[-1].key == "scale")

    params, count = jax.tree_util.tree_map_with_path(draw, shapes), len(TIMES)
    text, empty = (normal(count, 77, unet.cross_attention_dim) for _ in range(2))
    z_t, schedule = normal(count, side, side, unet.in_channels), pipelines.SCHEDULER
    t = jnp.asarray(TIMES, jnp.float32)
    return Subject(unet, params, schedule_from_config(schedule), z_t, t, text, empty)


def subject_of(name: str, side: int) -> Subject:
    """Returns the subject that `--prior` and `--side` name."""
    shapes = {"sd": pipelines.SD15_UNET, "small": SMALL}
    if name in shapes:
        return random(shapes[name], side or shapes[name]["sample_size"])
    return loaded(TOYBOX if name == "toybox" else Path(name))


def row(network: Subject, form: Format, error: Errors) -> dict[str, Any]:
    """Summarizes a format: root mean squares over all latents, and the share by t."""
    count = sum(leaf.size for leaf in jax.tree.leaves(network.params))
    shares = {t: _rms(error.share[np.isclose(network.t, t)]) for t in TIMES}
    return {
        "gigabytes": count * np.dtype(form.dtype).itemsize / 1e9,
        "of_eps": _rms(error.of_eps),
        "of_d": _rms(error.of_d),
        "share": _rms(error.share),
        "share_by_t": shares,
    }


def measured(network: Subject, formats: Mapping[str, Format]) -> dict[str, dict[str, Any]]:
    """Returns a table for each ratio |d| / |eps|, with a row for each format."""
    predict = predictor(network, Format())
    ratio = ratio_of(with_and_without(predict, network))
    subjects = {f"|d|/|eps| from {ratio.min():.3f} to {ratio.max():.3f}, as it is": network}
    for target in TARGETS:
        subjects[f"|d|/|eps| = {target}"] = at_ratio(predict, network, target)
    truths = {title: with_and_without(predict, one) for title, one in subjects.items()}
    tables: dict[str, dict[str, Any]] = {title: {} for title in subjects}
    for name, form in formats.items():
        del predict
        jax.clear_caches()  # or the programs of a full-size network would fill the memory
        predict = predictor(network, form)
        for title, subject in subjects.items():
            error = errors(with_and_without(predict, subject), truths[title])
            tables[title][name] = row(network, form, error)
            print(f"{title}, {name}: {_rms(error.share):.3%}", file=sys.stderr, flush=True)
    return tables


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def format_table(title: str, numbers: dict[str, dict[str, Any]]) -> str:
    """Formats a table, in percent."""
    headers = ["format", "GB", "eps", "d, of |eps|", "d", *(f"t={t}" for t in TIMES)]
    lines = [
        [name, row["gigabytes"]]
        + [100.0 * row[key] for key in ("of_eps", "of_d", "share")]
        + [100.0 * share for share in row["share_by_t"].values()]
        for name, row in numbers.items()
    ]
    return f"{title}\n{measure.table(headers, lines)}\n"


def main() -> int:
    formats = {name: FORMATS[name] for name in flags.FLAGS.format}
    tables = measured(subject_of(flags.FLAGS.prior, flags.FLAGS.side), formats)
    print("Errors in percent:\n")
    for title, rows in tables.items():
        print(format_table(title, rows))
    measure.write_json(flags.FLAGS.json, {"prior": flags.FLAGS.prior, "errors": tables})
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("prior", "toybox", "toybox, a folder, or random weights: sd, small")
    flags.DEFINE_multi_enum("format", list(FORMATS), FORMATS, "which; may be given repeatedly")
    flags.DEFINE_integer("side", 0, "of the random networks' latents (0: as they are trained for)")
    flags.DEFINE_string("json", "", "also write the numbers to this file")
    cli.run(main)
