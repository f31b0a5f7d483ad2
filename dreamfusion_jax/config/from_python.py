"""What every call of the Python API shares, as cli.py is what the commands share."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from absl import logging

from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.runtime import jax_modes, process
from dreamfusion_jax.runtime.errors import UserError

# The dashes of a setting's flag in a message, but not those within the name of a file.
_KEYWORDS = ("preset", "samples", *configs.setting_names())
_FLAG = re.compile(rf"(?:^|(?<=[\s(]))--(?=(?:{'|'.join(_KEYWORDS)})\b)")


@contextmanager
def called_from_python() -> Iterator[None]:
    """Pins JAX's modes, names settings in messages as keywords, and silences Orbax's log."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with process.usable_streams(), jax_modes.pinned(), jax_modes.name_debug_nans():
            yield
    except UserError as error:
        error.args = (_FLAG.sub("", str(error)),)
        raise
    finally:
        logging.set_verbosity(verbosity)
