"""The studio's web page, in Gradio, and its server. Only this module knows Gradio.

The page polls: every tab shows what the disk and the queue tell, so that reloading or closing it
loses nothing, and any number of tabs see the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import html
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Read when Gradio is imported: it would ask its makers' server for news.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr  # noqa: E402

from dreamfusion_jax.config.flags import PRESETS, Config
from dreamfusion_jax.runs.page.curves import HEIGHT, WIDTH, Chart
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.webui import forms, library, panels
from dreamfusion_jax.webui.drafts import Drafts
from dreamfusion_jax.webui.forms import Field
from dreamfusion_jax.webui.jobs import Queue
from dreamfusion_jax.webui.library import FINISHED, RUNNING, STOPPED, StoredAsset
from dreamfusion_jax.webui.panels import Shelf, Status

LOOPBACK = "127.0.0.1"
USER = "studio"
EXAMPLES = ("a red chair", "a blue robot", "a green cactus", "a yellow duck", "a purple mushroom")
_TICK_S = 1.0
_MESH = "Mesh"
_SEEDS = 2**31
_FONT = ["system-ui", "sans-serif"]
_CSS = """
.bar {height: 0.5rem; border-radius: 0.25rem; background: var(--neutral-200); overflow: hidden}
.bar > div {height: 100%; background: var(--primary-500); transition: width 0.5s}
.state {font-weight: 600}
.curve {margin: 0 0 0.75rem}
.curve svg {width: 100%; height: 6rem}
.curve path {fill: none; stroke: var(--primary-500); vector-effect: non-scaling-stroke}
.curve .dots {opacity: 0.3}
.error {color: var(--error-text-color, #b91c1c)}
"""


class _Form(NamedTuple):
    """Where the form tells what is wrong.

    Attributes:
      message: under the button.
      errors: under the field of each setting, by its name.
      folds: what must be open for a field to be seen, by the setting's name.
    """

    message: gr.HTML
    errors: dict[str, gr.HTML]
    folds: dict[str, tuple[gr.Accordion, ...]]

    def show(self, error: UserError, wrong: gr.State) -> dict[Any, Any]:
        """Returns what tells an error, and in `wrong` the name of its field."""
        name = forms.concerned_field(error)
        if not name:
            return {self.message: _error(error)}
        inside = self.folds.get(name, ())
        return {
            wrong: name,
            self.errors[name]: gr.update(value=_error(error), visible=True),
            # A field that was folded away may be far below the button.
            self.message: _error(error) if inside else "",
            **{fold: gr.update(open=True) for fold in inside},
        }


class Studio:
    """The page of the runs below `root`."""

    def __init__(self, root: Path, queue: Queue) -> None:
        self._root, self._queue, self._shelf = root, queue, Shelf()
        self._drafts = Drafts(root, self._shelf.drafts)
        os.environ["GRADIO_TEMP_DIR"] = self._shelf.cache  # else one that all users share
        self.blocks = self._build()

    def launch(self, host: str, port: int, password: str = "") -> str:
        """Starts the server beside this thread; returns its address.

        Raises:
          UserError: no port is free.
        """
        try:
            _, address, _ = self.blocks.launch(
                server_name=host,
                server_port=port,
                auth=(USER, password) if password else None,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                ssr_mode=False,
                enable_monitoring=False,
                footer_links=[],
                theme=gr.themes.Default(font=_FONT, font_mono=["ui-monospace", "monospace"]),
                css=_CSS,
            )
        except OSError as error:
            raise UserError(f"--port={port} is taken; name another.") from error
        return address

    def close(self) -> None:
        """Stops the server and removes the copies of files."""
        self.blocks.close()
        self._drafts.close()
        self._shelf.close()

    def _build(self) -> gr.Blocks:
        with gr.Blocks(title="DreamFusion studio", analytics_enabled=False) as blocks:
            chosen, shown = gr.State(""), gr.State(None)
            with gr.Row():
                with gr.Column(scale=1, min_width=320):
                    form = self._form(chosen)
                with gr.Column(scale=1, min_width=320):
                    middle = self._progress(chosen)
                with gr.Column(scale=1, min_width=320):
                    result = self._result()
            shelf = self._gallery(chosen, form)
            refresh = {
                "fn": self._refresh,
                "inputs": [chosen, shown],
                "outputs": [*middle, *result, *shelf, shown],
                "show_progress": "hidden",
                "api_name": False,
                "concurrency_limit": None,  # every tab asks
            }
            gr.Timer(_TICK_S).tick(**refresh)
            blocks.load(**refresh)
        return blocks

    def _form(self, chosen: gr.State) -> _Form:
        prompt = gr.Textbox(label="Prompt", placeholder=EXAMPLES[0], max_lines=3, autofocus=True)
        errors, folds, components = {forms.PROMPT: _error_place()}, {}, []
        gr.Examples([[example] for example in EXAMPLES], prompt, label="The embedded prior knows")
        preset = gr.Dropdown(list(PRESETS), value="toybox", label="Preset")
        values = iter(forms.preset_values("toybox"))

        def ask(field: Field, *inside: gr.Accordion) -> None:
            components.append(_component(field, next(values)))
            errors[field.name], folds[field.name] = _error_place(), inside

        for field in forms.main_fields():
            ask(field)
        start = gr.Button("Make it", variant="primary", elem_id="start")
        message = gr.HTML(elem_id="message")
        with gr.Accordion("All settings", open=False) as all_settings:
            for title, fields in forms.sections().items():
                with gr.Accordion(title, open=False) as section:
                    for field in fields:
                        ask(field, all_settings, section)
        preset.change(
            lambda name: forms.preset_values(name),
            preset,
            components,
            show_progress="hidden",
            api_name=False,
        )
        form = _Form(message, errors, folds)
        wrong = gr.State("")
        accordions = dict.fromkeys(fold for inside in folds.values() for fold in inside)
        start.click(
            functools.partial(self._start, form, chosen, wrong),
            [wrong, prompt, preset, *components],
            [chosen, wrong, message, *errors.values(), *accordions],
            show_progress="hidden",
            api_name=False,
        )
        return form

    def _progress(self, chosen: gr.State) -> list[Any]:
        status = gr.HTML(elem_id="status")
        preview = gr.Image(label="Preview", interactive=False, buttons=[], elem_id="preview")
        with gr.Row():
            stop = gr.Button("Stop", elem_id="stop", interactive=False)
            resume = gr.Button("Continue", elem_id="continue", interactive=False)
        curves = gr.HTML(elem_id="curves")
        stop.click(self._stop, chosen, None, show_progress="hidden", api_name=False)
        resume.click(self._resume, chosen, status, show_progress="hidden", api_name=False)
        return [status, preview, stop, resume, curves]

    def _result(self) -> list[Any]:
        mesh = gr.Model3D(label=_MESH, interactive=False, height=360, elem_id="mesh")
        film = gr.Video(label="Turntable", interactive=False, autoplay=True, loop=True)
        sheet = gr.Image(label="All sides", interactive=False, buttons=[])
        files = gr.Files(label="Downloads", interactive=False, elem_id="downloads")
        return [mesh, film, sheet, files]

    def _gallery(self, chosen: gr.State, form: _Form) -> list[Any]:
        gallery = gr.Gallery(
            label="Assets",
            columns=6,
            height="auto",
            fit_columns=False,
            object_fit="contain",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="gallery",
        )
        names = gr.State([])
        with gr.Row():
            command = gr.Code(label="The command", language="shell", interactive=False)
            again = gr.Button("Make again with another seed", elem_id="again")

        def choose(names: list[str], event: gr.SelectData) -> str:
            return names[event.index]

        gallery.select(choose, names, chosen, show_progress="hidden", api_name=False)
        again.click(
            self._again, chosen, [form.message, chosen], show_progress="hidden", api_name=False
        )
        return [gallery, names, command]

    def _start(
        self,
        form: _Form,
        chosen: gr.State,
        wrong: gr.State,
        was_wrong: str,
        prompt: str,
        preset: str,
        *values: Any,
    ) -> dict[Any, Any]:
        """Queues a new run; returns what changes on the page.

        Args:
          was_wrong: name of the field whose error is shown.
        """
        changes = {form.message: "", wrong: ""}
        if was_wrong:
            changes[form.errors[was_wrong]] = gr.update(visible=False)
        try:
            taken = self._queue.names
            config = forms.make_config(self._root, taken, prompt, preset, values)
            return changes | {chosen: self._queue.add(config)}
        except UserError as error:
            return changes | form.show(error, wrong)

    def _add(self, config: Config) -> tuple[str, Any]:
        """Queues a run; returns the message beside the form, and the run to show."""
        try:
            return "", self._queue.add(config)
        except UserError as error:
            return _error(error), gr.skip()

    def _stop(self, name: str) -> None:
        self._queue.stop(self._name(name))

    def _resume(self, name: str) -> Any:
        asset = library.read_asset(self._root, self._name(name))
        if asset is None:
            return gr.skip()
        try:
            run = dataclasses.replace(asset.config.run, workdir=str(self._root / asset.name))
            self._queue.add(dataclasses.replace(asset.config, run=run))
        except UserError as error:
            return _error(error)
        return gr.skip()

    def _again(self, name: str) -> tuple[Any, Any]:
        asset = library.read_asset(self._root, self._name(name))
        if asset is None:
            return gr.skip(), gr.skip()
        train = dataclasses.replace(asset.config.train, seed=(asset.config.train.seed + 1) % _SEEDS)
        config = dataclasses.replace(asset.config, train=train)
        return self._add(forms.in_new_folder(config, self._root, self._queue.names))

    def _name(self, chosen: str) -> str:
        """Returns what a tab shows: the choice made there, or the run at work, or the newest."""
        return chosen or self._default_name(library.stored_assets(self._root))

    def _default_name(self, assets: Sequence[StoredAsset]) -> str:
        running = next((a.name for a in assets if a.state == RUNNING), "")
        return self._queue.current or running or (assets[0].name if assets else "")

    def _refresh(self, chosen: str, shown: dict[str, Any] | None) -> list[Any]:
        """Returns the values of everything shown; what has not changed is skipped."""
        root = self._root
        assets = library.stored_assets(root)
        name = chosen or self._default_name(assets)
        asset = next((a for a in assets if a.name == name), None)
        now = panels.status(self._queue, name, asset)
        pictured = [(image, a) for a in assets if (image := self._image(a.name))]
        get = self._shelf.get
        finished = now.state == FINISHED
        values: dict[str, Any] = {
            "status": _status_html(now),
            "preview": get(root, name, "preview.png") if asset else None,
            "stop": now.state in (RUNNING, panels.STARTING, panels.QUEUED),
            "continue": now.state in (STOPPED, panels.FAILED) and asset is not None,
            "curves": _curves_html(panels.charts(root, name)) if asset else "",
            "mesh": self._mesh(asset),
            "film": get(root, name, "turntable.mp4") if finished else None,
            "sheet": get(root, name, "contact_sheet.png") if finished else None,
            "files": self._shelf.downloads(root, name) if finished else None,
            "gallery": [(image, a.summary) for image, a in pictured],
            "command": panels.command(asset) if asset else "",
        }
        before = shown or {}
        changed = {key for key, value in values.items() if before.get(key, before) != value}

        def value(key: str) -> Any:
            return values[key] if key in changed else gr.skip()

        buttons = [
            gr.update(interactive=values[key]) if key in changed else gr.skip()
            for key in ("stop", "continue")
        ]
        named = [a.name for _, a in pictured]
        return [
            *(value("status"), value("preview"), *buttons, value("curves")),
            gr.update(**values["mesh"]) if "mesh" in changed else gr.skip(),
            *(value("film"), value("sheet"), value("files")),
            *(value("gallery"), named if "gallery" in changed else gr.skip(), value("command")),
            values if changed else gr.skip(),
        ]

    def _mesh(self, asset: StoredAsset | None) -> dict[str, str | None]:
        """Returns the mesh of an asset with its label; before there is one, a draft."""
        if asset is None or asset.state == FINISHED:
            path = self._shelf.get(self._root, asset.name, "mesh.glb") if asset else None
            return {"value": path, "label": _MESH}
        draft = self._drafts.get(asset)
        if draft is None:
            return {"value": None, "label": _MESH}
        return {"value": draft.path, "label": f"{_MESH} after {draft.step:,} steps, coarse"}

    def _image(self, name: str) -> str | None:
        """Returns an image of an asset for the gallery."""
        for file in ("poster.png", "picture.png", "preview.png"):
            if copy := self._shelf.get(self._root, name, file):
                return copy
        return None


def _component(field: Field, value: Any) -> Any:
    common: dict[str, Any] = {
        "label": field.name,
        "info": field.help,
        "value": value,
        "elem_id": f"setting-{field.name}",
    }
    if field.choices:
        return gr.Dropdown(list(field.choices), **common)
    if field.kind is bool:
        return gr.Checkbox(**common)
    if field.kind in (int, float):
        return gr.Number(**common)  # Its precision would round what is no whole number.
    return gr.Textbox(max_lines=1, **common)


def _error_place() -> gr.HTML:
    return gr.HTML(visible=False, elem_classes="field-error")


def _status_html(status: Status) -> str:
    if not status.prompt:
        return "<p>Nothing here yet: type a prompt and press the button.</p>"
    kind = "error" if status.state == panels.FAILED else "detail"
    return (
        f'<div><span class="state">{html.escape(status.state)}</span>:'
        f" {html.escape(status.prompt)}</div>"
        f'<div class="bar"><div style="width: {100 * status.fraction:.1f}%"></div></div>'
        f'<div class="{kind}">{html.escape(status.detail)}</div>'
    )


def _curves_html(charts: list[Chart]) -> str:
    return "".join(
        f'<figure class="curve"><figcaption>{chart.name} {chart.low} to {chart.high}, steps'
        f" {chart.first} to {chart.last}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img"'
        f' aria-label="{html.escape(chart.description)}"><path d="{chart.dots}" class="dots"/>'
        f'<path d="{chart.line}" class="line"/></svg></figure>'
        for chart in charts
    )


def _error(error: UserError) -> str:
    return f'<div class="error" role="alert">{html.escape(str(error))}</div>'


@contextlib.contextmanager
def serving(studio: Studio, host: str, port: int, password: str) -> Iterator[str]:
    """Yields the address at which the studio is served within the `with`."""
    try:
        yield studio.launch(host, port, password)
    finally:
        studio.close()
