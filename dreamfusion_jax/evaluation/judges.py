"""The judges: a CLIP, and the captions among which it chooses for a view.

R-precision depends on both, so its name holds both: "r_precision/albedo/260 pairs/toybox-clip".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dreamfusion_jax.config.flags import name_flags
from dreamfusion_jax.diffusion.loading import hub
from dreamfusion_jax.diffusion.loading.model_files import weights_digest
from dreamfusion_jax.evaluation.clip_encoder import check_layout, load_clip
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.files import as_path
from dreamfusion_jax.toybox import captions
from dreamfusion_jax.toybox import judge as toybox_clip
from dreamfusion_jax.toybox.azimuth import NameSide, load_azimuth_classifier

TOYBOX = "toybox-clip"
# The input size of the published CLIPs; a smaller render would be enlarged, and blurred.
CLIP_RENDER_SIZE = 224
_DIGITS = 8  # of the weights' SHA-256, in a judge's name


class Candidates(NamedTuple):
    """The captions among which a judge chooses for a view.

    Attributes:
      unit: their name in the plural: "pairs", "kinds", "prompts".
      embeds: [C, P] unit vectors, one per distinct caption.
      row: prompt -> the row of its own caption.
    """

    unit: str
    embeds: np.ndarray
    row: Callable[[str], int]

    @property
    def name(self) -> str:
        """Their number and unit, as in metrics' names."""
        return f"{len(self.embeds)} {self.unit}"


class Judge(NamedTuple):
    """A CLIP, and the candidates among which it chooses.

    Attributes:
      name: its unique name.
      sha256: hash of its weights.
      render_size: side in pixels of the views that it judges.
      embed: rgb [N, S, S, 3] in [0, 1] -> [N, P] unit vectors.
      colored, textureless: the candidates for views with and without their colors.
      classify_azimuth: names the azimuth of the toybox's kinds, if it can.
    """

    name: str
    sha256: str
    render_size: int
    embed: Callable[[np.ndarray], np.ndarray]
    colored: Candidates
    textureless: Candidates
    classify_azimuth: NameSide | None

    def metrics(self) -> Mapping[str, str]:
        """Names the fields of a `Score` that this judge fills: measure/views/candidates/judge."""
        names = {
            "albedo": f"r_precision/albedo/{self.colored.name}/{self.name}",
            "shaded": f"r_precision/shaded/{self.colored.name}/{self.name}",
            "textureless": f"r_precision/textureless/{self.textureless.name}/{self.name}",
        }
        if self.classify_azimuth:
            sides = len(captions.AZIMUTH_PHRASES)
            names["fronts"] = f"fronts/albedo/{sides} sides/toybox-azimuth"
        return names


def find_judge(name: str, revision: str, prompts: Sequence[str]) -> Path:
    """Returns the directory of a judge, downloaded if necessary; uses no device.

    Raises:
      UserError: there is no such judge, or it cannot judge one of the prompts.
    """
    if name != TOYBOX:
        if len(set(prompts)) < 2:
            raise UserError(
                f"--judge={name} chooses among the prompts, and would always be right if there"
                " is only one: give a --prompts_file of all candidates."
            )
        with name_flags():
            directory = hub.resolve_model(name, revision, model=hub.CLIP)
        check_layout(directory)
        return directory
    if revision:
        raise UserError(f"--judge_revision needs another --judge than {TOYBOX}.")
    for prompt in prompts:
        prompt_pair(prompt)
    return toybox_clip.DIRECTORY


def load_judge(name: str, directory: Path, prompts: Sequence[str]) -> Judge:
    """Loads toybox-clip, or the CLIPModel in the directory that `find_judge` returned."""
    return toybox_judge() if name == TOYBOX else clip_judge(name, directory, prompts)


def toybox_judge() -> Judge:
    """Loads the embedded judge, which chooses among all captions of the toybox.

    For colored views those are all (color, kind) pairs, for textureless ones the kinds.
    """
    judge = toybox_clip.load_judge()
    pairs = captions.all_pairs()
    return Judge(
        TOYBOX,
        weights_digest(toybox_clip.DIRECTORY),
        judge.image_size,
        judge.embed,
        Candidates("pairs", judge.subjects, lambda prompt: pairs.index(prompt_pair(prompt))),
        Candidates("kinds", judge.kinds, lambda p: captions.KINDS.index(prompt_pair(p)[1])),
        load_azimuth_classifier(),
    )


def clip_judge(name: str, directory: Path, prompts: Sequence[str]) -> Judge:
    """Loads a CLIPModel that chooses among the prompts, for colored and textureless views.

    Texts are truncated to the tokenizer's length (77 tokens in published models), as by
    transformers; prompts with equal tokens are one candidate.
    """
    clip = load_clip(directory)
    ids = clip.tokenize(prompts)
    distinct, row = np.unique(ids, axis=0, return_inverse=True)
    rows = dict(zip(prompts, row.reshape(-1).tolist(), strict=True))

    candidates = Candidates("prompts", clip.embed_texts(distinct), rows.__getitem__)
    digest = weights_digest(directory)
    # Folders of different models share names, and a hub id may get other weights.
    is_hub_id = hub.REPOSITORY.fullmatch(name) and not as_path(name).is_dir()
    label = name if is_hub_id else directory.name
    return Judge(
        f"{label}@{digest[:_DIGITS]}",
        digest,
        CLIP_RENDER_SIZE,
        clip.embed_images,
        candidates,
        candidates,
        None,
    )


def prompt_pair(prompt: str) -> tuple[str, str]:
    """Returns the color and the kind in a prompt.

    Raises:
      UserError: there is not exactly one of each.
    """
    pair = captions.pair_in(prompt)
    if pair is None:
        raise UserError(
            f"{TOYBOX} finds no single color and kind in the prompt {prompt!r}: leave it out, or"
            " name a --judge that knows more words."
        )
    return pair
