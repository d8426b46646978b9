"""What goes wrong on the machines of users, done to the example app and to clients like it."""

import asyncio
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import pytest
import trio

from support.loopback import asgi, dead_origin, serving
from support.origin import Reply
from support.origin import serving as origin_serving
from support.publisher import Publisher
from support.worlds import a_policy
from waypost.client import AsyncWaypost, Waypost
from waypost.client.testing import FakeValidator, StaticManifest, static_waypost, unsigned_token
from waypost.shared.contracts import Endpoint

APP = Path(__file__).parents[2] / "docs" / "examples" / "chat.py"
PORTAL = Reply(b"<html>Please log in</html>", headers={"Content-Type": "text/html"})


class Here:
    """A validator and an edge on this machine, and a folder that an app keeps its things in."""

    def __init__(self, folder: Path, validator: str, *dead: str) -> None:
        endpoints = tuple(
            Endpoint(id=str(place), url=url + "/v1") for place, url in enumerate((validator, *dead))
        )
        self.folder = folder
        self.validator = validator
        self.publisher = Publisher(policy=a_policy(projection="client", endpoints=endpoints))
        self.bundle = self.publisher.publish()
        self.portal = False
        (folder / "root.json").write_bytes(self.publisher.root)
        (folder / "token").write_text(unsigned_token(tier="free"))

    def __call__(self, headers: dict[str, str]) -> Reply:
        return PORTAL if self.portal else Reply(self.bundle)

    @property
    def cache(self) -> Path:
        return self.folder / "cache" / "waypost"

    def run(self, manifest_url: str, *, disk_full: bool = False, **environment: str) -> str:
        """Ask the app one question; return what it printed."""

        def fill_disk() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

        done = subprocess.run(
            [sys.executable, str(APP)],
            input="Hello\n\n",
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
            preexec_fn=fill_disk if disk_full else None,
            env={
                **os.environ,
                "XDG_CACHE_HOME": str(self.folder / "cache"),
                "WAYPOST_MANIFEST_URL": manifest_url,
                "WAYPOST_ROOT": str(self.folder / "root.json"),
                "WAYPOST_BASE_URL": self.validator + "/v1",
                "WAYPOST_TOKEN_FILE": str(self.folder / "token"),
                **environment,
            },
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def a_world(folder: Path, *dead: str) -> Iterator[tuple[Here, str]]:
    with serving(asgi(FakeValidator(a_policy()))) as validator:
        here = Here(folder, validator, *dead)
        with origin_serving(here) as edge:
            yield here, edge.url


def filled(here: Here, url: str) -> None:
    """Have a manifest in the cache, as an earlier run leaves it."""
    with Waypost(
        manifest_url=url,
        root=here.publisher.root,
        cache_dir=here.cache,
        refresh_interval_s=None,
    ) as wp:
        assert wp.refresh()


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


def test_a_cache_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    with a_world(tmp_path) as (here, url):
        filled(here, url)
        (cached,) = here.cache.glob("*.json")
        state = msgspec.json.decode(cached.read_bytes())
        cached.write_bytes(msgspec.json.encode({**state, "schema": 99, "format": 99}))
        assert "This is small." in here.run(url)


def test_a_disk_that_is_full_does_not_stop_the_app(tmp_path: Path) -> None:
    """No file may grow: what a full disk does, without filling one."""
    with a_world(tmp_path) as (here, url):
        said = here.run(url, disk_full=True, PYTHONDONTWRITEBYTECODE="1")
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
