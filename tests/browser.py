"""Headless Chromium for tests in a browser, which are skipped where it is missing."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_ALONE = ("quic", "background-networking", "component-update", "sync")
_FLAGS = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in _ALONE)]
# WebGL without a graphics card.
_FLAGS += ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


class PageEvents:
    """Console errors and requests of a page."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []


@contextlib.contextmanager
def opened(address: str, **options: Any) -> Iterator[tuple[Any, PageEvents]]:
    """Opens a page in Chromium; yields it and its events.

    Args:
      options: of Playwright's `new_page`, as its `viewport`.
    """
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        page, events = browser.new_page(**options), PageEvents()
        page.on("pageerror", lambda error: events.complaints.append(str(error)))
        page.on(
            "console",
            lambda message: (
                events.complaints.append(message.text)
                if message.type in ("error", "warning")
                else None
            ),
        )
        page.on("request", lambda request: events.requests.append(request.url))
        page.goto(address)
        yield page, events
        browser.close()
