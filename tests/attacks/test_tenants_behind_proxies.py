"""Two tenants on one connection of a proxy: whatever one sends, neither sees the other's answer."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from attacks.test_connections import REFUSED
from support.proxies import PROXIES, proxied
from support.upstream import running_upstream
from support.validator import Running, running_validator

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

OWN, OTHERS = ["auto", "small"], ["auto", "large"]


@pytest.fixture
async def validator(tmp_path: Path) -> AsyncGenerator[Running]:
    async with (
        running_upstream() as acme,
        running_validator(tmp_path, {"acme": acme}) as running,
    ):
        yield running


def attacks(token: str) -> Iterator[tuple[str, bytes]]:
    """Give what a caller who means harm sends, with and without a token of their own."""
    smuggled = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: %b\r\n\r\n" % token.encode()
    swallowing = (
        b"POST /v1/feedback HTTP/1.1\r\nHost: x\r\nAuthorization: %b\r\nContent-Length: 400\r\n\r\n"
        % token.encode()
    )
    for name, (sent, _, _) in REFUSED.items():
        at = sent.replace(b" /a ", b" /v1/chat/completions ", 1)
        yield name, at + smuggled
    # Larger than nginx's buffer, so that it comes in several reads; empty lines before a request
    # are ignored (RFC 9112 §2.2), so it does not matter where the first of them ends.
    large = b"\r\n" * 60_000 + swallowing
    for body in (smuggled, swallowing, large):
        length = b"Content-Length: %d\r\n" % len(body)
        chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        for authorization in (b"", b"Authorization: %b\r\n" % token.encode()):
            for method, path in (
                (b"POST", b"/v1/chat/completions"),
                (b"POST", b"/v1/decide"),
                (b"GET", b"/v1/models"),
                (b"HEAD", b"/v1/chat/completions"),
                (b"HEAD", b"/v1/models"),
                (b"PUT", b"/nowhere"),
            ):
                head = b"%b %b HTTP/1.1\r\nHost: x\r\n%b" % (method, path, authorization)
                for lines in (
                    b"",
                    b"Connection: Upgrade\r\nUpgrade: anything\r\n",
                    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
                    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
                    b"HTTP2-Settings: AAMAAABkAAQ\r\n",
                ):
                    yield f"{method!r} {path!r} {lines!r}", head + lines + length + b"\r\n" + body
                if method == b"POST":
                    coded = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
                    yield f"chunks to {path!r}", coded
                    trailer = b"Authorization: %b\r\nConnection: close\r\n\r\n" % token.encode()
                    yield f"trailers to {path!r}", coded[:-2] + trailer
                    yield (
                        f"waiting to go on at {path!r}",
                        head + b"Expect: 100-continue\r\n" + length + b"\r\n" + body,
                    )
    yield "HTTP/1.0", b"GET /v1/models HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + smuggled


async def told(port: int, sent: bytes) -> bytes:
    """Return what a caller is told who sends this and then says nothing more for a while."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head, end, rest = sent.partition(b"\r\n\r\n")
    # In two packets, as a proxy that does not wait for bodies passes them on.
    writer.write(head + end)
    await asyncio.sleep(0.005)
    writer.write(rest)
    answers = b""
    with suppress(TimeoutError, ConnectionError):
        while True:
            async with asyncio.timeout(0.03 if answers else 0.1):
                piece = await reader.read(65_536)
            if not piece:
                break
            answers += piece
    writer.close()
    return answers


class Tenant:
    """A caller who asks for its own models, again and again, on one connection."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._request = (
            b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: %b\r\n\r\n" % token.encode()
        )

    async def models(self) -> list[str]:
        """Return the models that this tenant is told of."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(self._request)
        async with asyncio.timeout(30):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            body = msgspec.json.decode(await reader.readexactly(length))
        writer.close()
        return [model["id"] for model in body["data"]]


@pytest.mark.parametrize("proxy", PROXIES)
async def test_no_tenant_sees_the_answer_of_another(
    validator: Running, tmp_path: Path, proxy: str
) -> None:
    port = int(validator.url.rpartition(":")[2])
    own = validator.bearer(tier="pro", models=("small",), sub="victim", tenant="victim")
    theirs = validator.bearer(tier="pro", models=("large",), sub="mallory", tenant="mallory")
    with proxied(proxy, tmp_path / "proxy", port) as front:
        victim = Tenant(front, own)
        assert await victim.models() == OWN
        assert await Tenant(front, theirs).models() == OTHERS
        for name, sent in attacks(theirs):
            answers = await told(front, sent)

            assert b'"small"' not in answers, name
            for _ in range(2):
                assert await victim.models() == OWN, name
