import jax
import jax.numpy as jnp

from dreamfusion_jax.platform import compiling_for, platform
from dreamfusion_jax.settings import PriorConfig
from dreamfusion_jax.training.loop import prior_dtypes


def test_the_platform_is_jax_own_unless_a_program_is_compiled_for_another():
    assert platform() == jax.default_backend()
    with compiling_for("tpu"):
        assert platform() == "tpu"
    assert platform() == jax.default_backend()


def test_what_was_traced_for_one_platform_is_not_taken_for_another():
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


def test_a_prior_for_a_tpu_computes_in_bfloat16():
    assert prior_dtypes(PriorConfig(prior_dtype="float32")) == (jnp.float32, jnp.float32)
    with compiling_for("tpu"):
        assert prior_dtypes(PriorConfig()) == (jnp.bfloat16, jnp.bfloat16)
        assert prior_dtypes(PriorConfig(vae_dtype="float32")) == (jnp.bfloat16, jnp.float32)
