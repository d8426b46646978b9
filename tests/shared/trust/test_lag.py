"""A CDN node that lags for moments is no attack; one that lags for longer is an alarm."""

import time

import httpx
import pytest

from support.publisher import Publisher
from support.site import BUNDLE, site
from waypost.edge.project.names import CACHE_SHORT
from waypost.shared.errors import TrustError
from waypost.shared.trust import ManifestKeeper
from waypost.shared.trust.keeper import MAX_LAG_S


class Lagging:
    """A keeper that has seen version 2 and whose CDN serves what a test puts there."""

    def __init__(self, publisher: Publisher, url: str, client: httpx.Client) -> None:
        self.now = time.time()
        self.client = client
        self.keeper = ManifestKeeper(
            url=url, channel="prod", root=publisher.root, cache=None, now=lambda: self.now
        )

    def refresh_after(self, seconds: float) -> str:
        self.now += seconds
        try:
            self.keeper.refresh(self.client)
        except TrustError as exc:
            return exc.code
        return "ok"

    @property
    def alarm(self) -> bool:
        return self.keeper.is_held_back(self.now)


def test_an_older_manifest_is_an_alarm_only_if_it_lasts(publisher: Publisher) -> None:
    old, new = publisher.publish(), publisher.publish()
    with site({BUNDLE: new}) as shelf, httpx.Client() as client:
        world = Lagging(publisher, shelf.url, client)
        assert world.refresh_after(0) == "ok"
        shelf.files[BUNDLE] = old
        assert world.refresh_after(30) == "older_than_seen"
        assert not world.alarm
        assert world.refresh_after(MAX_LAG_S) == "older_than_seen"
        assert not world.alarm
        assert world.refresh_after(1) == "older_than_seen"
        assert world.alarm
        # What was good stays in use all the while.
        assert world.keeper.current is not None
        assert world.keeper.current.policy.version == 2
        shelf.files[BUNDLE] = new
        assert world.refresh_after(1) == "ok"
        assert not world.alarm


def test_nodes_that_take_turns_are_no_alarm(publisher: Publisher) -> None:
    old, new = publisher.publish(), publisher.publish()
    with site({BUNDLE: new}) as shelf, httpx.Client() as client:
        world = Lagging(publisher, shelf.url, client)
        for turn in range(8):
            shelf.files[BUNDLE] = (new, old)[turn % 2]
            world.refresh_after(30)
            assert not world.alarm


def test_an_outage_in_between_does_not_end_the_alarm(publisher: Publisher) -> None:
    old, new = publisher.publish(), publisher.publish()
    with site({BUNDLE: new}) as shelf, httpx.Client() as client:
        world = Lagging(publisher, shelf.url, client)
        world.refresh_after(0)
        shelf.files[BUNDLE] = old
        world.refresh_after(30)
        del shelf.files[BUNDLE]
        assert world.refresh_after(60) == "unavailable"
        assert world.alarm


def test_a_cache_may_keep_a_bundle_for_as_long_as_is_no_alarm() -> None:
    allowed = dict(part.split("=") for part in CACHE_SHORT.split(", ") if "=" in part)
    assert int(allowed["max-age"]) + int(allowed["stale-while-revalidate"]) == MAX_LAG_S


def test_an_older_bundle_handed_in_is_refused_without_an_alarm(publisher: Publisher) -> None:
    old, new = publisher.publish(), publisher.publish()
    keeper = ManifestKeeper(url=None, channel="prod", root=publisher.root, cache=None)
    keeper.accept(new, etag=None)
    with pytest.raises(TrustError):
        keeper.accept(old, etag=None)
    assert not keeper.is_held_back(time.time() + 3_600)
