"""The toybox's images: random objects, cameras, lights and backgrounds, with what they show.

Captions are not stored: they are drawn anew, from the labels, each time an image is used.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from dreamfusion_jax.nerf import cameras
from dreamfusion_jax.toybox import captions, objects, shapes
from dreamfusion_jax.toybox.image_ops import shrink

IMAGE_SIZE = 64  # what the embedded networks draw and judge
GRAY_FRACTION = 0.15
FLAT_FRACTION = 0.30
ACCENT_FRACTION = 0.15
MATERIAL_FRACTIONS = {"striped": 0.06, "wooden": 0.04}
GRADIENT_FRACTION = 0.3
AMBIENT = (0.1, 0.5)
LIGHT_DISTANCE = (0.8, 1.5)
_CHUNK = 40  # divides the number of each kind in a shard
_COLORS = tuple(captions.COLORS)
T = TypeVar("T")
Out = TypeVar("Out")


@dataclasses.dataclass(frozen=True)
class LabeledImages:
    """N images and what they show.

    Attributes:
      image: [N, H, W, 3] uint8 RGB.
      kind: [N] index into captions.KINDS; -1 for a plain sphere.
      color: [N] index into the colors; -1 for a gray textureless render, or a wooden object.
      accent: [N] the same for the second color; -1 for none.
      material: [N] index into captions.MATERIALS; -1 for none.
      azimuth_deg, elevation_deg: [N] the camera's angles.
    """

    image: np.ndarray
    kind: np.ndarray
    color: np.ndarray
    accent: np.ndarray
    material: np.ndarray
    azimuth_deg: np.ndarray
    elevation_deg: np.ndarray

    def columns(self) -> tuple[np.ndarray, ...]:
        """Returns the arrays in the order of the fields."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    @property
    def count(self) -> int:
        """Returns N."""
        return len(self.image)

    def take(self, index: np.ndarray) -> LabeledImages:
        """Returns the images at `index`, in that order."""
        return LabeledImages(*(column[index] for column in self.columns()))

    def without_pixels(self) -> LabeledImages:
        """Returns the labels alone."""
        return dataclasses.replace(self, image=np.zeros((self.count, 0), np.uint8))

    def with_front(self) -> np.ndarray:
        """Returns the indices [M] of the images whose kind has a front."""
        fronts = [captions.KINDS.index(kind) for kind in captions.KINDS_WITH_FRONT]
        return np.flatnonzero(np.isin(self.kind, fronts))

    def subject(self, index: int) -> captions.Subject:
        """Returns what one image shows."""
        color, accent = int(self.color[index]), int(self.accent[index])
        material = int(self.material[index])
        return captions.Subject(
            captions.KINDS[int(self.kind[index])],
            _COLORS[color] if color >= 0 else None,
            _COLORS[accent] if accent >= 0 else None,
            captions.MATERIALS[material] if material >= 0 else None,
        )

    def draw_captions(
        self, rng: np.random.Generator, fine_share: float = captions.FINE_SHARE
    ) -> list[str]:
        """Draws one random caption for each image."""
        angles = zip(self.azimuth_deg.tolist(), self.elevation_deg.tolist(), strict=True)
        return [
            captions.caption(rng, self.subject(i), azimuth_deg, elevation_deg, fine_share)
            for i, (azimuth_deg, elevation_deg) in enumerate(angles)
        ]


def make(
    count: int,
    seed: int,
    pairs: str = "seen",
    kinds: tuple[str, ...] = captions.KINDS,
    size: int = IMAGE_SIZE,
    materials: bool = False,
    workers: int | None = None,
) -> LabeledImages:
    """Renders about `count` random images, equally many of each of `kinds`, shuffled.

    Args:
      count: how many; rounded up to the same number of every kind.
      seed: the same seed makes the same images.
      pairs: which (color, kind) pairs: "seen" (what training may see), "held_out", or "all".
        Gray and wooden renders belong to "seen" and "all".
      kinds: the kinds to draw. With "held_out", kinds without such a pair are left out.
      size: pixels a side.
      materials: whether some objects are of a material.
      workers: processes to render in; None: one for each core, where the images are many.
    """
    jobs = _jobs(count, seed, pairs, kinds, size, materials)
    workers = workers or (1 if count < 500 else os.cpu_count() or 1)
    return _shuffle(_in_processes(_make_kind, jobs, workers), seed)


