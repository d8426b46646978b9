"""An application that says what it was asked, and a connection to it that is written by hand."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from support.validator import serving


class Said(msgspec.Struct, frozen=True):
    """What an application was asked."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: str


def echo(seen: Callable[[Scope], None] | None = None) -> ASGIApp:
    """Return an application that answers with what it was asked, as JSON of ``Said``.

    ``/early`` is answered before the body is read, ``/wait`` once the caller has hung up.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        body = b""
        more = scope["path"] != "/early"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"] or scope["path"] == "/wait"
        if seen is not None:
            seen(scope)
        said = Said(
            scope["method"],
            scope["path"],
            scope["query_string"].decode("latin-1"),
            {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]},
            body.decode("latin-1"),
        )
        answer = msgspec.json.encode(said)
        headers = [(b"content-length", b"%d" % len(answer))]
        if scope["path"] == "/stream":
            headers = []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


class Wire:
    """A connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes) -> None:
        """Write ``pieces``, each as a packet of its own."""
        for piece in pieces:
            self.writer.write(piece)
            with suppress(ConnectionError):
                await self.writer.drain()
            if len(pieces) > 1:
                await asyncio.sleep(0.002)

    async def answer(self) -> tuple[int, bytes]:
        """Return status and body of the next answer, which has a length."""
        async with asyncio.timeout(20):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            return int(head.split(b" ")[1]), await self.reader.readexactly(length)

    async def said(self) -> Said:
        """Return what the application was asked, as the next answer tells."""
        status, body = await self.answer()
        assert status == 200, body
        return msgspec.json.decode(body, type=Said)

    async def rest(self) -> bytes:
        """Return whatever comes until the other side closes."""
        async with asyncio.timeout(20):
            return await self.reader.read()


async def code_of(wire: Wire) -> tuple[int, str]:
    """Return status and code of a refusal, after which the connection is closed."""
    status, body = await wire.answer()
    assert await wire.rest() == b""
    code: str = msgspec.json.decode(body)["error"]["code"]
    return status, code


@asynccontextmanager
async def wired(app: ASGIApp | None = None) -> AsyncGenerator[Callable[[], "asyncio.Future[Wire]"]]:
    """Serve ``app`` (else ``echo``); gives a function that connects."""
    wires: list[Wire] = []
    async with serving(app or echo()) as url:
        host, port = url.removeprefix("http://").split(":")

        async def connect() -> Wire:
            wires.append(Wire(*await asyncio.open_connection(host, int(port))))
            return wires[-1]

        try:
            yield lambda: asyncio.ensure_future(connect())
        finally:
            for wire in wires:
                wire.writer.close()
                with suppress(ConnectionError):
                    await wire.writer.wait_closed()
