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
