import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamfusion_jax.diffusion.priors.analytic import analytic_prior
from dreamfusion_jax.diffusion.priors.prior import Condition
from dreamfusion_jax.distillation import view_prompts
from dreamfusion_jax.distillation.options import ViewPromptOptions
from dreamfusion_jax.toybox.view_scheme import SCHEME


@pytest.mark.parametrize(
    ("azimuth_deg", "elevation_deg", "words"),
    [
        (0, 0, "front view"),
        (44, 0, "front view"),
        (316, 59, "front view"),
        (46, 0, "side view"),
        (270, 0, "side view"),
        (180, 0, "back view"),
        (136, 0, "back view"),
        (-180, 10, "back view"),
        (180, 61, "overhead view"),
    ],
)
def test_paper_words(azimuth_deg, elevation_deg, words):
    index = view_prompts.PAPER.nearest(jnp.float32(azimuth_deg), jnp.float32(elevation_deg))
    assert view_prompts.PAPER_PHRASES[index] == words


def test_toybox_words_tell_left_from_right():
    for azimuth_deg, words in ((0, "front"), (90, "left side"), (180, "back"), (270, "right side")):
        index = SCHEME.nearest(jnp.float32(azimuth_deg), jnp.float32(30))
        assert SCHEME.phrases[index] == f"{words} view, medium angle"


_SCHEMES = {"toybox": SCHEME, "paper": view_prompts.PAPER, "none": view_prompts.NONE}


def _view_text(azimuth_deg, elevation_deg=0.0, textureless=False, scheme="paper", **options):
    return view_prompts.view_text(
        ViewPromptOptions(**options),
        _SCHEMES[scheme],
        jnp.float32(azimuth_deg),
        jnp.float32(elevation_deg),
        jnp.asarray(textureless),
    )


def _mix(azimuth_deg, elevation_deg=0.0, textureless=False, scheme="paper", **options):
    """{prompt: share} of one view, whose embeddings are mixed unless the options say otherwise."""
    options = options or {"interpolate_views": True}
    text = _view_text(azimuth_deg, elevation_deg, textureless, scheme=scheme, **options)
    table, mix = view_prompts.table_prompts("a red chair", _SCHEMES[scheme]), {}
    for row, share in zip(text.rows.tolist(), text.mix_weights.tolist(), strict=True):
        mix[table[row]] = mix.get(table[row], 0.0) + share
    return {prompt: pytest.approx(share, abs=1e-5) for prompt, share in mix.items() if share > 1e-5}


@pytest.mark.parametrize("scheme", ["toybox", "paper", "none"])
def test_a_view_has_the_prompt_with_the_words_of_its_camera(scheme):
    for azimuth_deg in range(-180, 360, 40):
        for elevation_deg in (-10, 30, 50, 80):
            angles = jnp.float32(azimuth_deg), jnp.float32(elevation_deg)
            words = _SCHEMES[scheme].phrases[_SCHEMES[scheme].nearest(*angles)]
            expected = ", ".join(filter(None, ["a red chair", words]))
            mix = _mix(azimuth_deg, elevation_deg, scheme=scheme, interpolate_views=False)
            assert mix == {expected: 1.0}


def test_textureless_toybox_views_are_described_without_color():
    (words,) = _mix(0.0, textureless=True, scheme="toybox", interpolate_views=False)
    assert words == "a chair, front view, low angle"
    (words,) = _mix(0.0, textureless=True, scheme="paper", interpolate_views=False)
    assert words == "a red chair, front view"


@pytest.mark.parametrize(
    ("azimuth_deg", "elevation_deg", "mix"),
    [
        (0, 0, {"front": 1.0}),
        (30, 0, {"front": 2 / 3, "side": 1 / 3}),
        (-30, 59, {"front": 2 / 3, "side": 1 / 3}),
        (45, 0, {"front": 0.5, "side": 0.5}),
        (90, 0, {"side": 1.0}),
        (225, 0, {"side": 0.5, "back": 0.5}),
        (180, 0, {"back": 1.0}),
        (30, 61, {"overhead": 1.0}),
    ],
)
@pytest.mark.parametrize("option", ["interpolate_views", "perp_neg"])
def test_paper_words_are_mixed_by_the_angle_to_the_front(azimuth_deg, elevation_deg, mix, option):
    """With Perp-Neg, too, whose weights are made for that (Armandpour et al. 2023)."""
    expected = {f"a red chair, {name} view": share for name, share in mix.items()}
    assert _mix(azimuth_deg, elevation_deg, **{option: True}) == expected


def test_perp_neg_mixes_exactly_at_the_words_own_angles():
    for azimuth_deg, words in ((0, "front"), (90, "side"), (-90, "side"), (180, "back")):
        text = _view_text(azimuth_deg, scheme="paper", perp_neg=True)
        row = view_prompts.PAPER_PHRASES.index(f"{words} view")
        assert jnp.sum(jnp.where(text.rows == row, text.mix_weights, 0.0)) == 1.0
        assert jnp.sum(jnp.abs(text.mix_weights)) == 1.0


_DECAY = np.exp(-0.5 * np.linspace(0.0, 1.0, 3))  # at the shares 0, 1/2 and 1


