"""The record of a run's outputs, outputs.json: what was made, what could not be made, and why."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from typing import NamedTuple

from dreamfusion_jax.runtime.files import AnyPath, atomic_write, read_json

FILE = "outputs.json"


class OutputsRecord(NamedTuple):
    """What a work folder's outputs show.

    Attributes:
      step: the step whose scene they show.
      files: the names of those that were made.
      missing: the names of those that could not be made -> the reason.
    """

    step: int
    files: tuple[str, ...] = ()
    missing: Mapping[str, str] = types.MappingProxyType({})


def write_record(workdir: AnyPath, record: OutputsRecord) -> None:
    """Writes the record, whole or not at all."""
    atomic_write(
        workdir / FILE,
        (json.dumps({**record._asdict(), "missing": dict(record.missing)}) + "\n").encode(),
    )


def read_record(workdir: AnyPath) -> OutputsRecord | None:
    """Reads the record; None where there is none that can be read."""
    try:
        values = read_json(workdir / FILE)
        files, missing = map(str, values["files"]), values.get("missing", {})
        reasons = {_text(name): _text(reason) for name, reason in missing.items()}
        return OutputsRecord(int(values["step"]), tuple(files), reasons)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        return None


def _text(value: object) -> str:
    """Returns text that can be written in UTF-8, whatever JSON held."""
    return str(value).encode(errors="replace").decode()
