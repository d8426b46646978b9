"""That a signature lapses is told days ahead, by role, with what to do; and named when it has."""

import logging
import time
from pathlib import Path

import httpx
import pytest

from support.publisher import Publisher
from support.site import BUNDLE, site
from support.worlds import a_policy
from waypost.client import Event, Refreshed, UpstreamError, Waypost
from waypost.client.testing import StaticManifest, static_waypost
from waypost.edge.publishing.publish import RESIGN_EVERY_S, RESIGN_WITHIN_S
from waypost.edge.publishing.repository import LIFETIME_S
from waypost.edge.serving.app import create_app
from waypost.edge.serving.metrics import Expiry
from waypost.shared.errors import StoreError, TrustError
from waypost.shared.trust import LapseTeller, ManifestKeeper, lapses
from waypost.shared.trust.expiry import NOTICE_S, URGENT_S, Lapse, mend_of

DAY_S = 86_400
NOW = 1_790_000_000
PEOPLE = ("root", "targets", "full")


def test_what_people_sign_is_told_seven_and_two_days_ahead() -> None:
    for role in PEOPLE:
        assert lapses({role: NOW + 7 * DAY_S}, NOW) == []
        (notice,) = lapses({role: NOW + 7 * DAY_S - 1}, NOW)
        (urgent,) = lapses({role: NOW + 2 * DAY_S - 1}, NOW)
        assert (notice.is_urgent, urgent.is_urgent) == (False, True)


@pytest.mark.parametrize("role", LIFETIME_S)
def test_no_role_is_told_of_that_is_signed_anew_in_its_time(role: str) -> None:
    least = RESIGN_WITHIN_S.get(role, LIFETIME_S[role]) - 2 * RESIGN_EVERY_S

    assert URGENT_S[role] < NOTICE_S[role] < least
    assert lapses({role: NOW + least}, NOW) == []


def test_the_first_to_lapse_comes_first_with_what_to_do() -> None:
    found = lapses(
        {"root": NOW + 3 * DAY_S, "targets": NOW - 1, "timestamp": NOW + 7_300, "other": NOW}, NOW
    )

    assert [str(each) for each in found] == [
        "the signature of targets has expired; publish again: waypost publish",
        "the signature of other has expired; start the edge, which signs it, or run:"
        " waypost edge resign",
        "the signature of timestamp expires in 2 hours; start the edge, which signs it, or run:"
        " waypost edge resign",
        "the signature of root expires in 3 days; sign a new root: waypost keys rotate --role root",
    ]


def test_it_is_told_once_a_day_and_at_the_end_each_hour() -> None:
    teller = LapseTeller()

    def told(left_s: float) -> int:
        return len(teller.news([Lapse("targets", left_s)]))

    assert [told(5.5 * DAY_S), told(5.4 * DAY_S), told(4.9 * DAY_S)] == [1, 0, 1]
    assert [told(20.5 * 3_600), told(20.4 * 3_600), told(19.9 * 3_600), told(-5)] == [1, 0, 1, 1]


# ── what a manifest says ───────────────────────────────────────────────────────────────────────


def test_a_manifest_says_when_each_of_its_roles_lapses(publisher: Publisher) -> None:
    keeper = ManifestKeeper(url=None, channel="prod", root=publisher.root, cache=None)
    trusted = keeper.accept(publisher.publish(), etag=None)

    now = time.time()
    assert trusted.expires.keys() == {"root", "targets", "hints", "snapshot", "timestamp"}
    for role, at in trusted.expires.items():
        assert at - now == pytest.approx(LIFETIME_S[role], abs=30)
    assert trusted.expires_at == min(trusted.expires.values())


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_an_expired_manifest_is_refused_with_what_to_do(publisher: Publisher, role: str) -> None:
    lifetime = {**LIFETIME_S, role: -1}
    if role == "root":
        repository = publisher.repository(lifetime_s=lifetime)
        with repository.edit_root():
            pass
        publisher.save(repository)
    keeper = ManifestKeeper(url=None, channel="prod", root=publisher.root, cache=None)
    with pytest.raises(TrustError) as caught:
        keeper.accept(publisher.publish(lifetime_s=lifetime), etag=None)

    assert (caught.value.code, caught.value.role) == ("expired", role)
    assert caught.value.message == f"{role} has expired: {mend_of(role)}"


