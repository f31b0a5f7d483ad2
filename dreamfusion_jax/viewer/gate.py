"""A gate before the viewer for other machines: it lets those in who know the token.

Viser serves anybody who reaches it, so that it listens to this machine alone. The gate listens to
all, and passes a connection on if its first request has the token, in its address or as the cookie
that the gate gives in return.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import re
import secrets
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from dreamfusion_jax.runtime.errors import RunError

Value = TypeVar("Value")

_MAX_HEAD_BYTES = 2**14
_HEAD_S = 10.0  # in which a client must have sent its request's head
_PIECE_BYTES = 2**16
_PORTS = 1000  # tried one after another
_REFUSAL = b"The address of this viewer ends with ?token=...; its owner knows it.\n"


class Gate:
    """Lets the holders of a token through to a port of this machine.

    Args:
      host: the address to listen at, such as "0.0.0.0".
      port: the first port that is tried.
      inner_port: the port of 127.0.0.1 that is behind the gate.

    Attributes:
      token: what to know.
      port: where the gate is.

    Raises:
      RunError: the address is not this machine's, or no port is free.
    """

    def __init__(self, host: str, port: int, inner_port: int) -> None:
        self.token, self.port, self._inner_port = secrets.token_urlsafe(24), port, inner_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self._server = self._run(self._listen(host, port))
        except RunError:
            self._stop()
            raise

    def close(self) -> None:
        """Stops to listen, and ends all connections."""
        self._run(self._end())
        self._stop()

    def _run(self, work: Coroutine[Any, Any, Value]) -> Value:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        open_ones = asyncio.all_tasks() - {asyncio.current_task()}
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)

    async def _listen(self, host: str, port: int) -> asyncio.Server:
        error: OSError | None = None
        for self.port in range(port, port + _PORTS):
            try:
                return await asyncio.start_server(self._serve, host, self.port)
            except OSError as failure:
                error = failure
                if failure.errno != errno.EADDRINUSE:
                    break
        raise RunError(
            f"--host={host} cannot be listened at ({error}): give an address of this machine, or"
            " 0.0.0.0 for all of them."
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            async with asyncio.timeout(_HEAD_S):
                head = await _read_head(reader)
            if not head:
                return
            elif self._has_cookie(head):
                await self._pass_on(head, reader, writer)
            elif self._has_token(head):
                cookie = f"{self._cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"
                writer.write(_response("303 See Other", f"Location: /\r\nSet-Cookie: {cookie}\r\n"))
            else:
                writer.write(_response("403 Forbidden", body=_REFUSAL))
            await writer.drain()
            writer.close()

    @property
    def _cookie(self) -> str:
        # Cookies are shared by all ports of a host.
        return f"dreamfusion_jax_{self.port}"

    def _has_token(self, head: bytes) -> bool:
        found = re.match(rb"GET /[^ ]*[?&]token=([\w-]+)[& ]", head)
        return found is not None and self._is_token(found[1])

    def _has_cookie(self, head: bytes) -> bool:
        name = re.escape(self._cookie.encode())
        cookies = re.findall(rb"\r\ncookie:([^\r]*)", head, re.IGNORECASE)
        values = re.findall(rb"(?:^|[;\s])" + name + rb"=([\w-]+)", b";".join(cookies))
        return any(self._is_token(value) for value in values)

    def _is_token(self, given: bytes) -> bool:
        return hmac.compare_digest(given, self.token.encode())

    async def _pass_on(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        to_inner, inner_writer = await asyncio.open_connection("127.0.0.1", self._inner_port)
        inner_writer.write(_without_keep_alive(head))
        both = (_copy(reader, inner_writer), _copy(to_inner, writer))
        await asyncio.gather(*both, return_exceptions=True)


async def _read_head(reader: asyncio.StreamReader) -> bytes:
    """Reads a request up to its empty line; returns nothing where it has none."""
    head = b""
    while b"\r\n\r\n" not in head and len(head) < _MAX_HEAD_BYTES:
        if not (piece := await reader.read(_PIECE_BYTES)):
            return b""
        head += piece
    return head if b"\r\n\r\n" in head else b""


def _without_keep_alive(head: bytes) -> bytes:
    """Ends the connection after one request, unless it becomes a socket: each is to be checked."""
    if re.search(rb"\r\nupgrade:", head, re.IGNORECASE):
        return head
    head = re.sub(rb"\r\nconnection:[^\r]*", b"", head, flags=re.IGNORECASE)
    return head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(_PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
    finally:
        writer.close()


def _response(status: str, headers: str = "", body: bytes = b"") -> bytes:
    common = f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    return f"HTTP/1.1 {status}\r\n{headers}{common}\r\n".encode() + body
