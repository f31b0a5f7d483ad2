import chex
import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.guidance import classifier_free, guided_prediction, rescale
from dreamfusion_jax.diffusion.prior import analytic_prior


def test_scale_goes_from_the_empty_text_through_the_text_and_on():
    eps_text, eps_empty = jnp.array([3.0]), jnp.array([1.0])
    for scale, expected in ((0.0, 1.0), (1.0, 3.0), (7.5, 16.0)):
        chex.assert_trees_all_close(
            classifier_free(eps_text, eps_empty, scale), jnp.array([expected])
        )


def test_rescaling_gives_back_the_spread_of_the_prediction_with_text():
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

    def predict(weights, z_t, t, text):
        calls.append(z_t.shape)
        return z_t * t[:, None, None, None] + weights * text.mean((1, 2))[:, None, None, None]

    prior = analytic_prior(0.0, 1.0)._replace(predict=predict)
    z_t, t = jax.random.normal(jax.random.key(0), (2, 4, 4, 3)), jnp.array([0.2, 0.7])
    text, empty = jnp.array([[[1.0]], [[2.0]]]), jnp.array([[[-1.0]]])
    out = guided_prediction(prior, 10.0, z_t, t, text, empty, 3.0)
    assert calls == [(4, 4, 4, 3)]
    guided_text = jnp.array([-1.0 + 3.0 * 2.0, -1.0 + 3.0 * 3.0])
    expected = (z_t * t[:, None, None, None]) + 10.0 * guided_text[:, None, None, None]
    chex.assert_trees_all_close(out, expected, rtol=1e-5)
