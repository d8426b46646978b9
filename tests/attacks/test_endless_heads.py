"""Heads of requests that never end, from callers who have not even a token to show."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest
from starlette.types import Receive, Scope, Send

from support.validator import serving
from waypost.cli import http_guard

pytestmark = pytest.mark.anyio

HELLO = b"GET / HTTP/1.1\r\nHost: a\r\n"


async def _answers_hello(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hi"})


@asynccontextmanager
async def connected() -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with serving(_answers_hello) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            yield reader, writer
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def _code_of_refusal(reader: asyncio.StreamReader) -> tuple[bytes, str]:
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    code: str = msgspec.json.decode(body)["error"]["code"]
    return head.split(b" ")[1], code


async def test_a_header_that_never_ends_is_cut_off_before_it_fills_the_memory() -> None:
    async with connected() as (reader, writer):
        writer.write(HELLO + b"X-Big: ")
        for _ in range(http_guard.MAX_HEAD_BYTES // 4_096):
            writer.write(b"a" * 4_096)
            await writer.drain()

        assert await _code_of_refusal(reader) == (b"431", "head_too_large")


async def test_headers_without_end_are_cut_off_on_a_connection_that_served_before() -> None:
    async with connected() as (reader, writer):
        writer.write(HELLO + b"\r\n")
        assert (await reader.readuntil(b"hi")).startswith(b"HTTP/1.1 200")
        writer.write(HELLO)
        await asyncio.sleep(0.05)  # what comes with the first bytes of a head is not counted
        for number in range(http_guard.MAX_HEAD_BYTES // 16 + 1):
            writer.write(b"X-%08d: ab\r\n" % number)
            await writer.drain()

        assert await _code_of_refusal(reader) == (b"431", "head_too_large")


async def test_a_connection_that_says_nothing_is_closed_without_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_guard, "HEAD_TIMEOUT_S", 0.1)
    async with connected() as (reader, _):
        assert await reader.read() == b""


async def test_a_head_that_does_not_end_frees_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_guard, "HEAD_TIMEOUT_S", 0.1)
    async with connected() as (reader, writer):
        writer.write(HELLO)

        assert await _code_of_refusal(reader) == (b"408", "head_timeout")


async def test_an_answer_may_take_longer_than_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_guard, "HEAD_TIMEOUT_S", 0.05)
    async with connected() as (reader, writer):
        for _ in range(2):
            writer.write(HELLO + b"\r\n")
            assert (await reader.readuntil(b"hi")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.1)
