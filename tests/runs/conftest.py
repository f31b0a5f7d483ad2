"""The smallest run, as in tests/training."""

from tests.training.conftest import count_step, make_config, make_run  # noqa: F401, fixtures
