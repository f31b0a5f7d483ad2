"""What is not a number is an error wherever arrays leave the device, never a black image."""

import jax.numpy as jnp
import numpy as np
import pytest

from dreamfusion_jax.diffusion.priors.analytic import analytic_prior
from dreamfusion_jax.rendering import images
from dreamfusion_jax.runs import mesh_files
from dreamfusion_jax.runs.diagnostics import write_diagnostics
from dreamfusion_jax.runs.sampling import Guidance, draw_samples, shared_sampler
from dreamfusion_jax.runtime.errors import RunError
from dreamfusion_jax.runtime.finite import require_finite
from dreamfusion_jax.training.state import init_state
from tests.training.conftest import make_config, make_run  # noqa: F401, fixtures


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_wrong_numbers_are_counted(wrong):
    array = np.array([0.0, wrong, 1.0, wrong])
    with pytest.raises(RunError, match=r"^It is not finite \(2 of 4 numbers\); look at it\.$"):
        require_finite(array, "It", "look at it")
    np.testing.assert_array_equal(require_finite(jnp.arange(3), "It", ""), [0, 1, 2])


def test_images_refuse_nan_and_previews_show_it_black():
    with pytest.raises(RunError, match="The image is not finite"):
        images.to_uint8(np.full((2, 2, 3), np.nan))
    assert images.rounded(np.array([np.nan, 1.0, 0.5])).tolist() == [0, 255, 128]


def test_a_mesh_refuses_a_density_of_nan(monkeypatch):
    def nan(scene, value_fn, params, points, step):
        return np.full(len(points), np.nan), np.zeros((len(points), 3))

    monkeypatch.setattr(mesh_files, "_value_albedo", nan)
    with pytest.raises(RunError, match="density in --workdir is not finite .*--seed"):
        mesh_files.query_chunked(None, {}, 0, np.zeros((5, 3)))


def test_samples_of_nan_are_refused_with_the_remedy():
    prior = analytic_prior(0.2, 0.05)
    broken = prior._replace(predict=lambda *args: prior.predict(*args) * jnp.nan)
    with pytest.raises(RunError, match="sample of --prior is not finite .*--prior_dtype=float32"):
        draw_samples(shared_sampler(broken, {}), ["a cup"], Guidance(), 1, 2, 0)


def test_a_text_table_of_nan_ends_the_run_before_its_start(make_config, make_run):  # noqa: F811
    config = make_config()
    prior = analytic_prior(0.2, 0.05)

    def encode_text(prompts):
        cond = prior.encode_text(prompts)
        return cond._replace(tokens=jnp.full_like(cond.tokens, jnp.nan))

    with pytest.raises(RunError, match="text encoder makes of --prompt is not finite"):
        make_run(config, prior._replace(encode_text=encode_text))


def test_diagnostics_look_at_the_text_table(make_config, make_run):  # noqa: F811
    run = make_run(make_config())
    state = init_state(run.scene, run.optimizer, 0)
    plain = run.table.plain._replace(tokens=jnp.full_like(run.table.plain.tokens, jnp.nan))
    inputs = run.prior_params, run.table._replace(plain=plain), 1
    message = str(write_diagnostics(run.workdir, run.setup, state, *inputs))
    assert "the embedded prompts are not (.plain.tokens)" in message
