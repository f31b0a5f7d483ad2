"""One check of what leaves the device: a number that is none would pass as black, or as empty."""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamfusion_jax.runtime.errors import RunError


def require_finite(array: Any, what: str, remedy: str) -> np.ndarray:
    """Returns an array on the host.

    Args:
      what: the array's name, which opens the message.
      remedy: ends it, as a clause.

    Raises:
      RunError: some of its numbers are infinite or not a number.
    """
    host = np.asarray(array)
    if wrong := int(np.size(host) - np.count_nonzero(np.isfinite(host))):
        raise RunError(f"{what} is not finite ({wrong:,} of {host.size:,} numbers); {remedy}.")
    return host
