import chex
import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.guidance import (
    PerpNeg,
    classifier_free,
    guided_prediction,
    perpendicular_part,
    rescale,
)
from dreamfusion_jax.diffusion.priors.analytic import analytic_prior
from dreamfusion_jax.diffusion.priors.prior import Condition


def test_scale_goes_from_the_empty_text_through_the_text_and_on():
    eps_text, eps_empty = jnp.array([3.0]), jnp.array([1.0])
    for scale, expected in ((0.0, 1.0), (1.0, 3.0), (7.5, 16.0)):
        chex.assert_trees_all_close(
            classifier_free(eps_text, eps_empty, scale), jnp.array([expected])
        )


def test_rescaling_restores_the_conditional_prediction_s_spread():
    guided, with_text = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 2))
    guided = 5.0 * guided
    axes = (1, 2, 3)
    whole = rescale(guided, with_text, 1.0)
    chex.assert_trees_all_close(whole.std(axes), with_text.std(axes), rtol=1e-5)
    chex.assert_trees_all_close(rescale(guided, with_text, 0.0), guided)
    chex.assert_trees_all_close(
        rescale(guided, with_text, 0.3), 0.3 * whole + 0.7 * guided, rtol=1e-5
    )


def test_both_texts_are_asked_in_one_call():
    calls = []

    def predict(params, z_t, t, cond):
        calls.append(z_t.shape)
        text = cond.tokens.mean((1, 2))[:, None, None, None]
        return z_t * t[:, None, None, None] + params * text

    prior = analytic_prior(0.0, 1.0)._replace(predict=predict)
    z_t, t = jax.random.normal(jax.random.key(0), (2, 4, 4, 3)), jnp.array([0.2, 0.7])
    text, empty = Condition(jnp.array([[[1.0]], [[2.0]]])), Condition(jnp.array([[[-1.0]]]))
    out = guided_prediction(prior, 10.0, z_t, t, text, empty, 3.0)
    assert calls == [(4, 4, 4, 3)]
    guided_text = jnp.array([-1.0 + 3.0 * 2.0, -1.0 + 3.0 * 3.0])
    expected = (z_t * t[:, None, None, None]) + 10.0 * guided_text[:, None, None, None]
    chex.assert_trees_all_close(out, expected, rtol=1e-5)


def test_perp_neg_subtracts_only_the_perpendicular_part():
    keys = jax.random.split(jax.random.key(0), 3)
    towards = jax.random.normal(keys[0], (2, 4, 4, 3))
    away = jax.random.normal(keys[1], (2, 3, 4, 4, 3))
    weights = jax.random.uniform(keys[2], (2, 3))
    taken = perpendicular_part(towards, away, weights)
    chex.assert_trees_all_close(jnp.sum(taken * towards, axis=(1, 2, 3)), jnp.zeros(2), atol=1e-4)
    # What lies along the wanted direction, and how long that is, makes no difference.
    shifted = away + jnp.array([2.0, -1.0, 0.5])[None, :, None, None, None] * towards[:, None]
    chex.assert_trees_all_close(
        perpendicular_part(9.0 * towards, shifted, weights), taken, atol=1e-4
    )
    across = away - jnp.sum(away * towards[:, None], (2, 3, 4), keepdims=True) * towards[
        :, None
    ] / jnp.sum(towards**2, (1, 2, 3)).reshape(2, 1, 1, 1, 1)
    expected = jnp.sum(weights[:, :, None, None, None] * across, axis=1)
    chex.assert_trees_all_close(taken, expected, atol=1e-5)
    nothing = perpendicular_part(jnp.zeros_like(towards), away, weights)
    chex.assert_tree_all_finite(nothing)


def test_guidance_leads_away_from_each_view_s_negative_texts():
    """A prior that draws its text's two numbers, one to the left and one to the right."""
    calls = []

    def predict(params, z_t, t, cond):
        calls.append(len(z_t))
        return jnp.broadcast_to(cond.tokens[:, None, :, 0, None], z_t.shape)

    prior = analytic_prior(0.0, 1.0, image_size=2)._replace(predict=predict)
    z_t, t = jnp.zeros((2, 2, 2, 3)), jnp.array([0.2, 0.7])
    pair = lambda *numbers: jnp.array(numbers)[:, :, None]  # noqa: E731
    text, empty = Condition(pair((2.0, 1.0), (1.0, 3.0))), Condition(pair((1.0, 1.0)))
    unwanted = jnp.stack([pair((5.0, 2.0), (1.0, 1.0)), pair((1.0, 1.0), (4.0, 1.0))], axis=1)
    unwanted = PerpNeg(Condition(unwanted), jnp.array([[0.5, 1.0], [1.0, 0.1]]))
    out = guided_prediction(prior, {}, z_t, t, text, empty, 10.0, 0.0, unwanted)
    assert calls == [8]
    # First view: towards (1, 0), away (4, 1), of which (0, 1) is across. Second: (0, 2), (3, 0).
    expected = jnp.array([[1.0 + 10.0, 1.0 - 10.0 * 0.5], [1.0 - 10.0 * 0.3, 1.0 + 20.0]])
    chex.assert_trees_all_close(out, jnp.broadcast_to(expected[:, None, :, None], z_t.shape))
