"""nginx as the documentation configures it, in front of a real edge and a real validator.

A cache's clock cannot be moved, so the edge's seconds are shortened on their way: what may be kept
for 15, 30 and 3600 seconds is kept for 1, 2 and 4.
"""

import asyncio
import gzip
import os
import re
import socket
import subprocess
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from support.debian import program
from support.loopback import serving
from support.projects import a_project, publish_project
from support.serving import eventually
from support.tokens import Wishes
from support.upstream import DONE, Exchange, Upstream, event, running_upstream, usage_event
from support.validator import HELLO, Running, running_validator
from waypost.edge.project.names import CACHE_SHORT
from waypost.edge.project.project import Project
from waypost.edge.serving.app import create_app
from waypost.shared.trust import ManifestKeeper

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

GUIDE = Path(__file__).parents[2] / "docs" / "deploy-cdn.md"
BUNDLE = "/v1/prod/bundle.json"
SHORT = CACHE_SHORT.replace("=15", "=1").replace("=30", "=2").replace("=3600", "=4")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def nginx(folder: Path, *, edge: int = 9, validator: int = 9) -> Iterator[tuple[str, str]]:
    """Run the guide's nginx on these ports; gives the URLs of both hosts."""
    manifest, llm = free_port(), free_port()
    (text,) = re.findall(r"```nginx\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    text = re.sub(r"\n +ssl_[^\n]*", "", text)
    for old, new in (
        ("127.0.0.1:8700", f"127.0.0.1:{edge}"),
        ("127.0.0.1:8800", f"127.0.0.1:{validator}"),
        ("/var/cache/nginx/waypost", f"{folder}/cache"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    for port in (manifest, llm):
        text = text.replace("listen 443 ssl http2;", f"listen 127.0.0.1:{port};", 1)
    places = "".join(
        f"{name}_temp_path {folder}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"daemon off; {user} worker_processes 1; pid {folder}/pid; error_log {folder}/errors;"
        f"events {{}} http {{ access_log off; {places}\n{text} }}"
    )
    process = subprocess.Popen(
        [program("nginx"), "-e", str(folder / "errors"), "-c", str(folder / "nginx.conf")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            assert process.poll() is None, (folder / "errors").read_text()
            try:
                socket.create_connection(("127.0.0.1", manifest), timeout=0.2).close()
                break
            except OSError:
                time.sleep(0.02)
        yield f"http://127.0.0.1:{manifest}", f"http://127.0.0.1:{llm}"
    finally:
        process.terminate()
        process.wait(10)


# ── the manifest ───────────────────────────────────────────────────────────────────────────────


class Shortened:
    """The edge, with shorter seconds; counts what it is asked."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.is_held = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.asked.append((scope["raw_path"].decode(), headers))
        while self.is_held:  # noqa: ASYNC110 - another thread sets it
            await anyio.sleep(0.01)

        async def shorten(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    (name, value.replace(CACHE_SHORT.encode(), SHORT.encode()))
                    for name, value in message["headers"]
                ]
            await send(message)

        await self._app(scope, receive, shorten)


@dataclass
class Site:
    """An edge behind nginx."""

    project: Project
    edge: Shortened
    url: str
    client: httpx.Client
    origin: ExitStack = field(default_factory=ExitStack)

    def get(self, path: str = BUNDLE, **headers: str) -> httpx.Response:
        return self.client.get(self.url + path, headers=headers)

    def version(self, answer: httpx.Response) -> int:
        keeper = self.keeper()
        return keeper.accept(answer.content, etag=None).policy.version

    def keeper(self) -> ManifestKeeper:
        return ManifestKeeper(
            url=self.url + BUNDLE,
            channel="prod",
            root=self.project.root.read_bytes(),
            cache=None,
        )


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    project = a_project(tmp_path / "project")
    publish_project(project)
    edge = Shortened(create_app(project.public, private=project.private, private_token="secret"))
    (tmp_path / "nginx").mkdir()
    with ExitStack() as stack, ExitStack() as origin:
        url = origin.enter_context(serving(edge))
        cdn, _ = stack.enter_context(nginx(tmp_path / "nginx", edge=int(url.rsplit(":", 1)[1])))
        client = stack.enter_context(httpx.Client())
        yield Site(project, edge, cdn, client, origin)


def status(answer: httpx.Response) -> str:
    return answer.headers["x-cache-status"]


def test_many_clients_cost_the_edge_one_request(site: Site) -> None:
    for _ in range(5):
        keeper = site.keeper()
        assert keeper.refresh(site.client) is True
        assert keeper.refresh(site.client) is False  # a 304, from the cache too
    assert len(site.edge.asked) == 1


def test_an_unchanged_bundle_is_a_304_without_a_body(site: Site) -> None:
    first = site.get()
    again = site.get(**{"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert first.headers["cache-control"] == SHORT
    assert not first.headers["etag"].startswith("W/")
    # And once the cache's copy is stale, it asks the edge in the same way.
    time.sleep(2.1)
    site.get()
    time.sleep(0.1)
    assert site.edge.asked[-1][1]["if-none-match"] == first.headers["etag"]


def test_both_codings_are_kept_and_say_the_same(site: Site) -> None:
    plain = site.get(**{"Accept-Encoding": "identity"})
    with site.client.stream("GET", site.url + BUNDLE, headers={"Accept-Encoding": "gzip"}) as got:
        zipped = b"".join(got.iter_raw())
        assert got.headers["content-encoding"] == "gzip"
    assert gzip.decompress(zipped) == plain.content
    assert len(zipped) < len(plain.content) / 3
    # However it is spelt: two copies, two requests.
    for spelling in ("GZIP", "br, gzip;q=0.8", "deflate, gzip, x-odd", "br", "x" * 500):
        assert status(site.get(**{"Accept-Encoding": spelling})) == "HIT"
    assert len(site.edge.asked) == 2


def test_a_stale_bundle_is_served_at_once_while_a_newer_one_is_fetched(site: Site) -> None:
    assert site.version(site.get()) == 1
    publish_project(site.project)
    time.sleep(2.1)  # nginx counts whole seconds
    site.edge.is_held = True
    stale = site.get()  # answered, though the edge does not answer
    assert (site.version(stale), status(stale)) == (1, "STALE")
    site.edge.is_held = False
    eventually(lambda: site.version(site.get()) == 2, "the newer bundle is served")


def test_a_dead_origin_costs_nobody_anything_until_the_limit_it_set(site: Site) -> None:
    keeper = site.keeper()
    keeper.refresh(site.client)
    kept = site.get("/metadata/1.root.json")
    fetched = time.monotonic()
    site.get()
    site.origin.close()
    time.sleep(2.2)
    stale = site.get()
    assert (stale.status_code, status(stale)) == (200, "STALE")
    assert site.version(stale) == 1
    assert keeper.refresh(site.client) is False
    # The limit holds too: a cache that serves on for ever hides that nobody publishes.
    time.sleep(max(0.0, fetched + 6.2 - time.monotonic()))
    assert site.get().status_code in (502, 504)
    assert site.get("/metadata/1.root.json").content == kept.content
    assert keeper.is_fresh(time.time())


def test_a_rotation_is_seen_though_its_root_was_asked_for_too_early(site: Site) -> None:
    early = site.get("/metadata/2.root.json")
    assert early.status_code == 404
    assert early.headers["cache-control"] == "public, max-age=30"
    assert status(site.get("/metadata/2.root.json")) == "HIT"
    other = site.get("/nothing/here")
    assert (other.status_code, status(other)) == (404, "MISS")
    assert status(site.get("/nothing/here")) == "MISS"


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (BUNDLE + "?poison=1", {}),
        (BUNDLE + "?channel=../../full", {}),
        (BUNDLE, {"X-Forwarded-Host": "evil.example"}),
        (BUNDLE, {"X-Original-URL": "/v1/prod/full/bundle.json"}),
        (BUNDLE, {"X-HTTP-Method-Override": "DELETE"}),
        (BUNDLE, {"Host": "evil.example"}),
        (BUNDLE, {"Cookie": "session=1"}),
        (BUNDLE, {"Authorization": "Bearer secret"}),
        (BUNDLE, {"Range": "bytes=0-9"}),
        (BUNDLE, {"If-None-Match": "*"}),
    ],
)
def test_cache_poisoning(site: Site, path: str, headers: dict[str, str]) -> None:
    first = site.get(path, **headers)
    assert first.status_code in (200, 206, 304)
    _, seen = site.edge.asked[0]
    assert not {"cookie", "authorization", "range"} & seen.keys()
    honest = site.get()
    assert honest.status_code == 200
    assert status(honest) == "HIT"
    assert site.version(honest) == 1
    assert [asked for asked, _ in site.edge.asked] == [BUNDLE]


@pytest.mark.parametrize(
    "path",
    ["/v1/prod/full/bundle.json", "/v1/prod/%66ull/bundle.json", "/v1/prod//full/bundle.json"],
)
def test_the_full_manifest_does_not_pass_the_cdn(site: Site, path: str) -> None:
    assert site.get(path, Authorization="Bearer secret").status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "PURGE"])
def test_nobody_writes_through_the_cdn(site: Site, method: str) -> None:
    assert site.client.request(method, site.url + BUNDLE).status_code in (403, 405)
    assert site.edge.asked == []


# ── the validator ──────────────────────────────────────────────────────────────────────────────


@dataclass
class Fleet:
    """A validator behind nginx."""

    validator: Running
    upstream: Upstream
    client: httpx.AsyncClient


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncGenerator[Fleet]:
    (tmp_path / "nginx").mkdir()
    (tmp_path / "validator").mkdir()
    async with (
        running_upstream() as upstream,
        running_validator(
            tmp_path / "validator", {"acme": upstream, "medcloud": upstream}
        ) as validator,
    ):
        port = int(validator.url.rsplit(":", 1)[1])
        with nginx(tmp_path / "nginx", validator=port) as (_, llm):
            async with httpx.AsyncClient(base_url=llm, timeout=10) as client:
                yield Fleet(validator, upstream, client)


async def test_a_stream_passes_the_cdn_word_by_word(fleet: Fleet) -> None:
    may_go_on = asyncio.Event()

    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.chunk(event("first"))
        await may_go_on.wait()
        await exchange.chunk(event("second") + usage_event() + DONE)
        await exchange.end_stream()

    fleet.upstream.behave = behave
    headers = {**fleet.validator.headers(), "Accept-Encoding": "gzip"}
    async with fleet.client.stream(
        "POST", "/v1/chat/completions", json={**HELLO, "stream": True}, headers=headers
    ) as answer:
        words = answer.aiter_text()
        with anyio.fail_after(20):
            assert "first" in await anext(words)
        may_go_on.set()
        assert "second" in "".join([word async for word in words])
        assert "content-encoding" not in answer.headers


async def test_a_client_that_hangs_up_is_noticed_through_the_cdn(fleet: Fleet) -> None:
    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.chunk(event("first"))
        await asyncio.sleep(3_600)

    fleet.upstream.behave = behave
    async with fleet.client.stream(
        "POST",
        "/v1/chat/completions",
        json={**HELLO, "stream": True},
        headers=fleet.validator.headers(),
    ) as answer:
        await anext(answer.aiter_text())
    with anyio.fail_after(20):
        await fleet.upstream.hung_up.wait()


async def test_no_answer_is_kept_for_another_caller(fleet: Fleet) -> None:
    ids: set[str] = set()
    listed: list[str] = []
    for tier in ("free", "enterprise"):
        answer = await fleet.client.post(
            "/v1/chat/completions", json=HELLO, headers=fleet.validator.headers(tier=tier)
        )
        assert answer.status_code == 200
        assert "x-cache-status" not in answer.headers
        ids.add(answer.headers["x-request-id"])
        models = await fleet.client.get("/v1/models", headers=fleet.validator.headers(tier=tier))
        listed.append(models.text)
    assert len(ids) == 2
    assert listed[0] != listed[1]
    assert (await fleet.client.get("/v1/models")).status_code == 401


async def test_a_request_that_fails_is_not_sent_twice(fleet: Fleet) -> None:
    await fleet.client.post("/v1/chat/completions", content=b"{", headers=fleet.validator.headers())
    answer = await fleet.client.post(
        "/v1/chat/completions", json=HELLO, headers=fleet.validator.headers()
    )
    assert answer.status_code == 200
    assert len(fleet.upstream.seen) == 1


@pytest.mark.parametrize(
    "name",
    ["CF-IPCountry", "CloudFront-Viewer-Country", "X-Region", "Waypost-Region", "X-Forwarded-For"],
)
async def test_a_region_is_the_token_s_whatever_a_header_says(fleet: Fleet, name: str) -> None:
    callers: tuple[Wishes, ...] = ({}, {"region": "us"})
    for wishes in callers:
        answer = await fleet.client.post(
            "/v1/chat/completions",
            json=HELLO,
            headers={**fleet.validator.headers(**wishes), name: "eu"},
        )
        record = await fleet.validator.record(answer)
        assert record.facts is not None
        assert record.facts.signed.region == wishes.get("region")


@pytest.mark.parametrize("path", ["/admin/bundle", "/metrics", "/console", "/%61dmin/bundle"])
async def test_what_is_for_operators_does_not_pass_the_cdn(fleet: Fleet, path: str) -> None:
    answer = await fleet.client.request("PUT" if "bundle" in path else "GET", path)
    assert answer.status_code == 404
    assert "nginx" in answer.text
