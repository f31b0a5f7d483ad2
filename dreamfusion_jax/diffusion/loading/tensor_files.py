"""Tensors in safetensors files: their names and shapes, and their numbers one after another.

Files are memory-mapped, so that no more is in memory than what is being read. A file of unknown
origin is checked before it is parsed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from dreamfusion_jax.diffusion.loading.model_files import unreadable
from dreamfusion_jax.runtime.errors import NumberFormatError, PriorError
from dreamfusion_jax.runtime.files import require_regular

WINDOW_BYTES = 2**28
# Of a file's header, which names its tensors: Stable Diffusion's take less than 0.1 MB.
MAX_HEADER_BYTES = 2**24
FORMATS = ("F64", "F32", "F16", "BF16")
MAX_AXES = 4
POSITION_IDS = ".position_ids"


def convert(path: Path, name: str, tensor: np.ndarray, dtype: Any) -> np.ndarray:
    """Converts a tensor to a number format, and checks that its numbers fit.

    Only float16 has a smaller range than the files' formats. Numbers that are infinite in the file
    itself are no error.
    """
    with np.errstate(over="ignore"):  # reported below, with the tensor's name
        converted = np.array(tensor, dtype, order="C")
    if converted.dtype == np.float16 and np.any(np.isinf(converted) & np.isfinite(tensor)):
        raise NumberFormatError(
            f"{path} holds {name:.200} with numbers beyond {np.finfo(np.float16).max:.0f}, where "
            "float16 ends."
        )
    return converted


def tensor_specs(
    files: Sequence[Path], wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, np.ndarray]:
    """Returns the names and shapes of the wanted tensors, as arrays that take no memory."""
    specs = {}
    for path in files:
        with opened(path) as file:
            for name in filter(wanted, _names(file)):
                specs[name] = _tensor_spec(path, name, file.get_slice(name))
    return specs


def locate_tensors(files: Sequence[Path]) -> dict[str, Path]:
    """Returns the file that holds each tensor, by the tensor's name."""
    located: dict[str, Path] = {}
    for path in files:
        with opened(path) as file:
            located |= dict.fromkeys(_names(file), path)
    return located


def header_metadata(path: Path) -> dict[str, str]:
    """Returns the texts that a file's header holds beside the names of its tensors."""
    with opened(path) as file:
        return dict(file.metadata() or {})


def read_rows(path: Path, name: str, rows: np.ndarray) -> np.ndarray:
    """Reads rows [N] of a matrix [M, D], in float32 and without reading the others."""
    distinct, places = np.unique(rows, return_inverse=True)
    with opened(path) as file:
        matrix = file.get_slice(name)
        found = [np.asarray(matrix[int(row) : int(row) + 1], np.float32) for row in distinct]
    return np.concatenate(found)[places]


def _names(file: Any) -> list[str]:
    return [name for name in file.keys() if not name.endswith(POSITION_IDS)]  # noqa: SIM118


def _tensor_spec(path: Path, name: str, tensor: Any) -> np.ndarray:
    shape, stored = tensor.get_shape(), tensor.get_dtype()
    if stored not in FORMATS:
        raise PriorError(
            f"{path} holds {name:.200} as {stored}, only {', '.join(FORMATS)} are supported."
        )
    if len(shape) > MAX_AXES:
        raise PriorError(f"{path} holds {name:.200} with {len(shape)} axes; no network has such.")
    return np.broadcast_to(np.zeros((), np.float32), shape)


def stream(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields a file's wanted tensors; maps it anew every WINDOW_BYTES.

    Pages read count as our memory until they are unmapped.
    """
    with opened(path) as file:
        names = list(filter(wanted, _names(file)))
    while names:
        with opened(path) as file:
            read = 0
            while names and read < WINDOW_BYTES:
                tensor = file.get_tensor(names[0])
                read += tensor.nbytes
                yield names.pop(0), tensor


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Opens a safetensors file. Raises a PriorError where that is not possible."""
    try:
        _check_header(path)
        with safe_open(path, framework="numpy") as file:
            yield file
    except FileNotFoundError:
        raise PriorError(f"{path} is missing, though the index beside it names it.") from None
    except OSError as error:
        raise unreadable(path, error) from None
    except (SafetensorError, ValueError) as error:
        if "os error" in str(error):  # safetensors' own words for what is an OSError
            raise unreadable(path, error) from None
        raise PriorError(
            f"{path} is not a whole safetensors file ({error}): download it again."
        ) from None


def _check_header(path: Path) -> None:
    """Raises ValueError where the header is so long that parsing it would fill the memory."""
    require_regular(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header would have {length} bytes")
