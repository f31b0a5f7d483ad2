"""prior.json: which prior a run distils, by the digest of its files, wherever they lie.

A folder that was moved, or is spelled in another way, is the same prior; one whose weights were
changed is another.
"""

from __future__ import annotations

import json

from dreamfusion_jax.diffusion.priors.options import PriorOptions
from dreamfusion_jax.runs.open_prior import find_prior, prior_digest
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.files import AnyPath, atomic_write, read_json

FILE = "prior.json"
# Settings that say where a prior's files are; its digest says what they are.
PLACES = ("prior", "revision", "variant", "lora", "embedding")
_DIGITS = 12  # of a digest in a message


def recorded_digest(workdir: AnyPath) -> str:
    """Returns the digest of a run's prior; "" where an earlier version recorded none."""
    try:
        record = read_json(workdir / FILE)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise UserError(
            f"{workdir / FILE} cannot be read ({error}); name another --workdir."
        ) from None
    return str(record.get("sha256", "")) if isinstance(record, dict) else ""


def is_recorded(workdir: AnyPath, options: PriorOptions) -> bool:
    """Returns whether the prior that the settings name is the one that a run began with."""
    recorded = recorded_digest(workdir)
    return bool(recorded) and recorded == prior_digest(options, find_prior(options))


def record_prior(workdir: AnyPath, options: PriorOptions, digest: str) -> None:
    """Writes the digest of a run's prior.

    Raises:
      UserError: the run began with another.
    """
    recorded = recorded_digest(workdir)
    if recorded and digest and recorded != digest:
        raise UserError(
            f"{workdir} holds a run with another prior (SHA-256 {recorded[:_DIGITS]}...) than the"
            f" files of --prior={options.prior} are now ({digest[:_DIGITS]}...): give the same, or"
            " name another --workdir."
        )
    if digest and not recorded:
        record = {"prior": options.prior, "sha256": digest}
        atomic_write(workdir / FILE, (json.dumps(record, indent=2) + "\n").encode())
