"""What every call of the Python API shares, as cli.py is what the commands share."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from absl import logging

from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.diffusion.priors.options import PriorOptions
from dreamfusion_jax.runtime import jax_modes, process
from dreamfusion_jax.runtime.errors import SettingError, UserError

# The dashes of a setting's flag in a message, but not those within the name of a file.
_KEYWORDS = ("preset", "samples", *configs.setting_names())
_FLAG = re.compile(rf"(?:^|(?<=[\s(]))--(?=(?:{'|'.join(_KEYWORDS)})\b)")
# Settings of jobs of several processes, which need the command.
_OF_COMMANDS = ("distributed", "coordinator", "processes", "process_index", "peer_timeout")

_one_at_a_time = threading.RLock()


@contextmanager
def called_from_python() -> Iterator[None]:
    """Pins JAX's modes, names settings in messages as keywords, and silences Orbax's log.

    Calls from several threads queue: they would share the folder's lock, streams and the prior.
    """
    with _one_at_a_time:
        with _adjusted():
            yield


@contextmanager
def _adjusted() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)  # as in cli.py
    try:
        with process.usable_streams(), jax_modes.pinned(), jax_modes.name_debug_nans():
            yield
    except UserError as error:
        error.args = (_FLAG.sub("", str(error)),)
        raise
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def settings_at_fault() -> Iterator[None]:
    """Converts UserError to SettingError."""
    try:
        yield
    except UserError as error:
        raise SettingError(str(error)) from None


def require_settings_of_prior(settings: Collection[str]) -> None:
    """Raises a SettingError unless all names are those of settings that any prior has."""
    known = {field.name for field in dataclasses.fields(PriorOptions)} - {"prior", "prior_dtype"}
    for name in set(settings) - known:
        raise SettingError(
            f"{name} is no setting of a prior; text_to_images takes {', '.join(sorted(known))}."
        )


def refuse_jobs(settings: Collection[str]) -> None:
    """Raises a SettingError if there are settings of jobs of several processes."""
    for name in _OF_COMMANDS:
        if name in settings:
            raise SettingError(
                f"{name} is for jobs of several processes, which need the command; leave it out."
            )
