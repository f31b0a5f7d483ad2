"""The words of the toybox: kinds, colors, view phrases, captions and the held-out pairs.

Everything a caption can say is listed here, so this page is what the embedded prior knows. The
(color, kind) pairs that training never sees are fixed by a hash of their names alone.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.10, 0.10),
    "orange": (0.98, 0.52, 0.08),
    "yellow": (0.97, 0.88, 0.15),
    "green": (0.15, 0.62, 0.20),
    "cyan": (0.15, 0.80, 0.82),
    "blue": (0.12, 0.25, 0.85),
    "purple": (0.50, 0.15, 0.70),
    "pink": (0.98, 0.55, 0.75),
    "brown": (0.45, 0.26, 0.12),
    "white": (0.95, 0.95, 0.95),
}
GRAY = (0.62, 0.62, 0.62)

# Each kind with the name of the part that may carry a second color ("a red chair with blue legs").
ACCENT_PARTS: dict[str, str] = {
    "airplane": "wings",
    "bed": "pillows",
    "boat": "cabin",
    "bottle": "cap",
    "cactus": "pot",
    "candle": "plate",
    "car": "wheels",
    "castle": "roofs",
    "chair": "legs",
    "duck": "beak",
    "fish": "fins",
    "house": "roof",
    "lamp": "base",
    "mug": "handle",
    "mushroom": "stem",
    "rabbit": "paws",
    "robot": "arms",
    "rocket": "fins",
    "snowman": "hat",
    "sofa": "cushions",
    "table": "legs",
    "teapot": "spout",
    "tree": "trunk",
    "truck": "cabin",
    "umbrella": "handle",
    "windmill": "blades",
}
KINDS: tuple[str, ...] = tuple(ACCENT_PARTS)

# Stripes of white over the main color; or wood with its grain in place of a color.
MATERIALS: tuple[str, ...] = ("striped", "wooden")

# Kinds whose front, back and sides a person can tell apart.
KINDS_WITH_FRONT: tuple[str, ...] = (
    "airplane",
    "bed",
    "boat",
    "car",
    "chair",
    "duck",
    "fish",
    "house",
    "mug",
    "rabbit",
    "robot",
    "snowman",
    "sofa",
    "teapot",
    "truck",
    "windmill",
)

# Counter-clockwise from the front, 45 degrees each; left and right are the object's own.
AZIMUTH_PHRASES: tuple[str, ...] = (
    "front view",
    "front left view",
    "left side view",
    "back left view",
    "back view",
    "back right view",
    "right side view",
    "front right view",
)
ELEVATION_PHRASES: tuple[str, ...] = ("low angle", "medium angle", "high angle")
ELEVATION_EDGES_DEG = (15.0, 45.0)
OVERHEAD_ELEVATION_DEG = 60.0

FINE_SHARE = 0.55  # of the captions name one of the eight azimuths
HELD_OUT_COUNT = 26

_TEMPLATES = ("a {}", "a photo of a {}", "a render of a {}", "a picture of a {}", "a toy {}")


class Subject(NamedTuple):
    """What an image shows.

    `color` None is a gray textureless render, or a wooden object; `accent` and `material` may be
    None.
    """

    kind: str
    color: str | None
    accent: str | None
    material: str | None = None


def all_pairs() -> list[tuple[str, str]]:
    """Returns every (color, kind) pair, in a fixed order."""
    return [(color, kind) for color in COLORS for kind in KINDS]


def held_out_pairs() -> frozenset[tuple[str, str]]:
    """Returns the pairs that training never sees: of the smallest SHA-256 of "color kind"."""
    return frozenset(sorted(all_pairs(), key=_digest)[:HELD_OUT_COUNT])


def pair_in(prompt: str) -> tuple[str, str] | None:
    """Returns the (color, kind) pair that a prompt names; None if it names none, or several."""
    words = prompt.lower().replace(",", " ").split()
    pairs = [pair for pair in all_pairs() if pair[0] in words and pair[1] in words]
    return pairs[0] if len(pairs) == 1 else None


def benchmark_prompts(count: int = 10, held_out: int = 3, per_kind: int = 1) -> list[str]:
    """Returns the prompts that quality is measured on, chosen by hash alone.

    Pairs are taken in the order of SHA-256 of "benchmark color kind", each kind at most `per_kind`
    times, until `held_out` of them are held-out pairs and the rest are pairs that training saw.
    """
    hidden = held_out_pairs()
    wanted = {True: held_out, False: count - held_out}
    chosen: list[tuple[str, str]] = []
    for pair in sorted(all_pairs(), key=lambda pair: _digest(pair, "benchmark ")):
        is_hidden = pair in hidden
        if wanted[is_hidden] and [kind for _, kind in chosen].count(pair[1]) < per_kind:
            wanted[is_hidden] -= 1
            chosen.append(pair)
    return [with_article(f"a {color} {kind}") for color, kind in chosen]


def view_phrases() -> list[str]:
    """Returns the finer view words, a phrase a bin; `view_index` is its index."""
    return [f"{azimuth}, {angle}" for angle in ELEVATION_PHRASES for azimuth in AZIMUTH_PHRASES]


def view_index(azimuth_deg: jax.Array, elevation_deg: jax.Array) -> jax.Array:
    """Returns the indices, int32, into `view_phrases` of cameras at these angles in degrees."""
    elevation_bin = sum((elevation_deg > edge).astype(jnp.int32) for edge in ELEVATION_EDGES_DEG)
    return elevation_bin * len(AZIMUTH_PHRASES) + azimuth_index(azimuth_deg)


def azimuth_index(azimuth_deg: jax.Array | np.ndarray) -> jax.Array:
    """Returns the indices, int32, into AZIMUTH_PHRASES of cameras at these azimuths in degrees."""
    return jnp.round(azimuth_deg / 45.0).astype(jnp.int32) % len(AZIMUTH_PHRASES)


def coarse_phrase(azimuth_deg: float, elevation_deg: float) -> str:
    """Returns the paper's view words (Poole et al. 2022, section 3.2)."""
    if elevation_deg > OVERHEAD_ELEVATION_DEG:
        return "overhead view"
    return ("front view", "side view", "back view", "side view")[round(azimuth_deg / 90.0) % 4]


