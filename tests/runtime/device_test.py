import os

import jax
import jax.numpy as jnp
import pytest

from dreamfusion_jax.diffusion.priors.options import PriorOptions
from dreamfusion_jax.runs.open_prior import prior_dtypes
from dreamfusion_jax.runtime.device import compiling_for, platform, require, use
from dreamfusion_jax.runtime.errors import UserError


def test_platform_is_jaxs_own_unless_compiling_for_another():
    assert platform() == jax.default_backend()
    with compiling_for("tpu"):
        assert platform() == "tpu"
    assert platform() == jax.default_backend()


def test_a_trace_for_one_platform_is_not_reused_for_another():
    traced = []

    @jax.jit
    def double(x):
        traced.append(platform())
        return 2.0 * x

    double(1.0)
    with compiling_for("tpu"):
        double.trace(1.0)
    double(1.0)
    assert traced == [jax.default_backend(), "tpu"]


@pytest.mark.parametrize(
    ("name", "dtype", "vae_dtype"),
    [
        ("cpu", jnp.float32, jnp.float32),
        ("gpu", jnp.float16, jnp.bfloat16),
        ("tpu", jnp.float32, jnp.bfloat16),
    ],
)
def test_number_formats_of_a_prior_by_platform(name, dtype, vae_dtype):
    with compiling_for(name):
        assert prior_dtypes(PriorOptions()) == (dtype, vae_dtype)
        # One format does not change the other.
        assert prior_dtypes(PriorOptions(prior_dtype="bfloat16")) == (jnp.bfloat16, vae_dtype)
        assert prior_dtypes(PriorOptions(vae_dtype="float32")) == (dtype, jnp.float32)


def test_float16_is_refused_on_a_tpu():
    with compiling_for("tpu"):
        with pytest.raises(UserError, match="^--prior_dtype=float16: a TPU does not"):
            prior_dtypes(PriorOptions(prior_dtype="float16"))


@pytest.fixture
def jax_platforms(monkeypatch):
    """Reads the platforms in JAX's own setting and in the environment of child processes."""
    monkeypatch.setenv("JAX_PLATFORMS", "axe")
    before = jax.config.jax_platforms
    yield lambda: (jax.config.jax_platforms, os.environ["JAX_PLATFORMS"])
    jax.config.update("jax_platforms", before)


def test_a_platform_is_set_here_and_in_child_processes(jax_platforms):
    use("auto")
    assert jax_platforms()[1] == "axe", "the user's own choice"
    use("cpu")
    assert jax_platforms() == ("cpu", "cpu")
    use("gpu")  # JAX's own "gpu" wants those of all makers
    assert jax_platforms() == (None, "")


def test_a_missing_platform_is_one_sentence(monkeypatch):
    require("auto")
    require("cpu")
    with pytest.raises(UserError, match=r'^--platform=gpu, but JAX runs on the cpu .*".\[cuda\]"'):
        require("gpu")
    monkeypatch.setenv("JAX_PLATFORMS", "axe")
    for error in (RuntimeError("Unable to initialize backend 'axe'"), AssertionError()):

        def none(error: Exception = error) -> str:
            raise error

        monkeypatch.setattr(jax, "default_backend", none)
        with pytest.raises(UserError, match="^JAX_PLATFORMS=axe names a platform that is not here"):
            require("auto")
        monkeypatch.setenv("JAX_PLATFORMS", "")  # as where another program holds a TPU
        with pytest.raises(UserError, match=r"^JAX cannot use the device here \(.+\): .*=cpu"):
            require("auto")
        monkeypatch.setenv("JAX_PLATFORMS", "axe")
