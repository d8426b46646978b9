"""Attacks on the way a manifest travels. The attacker is the network, or the CDN.

Each ends the same way: in bounded time and memory, with a code of its own, and with the last good
manifest in use.
"""

import gzip
import time
from collections.abc import Callable, Iterator

import anyio
import httpx
import pytest

from support.origin import Reply, serving
from support.publisher import Publisher
from support.worlds import a_policy
from waypost.shared.errors import TrustError
from waypost.shared.trust import ManifestKeeper, fetch
from waypost.shared.trust.bundle import MAX_BUNDLE_BYTES

pytestmark = pytest.mark.anyio


class Victim:
    """A client that has version 1, and asks again."""

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher
        self.good = publisher.publish()

    async def meets(self, *replies: Reply) -> list[str]:
        """Return the codes of the refusals, of the blocking and the asynchronous client alike."""
        outcomes = [
            await anyio.to_thread.run_sync(self._blocking, replies),
            await self._awaiting(replies),
        ]
        assert outcomes[0] == outcomes[1]
        return outcomes[0]

    def keeper(self, url: str) -> ManifestKeeper:
        keeper = ManifestKeeper(url=url, channel="prod", root=self.publisher.root, cache=None)
        keeper.accept(self.good, etag='"1"')
        return keeper

    def _blocking(self, replies: tuple[Reply, ...]) -> list[str]:
        codes: list[str] = []
        answers = iter(replies)
        with serving(lambda _: next(answers)) as origin:
            keeper = self.keeper(origin.url)
            good = keeper.current
            for _ in replies:
                with httpx.Client() as client, pytest.raises(TrustError) as caught:
                    keeper.refresh(client)
                codes.append(caught.value.code)
                assert keeper.current is good
                assert keeper.is_fresh(time.time())
        return codes

    async def _awaiting(self, replies: tuple[Reply, ...]) -> list[str]:
        codes: list[str] = []
        answers = iter(replies)
        with serving(lambda _: next(answers)) as origin:
            keeper = self.keeper(origin.url)
            good = keeper.current
            for _ in replies:
                async with httpx.AsyncClient() as client:
                    with pytest.raises(TrustError) as caught:
                        await keeper.arefresh(client)
                codes.append(caught.value.code)
                assert keeper.current is good
        return codes


@pytest.fixture
def publisher() -> Publisher:
    return Publisher()


@pytest.fixture
def victim(publisher: Publisher) -> Victim:
    return Victim(publisher)


def chunks(chunk: bytes, *, every_s: float = 0.0, count: int = 1_000_000) -> Iterator[bytes]:
    for _ in range(count):
        time.sleep(every_s)
        yield chunk


async def test_endless_data(victim: Victim) -> None:
    assert await victim.meets(Reply(_Fresh(lambda: chunks(bytes(2**16))))) == ["too_large"]


async def test_a_gzip_bomb(victim: Victim) -> None:
    bomb = gzip.compress(bytes(64 * 2**20))
    assert len(bomb) < MAX_BUNDLE_BYTES
    assert await victim.meets(Reply(bomb, headers={"Content-Encoding": "gzip"})) == ["too_large"]


async def test_a_gzip_bomb_inside_another(victim: Victim) -> None:
    nested = gzip.compress(gzip.compress(bytes(64 * 2**20)))
    headers = {"Content-Encoding": "gzip"}
    assert await victim.meets(Reply(nested, headers=headers)) == ["format"]
    headers = {"Content-Encoding": "gzip, gzip"}
    assert await victim.meets(Reply(nested, headers=headers)) == ["format"]