@pytest.mark.parametrize(
    ("azimuth_deg", "weights"),
    [
        (0, {"front": 4 * _DECAY[2] - 2.426, "side": 4 * _DECAY[0] - 2.426}),
        (45, {"front": 4 * _DECAY[1] - 2.426, "side": 4 * _DECAY[1] - 2.426}),
        (-45, {"front": 4 * _DECAY[1] - 2.426, "side": 4 * _DECAY[1] - 2.426}),
        (90, {"side": _DECAY[2] - 0.606, "front": _DECAY[2] + 0.967}),
        (225, {"side": _DECAY[1] - 0.606, "front": _DECAY[1] + 0.967}),
        (180, {"side": _DECAY[0] - 0.606, "front": _DECAY[0] + 0.967}),
    ],
)
def test_perp_neg_weighs_the_neighbors_as_threestudio_does(azimuth_deg, weights):
    """f_fs, f_sf, f_sb and f_fsb of its PromptProcessorOutput.get_text_embeddings_perp_neg."""
    text = _view_text(azimuth_deg, scheme="paper", perp_neg=True)
    names = [
        view_prompts.PAPER_PHRASES[row].removesuffix(" view") for row in text.perp_neg_rows.tolist()
    ]
    against = dict(zip(names, text.perp_neg_weights.tolist(), strict=True))
    assert against == {name: pytest.approx(weight, abs=1e-5) for name, weight in weights.items()}


@pytest.mark.parametrize(
    ("azimuth_deg", "mix"),
    [
        (45, {"front left": 1.0}),
        (60, {"front left": 2 / 3, "left side": 1 / 3}),
        (330, {"front right": 2 / 3, "front": 1 / 3}),
        (-9, {"front": 0.8, "front right": 0.2}),
    ],
)
def test_toybox_words_are_mixed_between_neighboring_azimuths(azimuth_deg, mix):
    expected = {f"a red chair, {name} view, high angle": share for name, share in mix.items()}
    assert _mix(azimuth_deg, 50.0, scheme="toybox") == expected
    without = {key.replace("red ", ""): share for key, share in expected.items()}
    assert _mix(azimuth_deg, 50.0, textureless=True, scheme="toybox") == without


def test_perp_neg_leads_away_from_neighbors_never_from_the_view():
    """Weights of front and side are continuous all around, and 0 where that is the view."""
    azimuth_deg = jnp.linspace(-180.0, 180.0, 721)
    text = jax.vmap(lambda a: _view_text(a, scheme="paper", perp_neg=True))(azimuth_deg)
    index = {name: view_prompts.PAPER_PHRASES.index(f"{name} view") for name in ("front", "side")}
    weight = {
        name: jnp.sum(jnp.where(text.perp_neg_rows == row, text.perp_neg_weights, 0.0), axis=-1)
        for name, row in index.items()
    }
    at = {angle: int((angle + 180) * 2) for angle in (0, 90, 180)}
    np.testing.assert_allclose(weight["front"][at[0]], 0.0, atol=1e-3)
    np.testing.assert_allclose(weight["side"][at[90]], 0.0, atol=1e-3)
    for name, angle in (("side", 0), ("side", 180), ("front", 90), ("front", 180)):
        assert weight[name][at[angle]] > 0.3
    for values in weight.values():
        assert values.min() >= 0.0 and jnp.abs(jnp.diff(values)).max() < 0.02
        np.testing.assert_allclose(values, values[::-1], atol=1e-4)
    overhead = _view_text(30.0, 61.0, scheme="paper", perp_neg=True)
    chex.assert_trees_all_equal(overhead.perp_neg_weights, jnp.zeros(2))


def test_negative_prompts_list_the_other_views():
    options = ViewPromptOptions(negative_prompt="blurry", negative_views=True)
    texts = view_prompts.negative_prompts(options, view_prompts.PAPER)
    for azimuth_deg, words in ((0.0, "front"), (90.0, "side"), (180.0, "back")):
        text = texts[_view_text(azimuth_deg, negative_views=True).negative]
        others = [name for name in view_prompts.PAPER_PHRASES if name != f"{words} view"]
        assert text == ", ".join(["blurry", *others])
    assert view_prompts.negative_prompts(ViewPromptOptions(), view_prompts.PAPER) == [""]
    assert _view_text(180.0, scheme="paper").negative == 0


def test_the_table_embeds_prompts_once_and_views_mix_rows():
    encoded = []

    def encode_text(texts):
        encoded.append(list(texts))
        return Condition(jnp.asarray([[[float(len(text))]] for text in texts]))

    prior = analytic_prior(0.5, 0.1)._replace(encode_text=encode_text)
    options = ViewPromptOptions(negative_prompt="blurry", interpolate_views=True, perp_neg=True)
    table = view_prompts.text_table(prior, "a cup", options, view_prompts.PAPER)
    completed = view_prompts.table_prompts("a cup", view_prompts.PAPER)
    assert encoded == [completed, ["blurry"], ["a cup"], [""]]
    chex.assert_shape(table.rows.tokens, (4, 1, 1))
    angles = jnp.array([0.0, 30.0]), jnp.zeros(2)
    views = view_prompts.view_text(options, view_prompts.PAPER, *angles, jnp.zeros(2, bool))
    text = view_prompts.mixed(table, views).tokens
    negative = view_prompts.negatives(table, views).tokens
    perp_neg = view_prompts.perp_neg(table, views)
    front, side = (float(len(f"a cup, {name} view")) for name in ("front", "side"))
    chex.assert_trees_all_close(text[:, 0, 0], jnp.array([front, (2 * front + side) / 3]))
    chex.assert_trees_all_equal(negative, jnp.full((2, 1, 1), 6.0))
    chex.assert_trees_all_equal(perp_neg.cond.tokens[..., 0, 0], jnp.array([[front, side]] * 2))
