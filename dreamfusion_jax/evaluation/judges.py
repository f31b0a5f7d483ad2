"""Who names what a view shows, and among which captions.

R-precision depends on both, so its name tells both: "r_precision/albedo/260 pairs/toybox-clip".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dreamfusion_jax.config.flags import name_flags
from dreamfusion_jax.diffusion.loading import hub
from dreamfusion_jax.diffusion.loading.weights import weights_digest
from dreamfusion_jax.evaluation.clip_encoder import check_layout, load_clip
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.toybox import captions, dataset
from dreamfusion_jax.toybox import judge as toybox_clip
from dreamfusion_jax.toybox.azimuth import NameSide, load_azimuth_classifier

TOYBOX = "toybox-clip"
# What the published CLIPs read: of a smaller render they would see what enlarging makes of it.
CLIP_RENDER_SIZE = 224
_DIGITS = 8  # of the digest in a judge's name


class Candidates(NamedTuple):
    """The captions that a view may be given.

    Attributes:
      unit: what they are, in the plural: "pairs", "kinds", "prompts".
      embeds: [C, P] unit vectors, no two of the same caption.
      row: prompt -> which of them is its own.
    """

    unit: str
    embeds: np.ndarray
    row: Callable[[str], int]

    @property
    def name(self) -> str:
        return f"{len(self.embeds)} {self.unit}"


class Judge(NamedTuple):
    """A CLIP, and what it chooses among.

    Attributes:
      name: tells it from every other judge.
      sha256: of its weights.
      render_size: side in pixels of the views that it is shown.
      embed: rgb [N, S, S, 3] in [0, 1] -> [N, P] unit vectors.
      colored, textureless: the candidates for views with and without their colors.
      name_side: names the azimuth of the toybox's kinds; None where nobody can.
    """

    name: str
    sha256: str
    render_size: int
    embed: Callable[[np.ndarray], np.ndarray]
    colored: Candidates
    textureless: Candidates
    name_side: NameSide | None

    def metrics(self) -> Mapping[str, str]:
        """Those fields of a `Score` that it fills in: measure/views/candidates/judge."""
        names = {
            "albedo": f"r_precision/albedo/{self.colored.name}/{self.name}",
            "shaded": f"r_precision/shaded/{self.colored.name}/{self.name}",
            "textureless": f"r_precision/textureless/{self.textureless.name}/{self.name}",
        }
        if self.name_side:
            sides = len(captions.AZIMUTH_PHRASES)
            names["fronts"] = f"fronts/albedo/{sides} sides/toybox-azimuth"
        return names


def find_judge(name: str, revision: str, prompts: Sequence[str]) -> Path:
    """The directory of a judge, fetched from the hub if need be; no device is touched.

    Raises:
      UserError: there is none of that name, or it cannot judge one of the prompts.
    """
    if name != TOYBOX:
        if len(set(prompts)) < 2:
            raise UserError(
                f"--judge={name} chooses among the prompts, and would be right by necessity where"
                " there is one: give a --prompts_file of all that it is to choose among."
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
    """toybox-clip, or the CLIPModel that `find_judge` found, to judge assets of the prompts."""
    return toybox_judge() if name == TOYBOX else clip_judge(name, directory, prompts)


def toybox_judge() -> Judge:
    """The judge that the package carries: it chooses among all that the toybox can say.

    For views with colors those are all (color, kind) pairs, for those without the kinds.
    """
    judge = toybox_clip.load_judge()
    pairs = captions.all_pairs()
    return Judge(
        TOYBOX,
        weights_digest(toybox_clip.DIRECTORY),
        dataset.IMAGE_SIZE,
        judge.embed,
        Candidates("pairs", judge.subjects, lambda prompt: pairs.index(prompt_pair(prompt))),
        Candidates("kinds", judge.kinds, lambda p: captions.KINDS.index(prompt_pair(p)[1])),
        load_azimuth_classifier(),
    )


def clip_judge(name: str, directory: Path, prompts: Sequence[str]) -> Judge:
    """A CLIPModel that chooses among the prompts, for views with colors and without.

    What is beyond the tokenizer's length (77 tokens of the published ones) is cut, as transformers
    cuts it; prompts that are then the same, or that the tokenizer does not tell apart, are one
    candidate.
    """
    clip = load_clip(directory)
    ids = clip.tokenize(prompts)
    distinct, row = np.unique(ids, axis=0, return_inverse=True)
    rows = dict(zip(prompts, row.reshape(-1).tolist(), strict=True))

    candidates = Candidates("prompts", clip.embed_texts(distinct), rows.__getitem__)
    digest = weights_digest(directory)
    # A directory's own name says little, and the same id may stand for other weights one day.
    said = name if hub.REPOSITORY.fullmatch(name) and not Path(name).is_dir() else directory.name
    return Judge(
        f"{said}@{digest[:_DIGITS]}",
        digest,
        CLIP_RENDER_SIZE,
        clip.embed_pictures,
        candidates,
        candidates,
        None,
    )


def prompt_pair(prompt: str) -> tuple[str, str]:
    """The color and the kind that a prompt asks for."""
    pair = captions.pair_in(prompt)
    if pair is None:
        raise UserError(
            f"{TOYBOX} knows no single color and kind in the prompt {prompt!r}: leave it out, or"
            " name a --judge that knows more words."
        )
    return pair
