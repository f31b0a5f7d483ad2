"""Unwraps a surface with xatlas in a process of its own, which shows progress and can be ended.

Without xatlas, or where it crashes, the surface is unwrapped in a simpler way.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np
import trimesh

from dreamfusion_jax.mesh import axis_charts
from dreamfusion_jax.runtime.progress import Stopwatch

_CHILD = Path(__file__).with_name("xatlas_child.py")
_PATIENCE_S = 5  # before the progress appears
_TICK_S = 0.5
_SIMPLER = "the texture has more seams and is less sharp than with it"


class _XatlasError(Exception):
    """xatlas gave no result. The message is the reason, as a clause."""


def unwrap(surface: trimesh.Trimesh, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts and flattens a surface for a texture of `size` x `size` texels.

    Returns:
      source [V], the surface's vertex that each new one is a copy of; faces [F, 3] of new vertices,
      in the surface's order; uv [V, 2].
    """
    if importlib.util.find_spec("xatlas") is None:
        remedy = "pip install xatlas, which needs a C++ compiler where it has no wheel"
        print(f"Note: xatlas is not installed, and {_SIMPLER}: {remedy}.", file=sys.stderr)
        return axis_charts.unwrap(surface, size)
    try:
        return _unwrap_with_xatlas(surface, size)
    except _XatlasError as error:
        print(
            f"Note: xatlas failed ({error}), and {_SIMPLER}; other --mesh_faces or another"
            " --mesh_resolution may help.",
            file=sys.stderr,
        )
        return axis_charts.unwrap(surface, size)


def _unwrap_with_xatlas(
    surface: trimesh.Trimesh, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    given = io.BytesIO()
    np.savez(
        given,
        vertices=np.asarray(surface.vertices, np.float32),
        faces=np.asarray(surface.faces, np.uint32),
        normals=np.asarray(surface.vertex_normals, np.float32),
    )
    # By its path, and without its folder among the places to import from.
    command = [sys.executable, "-P", str(_CHILD), str(size), str(axis_charts.PADDING)]
    what = f"unwrapping {len(surface.faces):,} triangles"
    result = np.load(io.BytesIO(_run(command, given.getvalue(), what)))
    faces, source = result["faces"].astype(int), result["source"].astype(int)
    if faces.shape != surface.faces.shape:
        raise _XatlasError(f"{len(surface.faces) - len(faces)} triangles were lost")
    return source, faces, result["uv"].astype(np.float64)


def _run(command: list[str], data: bytes, what: str) -> bytes:
    """Runs a program with `data` as its input; returns its output. Ends it when interrupted."""
    pipe = subprocess.PIPE
    try:
        child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
    except OSError as error:  # no memory for it, or Python is part of another program
        raise _XatlasError(f"its process cannot be started: {error}") from error
    with child, Stopwatch(what, patience_s=_PATIENCE_S) as stopwatch:
        try:
            output, errors = _wait(child, data, stopwatch)
        except BaseException:
            child.kill()
            child.wait()
            raise
    if child.returncode:
        raise _XatlasError(_reason(child.returncode, errors))
    return output


def _wait(child: subprocess.Popen, data: bytes, stopwatch: Stopwatch) -> tuple[bytes, bytes]:
    """Returns what a process writes to stdout and stderr until it ends, given `data` as its input.

    A thread writes that, as `communicate` forgets what it has not written when its time is out.
    """
    stdin, child.stdin = child.stdin, None
    threading.Thread(target=_feed, args=(stdin, data), daemon=True).start()
    while True:
        try:
            return child.communicate(timeout=_TICK_S)
        except subprocess.TimeoutExpired:
            stopwatch.tick()


def _feed(stdin: BinaryIO, data: bytes) -> None:
    with contextlib.suppress(OSError):  # It has ended; its exit code says why.
        with stdin:
            stdin.write(data)


def _reason(code: int, errors: bytes) -> str:
    if code < 0:
        return f"it was ended by signal {-code}"
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else f"exit code {code}"
