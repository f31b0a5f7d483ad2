import jax.numpy as jnp
import pytest
from jax.errors import JaxRuntimeError

from dreamfusion_jax.config import cli
from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.distillation.options import DistillationOptions
from dreamfusion_jax.runs import memory_advice
from dreamfusion_jax.runs.options import RunOptions
from dreamfusion_jax.runtime import oom
from dreamfusion_jax.runtime.device import compiling_for
from dreamfusion_jax.runtime.errors import RunError
from dreamfusion_jax.training.options import TrainOptions

FULL = JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.\nMore of it")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FULL, "Out of memory allocating 8 bytes"),
        (MemoryError("Unable to allocate 32 GiB"), "Unable to allocate 32 GiB"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_out_of_memory_is_one_sentence_with_remedies(error, reason):
    with pytest.raises(RunError) as raised:
        with oom.oom_context("a cup was made", lambda: ["--a=1, which halves it", "--b=2"]):
            raise error
    assert raised.value.exit_code == 1 and str(raised.value) == (
        f"Memory ran out while a cup was made ({reason}); what was saved before is kept. What"
        " helps: --a=1, which halves it; --b=2."
    )


def test_other_runtime_errors_are_not_out_of_memory():
    with pytest.raises(JaxRuntimeError, match="INTERNAL"):
        with oom.oom_context("", lambda: pytest.fail("asked for remedies")):
            raise JaxRuntimeError("INTERNAL: a bug")


def test_out_of_memory_anywhere_ends_a_program_in_one_line(monkeypatch, capsys):
    def main() -> int:
        raise FULL

    monkeypatch.setattr("sys.argv", ["program"])
    with pytest.raises(SystemExit) as raised:
        cli.run(main)
    stderr = capsys.readouterr().err
    assert (
        raised.value.code == 1
        and stderr.startswith("Error: Memory ran out")
        and stderr.count("\n") == 1
    )


def first_words(remedies: list[str]) -> list[str]:
    return [remedy.split(",")[0] for remedy in remedies]


def test_only_effective_remedies_of_a_step_are_named():
    """Views' latents go through the encoder together; half precision helps off the CPU."""
    full, half, bfloat16 = jnp.float32, jnp.float16, jnp.bfloat16
    assert memory_advice.training_remedies(Config(), 36_000_000, full, full) == []
    config = Config(
        train=TrainOptions(views_per_device=5), distillation=DistillationOptions(objective="full")
    )
    here = memory_advice.training_remedies(config, 4_000_000_000, full, full)
    assert first_words(here) == ["--views_per_device=2", "--objective=sds in another --workdir"]
    with compiling_for("gpu"):
        views, gradient, weights, encoder = memory_advice.training_remedies(
            config, 4_000_000_000, full, full
        )
        lower = memory_advice.training_remedies(config, 2_000_000_000, half, full)
        assert lower == [views, gradient, encoder]
        assert memory_advice.training_remedies(config, 2_000_000_000, half, bfloat16) == [
            views,
            gradient,
        ]
    assert "--views_per_device=2," in views and "--objective=sds " in gradient
    assert "--prior_dtype=float16" in weights and "from 4.0 GB to 2.0 GB" in weights
    assert "--vae_dtype=bfloat16" in encoder


def test_half_precision_on_a_tpu_is_named_with_its_cost():
    config, full, half = Config(), jnp.float32, jnp.bfloat16
    with compiling_for("tpu"):
        (weights,) = memory_advice.training_remedies(config, 4_000_000_000, full, half)
        (loading,) = memory_advice.prior_remedies(full)
        assert memory_advice.training_remedies(config, 2_000_000_000, half, half) == []
        assert memory_advice.prior_remedies(half) == []
    for remedy in (weights, loading):
        assert remedy.startswith("--prior_dtype=bfloat16") and "a third of the guided" in remedy
    assert memory_advice.prior_remedies(full) == []


def test_remedies_are_ranked_by_savings_and_small_ones_left_out():
    grid, texture = memory_advice.mesh_remedies(RunOptions(mesh_resolution=512, texture_size=4096))
    assert grid == (
        "--mesh_resolution=256, with which the grid of densities takes 403 MB instead of 3.2 GB"
    )
    assert texture.startswith("--texture_size=2048,")
    assert memory_advice.mesh_remedies(RunOptions()) == []
    # A quarter of the pixels is less than half of the frames.
    large = RunOptions(turntable_size=1024, turntable_frames=60, poster_size=4096)
    assert first_words(memory_advice.image_remedies(large)) == [
        "--poster_size=2048",
        "--turntable_size=512",
        "--turntable_frames=30",
    ]