async def test_slow_retrieval_of_the_body(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TOTAL_S", 0.2)
    drip = _Fresh(lambda: chunks(b"x", every_s=0.05, count=12))
    assert await victim.meets(Reply(drip)) == ["unavailable"]


async def test_slow_retrieval_of_the_headers(
    victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "TOTAL_S", 0.2)

    async def drip(stream: anyio.abc.SocketStream) -> None:
        with anyio.move_on_after(1.5):
            async with stream:
                try:
                    await stream.send(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                    while True:
                        await anyio.sleep(0.05)
                        await stream.send(b"x")
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    pass

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610
    keeper = victim.keeper(f"http://127.0.0.1:{port}/v1/prod/bundle.json")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, drip)
        async with httpx.AsyncClient() as aclient:
            with pytest.raises(TrustError, match="longer than") as caught:
                await keeper.arefresh(aclient)
        assert caught.value.code == "unavailable"
        with httpx.Client() as client, pytest.raises(TrustError, match="longer than"):
            await anyio.to_thread.run_sync(keeper.refresh, client)
        tasks.cancel_scope.cancel()
    assert keeper.is_fresh(time.time())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_another_host(victim: Victim, status: int) -> None:
    with serving(lambda _: Reply(victim.good)) as elsewhere:
        moved = Reply(status=status, headers={"Location": elsewhere.url})
        assert await victim.meets(moved) == ["unavailable"]
    assert elsewhere.requests == []


@pytest.mark.parametrize(
    "body",
    [b"<!doctype html><title>Please log in</title>", b"", b"OK", b"null"],
    ids=["html", "empty", "text", "null"],
)
async def test_a_captive_portal_answers_200(victim: Victim, body: bytes) -> None:
    page = Reply(body, headers={"Content-Type": "text/html"})
    assert await victim.meets(page) == ["format"]


async def test_another_charset(victim: Victim) -> None:
    text = victim.publisher.publish().decode()
    assert await victim.meets(Reply(text.encode("utf-16"))) == ["format"]


@pytest.mark.parametrize("status", [204, 206, 401, 403, 404, 500, 503])
async def test_a_status_that_is_no_answer(victim: Victim, status: int) -> None:
    body = b"" if status == 204 else victim.publisher.publish()
    assert await victim.meets(Reply(body, status=status)) == ["unavailable"]


@pytest.mark.parametrize("length", ["5", "99999999"])
async def test_a_length_that_lies(victim: Victim, length: str) -> None:
    newer = victim.publisher.publish()
    lying = Reply(_Fresh(lambda: iter([newer])), headers={"Content-Length": length})
    (code,) = await victim.meets(lying)
    assert code in ("format", "unavailable")


async def test_a_cache_poisoned_with_another_channel(victim: Victim) -> None:
    other = Publisher(policy=a_policy(channel="canary"), channel="canary")
    other.signers, other.files = victim.publisher.signers, dict(victim.publisher.files)
    with serving(lambda _: Reply(other.publish())) as origin, httpx.Client() as client:
        # To who has the channel's files it proves that they still hold; to others, nothing.
        keeper = victim.keeper(origin.url)
        await anyio.to_thread.run_sync(keeper.refresh, client)
        assert keeper.current is not None
        assert (keeper.current.policy.channel, keeper.current.policy.version) == ("prod", 1)
        newcomer = ManifestKeeper(
            url=origin.url, channel="prod", root=victim.publisher.root, cache=None
        )
        with pytest.raises(TrustError) as caught:
            await anyio.to_thread.run_sync(newcomer.refresh, client)
        assert caught.value.code == "unavailable"


async def test_a_cache_poisoned_with_the_full_manifest(victim: Victim) -> None:
    victim.publisher.publish()
    assert await victim.meets(Reply(victim.publisher.bundle("full"))) == ["unavailable"]


async def test_a_cache_poisoned_with_yesterday(victim: Victim, publisher: Publisher) -> None:
    yesterday = victim.good
    victim.good = publisher.publish()
    assert await victim.meets(Reply(yesterday)) == ["older_than_seen"]


async def test_not_modified_to_a_client_that_has_nothing(publisher: Publisher) -> None:
    publisher.publish()
    with serving(lambda _: Reply(status=304)) as origin, httpx.Client() as client:
        keeper = ManifestKeeper(url=origin.url, channel="prod", root=publisher.root, cache=None)
        with pytest.raises(TrustError) as caught:
            await anyio.to_thread.run_sync(keeper.refresh, client)
    assert caught.value.code == "unavailable"
    assert keeper.current is None


class _Fresh:
    """An iterable that begins anew for every answer."""

    def __init__(self, make: Callable[[], Iterator[bytes]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[bytes]:
        return self._make()
