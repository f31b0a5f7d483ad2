"""text_embeddings/: what a costly text encoder made of a run's prompts, kept in the work folder.

T5-XXL takes minutes to read from disk; a continued run finds here what it needs. A file is named by
its prompt and the digest of what encoded it, so that it serves no other text encoder.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.diffusion.priors.prior import Condition, Prior
from dreamfusion_jax.runs import distributed
from dreamfusion_jax.runtime.errors import PriorError
from dreamfusion_jax.runtime.files import AnyPath, atomic_write, require_regular

FOLDER = "text_embeddings"


def with_kept_text(prior: Prior, workdir: AnyPath, prompts: Sequence[str]) -> Prior:
    """Returns the prior with an `encode_text` for `prompts` alone, read from the work folder.

    Those that are missing there are encoded, in one call, and written. A prior whose texts cost
    little is returned as it is.
    """
    if prior.text_digest is None:
        return prior
    try:
        digest = prior.text_digest()
    except OSError as error:
        raise PriorError(f"The text encoder cannot be read ({error}): check the disk.") from error
    paths = {prompt: workdir / FOLDER / _file_name(prompt, digest) for prompt in prompts}
    known = {prompt: found for prompt, path in paths.items() if (found := _read(path)) is not None}
    missing = [prompt for prompt in paths if prompt not in known]
    if missing:
        fields = _arrays(prior.encode_text(missing))
        for i, prompt in enumerate(missing):
            known[prompt] = {name: field[i] for name, field in fields.items()}
            if distributed.is_primary():
                _write(paths[prompt], known[prompt])

    def encode_text(prompts: Sequence[str]) -> Condition:
        rows = [known[prompt] for prompt in prompts]
        return Condition(**{name: jnp.stack([row[name] for row in rows]) for name in rows[0]})

    return prior._replace(encode_text=encode_text)


def _arrays(condition: Condition) -> dict[str, np.ndarray]:
    fields = condition._asdict().items()
    return {name: np.asarray(field) for name, field in fields if field is not None}


def _file_name(prompt: str, digest: str) -> str:
    return hashlib.sha256(f"{digest}\n{prompt}".encode()).hexdigest()[:40] + ".npz"


def _read(path: AnyPath) -> dict[str, np.ndarray] | None:
    """Returns the arrays of a file; None where it is missing or broken, to be written anew."""
    try:
        require_regular(path)
        with np.load(io.BytesIO(path.read_bytes())) as file:
            arrays = {name: file[name] for name in file.files if name in Condition._fields}
        return arrays if "tokens" in arrays else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: AnyPath, arrays: dict[str, np.ndarray]) -> None:
    data = io.BytesIO()
    np.savez(data, **arrays)  # type: ignore[arg-type]
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, data.getvalue())
