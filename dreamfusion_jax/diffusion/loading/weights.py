"""Weights in the layout of diffusers and transformers: a config.json beside safetensors files."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from dreamfusion_jax.diffusion.loading.model_files import read_config, weights_files
from dreamfusion_jax.diffusion.loading.names import (
    Params,
    Rename,
    legacy_rename,
    params_from_torch,
    params_to_torch,
    to_flax,
)
from dreamfusion_jax.diffusion.loading.tensor_files import (
    convert,
    opened,
    stream,
    tensor_specs,
)
from dreamfusion_jax.runtime.errors import PriorError

DevicePutFn = Callable[[np.ndarray], Any]
# A tensor in float32, by its name in torch, to what takes its place.
Change = Callable[[str, np.ndarray], np.ndarray]
MAX_NAMES_SHOWN = 20


class Source(NamedTuple):
    """Where the tensors of one network are.

    Attributes:
      files: that hold them, and maybe others.
      where: what messages call the place.
      rename: stored names to those of the network; to none where a tensor is of another network.
      change: what is done to tensors before they are stored, or None.
      prefix: with which the names of all of the network's tensors begin.
    """

    files: tuple[Path, ...]
    where: Path
    rename: Rename
    change: Change | None = None
    prefix: str = ""

    def specs(self) -> dict[str, np.ndarray]:
        """Returns the shapes of the stored tensors, as arrays that take no memory."""
        return tensor_specs(self.files, lambda name: name.startswith(self.prefix))


def folder_source(
    directory: str | Path, variant: str = "", ignored: Collection[str] = ()
) -> Source:
    """Returns the source of the network in a folder; tensors named in `ignored` are left out."""
    files = tuple(weights_files(Path(directory), variant))
    return Source(files, Path(directory), legacy_rename(tensor_specs(files), ignored))


def _stay(array: np.ndarray) -> np.ndarray:
    return array


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
    return config, _read_params(folder_source(directory, variant), dtype, place)


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
    """Reads the params of the network in a folder: `load_source` of its `folder_source`."""
    return load_source(module, folder_source(directory, variant), dtype, place)


def load_source(
    module: nn.Module, source: Source, dtype: Any, place: DevicePutFn = _stay
) -> Params:
    """Reads the params of a network in `dtype`; `place` is called once for each array.

    Names and shapes are checked against the network before any tensor is read.

    Raises:
      PriorError: the files are missing or broken, or do not fit the network.
    """
    with reraise_as_prior_error(source.where, "holds weights whose names fit no network"):
        specs = params_from_torch(source_specs(source))
    check_params(module, specs, source.where)
    return _read_params(source, dtype, place)


def source_specs(source: Source) -> dict[str, np.ndarray]:
    """Returns the names and shapes of a source's tensors, as arrays that take no memory.

    Raises:
      ValueError: two of them have one name.
    """
    pairs = [pair for name, spec in source.specs().items() for pair in source.rename(name, spec)]
    specs = dict(pairs)
    if len(specs) < len(pairs):
        raise ValueError("two tensors have names that mean the same")
    return specs


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


def expected_specs(module: nn.Module) -> Params:
    """Returns a network's params as arrays that take no memory."""
    return unflatten_dict(
        {
            tuple(name.split("/")): np.broadcast_to(np.float32(0), shape)
            for name, shape in _expected_shapes(module).items()
        }
    )


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


def _read_params(source: Source, dtype: Any, place: DevicePutFn) -> Params:
    def wanted(name: str) -> bool:
        return name in specs and bool(list(source.rename(name, specs[name])))

    specs = source.specs()
    params = {}
    for path in source.files:
        for stored, whole in stream(path, wanted):
            for name, tensor in source.rename(stored, whole):
                if source.change is not None:
                    tensor = source.change(name, np.asarray(tensor, np.float32))
                key, leaf = to_flax(name, tensor)
                params[key] = place(convert(path, stored, leaf, dtype))
    return unflatten_dict(params)


def read_tensors(located: Mapping[str, Path], prefix: str, place: DevicePutFn = _stay) -> Params:
    """Reads the tensors whose names begin with `prefix`, in float32, named without it.

    Each is read through a map of its own: pages read count as our memory until they are unmapped.
    """
    params = {}
    for name, path in located.items():
        if name.startswith(prefix):
            with opened(path) as file:
                key, leaf = to_flax(name.removeprefix(prefix), file.get_tensor(name))
                params[key] = place(convert(path, name, leaf, np.float32))
    return unflatten_dict(params)
