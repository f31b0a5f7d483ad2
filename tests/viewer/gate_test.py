"""The gate before the viewer: nothing passes without the token, and everything with it."""

import contextlib
import http.server
import socket
import threading

import pytest

from dreamfusion_jax.runtime.errors import RunError
from dreamfusion_jax.viewer.gate import Gate


class Echo(http.server.BaseHTTPRequestHandler):
    """The server behind the gate: says which path it was asked for, and echoes sockets' bytes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.headers.get("Upgrade"):
            self.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
            while data := self.connection.recv(100):
                self.wfile.write(data.upper())
            return
        body = self.path.encode()
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def inner():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def gate(inner):
    with contextlib.closing(Gate("127.0.0.1", 18000, inner)) as gate:
        yield gate


def ask(gate, path="/", *headers, more=b""):
    """Sends one request, or more, and returns all that comes back."""
    lines = [f"GET {path} HTTP/1.1", "Host: x", *headers]
    with socket.create_connection(("127.0.0.1", gate.port), timeout=20) as connection:
        connection.sendall("".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + more)
        return b"".join(iter(lambda: connection.recv(1000), b"")).decode()


@pytest.mark.parametrize(
    "request_of",
    [
        lambda gate: ("/",),
        lambda gate: ("/?token=",),
        lambda gate: (f"/?token={gate.token[:-1]}",),
        lambda gate: (f"/?token={gate.token}x",),
        lambda gate: ("/", f"Cookie: dreamfusion_jax_{gate.port}={gate.token[::-1]}"),
        lambda gate: ("/", f"Cookie: dreamfusion_jax_{gate.port + 1}={gate.token}"),
        lambda gate: ("/", "Upgrade: websocket", "Connection: Upgrade"),
        lambda gate: ("/", f"X-Cookie: dreamfusion_jax_{gate.port}={gate.token}"),
    ],
)
def test_nothing_passes_without_the_token(request_of, gate):
    assert ask(gate, *request_of(gate)).startswith("HTTP/1.1 403 ")


def test_the_token_is_exchanged_for_a_cookie_that_opens(gate):
    answer = ask(gate, f"/?token={gate.token}")
    assert answer.startswith("HTTP/1.1 303 ") and "Location: /\r\n" in answer
    assert "HttpOnly; SameSite=Strict" in answer
    cookie = answer.split("Set-Cookie: ")[1].split(";")[0]
    assert ask(gate, "/assets/x.js", f"cookie: a=b; {cookie}").endswith("/assets/x.js")


def test_each_request_needs_the_cookie_also_on_a_kept_connection(gate):
    cookie = f"Cookie: dreamfusion_jax_{gate.port}={gate.token}"
    second = b"GET /second HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = ask(gate, "/first", cookie, "Connection: keep-alive", more=second)
    assert answer.endswith("/first") and "/second" not in answer


def test_a_socket_passes_in_both_directions(gate):
    cookie = f"Cookie: dreamfusion_jax_{gate.port}={gate.token}"
    with socket.create_connection(("127.0.0.1", gate.port), timeout=20) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nUpgrade: websocket\r\n{cookie}\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 101 ")
        for word in (b"one", b"two"):
            connection.sendall(word)
            assert connection.recv(1000).endswith(word.upper())


def test_the_next_port_is_taken_and_a_foreign_address_refused(gate, inner):
    with contextlib.closing(Gate("127.0.0.1", gate.port, inner)) as other:
        assert other.port > gate.port and other.token != gate.token
    with pytest.raises(RunError, match="--host=192.0.2.1 cannot be listened at"):
        Gate("192.0.2.1", 18000, inner)
