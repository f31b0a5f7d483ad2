"""The pieces of HTML on the studio's page; whatever users wrote is text in them."""

from __future__ import annotations

import html

from dreamfusion_jax.runs.page.curves import HEIGHT, WIDTH, Chart
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.webui import panels
from dreamfusion_jax.webui.panels import Status


def status(now: Status) -> str:
    """Writes what a run is doing, as a line, a bar and a detail."""
    if not now.prompt:
        return "<p>Nothing here yet: type a prompt and press the button.</p>"
    kind = "error" if now.state == panels.FAILED else "detail"
    return (
        f'<div><span class="state">{html.escape(now.state)}</span>:'
        f" {html.escape(now.prompt)}</div>"
        f'<div class="bar"><div style="width: {100 * now.fraction:.1f}%"></div></div>'
        f'<div class="{kind}">{html.escape(now.detail)}</div>'
    )


def curves(charts: list[Chart]) -> str:
    """Draws curves with their ranges."""
    return "".join(
        f'<figure class="curve"><figcaption>{chart.name} {chart.low} to {chart.high}, steps'
        f" {chart.first} to {chart.last}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img"'
        f' aria-label="{html.escape(chart.description)}"><path d="{chart.dots}" class="dots"/>'
        f'<path d="{chart.line}" class="line"/></svg></figure>'
        for chart in charts
    )


def error(sentence: UserError) -> str:
    """Writes an error."""
    return f'<div class="error" role="alert">{html.escape(str(sentence))}</div>'
