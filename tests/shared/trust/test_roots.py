"""A client that slept through rotations catches up, however many there were."""

import time
from pathlib import Path

import anyio
import httpx
import pytest

from support.publisher import Publisher
from support.site import BUNDLE, site, tree_of
from waypost.edge.publishing.repository import ROOTS_IN_BUNDLE
from waypost.shared.errors import TrustError
from waypost.shared.trust import ManifestKeeper, fetch
from waypost.shared.trust.bundle import missing_roots, pack_bundle, unpack_bundle
from waypost.shared.trust.fetch import ROOTS_AT_ONCE

pytestmark = pytest.mark.anyio


def rotated(publisher: Publisher, times: int) -> None:
    for turn in range(times):
        publisher.replace_key(("timestamp", "snapshot", "targets")[turn % 3])
    publisher.publish()


def keeper_of(publisher: Publisher, url: str, cache: Path | None = None) -> ManifestKeeper:
    return ManifestKeeper(url=url, channel="prod", root=publisher.root, cache=cache)


def test_within_the_roots_of_a_bundle_one_request_is_enough(publisher: Publisher) -> None:
    rotated(publisher, ROOTS_IN_BUNDLE)
    with site(tree_of(publisher)) as shelf, httpx.Client() as client:
        keeper_of(publisher, shelf.url).refresh(client)
    assert shelf.asked == [BUNDLE]


async def test_beyond_them_the_missing_roots_are_fetched_by_name(publisher: Publisher) -> None:
    missed = ROOTS_AT_ONCE + 3
    rotated(publisher, ROOTS_IN_BUNDLE + missed)
    expected = sorted(f"/metadata/{version}.root.json" for version in range(2, missed + 2))
    with site(tree_of(publisher)) as shelf:
        keeper = keeper_of(publisher, shelf.url)
        with httpx.Client() as client:
            await anyio.to_thread.run_sync(keeper.refresh, client)
        assert sorted(shelf.asked[1:]) == expected
        shelf.asked.clear()
        other = keeper_of(publisher, shelf.url)
        async with httpx.AsyncClient() as aclient:
            await other.arefresh(aclient)
        assert sorted(shelf.asked[1:]) == expected
    for caught_up in (keeper, other):
        assert caught_up.current is not None
        assert caught_up.current.versions["root"] == ROOTS_IN_BUNDLE + missed + 1


def test_roots_that_were_fetched_once_are_not_fetched_again(
    publisher: Publisher, tmp_path: Path
) -> None:
    rotated(publisher, ROOTS_IN_BUNDLE + 5)
    with site(tree_of(publisher)) as shelf, httpx.Client() as client:
        keeper_of(publisher, shelf.url, tmp_path / "state").refresh(client)
        shelf.asked.clear()
        publisher.replace_key("snapshot")
        publisher.publish()
        shelf.files = tree_of(publisher)
        again = keeper_of(publisher, shelf.url, tmp_path / "state")
        assert again.load() is not None
        again.refresh(client)
        assert shelf.asked == [BUNDLE]
        assert again.current is not None
        assert again.current.policy.version == 2


@pytest.mark.parametrize("gone", [2, 4])
def test_a_root_that_cannot_be_had_is_named_and_the_last_good_stays(
    publisher: Publisher, gone: int
) -> None:
    publisher.publish()
    with site(tree_of(publisher)) as shelf, httpx.Client() as client:
        keeper = keeper_of(publisher, shelf.url)
        keeper.refresh(client)
        rotated(publisher, ROOTS_IN_BUNDLE + 4)
        shelf.files = tree_of(publisher)
        root = shelf.files.pop(f"/metadata/{gone}.root.json")
        with pytest.raises(TrustError, match=f"root v{gone} is missing") as caught:
            keeper.refresh(client)
        assert (caught.value.code, caught.value.role) == ("unavailable", "root")
        shelf.files[f"/metadata/{gone}.root.json"] = root
        assert keeper.refresh(client) is True


def test_a_bundle_that_names_absurd_roots_costs_a_few_requests(publisher: Publisher) -> None:
    files = unpack_bundle(publisher.publish())
    absurd = pack_bundle({**files, "metadata/9999999999.root.json": "{}"})
    with site({BUNDLE: absurd}) as shelf, httpx.Client() as client:
        keeper = keeper_of(publisher, shelf.url)
        # The chain ends where it always did, and what hangs on it holds.
        assert keeper.refresh(client) is True
    assert len(shelf.asked) <= 1 + ROOTS_AT_ONCE


@pytest.mark.parametrize("body", [b"\xff", b"x" * 70_000, b"{}"])
def test_what_is_no_root_is_not_taken_for_one(publisher: Publisher, body: bytes) -> None:
    rotated(publisher, ROOTS_IN_BUNDLE + 2)
    with site({**tree_of(publisher), "/metadata/3.root.json": body}) as shelf:
        keeper = keeper_of(publisher, shelf.url)
        with httpx.Client() as client, pytest.raises(TrustError):
            keeper.refresh(client)
    assert keeper.current is None


def test_a_chain_without_end_is_left_alone(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "MAX_BUNDLE_BYTES", 50_000)
    rotated(publisher, ROOTS_IN_BUNDLE + 3 * ROOTS_AT_ONCE)
    with site(tree_of(publisher)) as shelf, httpx.Client() as client:
        with pytest.raises(TrustError, match="took too long or too much"):
            keeper_of(publisher, shelf.url).refresh(client)
        assert len(shelf.asked) <= 1 + 2 * ROOTS_AT_ONCE


def test_hundreds_of_roots_are_caught_up_with_in_seconds(publisher: Publisher) -> None:
    rotated(publisher, 300)
    began = time.process_time()
    with site(tree_of(publisher)) as shelf, httpx.Client() as client:
        keeper = keeper_of(publisher, shelf.url)
        assert keeper.refresh(client) is True
    assert keeper.current is not None
    assert keeper.current.versions["root"] == 301
    assert time.process_time() - began < 20


@pytest.mark.parametrize(
    ("have", "missing"),
    [
        ([], []),
        ([2, 3], []),
        ([3, 4], [2]),
        ([2, 5, 6], [3, 4]),
        ([4, 7], [2, 3]),
        ([1], []),
    ],
)
def test_what_is_missing_lies_between_the_shipped_root_and_the_newest(
    publisher: Publisher, have: list[int], missing: list[int]
) -> None:
    paths = [f"metadata/{version}.root.json" for version in have]
    assert list(missing_roots(paths, publisher.root)) == missing
    assert list(missing_roots(paths, b"no root")) == []
