"""Keeps the last run and the last sampler for later calls of the Python API.

A prior may fill most of a device, so at most one is in memory: the old one is dropped before
another is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.diffusion.priors.options import PriorOptions
from dreamfusion_jax.distillation.view_prompts import ViewScheme
from dreamfusion_jax.runs import loop
from dreamfusion_jax.runs.sampling import PriorSampler, open_sampler, shared_sampler

K = TypeVar("K")
V = TypeVar("V")


class OneEntryCache(Generic[K, V]):
    """Keeps the newest value. `functools.lru_cache(1)` would hold the old one beside the new.

    Attributes:
      value: the value kept, or None.
    """

    def __init__(self) -> None:
        self._key: K | None = None
        self.value: V | None = None

    def holds(self, key: K) -> bool:
        """Returns whether the value of `key` is kept."""
        return self.value is not None and self._key == key

    def clear(self) -> None:
        """Drops the value."""
        self._key = self.value = None

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Returns the value of `key`; drops any other value before it calls `make`."""
        if self.value is None or self._key != key:
            self.clear()
            self._key, self.value = key, make()
        return self.value


_run: OneEntryCache[Config, loop.Run] = OneEntryCache()
_sampler: OneEntryCache[PriorOptions, PriorSampler] = OneEntryCache()


def prepared_run(config: Config, schemes: Mapping[str, ViewScheme]) -> loop.Run:
    """Returns `loop.prepare(config, schemes)`, kept from the last call where `config` is its.

    The prior of the last call is kept where `config` names the same.
    """
    last = _run.value
    if last and last.setup.config.prior != config.prior:
        last = None  # Nothing must hold the old prior while another is loaded.
    if not _run.holds(config):
        _sampler.clear()
    return _run.get(config, lambda: loop.prepare(config, schemes, last))


def prior_sampler(options: PriorOptions) -> PriorSampler:
    """Returns a sampler of a prior: the last one, or one of the run's prior, or a new one."""
    run = _run.value
    if run and run.setup.config.prior == options:
        return _sampler.get(options, lambda: shared_sampler(run.prior, run.prior_params))
    _run.clear()
    return _sampler.get(options, lambda: open_sampler(options))
