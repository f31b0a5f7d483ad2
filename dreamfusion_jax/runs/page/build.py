"""Builds a run's page from the files in its work folder.

The page is one file and makes no network requests. Its content security policy enforces that, so
that even text that was not escaped could neither run nor send anything.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import functools
import hashlib
import time
import types
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from dreamfusion_jax.config import reproduce
from dreamfusion_jax.config.flags import SECTIONS, Config, is_flat
from dreamfusion_jax.runs import metrics
from dreamfusion_jax.runs.outputs_record import read_record
from dreamfusion_jax.runs.page import curves, media
from dreamfusion_jax.runs.workdir import FIRST_STAGE, MACHINE, first_stage, span
from dreamfusion_jax.runtime.files import AnyPath, atomic_write, read_json
from dreamfusion_jax.runtime.progress import duration

FILE = "index.html"
RUNNING, STOPPED, FINISHED = "running", "stopped", "finished"
REFRESH_S = 10  # while the run is running
# A running page that was not written again for this long, and several of its intervals, is of a run
# that was killed.
_PATIENCE_S, _PATIENCE_INTERVALS = 120.0, 3.0
_FOLDER = Path(__file__).parent
_MAX_POINTS = 300  # of a curve
_RELOADS = b'<meta http-equiv="refresh"'  # of running pages alone; a prompt's quotes are escaped
_HEAD_BYTES = 2000

# What a page shows of each kind of run, the most important first.
_UNFINISHED = ("preview.png", "guidance.png")
_FLAT = ("picture.png", "comparison.png", "progress.png", "guidance.png")
_SCENE = (
    *("poster.png", "turntable.mp4", "mesh.glb", "contact_sheet.png", "progress.png"),
    *("depth_turntable.mp4", "normals_turntable.mp4", "mesh_preview.png", "guidance.png"),
)
# Before the second stage, of a run of two, and beside what is there after it.
_BEFORE = {"poster.png": "The scene", "mesh_preview.png": "The mesh"}
# Files beside the page, with their descriptions.
_FILES = {
    "mesh.glb": "the mesh with its texture, for viewers, engines and browsers",
    "mesh.obj": "the same as OBJ, with mesh.mtl and mesh.png",
    "mesh.ply": "the same with colors at its vertices",
    "turntable.mp4": "once around",
    "turntable.gif": "the same, where videos do not play",
    "depth_turntable.mp4": "depth",
    "normals_turntable.mp4": "normals",
    "poster.png": "one large view",
    "picture.png": "the distilled image",
    "comparison.png": "the distilled image, and samples of the prior",
    "contact_sheet.png": "all sides",
    "progress.png": "previews over the run",
    "guidance.png": "a training view, and what the prior makes of it",
    "config.json": "every setting",
    "metrics.jsonl": "the numbers behind the curves",
}


class BeforeAfter(NamedTuple):
    """An image of the first stage and the same of the second; the latter may not be there yet."""

    what: str
    before: media.Media
    after: media.Media | None


class Setting(NamedTuple):
    """One row of the table of settings."""

    name: str
    value: str
    default: str
    help: str


def write_page(
    workdir: AnyPath,
    config: Config,
    state: str,
    step: int,
    numbers: AnyPath | None = None,
    missing: Mapping[str, str] = types.MappingProxyType({}),
) -> None:
    """Writes index.html, whole or not at all.

    Args:
      state: `RUNNING`, `STOPPED` or `FINISHED`. Only a finished page shows more than the newest
        preview; only a running page reloads itself.
      step: the steps done, of the present stage.
      numbers: the metrics.jsonl, where it is not (yet) in the work folder.
      missing: the outputs that could not be made -> the reason.
    """
    lines = _lines(workdir, numbers or workdir / metrics.FILE)
    atomic_write(workdir / FILE, page(workdir, config, state, step, lines, missing).encode())


def _lines(workdir: AnyPath, numbers: AnyPath) -> list[dict[str, float]]:
    """Reads the metrics, also those of a first stage; steps and times are counted through."""
    later = metrics.read_metrics(numbers, _MAX_POINTS)
    first = first_stage(workdir)
    if not first:
        return later
    earlier = metrics.read_metrics(workdir / FIRST_STAGE / metrics.FILE, _MAX_POINTS)
    added = {"step": first.train.steps, **metrics.spent(earlier)._asdict()}
    return [*earlier, *({**x, **{n: x.get(n, 0) + added[n] for n in added}} for x in later)]


def rewrite_page(
    workdir: AnyPath, config: Config, step: int, missing: Mapping[str, str] | None = None
) -> None:
    """Writes the page of a run that is not running, after `step` steps.

    Args:
      missing: the outputs that could not be made -> the reason; by default those of the record.
    """
    if missing is None:
        record = read_record(workdir)
        missing = record.missing if record and record.step == step else {}
    state = FINISHED if step >= config.train.steps else STOPPED
    write_page(workdir, config, state, step, missing=missing)


def close_page(workdir: AnyPath, config: Config, step: int, is_done: bool) -> None:
    """Writes the page, after `step` steps, where there is none or it says that the run goes on.

    Where the disk is full, the old page makes room; where even that is not enough, none is left:
    no page is better than one that is not true.

    Args:
      is_done: whether the job did all that it was to do.
    """
    is_first = step > 0 and not (workdir / FILE).exists()
    if not (is_first or says_running(workdir)):
        return
    state = FINISHED if is_done and step >= config.train.steps else STOPPED
    try:
        write_page(workdir, config, state, step)
    except OSError:
        (workdir / FILE).unlink(missing_ok=True)
        write_page(workdir, config, state, step)


def says_running(workdir: AnyPath) -> bool:
    """Returns whether there is a page, and it says that the run is running."""
    try:
        return _RELOADS in (workdir / FILE).read_bytes()[:_HEAD_BYTES]
    except FileNotFoundError:
        return False


def page(
    workdir: AnyPath,
    config: Config,
    state: str,
    step: int,
    lines: list[dict[str, float]],
    missing: Mapping[str, str] = types.MappingProxyType({}),
) -> str:
    """Renders the page as HTML; the arguments are those of `write_page`."""
    finished, flat = state == FINISHED, is_flat(config)
    shown: Sequence[str] = (_FLAT if flat else _SCENE) if finished else _UNFINISHED
    # An output that could not be made may be there from an earlier step.
    shown = tuple(name for name in shown if name not in missing)
    embedded, left_out = media.embed(workdir, shown)
    # The Python API makes outputs only when they are asked for.
    if not embedded.keys() - {"guidance.png"}:
        embedded, left_out = media.embed(workdir, _UNFINISHED)
    changed, unchanged = settings(config)
    before, steps = span(workdir, config)
    style, script = _asset("style.css"), _asset("news.js") + _asset("viewer.js")
    return _template().render(
        prompt=config.train.prompt,
        state=state,
        step=before + step,
        steps=steps,
        stages=before_after(workdir, embedded) if finished else [],
        flat=flat,
        refresh_s=REFRESH_S if state == RUNNING else 0,
        patience_s=round(patience(config, lines)),
        written_at=round(time.time()),
        facts=facts(workdir, config, metrics.spent(lines)),
        media=embedded,
        left_out=left_out,
        charts=curves.charts(lines),
        chart_width=curves.WIDTH,
        chart_height=curves.HEIGHT,
        files=_files(workdir, missing) if finished else {},
        missing=missing if finished else {},
        changed=changed,
        unchanged=unchanged,
        command=reproduce.shell_command(_asked_for(workdir, config)),
        written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
    )


def before_after(workdir: AnyPath, embedded: Mapping[str, media.Media]) -> list[BeforeAfter]:
    """Returns the images of a first stage, each beside that of the second; [] without one."""
    images, _ = media.embed(workdir / FIRST_STAGE, _BEFORE)
    return [BeforeAfter(_BEFORE[n], image, embedded.get(n)) for n, image in images.items()]


def _asked_for(workdir: AnyPath, config: Config) -> Config:
    """Returns the settings that the user gave: of a run of two stages, those of the first."""
    first = first_stage(workdir)
    if not first or config.train.init_from != str(workdir / FIRST_STAGE):
        return config
    return dataclasses.replace(first, run=config.run)


def patience(config: Config, lines: list[dict[str, float]]) -> float:
    """Returns the seconds without a new page after which a run seems to have been killed.

    A page is written with each preview, as often as the newest metrics tell.
    """
    last = lines[-2:]
    steps = max(last[-1]["step"] - last[0]["step"], 1.0) if last else 1.0
    seconds = last[-1].get("seconds", 0.0) - last[0].get("seconds", 0.0) if last else 0.0
    return _PATIENCE_S + _PATIENCE_INTERVALS * config.run.preview_every * max(seconds, 0.0) / steps


def _files(workdir: AnyPath, missing: Collection[str]) -> dict[str, str]:
    return {n: why for n, why in _FILES.items() if n not in missing and (workdir / n).exists()}


def facts(workdir: AnyPath, config: Config, spent: metrics.ElapsedTime) -> dict[str, str]:
    """Collects the facts below the prompt: label -> value."""
    rows = {"Prior": config.prior.prior, "Scene": config.scene.field}
    if spent.seconds:
        rows["Optimized for"] = duration(spent.seconds)
        rows["Device-hours"] = curves.short(spent.device_seconds / 3600)
    machine = _machine(workdir)
    if "device_kind" in machine:
        rows["Devices"] = f"{machine.get('devices')} × {machine['device_kind']}"
    for name in ("dreamfusion_jax", "jax"):
        if name in machine:
            rows[name] = str(machine[name])
    return rows


def settings(config: Config) -> tuple[list[Setting], list[Setting]]:
    """Returns the settings that differ from the defaults, and all others."""
    default = Config()
    suited = default.optimizer.suited_to(default.scene)
    default = dataclasses.replace(default, optimizer=suited)
    changed: list[Setting] = []
    unchanged: list[Setting] = []
    for section, kind in SECTIONS.items():
        for setting in dataclasses.fields(kind):
            value, usual = (getattr(getattr(c, section), setting.name) for c in (config, default))
            shown = reproduce.format_flag_value(value), reproduce.format_flag_value(usual)
            row = Setting(setting.name, *shown, setting.metadata["help"])
            (unchanged if value == usual else changed).append(row)
    return changed, unchanged


def _machine(workdir: AnyPath) -> dict[str, Any]:
    try:
        machine = read_json(workdir / MACHINE)
    except (OSError, ValueError):
        return {}
    return machine if isinstance(machine, dict) else {}


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(_FOLDER)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = "{:,}".format
    return environment.get_template("template.html")


@functools.cache
def _asset(name: str) -> Markup:
    """Reads a file of this package that goes into the page unescaped."""
    return Markup((_FOLDER / name).read_text(encoding="utf-8"))


def _hash(text: str) -> str:
    """Hashes a text as content security policies name what they allow."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