def with_article(words: str) -> str:
    """Turns "a" into "an" before a vowel."""
    return re.sub(r"\ba (?=[aeiou])", "an ", words)


def subject_phrase(subject: Subject) -> str:
    """Returns for example "striped red chair with blue legs", or "chair" without a color."""
    words = " ".join(filter(None, (subject.material, subject.color, subject.kind)))
    if subject.accent is not None:
        words += f" with {subject.accent} {ACCENT_PARTS[subject.kind]}"
    return words


def caption(
    rng: np.random.Generator,
    subject: Subject,
    azimuth_deg: float,
    elevation_deg: float,
    fine_share: float = FINE_SHARE,
) -> str:
    """Draws a caption: a template and view words, the finer ones with the odds `fine_share`.

    Nine in eleven of those name the elevation too; of the other captions four in nine carry the
    paper's words and the rest none.
    """
    words = with_article(str(rng.choice(_TEMPLATES)).format(subject_phrase(subject)))
    scheme = rng.random()
    if scheme < fine_share:
        fine = view_phrases()[int(view_index(jnp.float32(azimuth_deg), jnp.float32(elevation_deg)))]
        azimuth_words = fine.split(", ")[0]
        return f"{words}, {fine if scheme < fine_share * 9 / 11 else azimuth_words}"
    if scheme < fine_share + (1.0 - fine_share) * 4 / 9:
        return f"{words}, {coarse_phrase(azimuth_deg, elevation_deg)}"
    return words


def strip_colors(prompt: str) -> str:
    """Returns the prompt without color and material words: what a textureless render shows."""
    dropped = {*COLORS, *MATERIALS}
    kept = [word for word in prompt.split() if word.strip(",.").lower() not in dropped]
    return with_article(re.sub(r"\ban\b", "a", " ".join(kept)))


def vocabulary() -> list[str]:
    """Lists the words that a caption can hold; the tokenizer gives each a token of its own."""
    phrases = [*_TEMPLATES, *AZIMUTH_PHRASES, *ELEVATION_PHRASES, "an with overhead view side view"]
    text = " ".join([*phrases, *COLORS, *MATERIALS, *KINDS, *ACCENT_PARTS.values()])
    return sorted({word for word in text.replace("{}", " ").replace(",", " ").split()})


def unknown_words(prompt: str) -> list[str]:
    """Lists the words of a prompt that the embedded prior never learned, in their order."""
    known = set(vocabulary()) - set(MATERIALS)  # which its training captions did not hold
    return [word for word in re.findall(r"[^\W_]+", prompt.lower()) if word not in known]


def _digest(pair: tuple[str, str], prefix: str = "") -> str:
    return hashlib.sha256(f"{prefix}{pair[0]} {pair[1]}".encode()).hexdigest()
