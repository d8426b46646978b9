"""Bodies that never end, from callers who have shown nothing yet: each has its time."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from support.echo import Wire
from support.projects import a_project, publish_project
from support.upstream import running_upstream
from support.validator import running_validator
from waypost.cli.listening import listen, url_of
from waypost.edge.serving import decide_endpoint, serve
from waypost.validator.console import pages

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def wire_to(url: str) -> AsyncGenerator[Wire]:
    host, _, port = url.removeprefix("http://").partition(":")
    wire = Wire(*await asyncio.open_connection(host, int(port)))
    try:
        yield wire
    finally:
        wire.writer.close()
        with suppress(ConnectionError):
            await wire.writer.wait_closed()


async def drip(wire: Wire) -> bytes:
    """Write a byte at a time until there is an answer; return all that comes."""
    answers = b""
    async with asyncio.timeout(20):
        while b"\r\n\r\n" not in answers:
            wire.writer.write(b"a")
            try:
                async with asyncio.timeout(0.02):
                    answers += await wire.reader.read(65_536)
            except TimeoutError:
                continue
    return answers


async def test_a_login_that_drips_in_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "FORM_TIMEOUT_S", 0.1)
    console = {"token": "CONSOLE_TOKEN"}
    async with (
        running_upstream() as acme,
        running_validator(tmp_path, {"acme": acme}, console=console) as running,
        wire_to(running.url) as wire,
    ):
        await wire.send(
            b"POST /console/login HTTP/1.1\r\nHost: x\r\nSec-Fetch-Site: same-origin\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 500000\r\n\r\n"
        )

        assert (await drip(wire)).startswith(b"HTTP/1.1 408 ")


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An edge as ``waypost edge serve`` runs it, on a thread of its own."""
    project = a_project(tmp_path_factory.mktemp("edge") / "project")
    publish_project(project)
    urls: list[str] = []
    ready = threading.Event()

    def say(url: str) -> None:
        urls.append(url)
        ready.set()

    with listen("127.0.0.1", 0) as sock:
        thread = threading.Thread(
            target=lambda: serve.run(project, sock, signers=dict, private_token=None, ready=say),
            daemon=True,
        )
        thread.start()
        assert ready.wait(30)
        yield url_of(sock)


async def test_a_decision_that_drips_in_is_not_waited_for(
    edge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decide_endpoint, "BODY_TIMEOUT_S", 0.1)
    async with wire_to(edge) as wire:
        await wire.send(b"POST /v1/decide HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n")

        answer = await drip(wire)

        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"body_timeout"' in answer.replace(b'": "', b'":"')


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"POST /v1/decide HTTP/1.1\r\n\r\n", 400, "host_invalid"),
        (
            b"POST /v1/decide HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            501,
            "transfer_encoding_unsupported",
        ),
        (b"POST /v1/decide HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n", 400, "request_malformed"),
    ],
)
async def test_the_edge_is_guarded_as_the_validator_is(
    edge: str, sent: bytes, status: int, code: str
) -> None:
    async with wire_to(edge) as wire:
        await wire.send(sent + b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        found, body = await wire.answer()

        assert (found, msgspec.json.decode(body)["error"]["code"]) == (status, code)
        assert await wire.rest() == b""


async def test_a_body_behind_an_upgrade_is_no_request_to_the_edge_either(edge: str) -> None:
    smuggled = b"GET /v1/probe HTTP/1.1\r\nHost: x\r\n\r\n"
    async with wire_to(edge) as wire:
        await wire.send(
            b"POST /v1/decide HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
            b"Content-Length: %d\r\n\r\n" % len(smuggled),
            smuggled,
            b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        )

        assert (await wire.answer())[0] == 401  # no token; not 204, of the probe
        status, body = await wire.answer()
        assert (status, body) == (200, b'{"status":"ok"}')
