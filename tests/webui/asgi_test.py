"""The studio's page is built once; whatever else is asked for goes to Gradio."""

import asyncio

from dreamfusion_jax.webui import asgi


class Counting:
    """An application that counts its answers, in which the query is the status."""

    calls = 0

    async def __call__(self, scope, receive, send):
        self.calls += 1
        status = int(scope["query_string"] or 200)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": f"{self.calls}".encode()})


def get(app, path, query=b"", method="GET", host=b"a"):
    """The body of an answer."""
    sent = []
    scope = {"type": "http", "method": method, "path": path, "query_string": query}

    async def send(message):
        sent.append(message)

    asyncio.run(app({**scope, "headers": [(b"host", host)]}, None, send))
    return sent[1]["body"]


def test_the_page_is_built_once_for_each_host():
    app = asgi.KeepPages(Counting())
    assert [get(app, path) for path in ("/", "/", "/config", "/")] == [b"1", b"1", b"2", b"1"]
    assert get(app, "/", host=b"b") == b"3", "its addresses are those of the request"
    assert [get(app, "/file"), get(app, "/file"), get(app, "/", method="POST")] == [
        b"4",
        b"5",
        b"6",
    ]


def test_errors_and_pages_behind_a_password_are_not_kept():
    app = asgi.KeepPages(Counting())
    assert get(app, "/", b"401") != get(app, "/", b"401")
    app = asgi.KeepPages(Counting(), keep=False)
    assert get(app, "/") != get(app, "/")


def test_made_up_queries_do_not_fill_the_memory():
    app = asgi.KeepPages(Counting())
    for host in range(100):
        get(app, "/", host=str(host).encode())
    assert len(app._kept) == asgi._MAX_KEPT
    assert get(app, "/", host=b"0") == b"1"
