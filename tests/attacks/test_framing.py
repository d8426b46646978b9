"""Requests whose end two readers could see in two places: what proxies and servers differ in."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from support.upstream import Upstream, running_upstream
from support.validator import Running, running_validator

pytestmark = pytest.mark.anyio

BODY = b'{"model":"auto","messages":[{"role":"user","content":"2 + 2?"}]}'
SMUGGLED = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
async def acme() -> AsyncGenerator[Upstream]:
    async with running_upstream() as upstream:
        yield upstream


@pytest.fixture
async def validator(tmp_path: Path, acme: Upstream) -> AsyncGenerator[Running]:
    async with running_validator(tmp_path, {"acme": acme}) as running:
        yield running


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % len(BODY),
        b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n" % len(BODY),
        b"Content-Length: %d\r\nContent-Length: 4\r\n" % len(BODY),
        b"Content-Length: %d, 4\r\n" % len(BODY),
        b"Content-Length: +%d\r\n" % len(BODY),
        b"Content-Length: 0x10\r\n",
        b"Content-Length : %d\r\n" % len(BODY),
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
    ],
)
async def test_a_request_that_ends_in_two_places_is_refused_whole(
    validator: Running, acme: Upstream, framing: bytes
) -> None:
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Authorization: %b\r\n%b\r\n" % (validator.bearer().encode(), framing)
    )
    host, _, port = validator.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head + BODY + SMUGGLED)
    async with asyncio.timeout(10):
        answers = await reader.read()
    writer.close()

    # One answer, and the connection closed: what follows is not read as a request.
    assert answers.startswith(b"HTTP/1.1 400 ")
    assert answers.count(b"HTTP/1.1 ") == 1
    assert acme.seen == []


@pytest.mark.parametrize("cut", ["whole", "after the head", "in the body"])
@pytest.mark.parametrize(
    "upgrade",
    [
        b"Connection: Upgrade\r\nUpgrade: anything\r\n",
        b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n",
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_behind_an_upgrade_is_a_body_and_never_a_request(
    validator: Running, acme: Upstream, upgrade: bytes, cut: str, chunked: bool
) -> None:
    # The body holds a request of its own, as a caller who means harm would write it.
    body = BODY[:-1] + b',"user":"' + SMUGGLED.replace(b"\r\n", b"\\r\\n") + b'"}'
    framing = b"Content-Length: %d\r\n" % len(body)
    if chunked:
        framing = b"Transfer-Encoding: chunked\r\n"
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Authorization: %b\r\n%b%b\r\n" % (validator.bearer().encode(), upgrade, framing)
    )
    pieces = {
        "whole": [request + body],
        "after the head": [request, body],
        "in the body": [request + body[:20], body[20:]],
    }[cut]
    host, _, port = validator.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for _ in range(2):  # on one connection, as a proxy keeps it
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
        assert head.startswith(b"HTTP/1.1 200 ")
    writer.write_eof()
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()

    assert len(acme.seen) == 2


async def test_a_tunnel_is_refused_and_nothing_behind_it_is_read(validator: Running) -> None:
    host, _, port = validator.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n" + SMUGGLED)
    async with asyncio.timeout(10):
        answers = await reader.read()
    writer.close()

    assert answers.startswith(b"HTTP/1.1 405 ")
    assert answers.count(b"HTTP/1.1 ") == 1
