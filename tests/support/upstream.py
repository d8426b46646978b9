"""A provider on a real socket that does what a test tells it: answers, streams, fails, hangs."""

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

USAGE = {"prompt_tokens": 20, "completion_tokens": 7, "total_tokens": 27}


@dataclass
class Seen:
    """A request as the provider got it."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.body)
        return parsed


Behaviour = Callable[["Exchange"], Awaitable[None]]


class Exchange:
    """One request and the line to whoever sent it."""

    def __init__(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        self.seen = seen
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def respond(
        self, status: int, body: bytes, *, content_type: str = "application/json", extra: str = ""
    ) -> None:
        head = (
            f"HTTP/1.1 {status} Status\r\ncontent-type: {content_type}\r\n"
            f"content-length: {len(body)}\r\n{extra}\r\n"
        )
        await self.send(head.encode() + body)

    async def start_stream(self) -> None:
        await self.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def end_stream(self) -> None:
        await self.send(b"0\r\n\r\n")

    def close(self) -> None:
        """End the connection as a server does that has said all."""
        self._writer.close()

    def reset(self) -> None:
        """End the connection as a crashing process does."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


@dataclass
class Upstream:
    """A running provider. Set ``behave`` to change what it does from now on.

    Attributes:
        is_deaf: whether it reads nothing on connections from now on.
    """

    port: int = 0
    behave: Behaviour = field(default_factory=lambda: answering())
    seen: list[Seen] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    connections: int = 0
    scheme: str = "http"
    is_deaf: bool = False
    stop_listening: Callable[[], None] = lambda: None

    @property
    def base_url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/v1"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, request by request."""
        self.connections += 1
        try:
            if self.is_deaf:
                await asyncio.sleep(3_600)
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._exchange(reader, writer):
                    pass
        finally:
            # Aborted, if it read too little: a close would wait for what nobody reads.
            writer.transport.abort() if self.is_deaf else writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request_line, *lines = head.strip().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        headers = {name.lower(): value for name, value in headers.items()}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        seen = Seen(request_line.split(" ")[1], headers, body)
        self.seen.append(seen)
        self.asked.set()
        doing = asyncio.create_task(_run(self.behave, Exchange(seen, writer)))
        # Whoever hangs up while we answer is noticed, as a real provider would.
        watching = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                self.hung_up.set()
            return doing.done() and not watching.done()
        finally:
            for task in (doing, watching):
                task.cancel()
            await asyncio.gather(doing, watching, return_exceptions=True)


async def _run(behave: Behaviour, exchange: Exchange) -> None:
    with suppress(ConnectionError):
        await behave(exchange)


@asynccontextmanager
async def running_upstream(
    behave: Behaviour | None = None, *, tls: ssl.SSLContext | None = None
) -> AsyncGenerator[Upstream]:
    upstream = Upstream(scheme="http" if tls is None else "https")
    if behave is not None:
        upstream.behave = behave
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(upstream.handle(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    upstream.stop_listening = server.close
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await server.wait_closed()
        await asyncio.sleep(0)  # transports close on the next turn of the loop


# ── behaviours ─────────────────────────────────────────────────────────────────────────────────


def completion(
    text: str = "Four.", *, usage: dict[str, Any] | None = USAGE, **changes: object
) -> bytes:
    answer: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_764_000_000,
        "model": "acme-1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
        ],
    }
    if usage is not None:
        answer["usage"] = usage
    return json.dumps({**answer, **changes}).encode()


def event(text: str | None, **changes: object) -> bytes:
    delta = {} if text is None else {"content": text}
    chunk: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_764_000_000,
        "model": "acme-1",
        "choices": [
            {"index": 0, "delta": delta, "finish_reason": None if text is not None else "stop"}
        ],
    }
    return b"data: " + json.dumps({**chunk, **changes}).encode() + b"\n\n"


def usage_event(usage: dict[str, Any] = USAGE) -> bytes:
    return event(None, choices=[], usage=usage)


DONE = b"data: [DONE]\n\n"


def answering(text: str = "Four.", *, usage: dict[str, Any] | None = USAGE) -> Behaviour:
    """Answers, and streams if asked to; tells its usage if asked to."""

    async def behave(exchange: Exchange) -> None:
        if not exchange.seen.json.get("stream"):
            await exchange.respond(200, completion(text, usage=usage))
            return
        await exchange.start_stream()
        for word in text.split(" "):
            await exchange.chunk(event(word))
        await exchange.chunk(event(None))
        options = exchange.seen.json.get("stream_options") or {}
        if usage is not None and options.get("include_usage"):
            await exchange.chunk(usage_event(usage))
        await exchange.chunk(DONE)
        await exchange.end_stream()

    return behave


def failing(status: int, *, code: str = "boom", extra: str = "") -> Behaviour:
    """Answers with a status and an error in OpenAI's envelope."""
    error = {"message": "It is what it is.", "type": "error", "code": code, "param": None}

    async def behave(exchange: Exchange) -> None:
        await exchange.respond(status, json.dumps({"error": error}).encode(), extra=extra)

    return behave


async def hanging(exchange: Exchange) -> None:
    """Says nothing, for longer than anybody waits."""
    await asyncio.sleep(3_600)


async def resetting(exchange: Exchange) -> None:
    """Breaks the connection instead of answering."""
    exchange.reset()


def breaking_off_after(*events: bytes) -> Behaviour:
    """Streams these bytes and then breaks the connection."""

    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        for data in events:
            await exchange.chunk(data)
        await asyncio.sleep(0.05)  # let the bytes out before the reset overtakes them
        exchange.reset()

    return behave
