"""The manifest, really signed and really served: cold start, restart, outage, attack."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from msgspec import structs

from support.origin import Origin, Reply, serving
from support.publisher import Publisher
from support.worlds import a_policy
from waypost.client import AsyncWaypost, StoreError, Waypost
from waypost.client.testing import FakeValidator, unsigned_token


class Edge:
    """A publisher behind an address; tests replace what it answers."""

    def __init__(self) -> None:
        self.publisher = Publisher(policy=a_policy(projection="client"))
        self.bundle = self.publisher.publish()
        self.down = False
        self.origin = Origin(url="")

    def __call__(self, headers: dict[str, str]) -> Reply:
        if self.down:
            return Reply(b"<html>Please log in</html>", headers={"Content-Type": "text/html"})
        etag = f'"{hash(self.bundle)}"'
        if headers.get("if-none-match") == etag:
            return Reply(status=304)
        return Reply(self.bundle, headers={"ETag": etag})


@pytest.fixture
def edge() -> Iterator[Edge]:
    edge = Edge()
    with serving(edge) as origin:
        edge.origin = origin
        yield edge


@pytest.fixture
def connect(edge: Edge, tmp_path: Path) -> Iterator[Callable[..., Waypost]]:
    """Makes clients of the edge with one cache directory, as one app has them run after run."""
    made: list[Waypost] = []

    def connect(**options: object) -> Waypost:
        defaults = {
            "token": unsigned_token(),
            "manifest_url": edge.origin.url,
            "root": edge.publisher.root,
            "cache_dir": tmp_path / "cache",
            "refresh_interval_s": None,
        }
        made.append(Waypost(**{**defaults, **options}))  # type: ignore[arg-type]
        return made[-1]

    yield connect
    for wp in made:
        wp.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_a_first_start_needs_no_network_and_chooses_once_it_has_a_manifest(
    connect: Callable[..., Waypost], edge: Edge
) -> None:
    wp = connect()
    assert wp.choose("Hello").reason == "no_manifest"
    assert not edge.origin.requests
    assert wp.refresh()
    choice = wp.choose("Hello")
    assert (choice.model, choice.freshness, choice.manifest_version) == ("small", "fresh", 1)


def test_a_restart_without_a_network_chooses_from_the_verified_cache(
    connect: Callable[..., Waypost], edge: Edge
) -> None:
    connect().refresh()
    edge.down = True
    choice = connect().choose("Hello")
    assert (choice.model, choice.freshness) == ("small", "cached")


def test_a_captive_portal_changes_nothing_but_freshness(
    connect: Callable[..., Waypost], edge: Edge
) -> None:
    wp = connect()
    wp.refresh()
    edge.down = True
    assert not wp.refresh()
    assert wp.choose("Hello").freshness == "stale"
    assert wp.last_error is not None
    assert wp.last_error.code == "format"


def test_an_unchanged_manifest_is_confirmed_in_one_small_answer(
    connect: Callable[..., Waypost], edge: Edge
) -> None:
    wp = connect()
    assert wp.refresh()
    assert wp.refresh()
    assert edge.origin.requests[1]["if-none-match"]
    assert wp.freshness == "fresh"


def test_a_manifest_signed_by_others_is_not_used(
    connect: Callable[..., Waypost], edge: Edge
) -> None:
    wp = connect(root=Publisher().root)
    assert not wp.refresh()
    assert wp.choose("Hello").reason == "no_manifest"
    assert wp.last_error is not None
    assert wp.last_error.code == "signature"


def test_an_older_manifest_does_not_come_back(connect: Callable[..., Waypost], edge: Edge) -> None:
    older, edge.bundle = edge.bundle, edge.publisher.publish()
    wp = connect()
    wp.refresh()
    edge.bundle = older
    assert not wp.refresh()
    assert wp.manifest_version == 2
    assert not connect().refresh(), "the floor outlives the process"


def test_a_cache_that_was_tampered_with_is_not_believed(
    connect: Callable[..., Waypost], tmp_path: Path
) -> None:
    connect().refresh()
    (kept,) = (tmp_path / "cache").glob("*.json")
    kept.write_bytes(kept.read_bytes().replace(b"small", b"large"))
    assert connect().choose("Hello").reason == "no_manifest"


def test_a_cache_directory_that_cannot_be_written_is_no_obstacle(
    connect: Callable[..., Waypost], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    wp = connect(cache_dir=tmp_path / "file" / "below")
    assert wp.refresh()
    assert wp.choose("Hello").model == "small"


def test_nothing_is_kept_where_nothing_may_be(
    connect: Callable[..., Waypost], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    connect(cache_dir=False).refresh()
    assert not list(tmp_path.rglob("*.json"))


def test_two_apps_of_one_user_do_not_share_trust(
    connect: Callable[..., Waypost], tmp_path: Path
) -> None:
    connect().refresh()
    assert connect(root=Publisher().root).choose("Hello").reason == "no_manifest"


def test_a_trust_root_that_is_missing_is_named(connect: Callable[..., Waypost]) -> None:
    with pytest.raises(StoreError, match=r"cannot read the trust root nowhere\.json"):
        connect(root=Path("nowhere.json"))


def test_without_a_manifest_to_trust_there_is_no_client() -> None:
    with pytest.raises(TypeError, match="manifest_url and root"):
        Waypost(manifest_url="https://edge.example/v1/prod/bundle.json")


# ── in the background ──────────────────────────────────────────────────────────────────────────


def refreshers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "waypost-refresh"]


def test_the_first_use_starts_refreshing_and_close_ends_it(
    connect: Callable[..., Waypost],
) -> None:
    wp = connect(refresh_interval_s=30.0)
    assert not refreshers(), "an unused client has no thread"
    wp.choose("Hello")
    until(lambda: wp.freshness == "fresh")
    assert len(refreshers()) == 1
    wp.close()
    assert not refreshers()
    assert wp.choose("Hello").model == "small"
    assert not refreshers(), "a closed client starts no other"


def test_a_new_publication_arrives_by_itself(connect: Callable[..., Waypost], edge: Edge) -> None:
    wp = connect(refresh_interval_s=0.02)
    wp.choose("Hello")
    until(lambda: wp.manifest_version == 1)
    edge.bundle = edge.publisher.publish()
    until(lambda: wp.manifest_version == 2)


def test_an_outage_is_survived_and_ends(connect: Callable[..., Waypost], edge: Edge) -> None:
    wp = connect(refresh_interval_s=0.02)
    wp.choose("Hello")
    until(lambda: wp.freshness == "fresh")
    edge.down = True
    until(lambda: wp.freshness == "stale")
    edge.down = False
    until(lambda: wp.freshness == "fresh")


def test_an_answer_that_tells_of_a_newer_manifest_wakes_the_refresher(
    connect: Callable[..., Waypost], edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("waypost.client._refresh.WAKE_GAP_S", 0.0)
    wp = connect(refresh_interval_s=1_000.0, base_url="https://validator.test")
    wp.choose("Hello")
    until(lambda: wp.freshness == "fresh")
    edge.bundle = edge.publisher.publish()
    newer = FakeValidator(structs.replace(a_policy(), version=2))
    with wp.http_client(transport=newer.transport()) as client:
        client.post(f"{wp.base_url}/chat/completions", json={"messages": []})
        assert wp.manifest_version == 1, "what was refused tells nothing"
        client.post(
            f"{wp.base_url}/chat/completions",
            json={"messages": [{"role": "user", "content": "Hello"}]},
        )
    until(lambda: wp.manifest_version == 2)


@pytest.mark.anyio
async def test_the_async_client_refreshes_and_leaves_nothing_behind(edge: Edge) -> None:
    async with AsyncWaypost(
        token=unsigned_token(),
        manifest_url=edge.origin.url,
        root=edge.publisher.root,
        cache_dir=False,
    ) as wp:
        assert await wp.refresh()
        assert wp.choose("Hello").freshness == "fresh"
        await anyio.lowlevel.checkpoint()
        assert len(refreshers()) == 1
    assert not refreshers()


def test_a_client_outlives_its_event_loop(edge: Edge) -> None:
    wp = AsyncWaypost(
        token=unsigned_token(),
        manifest_url=edge.origin.url,
        root=edge.publisher.root,
        cache_dir=False,
        refresh_interval_s=0.02,
    )

    async def choosing() -> str | None:
        await wp.refresh()
        return wp.choose("Hello").model

    assert anyio.run(choosing) == "small"
    edge.bundle = edge.publisher.publish()
    until(lambda: wp.manifest_version == 2)
    assert anyio.run(choosing) == "small"
    anyio.run(wp.aclose)
