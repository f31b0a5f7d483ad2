"""Weights in the layout of diffusers and transformers: a config.json beside safetensors files.

Names, torch to Flax: `.N` joins the name before it (`to_out.0` -> `to_out_0`); a 4-D weight is a
convolution's `kernel` with the axes (2, 3, 1, 0), a 2-D one a linear layer's `kernel` transposed or
an embedding unchanged, a 1-D one a norm's `scale`. Name and shape decide; no module is needed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dreamfusion_jax.diffusion.loading.model_files import read_config, unreadable, weights_files
from dreamfusion_jax.runtime.errors import NumberFormatError, PriorError
from dreamfusion_jax.runtime.files import require_regular

Params = dict[str, Any]
DevicePutFn = Callable[[np.ndarray], Any]
WINDOW_BYTES = 2**28
# Of a file's header, which names its tensors: Stable Diffusion's take less than 0.1 MB.
MAX_HEADER_BYTES = 2**24
FORMATS = ("F64", "F32", "F16", "BF16")
MAX_AXES = 4
MAX_NAMES_SHOWN = 20
POSITION_IDS = ".position_ids"
EMBEDDINGS = ("token_embedding", "position_embedding", "shared", "relative_attention_bias")
# The torch modules with an underscore before a number: the time embedding's layers, and T5's.
NUMBERED = re.compile(r"(?<!^linear)(?<!^wi)_(\d+)$")
LEGACY_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _stay(array: np.ndarray) -> np.ndarray:
    return array


def params_from_torch(tensors: Mapping[str, np.ndarray]) -> Params:
    """Converts a torch state dict, as arrays, to nested Flax params.

    Raises:
      ValueError: two tensors map to one name.
    """
    params = dict(_to_flax(name, tensor) for name, tensor in tensors.items())
    if len(params) < len(tensors):
        raise ValueError("two tensors have names that mean the same")
    return unflatten_dict(params)


def params_to_torch(params: Params) -> dict[str, np.ndarray]:
    """Converts Flax params to a torch state dict: the inverse of `params_from_torch`."""
    return dict(_to_torch(path, leaf) for path, leaf in flatten_dict(params).items())


def read_component(
    directory: str | Path, dtype: Any = np.float32, variant: str = "", place: DevicePutFn = _stay
) -> tuple[dict[str, Any], Params]:
    """Reads config.json and the safetensors of one network.

    Args:
      directory: of the network, within a pipeline.
      dtype: of the params.
      variant: "fp16" reads `*.fp16.safetensors`; empty: the plain files, or else those.
      place: puts each array where it is to stay as soon as it is read.

    The files are memory-mapped and read tensor by tensor, so that the host holds little more than
    the params. Names of older versions of diffusers and transformers are upgraded.
    """
    directory = Path(directory)
    config = read_config(directory)
    return config, _read_params(weights_files(directory, variant), dtype, place)


def load_module(
    directory: str | Path,
    module_class: Any,
    dtype: Any,
    variant: str = "",
    place: DevicePutFn = _stay,
) -> tuple[Any, Params]:
    """Builds a network from its config.json, computing in `dtype`, and reads its params."""
    module = build_module(directory, module_class, dtype)
    return module, load_params(module, directory, dtype, variant, place)


def load_params(
    module: nn.Module,
    directory: str | Path,
    dtype: Any,
    variant: str = "",
    place: DevicePutFn = _stay,
) -> Params:
    """Reads the params of a network in `dtype`; `place` is called once for each array.

    Names and shapes are checked against the network before any tensor is read.

    Raises:
      PriorError: the files are missing or broken, or do not fit the network.
    """
    directory = Path(directory)
    files = weights_files(directory, variant)
    with reraise_as_prior_error(directory, "holds weights whose names fit no network"):
        specs = params_from_torch(upgrade_legacy_keys(tensor_specs(files)))
    check_params(module, specs, directory)
    return _read_params(files, dtype, place)


def build_module(directory: str | Path, module_class: Any, dtype: Any = np.float32) -> Any:
    """Builds the network that config.json describes, without its weights."""
    config = read_config(directory)
    with reraise_as_prior_error(Path(directory) / "config.json"):
        return module_class.from_config(config, dtype)


def check_params(module: nn.Module, params: Params, directory: str | Path) -> None:
    """Raises PriorError naming every tensor that is missing, surplus or of the wrong shape."""
    with reraise_as_prior_error(Path(directory) / "config.json"):
        expected = _expected_shapes(module)
    shapes = {name: leaf.shape for name, leaf in flatten_dict(params, sep="/").items()}
    mismatches = [
        f"{name} {shapes[name]} instead of {expected[name]}"
        for name in sorted(expected.keys() & shapes.keys())
        if expected[name] != shapes[name]
    ]
    problems = {
        "missing": sorted(expected.keys() - shapes.keys()),
        "surplus": sorted(shapes.keys() - expected.keys()),
        "of another shape than config.json says": mismatches,
    }
    messages = [f"{what}: {_listed(names)}" for what, names in problems.items() if names]
    if messages:
        network = type(module).__name__
        raise PriorError(f"The weights in {directory} do not fit {network}; {'; '.join(messages)}.")


@functools.lru_cache(maxsize=8)
def _expected_shapes(module: nn.Module) -> Mapping[str, tuple[int, ...]]:
    """Returns the shapes of a network's parameters by name; allocates no array."""

    def init() -> Any:
        return module.init(jax.random.key(0), *module.dummy_inputs())["params"]

    shapes = flatten_dict(jax.eval_shape(init), sep="/")
    return {name: leaf.shape for name, leaf in shapes.items()}


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMES_SHOWN
    return ", ".join(names[:MAX_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def write_component(
    directory: str | Path, config: Mapping[str, Any], params: Params, dtype: Any = np.float32
) -> None:
    """Writes config.json and a safetensors file that diffusers or transformers loads unchanged."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = params_to_torch(params)
    if config.get("model_type") == "clip_text_model":
        # As in every published Stable Diffusion; transformers 4 and 5 both read this.
        tensors = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
    # Contiguous: safetensors writes a transposed view's bytes in their old order.
    tensors = {name: np.array(tensor, dtype, order="C") for name, tensor in tensors.items()}
    # transformers' name, or diffusers'.
    stem = "model" if "model_type" in config else "diffusion_pytorch_model"
    text = json.dumps(dict(config), indent=2, sort_keys=True)
    (directory / "config.json").write_text(text + "\n", encoding="utf-8")
    save_file(tensors, directory / f"{stem}.safetensors", metadata={"format": "pt"})


@contextlib.contextmanager
def reraise_as_prior_error(
    path: Path, what: str = "describes nothing that can be built"
) -> Iterator[None]:
    """Re-raises any error as a PriorError that names `path`."""
    try:
        yield
    except PriorError as error:
        message = str(error)
        raise PriorError(message if str(path) in message else f"{path}: {message}") from None
    except Exception as error:  # text in place of a number, channels that no group divides...
        raise PriorError(f"{path} {what} ({error}).") from error


def upgrade_legacy_keys(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Upgrades names written by older versions of diffusers and transformers.

    CLIP towers once saved `position_ids` and a prefix; the autoencoder's attention was named query,
    key, value, proj_attn, sometimes in the shape of 1x1 convolutions.
    """
    prefix = _prefix(tensors)
    return dict(
        _upgrade_attention(name.removeprefix(prefix), tensor)
        for name, tensor in tensors.items()
        if not name.endswith(POSITION_IDS)
    )


def _prefix(names: Collection[str]) -> str:
    """Returns the prefix of all names of a CLIP tower that transformers < 5 saved, or ""."""
    names = [name for name in names if not name.endswith(POSITION_IDS)]
    for prefix in ("text_model.", "vision_model."):
        if names and all(name.startswith(prefix) for name in names):
            return prefix
    return ""


def _upgrade_attention(name: str, tensor: np.ndarray) -> tuple[str, np.ndarray]:
    match = re.fullmatch(
        r"((?:encoder|decoder)\.mid_block\.attentions\.\d+\.)(.+)\.(weight|bias)", name
    )
    if match is None:
        return name, tensor
    if tensor.ndim == 4:
        tensor = tensor[:, :, 0, 0]
    return f"{match[1]}{LEGACY_ATTENTION.get(match[2], match[2])}.{match[3]}", tensor


def _to_flax(name: str, tensor: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    path: list[str] = []
    for part in name.split("."):
        if part.isdigit() and path:
            path[-1] += f"_{part}"
        else:
            path.append(part)
    if path[-1] == "weight":
        if tensor.ndim == 4:
            path[-1], tensor = "kernel", tensor.transpose(2, 3, 1, 0)
        elif tensor.ndim == 2 and path[-2] in EMBEDDINGS:
            path[-1] = "embedding"
        elif tensor.ndim == 2:
            path[-1], tensor = "kernel", tensor.T
        else:
            path[-1] = "scale"
    return tuple(path), tensor


def _to_torch(path: tuple[str, ...], leaf: Any) -> tuple[str, np.ndarray]:
    tensor = np.asarray(leaf)
    *modules, last = (NUMBERED.sub(r".\1", part) for part in path)
    if last == "kernel":
        tensor = tensor.transpose(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T
    if last in ("kernel", "scale", "embedding"):
        last = "weight"
    return ".".join([*modules, last]), tensor


def _read_params(files: Sequence[Path], dtype: Any, place: DevicePutFn) -> Params:
    prefix = _prefix(tensor_specs(files))
    params = {}
    for path in files:
        for name, tensor in _stream(path):
            key, leaf = _to_flax(*_upgrade_attention(name.removeprefix(prefix), tensor))
            params[key] = place(_convert(path, name, leaf, dtype))
    return unflatten_dict(params)


def _convert(path: Path, name: str, tensor: np.ndarray, dtype: Any) -> np.ndarray:
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


def tensor_specs(files: Sequence[Path]) -> dict[str, np.ndarray]:
    """Returns all tensors' names and shapes, as arrays that take no memory."""
    specs = {}
    for path in files:
        with _opened(path) as file:
            for name in _names(file):
                specs[name] = _tensor_spec(path, name, file.get_slice(name))
    return specs


def locate_tensors(files: Sequence[Path]) -> dict[str, Path]:
    """Returns the file that holds each tensor, by the tensor's name."""
    located: dict[str, Path] = {}
    for path in files:
        with _opened(path) as file:
            located |= dict.fromkeys(_names(file), path)
    return located


def read_tensors(located: Mapping[str, Path], prefix: str, place: DevicePutFn = _stay) -> Params:
    """Reads the tensors whose names begin with `prefix`, in float32, named without it.

    Each is read through a map of its own: pages read count as our memory until they are unmapped.
    """
    params = {}
    for name, path in located.items():
        if name.startswith(prefix):
            with _opened(path) as file:
                key, leaf = _to_flax(name.removeprefix(prefix), file.get_tensor(name))
                params[key] = place(_convert(path, name, leaf, np.float32))
    return unflatten_dict(params)


def read_rows(path: Path, name: str, rows: np.ndarray) -> np.ndarray:
    """Reads rows [N] of a matrix [M, D], in float32 and without reading the others."""
    distinct, places = np.unique(rows, return_inverse=True)
    with _opened(path) as file:
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


def _stream(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields a file's tensors. Maps it anew every WINDOW_BYTES: pages read count as our memory."""
    with _opened(path) as file:
        names = _names(file)
    while names:
        with _opened(path) as file:
            read = 0
            while names and read < WINDOW_BYTES:
                tensor = file.get_tensor(names[0])
                read += tensor.nbytes
                yield names.pop(0), tensor


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
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