def test_one_that_expires_unchanged_is_told_with_its_role(publisher: Publisher) -> None:
    bundle = publisher.publish(lifetime_s={**LIFETIME_S, "targets": 3_600})
    ahead = 0.0
    with site({BUNDLE: bundle}) as shelf, httpx.Client() as client:
        keeper = ManifestKeeper(
            url=shelf.url,
            channel="prod",
            root=publisher.root,
            cache=None,
            now=lambda: time.time() + ahead,
        )
        keeper.refresh(client)
        ahead = 3_700
        with pytest.raises(TrustError, match="publish again: waypost publish") as caught:
            keeper.refresh(client)

    assert (caught.value.code, caught.value.role) == ("expired", "targets")


# ── the SDK ────────────────────────────────────────────────────────────────────────────────────


def test_a_client_says_how_long_its_manifest_holds_and_warns_before(
    publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Event] = []
    bundle = publisher.publish(lifetime_s={**LIFETIME_S, "targets": DAY_S})
    with (
        site({BUNDLE: bundle}) as shelf,
        caplog.at_level(logging.WARNING, "waypost"),
        Waypost(
            manifest_url=shelf.url,
            root=publisher.root,
            cache_dir=False,
            refresh_interval_s=None,
            on_event=events.append,
        ) as wp,
    ):
        assert wp.manifest_expires_in_s == {}
        wp.refresh()
        wp.refresh()

        assert wp.manifest_expires_in_s["targets"] == pytest.approx(DAY_S, abs=30)
    assert isinstance(events[0], Refreshed)
    assert events[0].expires_role == "timestamp"
    assert events[0].expires_in_s == pytest.approx(LIFETIME_S["timestamp"], abs=30)
    (warned,) = (r.message for r in caplog.records if "targets" in r.message)
    assert warned.endswith("; publish again: waypost publish")


def test_a_source_without_roles_is_told_of_as_one() -> None:
    wp = static_waypost(StaticManifest(a_policy(), expires_at=int(time.time()) - 50))

    assert wp.manifest_expires_in_s["manifest"] == pytest.approx(-50, abs=10)
    assert "waypost publish" in wp.choose("Hello").sentence


def test_who_knows_no_validator_says_that_the_manifest_expired(publisher: Publisher) -> None:
    bundle = publisher.publish(lifetime_s={**LIFETIME_S, "targets": -1})
    with (
        site({BUNDLE: bundle}) as shelf,
        Waypost(
            manifest_url=shelf.url, root=publisher.root, cache_dir=False, refresh_interval_s=None
        ) as wp,
        wp.http_client() as http,
        pytest.raises(UpstreamError, match="expired: targets has expired: publish again"),
    ):
        http.post(f"{wp.base_url}/chat/completions", json={})


# ── the edge ───────────────────────────────────────────────────────────────────────────────────


def test_an_edge_logs_what_lapses_and_survives_a_tree_it_cannot_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    expires = {"root": NOW + 100 * DAY_S, "targets": NOW + 6 * DAY_S + 5, "timestamp": NOW + 20_000}
    ahead = 0.0
    expiry = Expiry(lambda: expires, now=lambda: NOW + ahead)

    def unreadable() -> dict[str, int]:
        raise StoreError("cannot read public")

    for ahead in (0.0, 300.0, 4 * DAY_S + 10.0):
        expires["timestamp"] = int(NOW + ahead + 20_000)
        expiry.tell()
    Expiry(unreadable).tell()

    assert [(record.levelname, record.message) for record in caplog.records] == [
        (
            "WARNING",
            "the signature of targets expires in 6 days; publish again: waypost publish",
        ),
        (
            "WARNING",
            "the signature of targets expires in 5 days; publish again: waypost publish",
        ),
        ("ERROR", "the signature of targets expires in 47 hours; publish again: waypost publish"),
        ("ERROR", "cannot see when the signatures lapse: cannot read public"),
    ]


@pytest.mark.anyio
async def test_an_edge_tells_a_scraper_when_each_role_lapses(tmp_path: Path) -> None:
    app = create_app(
        tmp_path, expiry=Expiry(lambda: {"root": NOW + 10, "full": NOW - 10}, now=lambda: NOW)
    )
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://edge"
    ) as client:
        answer = await client.get("/metrics")

    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert answer.text.splitlines()[-2:] == [
        'waypost_manifest_expires_in_seconds{role="root"} 10',
        'waypost_manifest_expires_in_seconds{role="full"} -10',
    ]
