"""Proxies, certificates, which endpoint is asked, and what a changed network sets off."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import anyio
import httpx
import pytest

from support.certificates import self_signed
from support.loopback import asgi, dead_origin, serving
from support.worlds import a_policy
from waypost.client import AsyncWaypost, Waypost
from waypost.client._network import STAGGER_S, Network
from waypost.client.testing import FakeValidator, StaticManifest, static_waypost, unsigned_token
from waypost.shared.contracts import Endpoint
from waypost.shared.errors import TrustError

HELLO = {"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}

# Nobody answers there, not even to refuse (RFC 5737).
BLACK_HOLE = "http://192.0.2.1:9"


@pytest.fixture
def validator() -> FakeValidator:
    return FakeValidator(a_policy())


@pytest.fixture
def origin(validator: FakeValidator) -> Iterator[str]:
    with serving(asgi(validator)) as here:
        yield here


def with_endpoints(*urls: str, **options: object) -> Waypost:
    endpoints = tuple(
        Endpoint(id=str(place), url=url + "/v1", region="global" if place else "eu")
        for place, url in enumerate(urls)
    )
    manifest = StaticManifest(a_policy(endpoints=endpoints))
    defaults = {
        "token": unsigned_token(region="eu"),
        "manifest": manifest,
        "refresh_interval_s": None,
    }
    return Waypost(**{**defaults, **options})  # type: ignore[arg-type]


# ── which endpoint ─────────────────────────────────────────────────────────────────────────────


def test_whoever_answers_wins_the_race_after_a_head_start() -> None:
    with serving(asgi(FakeValidator(a_policy()))) as alive, dead_origin() as dead:
        found = Network().race([dead, BLACK_HOLE, alive])
    assert found[dead] is None
    assert isinstance(found[alive], float)


def test_an_endpoint_that_swallows_packets_costs_a_quarter_of_a_second(
    origin: str, validator: FakeValidator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the five seconds of a connect timeout."""
    hang = threading.Event()
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if getattr(thread, "_args", ("",))[0] == BLACK_HOLE:
            thread._target = hang.wait  # type: ignore[attr-defined]
            thread._args = ()  # type: ignore[attr-defined]
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    found = Network().race([BLACK_HOLE, origin])
    hang.set()
    assert set(found) == {origin}
    assert STAGGER_S == 0.25


def test_half_the_endpoints_dead_costs_no_request(validator: FakeValidator) -> None:
    with ExitStack() as stack:
        dead = [stack.enter_context(dead_origin()) for _ in range(2)]
        alive = [stack.enter_context(serving(asgi(validator))) for _ in range(2)]
        wp = with_endpoints(dead[0], alive[0], dead[1], alive[1])
        http = stack.enter_context(wp.http_client())
        for _ in range(5):
            answer = http.post(f"{wp.base_url}/chat/completions", json=HELLO)
            assert answer.status_code == 200
    assert len(validator.requests) == 5


def test_no_endpoint_is_tried_out_behind_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert Network().race(["http://a.example", "http://b.example"]) == {}


# ── proxies and certificates ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("said", ["option", "environment"])
@pytest.mark.parametrize("awaits", [False, True])
def test_requests_go_through_a_proxy(
    origin: str,
    validator: FakeValidator,
    said: str,
    awaits: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A plain HTTP proxy gets the whole URL; this one answers by itself."""
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    options: dict[str, object] = {"proxy": origin} if said == "option" else {}
    if said == "environment":
        monkeypatch.setenv("http_proxy", origin)
    url = "http://validator.example/v1/chat/completions"
    options |= {"manifest": StaticManifest(a_policy()), "base_url": "http://validator.example"}
    options |= {"token": unsigned_token(), "refresh_interval_s": None}

    async def awaiting() -> int:
        async with AsyncWaypost(**options) as awp, awp.http_client() as http:  # type: ignore[arg-type]
            return (await http.post(url, json=HELLO)).status_code

    if awaits:
        assert anyio.run(awaiting) == 200
    else:
        with Waypost(**options) as wp, wp.http_client() as http:  # type: ignore[arg-type]
            assert http.post(url, json=HELLO).status_code == 200
    assert validator.requests[0].headers["host"] == "validator.example"


def test_some_hosts_are_reached_without_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "proxy.example:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    network = Network()
    assert network.proxy_for("https://api.example/v1") == "http://proxy.example:3128"
    assert network.proxy_for("https://inside.example/v1") is None
    assert network.proxy_for("https://inside.example") is None, "an origin, as races have it"
    assert network.proxy_for("http://api.example/v1") is None, "another scheme, another way"


def test_the_proxy_of_another_network_is_found_once_that_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wp = static_waypost(a_policy())
    network = wp._core.network
    assert network.proxy_for("https://api.example/v1") is None
    monkeypatch.setenv("https_proxy", "proxy.example:3128")
    wp.network_changed()
    assert network.proxy_for("https://api.example/v1") == "http://proxy.example:3128"


def test_a_ca_of_ones_own_is_believed_where_it_is_named(tmp_path: Path) -> None:
    validator, certificate = FakeValidator(a_policy()), self_signed(tmp_path)
    context = ssl.create_default_context(cafile=str(certificate))
    with serving(asgi(validator), certificate=certificate) as here:
        with with_endpoints(here).http_client() as http, pytest.raises(httpx.ConnectError):
            http.post(here + "/v1/chat/completions", json=HELLO)
        with with_endpoints(here, verify=context).http_client() as http:
            assert http.post(here + "/v1/chat/completions", json=HELLO).status_code == 200


# ── a changed network ──────────────────────────────────────────────────────────────────────────


class Counted(StaticManifest):
    def __init__(self) -> None:
        super().__init__(a_policy())
        self.asked = threading.Semaphore(0)

    def refresh(self, client: httpx.Client, /) -> bool:
        self.asked.release()
        return super().refresh(client)


def test_traffic_that_flows_again_ends_the_back_off() -> None:
    manifest = Counted()
    manifest.last_error = TrustError("no network", code="unavailable")
    with static_waypost(manifest, refresh_interval_s=10_000) as wp:
        wp._core._refresher._rng = lambda: 1.0  # type: ignore[union-attr]
        wp.choose("Hello")
        assert manifest.asked.acquire(timeout=5), "the first use asks, and fails"
        wp._core._refresher._refreshed_s = -1e9  # type: ignore[union-attr]
        wp._core.reached_endpoint("https://validator.test", None)
        assert manifest.asked.acquire(timeout=1.5), "an answer shows that the network is back"


def test_a_platform_that_tells_of_a_new_network_is_listened_to() -> None:
    manifest = Counted()
    with static_waypost(manifest, refresh_interval_s=10_000) as wp:
        wp.choose("Hello")
        assert manifest.asked.acquire(timeout=5)
        wp._core.failed_endpoint("https://validator.test", 20)
        wp.network_changed()
        assert manifest.asked.acquire(timeout=5)
        assert not wp._core.endpoints.estimates
