"""The toybox's pictures: random objects, cameras, lights and backgrounds, with what they show.

Captions are not stored: they are drawn anew, from the labels, each time a picture is used.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import os
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from dreamfusion_jax.nerf import cameras
from dreamfusion_jax.toybox import captions, objects, shapes

IMAGE_SIZE = 64
GRAY_FRACTION = 0.15
FLAT_FRACTION = 0.30
ACCENT_FRACTION = 0.15
_CHUNK = 64
_COLORS = tuple(captions.COLORS)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """N labeled pictures.

    Attributes:
      image: [N, 64, 64, 3] uint8 RGB.
      kind: [N] index into captions.KINDS; -1 for a plain sphere.
      color: [N] index into the colors; -1 for a gray textureless render.
      accent: [N] the same for the second color; -1 for none.
      azimuth_deg, elevation_deg: [N] the camera's angles.
    """

    image: np.ndarray
    kind: np.ndarray
    color: np.ndarray
    accent: np.ndarray
    azimuth_deg: np.ndarray
    elevation_deg: np.ndarray

    def columns(self) -> tuple[np.ndarray, ...]:
        """The arrays in the order of the fields."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    @property
    def count(self) -> int:
        """N."""
        return len(self.image)

    def take(self, index: np.ndarray) -> Pictures:
        """The pictures at `index`, in that order."""
        return Pictures(*(column[index] for column in self.columns()))

    def with_front(self) -> np.ndarray:
        """[M] the indices of the pictures whose kind has a front."""
        fronts = [captions.KINDS.index(kind) for kind in captions.KINDS_WITH_FRONT]
        return np.flatnonzero(np.isin(self.kind, fronts))

    def subject(self, index: int) -> captions.Subject:
        """What one picture shows."""
        color, accent = int(self.color[index]), int(self.accent[index])
        return captions.Subject(
            captions.KINDS[int(self.kind[index])],
            _COLORS[color] if color >= 0 else None,
            _COLORS[accent] if accent >= 0 else None,
        )

    def draw_captions(
        self, rng: np.random.Generator, fine_share: float = captions.FINE_SHARE
    ) -> list[str]:
        """One random caption a picture."""
        angles = zip(self.azimuth_deg.tolist(), self.elevation_deg.tolist(), strict=True)
        return [
            captions.caption(rng, self.subject(i), azimuth_deg, elevation_deg, fine_share)
            for i, (azimuth_deg, elevation_deg) in enumerate(angles)
        ]