def _jobs(
    count: int, seed: int, pairs: str, kinds: tuple[str, ...], size: int, materials: bool
) -> list[_Job]:
    allowed = {kind: _allowed_colors(kind, pairs) for kind in kinds}
    seen = pairs != "held_out"
    return [
        _Job(kind, -(-count // len(kinds)), seed, allowed[kind], seen, seen and materials, size)
        for kind in kinds
        if allowed[kind]
    ]


def _shuffle(made: Sequence[LabeledImages], seed: int) -> LabeledImages:
    joined = join(made)
    return joined.take(np.random.default_rng(seed).permutation(joined.count))


def _in_processes(function: Callable[[T], Out], jobs: Sequence[T], workers: int) -> list[Out]:
    """Maps the jobs: sphere tracing runs on one core. Processes start fresh, as JAX requires."""
    workers = min(workers, len(jobs))
    if workers <= 1:
        return [function(job) for job in jobs]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        return list(pool.map(function, jobs))


def join(parts: Sequence[LabeledImages]) -> LabeledImages:
    """Concatenates labeled images."""
    columns = zip(*(part.columns() for part in parts), strict=True)
    return LabeledImages(*(np.concatenate(column) for column in columns))


def plain_spheres(count: int, seed: int, size: int = IMAGE_SIZE) -> LabeledImages:
    """Renders colored spheres, which show no kind: `kind` is -1."""
    rng = np.random.default_rng([seed, len(captions.KINDS)])
    color = rng.integers(len(_COLORS), size=count)
    draw = _draw_cameras(seed, count)
    values, radius = list(captions.COLORS.values()), rng.uniform(0.3, 0.7, count)
    solids = [
        shapes.stack([shapes.Part("ellipsoid", (0, 0, 0), (radius[i],) * 3, values[color[i]])])
        for i in range(count)
    ]
    return LabeledImages(
        _render_images(rng, ("ellipsoid",), solids, draw.camera, color >= 0, size),
        np.full(count, -1, np.int16),
        color.astype(np.int16),
        np.full(count, -1, np.int16),
        np.full(count, -1, np.int16),
        np.asarray(draw.azimuth_deg),
        np.asarray(draw.elevation_deg),
    )


def render_shards(
    directory: pathlib.Path,
    shards: int,
    shard_size: int,
    seed: int,
    size: int,
    kinds: tuple[str, ...] = captions.KINDS,
    workers: int = 1,
) -> None:
    """Renders those of the first `shards` shards of training images that `directory` lacks.

    A shard depends on the seed and its number alone, so that more can be added later.

    Args:
      workers: processes to render in. Each renders a kind for all shards at once, or it would
        compile every kind; so with more than one there are no shards until all are rendered.
    """
    directory.mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(shards) if not shard_path(directory, i).exists()]
    for some in [missing] if workers > 1 and missing else [[index] for index in missing]:
        seeds = [_shard_seed(seed, index) for index in some]
        jobs = [_jobs(shard_size, shard, "seen", kinds, size, True) for shard in seeds]
        by_kind = _in_processes(_make_kinds, list(zip(*jobs, strict=True)), workers)
        for index, shard, made in zip(some, seeds, zip(*by_kind, strict=True), strict=True):
            _save_shard(shard_path(directory, index), _shuffle(made, shard))
            print(f"Rendered shard {index + 1} of {shards}.", flush=True)


def _save_shard(path: pathlib.Path, images: LabeledImages) -> None:
    partial = path.with_suffix(".partial.npz")
    columns: dict[str, Any] = dict(zip(_NAMES, images.columns(), strict=True))
    np.savez_compressed(partial, **columns)
    partial.replace(path)


def _shard_seed(seed: int, index: int) -> int:
    """Hashes to seeds from a million up, which no evaluation uses and int32 keys have room for."""
    return 1_000_000 + int(np.random.SeedSequence([seed, index]).generate_state(1)[0]) % 1_000_000


def load_shards(directory: pathlib.Path, shards: int, size: int | None = None) -> LabeledImages:
    """Reads the first `shards` shards, shrunk to `size` pixels a side; None: as they are."""
    loaded = (load_shard(directory, index) for index in range(shards))
    if size is None:
        return join(list(loaded))
    return join([dataclasses.replace(x, image=shrink(x.image, size)) for x in loaded])


def load_shard(directory: pathlib.Path, index: int) -> LabeledImages:
    """Reads one shard."""
    with np.load(shard_path(directory, index)) as stored:
        return LabeledImages(**stored)


def shard_path(directory: pathlib.Path, index: int) -> pathlib.Path:
    """Returns where a shard's images are."""
    return directory / f"{index:05d}.npz"


_NAMES = [field.name for field in dataclasses.fields(LabeledImages)]


class _Job(NamedTuple):
    kind: str
    images: int
    seed: int
    colors: list[int]
    with_gray: bool
    with_materials: bool
    size: int


def _make_kinds(jobs: Sequence[_Job]) -> list[LabeledImages]:
    return [_make_kind(job) for job in jobs]


def _make_kind(job: _Job) -> LabeledImages:
    count = job.images
    number = captions.KINDS.index(job.kind)
    rng = np.random.default_rng([job.seed, number])
    gray = rng.random(count) < GRAY_FRACTION * job.with_gray
    color = np.where(gray, -1, rng.choice(job.colors, count))
    accented = (rng.random(count) < ACCENT_FRACTION) & ~gray
    accent = np.where(accented, rng.integers(len(_COLORS), size=count), -1)
    material = _draw_materials(rng, count) if job.with_materials else np.full(count, -1)
    material = np.where(gray, -1, material)
    color = np.where(material == captions.MATERIALS.index("wooden"), -1, color)
    draw = _draw_cameras(job.seed * 1000 + number, count)
    labels = LabeledImages(
        np.zeros((count, 0)),  # until they are rendered, below
        np.full(count, number, np.int16),
        color.astype(np.int16),
        accent.astype(np.int16),
        material.astype(np.int16),
        np.asarray(draw.azimuth_deg),
        np.asarray(draw.elevation_deg),
    )
    parts = [objects.build(rng, labels.subject(i)) for i in range(count)]
    shape_names = tuple(part.shape for part in parts[0])
    solids = [shapes.stack(part) for part in parts]
    image = _render_images(rng, shape_names, solids, draw.camera, ~gray, job.size)
    return dataclasses.replace(labels, image=image)


def _draw_materials(rng: np.random.Generator, count: int) -> np.ndarray:
    shares = [MATERIAL_FRACTIONS[name] for name in captions.MATERIALS]
    choices = np.arange(-1, len(shares))
    return rng.choice(choices, count, p=[1.0 - sum(shares), *shares])


def _draw_cameras(seed: int, count: int) -> cameras.CameraDraw:
    """Draws cameras as distillation draws them."""
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.vmap(lambda key: cameras.sample_camera(key, cameras.CameraRanges()))(keys)


def _render_images(
    rng: np.random.Generator,
    shape_names: tuple[str, ...],
    solids: list[shapes.Solids],
    camera: cameras.Camera,
    textured: np.ndarray,
    size: int,
) -> np.ndarray:
    """Renders the objects under random lights, before random backgrounds; [N, H, W, 3] uint8."""
    count = len(solids)
    camera = jax.tree.map(np.asarray, camera)
    light = _draw_light(rng, np.asarray(camera.pose[:, :, 3]), textured)
    scene = (_stack(solids), camera, light, _draw_background(rng, count))
    images = np.zeros((count, size, size, 3), np.uint8)
    for start in range(0, count, _CHUNK):
        # The last chunk wraps around, so that one shape is compiled.
        rows = np.arange(start, start + _CHUNK) % count
        chunk = jax.tree.map(lambda leaf, rows=rows: leaf[rows], scene)
        image = shapes.render_batch(shape_names, *chunk, size)
        images[rows] = np.round(np.asarray(image) * 255.0).astype(np.uint8)
    return images


def _allowed_colors(kind: str, pairs: str) -> list[int]:
    hidden = captions.held_out_pairs()
    wanted = {"seen": (False,), "held_out": (True,), "all": (False, True)}[pairs]
    return [i for i, color in enumerate(_COLORS) if ((color, kind) in hidden) in wanted]


def _draw_light(rng: np.random.Generator, eye: np.ndarray, textured: np.ndarray) -> shapes.Light:
    """Draws point lights around the camera's side (Poole et al. 2022, section 3.1); some unlit."""
    count = len(eye)
    toward = eye + rng.normal(size=(count, 3))
    toward /= np.linalg.norm(toward, axis=-1, keepdims=True)
    position = toward * rng.uniform(*LIGHT_DISTANCE, (count, 1))
    flat = (rng.random(count) < FLAT_FRACTION) & textured
    ambient = np.where(flat, 1.0, rng.uniform(*AMBIENT, count))
    return shapes.Light(*(x.astype(np.float32) for x in (position, ambient, 1.0 - ambient)))


def _draw_background(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draws plain colors, some of them gray, and some gradients between two; [N, 2, 3]."""
    colored = rng.random((count, 2, 3))
    gray = np.repeat(rng.random((count, 2, 1)), 3, axis=2)
    ends = np.where(rng.random((count, 1, 1)) < 0.3, gray, colored)
    plain = rng.random((count, 1, 1)) >= GRADIENT_FRACTION
    return np.where(plain, ends[:, :1], ends).astype(np.float32)


def _stack(solids: list[shapes.Solids]) -> shapes.Solids:
    return shapes.Solids(*(np.stack(column) for column in zip(*solids, strict=True)))
