"""An answer's head goes out with the beginning of its body, and loses nothing by waiting for it."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from support.validator import serving
from waypost.validator.http.server_protocol import has_whole_body

pytestmark = pytest.mark.anyio

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n"
START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"1")]}


def answering(*pieces: bytes, seen: Callable[[Scope], None] | None = None) -> ASGIApp:
    """Return an application that reads a request and answers in these pieces, or breaks off."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        if seen is not None:
            seen(scope)
        while (await receive()).get("more_body"):
            pass
        await send(START)
        if not pieces:
            raise RuntimeError("after the head")
        for place, piece in enumerate(pieces, 1):
            more = place < len(pieces)
            await send({"type": "http.response.body", "body": piece, "more_body": more})

    return app


@asynccontextmanager
async def connected(
    app: ASGIApp,
) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with serving(app) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=2**20)
        try:
            yield reader, writer
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def test_an_answer_in_pieces_arrives_in_order_and_the_next_one_too() -> None:
    big = b"b" * 300_000
    async with connected(answering(b"a", big, b"")) as (reader, writer):
        for _ in range(2):
            writer.write(HEAD + b"\r\n{}")
            answer = await reader.readuntil(b"0\r\n\r\n")
            head, _, body = answer.partition(b"\r\n\r\n")

            assert head.startswith(b"HTTP/1.1 200")
            assert b"x-a: 1" in head
            assert body == b"1\r\na\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(big), big)


async def test_whoever_waits_to_be_told_to_go_on_is_told() -> None:
    async with connected(answering(b"a")) as (reader, writer):
        writer.write(HEAD + b"Expect: 100-continue\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(b"{}")

        assert (await reader.readuntil(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_a_head_without_a_body_still_arrives_when_its_answer_breaks_off() -> None:
    async with connected(answering()) as (reader, writer):
        writer.write(HEAD + b"\r\n{}")

        assert (await reader.read()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(("sent", "is_here"), [(b"{}", True), (b"{", False)])
async def test_it_is_known_whether_a_body_came_with_its_head(sent: bytes, is_here: bool) -> None:
    said: list[bool] = []
    app = answering(b"a", seen=lambda scope: said.append(has_whole_body(scope)))
    async with connected(app) as (reader, writer):
        writer.write(HEAD + b"\r\n" + sent)
        await asyncio.sleep(0.05)
        writer.write(b"{}"[len(sent) :])
        await reader.readuntil(b"0\r\n\r\n")

    assert said == [is_here]
