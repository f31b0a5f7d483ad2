"""Renders a GLB by three.js in headless Chromium: a reader of glTF that shares no code with ours.

Needs `npm install three` in a folder whose node_modules is in NODE_PATH, and Chromium.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamfusion_jax.mesh.formats import WORLD_TO_GLTF
from dreamfusion_jax.nerf.cameras import Camera, fov_from_focal
from tests.browser import opened

_PAGE = """<!DOCTYPE html><canvas id="canvas"></canvas>
<script type="importmap">{"imports": {"three": "/three/build/three.module.js"}}</script>
<script type="module">
import * as THREE from "three";
import { GLTFLoader } from "/three/examples/jsm/loaders/GLTFLoader.js";
const renderer = new THREE.WebGLRenderer({ canvas, antialias: true, preserveDrawingBuffer: true });
renderer.setPixelRatio(1);
renderer.setClearColor(0x000000, 1);
window.load = async (glb) => {
  const bytes = Uint8Array.from(atob(glb), (letter) => letter.charCodeAt(0));
  const scene = new THREE.Scene();
  scene.add((await new GLTFLoader().parseAsync(bytes.buffer, "")).scene);
  // White from everywhere: what a matt surface then shows is its base color.
  scene.add(new THREE.AmbientLight(0xffffff, Math.PI));
  window.shown = scene;
};
window.render = (matrix, fov, size, normals) => {
  renderer.setSize(size, size);
  const camera = new THREE.PerspectiveCamera(fov, 1, 0.01, 100);
  camera.applyMatrix4(new THREE.Matrix4().fromArray(matrix));
  window.shown.traverse((part) => {
    if (!part.isMesh) return;
    part.own ??= part.material;
    const { normalMap, normalScale } = part.own;
    part.material = normals ? new THREE.MeshNormalMaterial({ normalMap, normalScale }) : part.own;
  });
  renderer.render(window.shown, camera);
  return canvas.toDataURL("image/png").split(",")[1];
};
window.ready = true;
</script>"""


def find_three() -> Path | None:
    """Returns three's folder in NODE_PATH; None where it is not installed."""
    folders = [Path(folder) / "three" for folder in os.environ.get("NODE_PATH", "").split(":")]
    return next((f for f in folders if (f / "build" / "three.module.js").is_file()), None)


def render(
    glb: bytes, cameras: Sequence[Camera], size: int, normals: bool = False
) -> list[np.ndarray]:
    """Renders images [size, size, 3] in [0, 1], on black, of a GLB as seen by the world's cameras.

    Args:
      normals: show the normals in the camera's axes, as 0.5 + 0.5 n, in place of the base color.
    """
    three = find_three()
    if three is None:
        pytest.skip("three is not in NODE_PATH")
    with opened("about:blank") as (page, _):

        def answer(route):
            path = route.request.url.removeprefix("http://viewer.test/")
            if path.startswith("three/"):
                body = (three / path.removeprefix("three/")).read_bytes()
                route.fulfill(body=body, content_type="text/javascript")
            else:
                route.fulfill(body=_PAGE, content_type="text/html")

        page.route("http://viewer.test/**", answer)
        page.goto("http://viewer.test/")
        page.wait_for_function("window.ready")
        page.evaluate("window.load", base64.b64encode(glb).decode())
        return [_render(page, camera, size, normals) for camera in cameras]


def _render(page, camera: Camera, size: int, normals: bool) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3] = WORLD_TO_GLTF @ np.asarray(camera.pose)
    fov = float(fov_from_focal(camera.focal))
    arguments = json.dumps([matrix.T.ravel().tolist(), fov, size, normals])
    png = page.evaluate(f"window.render(...{arguments})")
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    return np.asarray(image.convert("RGB")) / 255.0
