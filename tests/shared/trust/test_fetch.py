"""One GET, bounded in bytes and in time, from servers that behave badly."""

import gzip
import time
from collections.abc import Iterator

import anyio
import httpx
import pytest

from support.origin import Origin, Reply, serving
from waypost.shared.errors import TrustError
from waypost.shared.trust import fetch
from waypost.shared.trust.bundle import MAX_BUNDLE_BYTES
from waypost.shared.trust.fetch import Fetched, aget, get

pytestmark = pytest.mark.anyio


async def both(reply: Reply, *, etag: str | None = None) -> tuple[object, Origin]:
    """Return what both clients made of ``reply``, which must be the same, and the origin."""
    outcomes: list[object] = []
    with serving(lambda _: reply) as origin:
        with httpx.Client() as client:
            try:
                outcomes.append(
                    await anyio.to_thread.run_sync(lambda: get(client, origin.url, etag=etag))
                )
            except TrustError as exc:
                outcomes.append(exc.code)
        async with httpx.AsyncClient() as aclient:
            try:
                outcomes.append(await aget(aclient, origin.url, etag=etag))
            except TrustError as exc:
                outcomes.append(exc.code)
    assert outcomes[0] == outcomes[1]
    return outcomes[0], origin


async def test_a_body_arrives_with_its_etag() -> None:
    outcome, _ = await both(Reply(b"hello", headers={"ETag": '"1"'}))
    assert outcome == Fetched(b"hello", '"1"')


async def test_a_compressed_body_arrives_decompressed() -> None:
    zipped = gzip.compress(b"hello" * 1_000)
    outcome, origin = await both(Reply(zipped, headers={"Content-Encoding": "gzip"}))
    assert outcome == Fetched(b"hello" * 1_000, None)
    assert origin.requests[0]["accept-encoding"] == "gzip"


async def test_an_unchanged_body_is_not_sent_again() -> None:
    outcome, origin = await both(Reply(status=304), etag='"1"')
    assert outcome is None
    assert [request["if-none-match"] for request in origin.requests] == ['"1"', '"1"']


async def test_not_modified_means_nothing_to_who_has_nothing() -> None:
    outcome, _ = await both(Reply(status=304))
    assert outcome == "unavailable"


@pytest.mark.parametrize("status", [204, 206, 401, 404, 429, 500, 503])
async def test_any_other_status_is_no_manifest(status: int) -> None:
    outcome, _ = await both(Reply(status=status))
    assert outcome == "unavailable"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    with serving(lambda _: Reply(b"from elsewhere")) as elsewhere:
        outcome, _ = await both(Reply(status=status, headers={"Location": elsewhere.url}))
    assert outcome == "unavailable"
    assert elsewhere.requests == []


async def test_a_gzip_bomb_is_defused() -> None:
    bomb = gzip.compress(bytes(100 * 2**20))
    outcome, _ = await both(Reply(bomb, headers={"Content-Encoding": "gzip"}))
    assert outcome == "too_large"


async def test_a_body_without_end_is_cut_off() -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += 2**16
            yield bytes(2**16)

    with (
        serving(lambda _: Reply(endless())) as origin,
        httpx.Client() as client,
        pytest.raises(TrustError) as caught,
    ):
        await anyio.to_thread.run_sync(lambda: get(client, origin.url, etag=None))
    assert caught.value.code == "too_large"
    assert sent < 4 * MAX_BUNDLE_BYTES


@pytest.mark.parametrize(
    "body", [b"not gzip at all", gzip.compress(b"hello" * 999, mtime=0)[:-9], b"\x1f\x8b"]
)
async def test_broken_compression_is_refused(body: bytes) -> None:
    outcome, _ = await both(Reply(body, headers={"Content-Encoding": "gzip"}))
    assert outcome == "format"


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "deflate"])
async def test_a_coding_that_was_not_asked_for_is_refused(coding: str) -> None:
    outcome, _ = await both(Reply(b"x", headers={"Content-Encoding": coding}))
    assert outcome == "format"


async def test_a_body_that_drips_meets_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TOTAL_S", 0.2)

    def dripping() -> Iterator[bytes]:
        for _ in range(20):
            time.sleep(0.05)
            yield b"x"

    with serving(lambda _: Reply(dripping())) as origin:
        with httpx.Client() as client, pytest.raises(TrustError, match="longer than"):
            await anyio.to_thread.run_sync(lambda: get(client, origin.url, etag=None))
        async with httpx.AsyncClient() as aclient:
            with pytest.raises(TrustError, match="longer than"):
                await aget(aclient, origin.url, etag=None)


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    with serving(lambda _: Reply()) as origin:
        gone = origin.url
    async with httpx.AsyncClient() as client:
        for url in (gone, "http://[", "ftp://127.0.0.1/"):
            with pytest.raises(TrustError) as caught:
                await aget(client, url, etag=None)
            assert caught.value.code == "unavailable"
