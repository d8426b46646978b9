"""What goes wrong on the machines of users, done to the example app and to clients like it."""

import asyncio
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
import trio

from support.chat_app import APP, a_world, filled
from support.loopback import dead_origin
from support.worlds import a_policy
from waypost.client import AsyncWaypost, Waypost
from waypost.client.testing import FakeValidator, StaticManifest, static_waypost, unsigned_token

# ── the example app, live ──────────────────────────────────────────────────────────────────────


def test_the_app_is_thirty_lines() -> None:
    lines = [line for line in APP.read_text().splitlines() if line.strip()]
    assert len(lines) <= 30


def test_without_dns_for_manifests_the_validator_decides(tmp_path: Path) -> None:
    with a_world(tmp_path) as (here, _):
        said = here.run("http://edge.invalid/v1/prod/bundle.json")
    assert "This is small.  [none]" in said


def test_a_captive_portal_does_not_stop_the_app(tmp_path: Path) -> None:
    with a_world(tmp_path) as (here, url):
        filled(here, url)
        here.portal = True
        said = here.run(url)
    assert "This is small." in said
    assert "[none]" not in said, "the cached manifest is good"


def test_a_cache_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    with a_world(tmp_path) as (here, url):
        filled(here, url)
        (cache,) = here.cache.glob("*.json")
        later = cache.read_bytes().replace(b"waypost-state/1", b"waypost-state/2")
        cache.write_bytes(later)
        assert "This is small." in here.run(url)
        assert cache.read_bytes() == later


def test_a_disk_that_is_full_does_not_stop_the_app(tmp_path: Path) -> None:
    """No file may grow: what a full disk does, without filling one."""
    with a_world(tmp_path) as (here, url):
        said = here.start(url, disk_full=True, PYTHONDONTWRITEBYTECODE="1")
        assert not [path for path in here.cache.glob("*") if path.stat().st_size]
    assert "This is small." in said


def test_with_half_the_endpoints_dead_the_app_answers(tmp_path: Path) -> None:
    with dead_origin() as dead, a_world(tmp_path, dead) as (here, url):
        filled(here, url)
        assert "This is small." in here.run(url)


# ── clients ────────────────────────────────────────────────────────────────────────────────────

YEAR_S = 365 * 86_400
HELLO: Mapping[str, object] = {"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.mark.parametrize("off_s", [-YEAR_S, YEAR_S])
def test_a_clock_that_is_a_year_off_leaves_the_choice_to_the_validator(off_s: int) -> None:
    validator = FakeValidator(a_policy())
    manifest = StaticManifest(a_policy(), expires_at=int(time.time()) + 3_600)
    wp = Waypost(
        token=unsigned_token,
        manifest=manifest,
        base_url="https://validator.test",
        refresh_interval_s=None,
    )
    wp._core.now = lambda: time.time() + off_s
    with wp.http_client(transport=validator.transport()) as http:
        answer = http.post(f"{wp.base_url}/chat/completions", json=HELLO)
    assert answer.status_code == 200
    assert (validator.requests[0].proposal is None) == (off_s > 0)


def test_a_slow_token_endpoint_is_asked_once_by_a_hundred_requests() -> None:
    asked: list[float] = []

    async def slow() -> str:
        asked.append(time.monotonic())
        await asyncio.sleep(0.2)
        return unsigned_token()

    async def main() -> list[int]:
        validator = FakeValidator(a_policy())
        awp = AsyncWaypost(
            token=slow,
            manifest=StaticManifest(a_policy()),
            base_url="https://validator.test",
            refresh_interval_s=None,
        )
        async with awp.http_client(transport=validator.transport()) as http:
            url = f"{awp.base_url}/chat/completions"
            answers = await asyncio.gather(*(http.post(url, json=HELLO) for _ in range(100)))
        return [answer.status_code for answer in answers]

    assert asyncio.run(main()) == [200] * 100
    assert len(asked) == 1


class Slow(StaticManifest):
    started = threading.Event()

    def refresh(self, client: httpx.Client, /) -> bool:
        self.started.set()
        time.sleep(0.2)
        return super().refresh(client)


def test_an_event_loop_that_closes_does_not_take_a_refresh_with_it() -> None:
    manifest = Slow(a_policy())
    awp = AsyncWaypost(token=unsigned_token, manifest=manifest, refresh_interval_s=60)

    async def use() -> None:
        awp.choose("Hello")
        assert await asyncio.to_thread(manifest.started.wait, 5)

    asyncio.run(use())
    deadline_s = time.monotonic() + 5
    while awp.freshness != "fresh" and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert awp.freshness == "fresh"
    asyncio.run(awp.aclose())
    assert not [thread for thread in threading.enumerate() if thread.name == "waypost-refresh"]


def test_a_hundred_clients_in_one_process_get_along() -> None:
    clients = [static_waypost(a_policy(), refresh_interval_s=30) for _ in range(100)]
    assert {wp.choose("Hello").model for wp in clients} == {"small"}
    for wp in clients:
        wp.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "waypost-refresh"]


def test_clients_work_under_trio() -> None:
    validator = FakeValidator(a_policy())

    async def main() -> int:
        async with (
            AsyncWaypost(
                token=unsigned_token,
                manifest=StaticManifest(a_policy()),
                base_url="https://validator.test",
                refresh_interval_s=None,
            ) as awp,
            awp.http_client(transport=validator.transport()) as http,
        ):
            assert await awp.refresh()
            return (await http.post(f"{awp.base_url}/chat/completions", json=HELLO)).status_code

    assert trio.run(main) == 200
