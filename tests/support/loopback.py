"""ASGI applications on real loopback sockets, and ports where nobody listens."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from support.quick_server import QuickServer
from waypost.cli.listening import listen
from waypost.client.testing import FakeValidator


@contextmanager
def serving(app: ASGIApp, *, certificate: Path | None = None) -> Iterator[str]:
    """Serve ``app`` from a thread for the block; gives its origin, ``http://127.0.0.1:…``."""
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(
        app,
        log_level="critical",
        lifespan="off",
        timeout_graceful_shutdown=1,
        ssl_certfile=certificate,
    )
    server = QuickServer(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        scheme = "http" if certificate is None else "https"
        yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextmanager
def dead_origin() -> Iterator[str]:
    """An origin that refuses connections: its port is taken, but nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def asgi(validator: FakeValidator) -> ASGIApp:
    """The SDK's fake validator behind a real server; streams event by event."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        status, answer, content = validator.answer(scope["path"], headers, body)
        raw = [(name.lower().encode(), value.encode()) for name, value in answer.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        for event in content.split(b"\n\n"):
            if event:
                chunk = event + (b"\n\n" if b"\n\n" in content else b"")
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app