def make(
    count: int, seed: int, pairs: str = "seen", kinds: tuple[str, ...] = captions.KINDS
) -> Pictures:
    """Renders about `count` random pictures, equally many of each of `kinds`, shuffled.

    Args:
      count: how many; rounded up to the same number of every kind.
      seed: the same seed makes the same pictures.
      pairs: which (color, kind) pairs: "seen" (what training may see), "held_out", or "all".
        Gray renders belong to "seen" and "all".
      kinds: the kinds to draw. With "held_out", kinds without such a pair are left out.
    """
    allowed = {kind: _allowed_colors(kind, pairs) for kind in kinds}
    jobs = [
        _Job(kind, -(-count // len(kinds)), seed, allowed[kind], pairs != "held_out")
        for kind in kinds
        if allowed[kind]
    ]
    # Sphere tracing runs on one core; a process a core, started fresh as JAX requires.
    workers = min(os.cpu_count() or 1, len(jobs))
    if workers == 1 or count < 500:
        made = [_make_kind(job) for job in jobs]
    else:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
            made = list(pool.map(_make_kind, jobs))
    columns = zip(*(part.columns() for part in made), strict=True)
    joined = Pictures(*(np.concatenate(parts) for parts in columns))
    return joined.take(np.random.default_rng(seed).permutation(joined.count))


def plain_spheres(count: int, seed: int) -> Pictures:
    """Pictures of colored spheres, which show no kind: `kind` is -1."""
    rng = np.random.default_rng([seed, len(captions.KINDS)])
    color = rng.integers(len(_COLORS), size=count)
    draw = _draw_cameras(seed, count)
    values, radius = list(captions.COLORS.values()), rng.uniform(0.3, 0.7, count)
    solids = [
        shapes.stack([shapes.Part("ellipsoid", (0, 0, 0), (radius[i],) * 3, values[color[i]])])
        for i in range(count)
    ]
    return Pictures(
        _render_images(rng, ("ellipsoid",), solids, draw.camera, color),
        np.full(count, -1, np.int16),
        color.astype(np.int16),
        np.full(count, -1, np.int16),
        np.asarray(draw.azimuth_deg),
        np.asarray(draw.elevation_deg),
    )


def load_or_make(path: pathlib.Path, count: int, seed: int) -> Pictures:
    """The training pictures, rendered once and kept at `path` (.npz)."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **dataclasses.asdict(make(count, seed)))
        partial.replace(path)
    with np.load(path) as stored:
        return Pictures(**stored)


class _Job(NamedTuple):
    kind: str
    pictures: int
    seed: int
    colors: list[int]
    with_gray: bool


def _make_kind(job: _Job) -> Pictures:
    kind, count, seed, colors, with_gray = job
    number = captions.KINDS.index(kind)
    rng = np.random.default_rng([seed, number])
    color = np.where(rng.random(count) < GRAY_FRACTION * with_gray, -1, rng.choice(colors, count))
    accented = (rng.random(count) < ACCENT_FRACTION) & (color >= 0)
    accent = np.where(accented, rng.integers(len(_COLORS), size=count), -1)
    draw = _draw_cameras(seed * 1000 + number, count)
    pictures = Pictures(
        np.zeros((count, 0)),  # until they are rendered, below
        np.full(count, number, np.int16),
        color.astype(np.int16),
        accent.astype(np.int16),
        np.asarray(draw.azimuth_deg),
        np.asarray(draw.elevation_deg),
    )
    solids: list[shapes.Solids] = []
    shape_names: tuple[str, ...] = ()
    for i in range(count):
        parts = objects.build(rng, pictures.subject(i))
        shape_names = tuple(part.shape for part in parts)
        solids.append(shapes.stack(parts))
    image = _render_images(rng, shape_names, solids, draw.camera, color)
    return dataclasses.replace(pictures, image=image)


def _draw_cameras(seed: int, count: int) -> cameras.CameraDraw:
    """`count` cameras, as distillation draws them."""
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.vmap(lambda key: cameras.sample_camera(key, cameras.CameraRanges()))(keys)


def _render_images(
    rng: np.random.Generator,
    shape_names: tuple[str, ...],
    solids: list[shapes.Solids],
    camera: cameras.Camera,
    color: np.ndarray,
) -> np.ndarray:
    """[N, 64, 64, 3] uint8: the objects under random lights, before random backgrounds."""
    count = len(solids)
    camera = jax.tree.map(np.asarray, camera)
    light = _draw_light(rng, np.asarray(camera.pose[:, :, 3]), color)
    scene = (_stack(solids), camera, light, _draw_background(rng, count))
    images = np.zeros((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for start in range(0, count, _CHUNK):
        # The last chunk wraps around, so that one shape is compiled.
        rows = np.arange(start, start + _CHUNK) % count
        chunk = jax.tree.map(lambda leaf, rows=rows: leaf[rows], scene)
        image = shapes.render_batch(shape_names, *chunk, IMAGE_SIZE)
        images[rows] = np.round(np.asarray(image) * 255.0).astype(np.uint8)
    return images


def _allowed_colors(kind: str, pairs: str) -> list[int]:
    hidden = captions.held_out_pairs()
    wanted = {"seen": (False,), "held_out": (True,), "all": (False, True)}[pairs]
    return [i for i, color in enumerate(_COLORS) if ((color, kind) in hidden) in wanted]


def _draw_light(rng: np.random.Generator, eye: np.ndarray, color: np.ndarray) -> shapes.Light:
    """Point lights around the camera's side, as in Poole et al. 2022, section 3.1; some unlit."""
    count = len(eye)
    toward = eye + rng.normal(size=(count, 3))
    toward /= np.linalg.norm(toward, axis=-1, keepdims=True)
    position = toward * rng.uniform(0.8, 1.5, (count, 1)) * 1.3
    flat = (rng.random(count) < FLAT_FRACTION) & (color >= 0)
    ambient = np.where(flat, 1.0, rng.uniform(0.3, 0.6, count))
    return shapes.Light(*(x.astype(np.float32) for x in (position, ambient, 1.0 - ambient)))


def _draw_background(rng: np.random.Generator, count: int) -> np.ndarray:
    colored = rng.random((count, 3))
    gray = np.repeat(rng.random((count, 1)), 3, axis=1)
    return np.where(rng.random((count, 1)) < 0.3, gray, colored).astype(np.float32)


def _stack(solids: list[shapes.Solids]) -> shapes.Solids:
    return shapes.Solids(*(np.stack(column) for column in zip(*solids, strict=True)))
