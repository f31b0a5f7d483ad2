"""The options of a run: where and how it runs, and its outputs."""

from __future__ import annotations

import dataclasses

from dreamfusion_jax.runtime.settings import MAX_STEPS, setting

NO_FOLDERS = ("auto", "none")  # values of compilation_cache that are not folders
_CACHE_HELP = "folder for compiled programs ('auto': in the user's cache folder; 'none': no cache)"


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where and how to run, and what to write. These may change when a run is continued."""

    workdir: str = setting("", "folder of the results (empty: workdir/<the prompt's words>)")
    platform: str = setting(
        "auto",
        "what to compute on (auto: what JAX finds: a TPU before a GPU before the CPU)",
        choices=("auto", "cpu", "gpu", "tpu"),
    )
    devices: int = setting(0, "devices of each process to use (0: all)", 0, 4096)
    distributed: str = setting(
        "auto",
        "run as one of several processes (auto: on Cloud TPU and with --coordinator; on: JAX finds"
        " the cluster)",
        choices=("auto", "on", "off"),
    )
    coordinator: str = setting("", "address of the first of several processes, as host:port")
    processes: int = setting(0, "how many processes there are, with --coordinator", 0, 65536)
    process_index: int = setting(0, "which of them this is, from 0", 0, 65535)
    peer_timeout: int = setting(
        100, "seconds after which a silent process counts as dead", 5, 86400
    )
    max_skipped_steps: int = setting(
        20, "steps in a row without finite numbers after which the run stops", 1, MAX_STEPS
    )
    compilation_cache: str = setting("auto", _CACHE_HELP)
    wandb: str = setting(
        "", "project of Weights & Biases that also gets metrics and previews (empty: none)"
    )
    log_every: int = setting(20, "steps between lines of metrics", 1, MAX_STEPS)
    preview_every: int = setting(100, "steps between preview images", 1, MAX_STEPS)
    checkpoint_every: int = setting(250, "steps between checkpoints", 1, MAX_STEPS)
    save_guidance: bool = setting(
        False,
        "at each preview also write guidance.png: a training view, the same noised, the prior's"
        " estimate of the clean image, and the image that it denoises to",
    )
    preview_size: int = setting(64, "side of each preview image, in pixels", 8, 2048)
    poster_size: int = setting(384, "side of the poster, one large view, in pixels", 8, 8192)
    sheet_size: int = setting(96, "side of each contact sheet image, in pixels", 8, 2048)
    turntable_size: int = setting(128, "side of the turntable, in pixels; even", 8, 2048)
    turntable_frames: int = setting(48, "frames of the turntable, once around", 1, 3600)
    mesh_resolution: int = setting(96, "grid points along a side for marching cubes", 8, 1024)
    mesh_threshold: float = setting(
        0.0,
        "density (per unit length) at which the mesh's surface lies (0: automatic: of a signed"
        " distance where that is 0, else such that the mesh's silhouettes match the opacity)",
        0,
        1e9,
    )
    mesh_faces: int = setting(
        10_000, "most triangles of the mesh, which is decimated to them (0: no limit)", 0, 10**8
    )
    texture_size: int = setting(1024, "side of the mesh's texture, in pixels", 16, 4096)
