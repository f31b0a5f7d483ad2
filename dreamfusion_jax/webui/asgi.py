"""What stands before Gradio in the studio's server: its page is built once, and runs go first.

Gradio builds its page, which is the same for everybody without a password, anew for every request;
that takes 12 ms of a CPU core on which a run may be at work.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_PAGES = ("/", "/config")
_MAX_KEPT = 16  # pages by query and host, which anybody may make up
_LOWER_PRIORITY = 5  # a quarter of a core that a run keeps busy: 200 answers a second need a fifth
_HEADERS = (b"host", b"x-forwarded-host", b"x-forwarded-proto", b"accept-encoding")


class KeepPages:
    """An ASGI application that answers for another one with its earlier answers.

    Args:
      app: the other one.
      keep: whether its page is the same for everybody.
    """

    def __init__(self, app: App, keep: bool = True) -> None:
        self._app, self._keep = app, keep
        self._kept: dict[object, list[Message]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # The server's own thread, whose later ones inherit it.
            _lower_priority()
        is_page = scope["type"] == "http" and scope["method"] == "GET" and scope["path"] in _PAGES
        if not is_page or not self._keep:
            await self._app(scope, receive, send)
            return
        headers = tuple(item for item in scope["headers"] if item[0] in _HEADERS)
        key = (scope["path"], scope["query_string"], headers)
        if key not in self._kept:
            answer = await self._answer(scope, receive)
            if answer[0]["status"] != 200 or len(self._kept) >= _MAX_KEPT:
                await _send_all(answer, send)
                return
            self._kept[key] = answer
        await _send_all(self._kept[key], send)

    async def _answer(self, scope: Scope, receive: Receive) -> list[Message]:
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        await self._app(scope, receive, keep)
        return messages


async def _send_all(messages: list[Message], send: Send) -> None:
    for message in messages:
        await send(message)


def _lower_priority() -> None:
    """Lets runs go first on a busy CPU: lowers the priority of this thread (Linux)."""
    if sys.platform == "linux":  # Elsewhere it is that of the process, which runs would inherit.
        os.nice(_LOWER_PRIORITY)
