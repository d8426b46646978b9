"""The edge over HTTP: cache headers by name, strong ETags, and nothing but the tree."""

import gzip
import hashlib
import logging
from pathlib import Path

import anyio
import httpx
import pytest
from anyio import from_thread
from starlette.applications import Starlette

from support.projects import a_project, hide_model, publish_project
from waypost.edge.project.names import CACHE_FOR_EVER, CACHE_NO_ROOT_YET, CACHE_SHORT
from waypost.edge.project.project import Project
from waypost.edge.serving.app import create_app
from waypost.shared.errors import StoreError

pytestmark = pytest.mark.anyio

BUNDLE = "/v1/prod/bundle.json"
TOKEN = "for-validators-only"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = a_project(tmp_path_factory.mktemp("edge") / "project")
    hide_model(project, "large")
    publish_project(project)
    return project


@pytest.fixture
def client(project: Project) -> httpx.AsyncClient:
    return client_of(create_app(project.public, private=project.private, private_token=TOKEN))


def client_of(app: Starlette) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app),
        base_url="http://edge",
        headers={"Accept-Encoding": "identity"},
    )


def a_target(project: Project) -> str:
    (path,) = (project.public / "targets/policy").iterdir()
    return f"/targets/policy/{path.name}"


async def test_the_bundle_has_a_strong_etag_of_its_bytes(
    client: httpx.AsyncClient, project: Project
) -> None:
    answer = await client.get(BUNDLE)
    assert answer.status_code == 200
    assert answer.content == (project.public / BUNDLE[1:]).read_bytes()
    assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'
    assert answer.headers["cache-control"] == CACHE_SHORT
    assert answer.headers["cdn-cache-control"] == "max-age=15"
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_what_the_client_has_is_not_sent_again(client: httpx.AsyncClient) -> None:
    etag = (await client.get(BUNDLE)).headers["etag"]
    for given in (etag, f"W/{etag}", f'"other", {etag}', "*", etag[:-1] + '-gzip"'):
        answer = await client.get(BUNDLE, headers={"If-None-Match": given})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag
        assert answer.headers["cache-control"] == CACHE_SHORT
    for given in ('"other"', "", etag.strip('"'), '"W/*"'):
        answer = await client.get(BUNDLE, headers={"If-None-Match": given})
        assert answer.status_code == 200


async def test_compression_has_an_etag_of_its_own_and_the_same_content(
    client: httpx.AsyncClient,
) -> None:
    plain = await client.get(BUNDLE)
    async with client.stream("GET", BUNDLE, headers={"Accept-Encoding": "br, gzip"}) as answer:
        raw = b"".join([chunk async for chunk in answer.aiter_raw()])
    assert gzip.decompress(raw) == plain.content
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["content-length"] == str(len(raw))
    assert answer.headers["etag"] != plain.headers["etag"]
    assert answer.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
    again = await client.get(
        BUNDLE,
        headers={"Accept-Encoding": "gzip", "If-None-Match": answer.headers["etag"]},
    )
    assert again.status_code == 304


@pytest.mark.parametrize(
    ("offer", "coding"),
    [
        ("gzip", "gzip"),
        ("GZIP;q=0.5", "gzip"),
        ("*", "gzip"),
        ("gzip;q=0", None),
        ("gzip; q=0.000", None),
        ("br, deflate", None),
        ("gzipped", None),
        ("", None),
    ],
)
async def test_only_who_takes_gzip_gets_it(
    client: httpx.AsyncClient, offer: str, coding: str | None
) -> None:
    answer = await client.get(BUNDLE, headers={"Accept-Encoding": offer})
    assert answer.headers.get("content-encoding") == coding


async def test_names_with_a_version_or_a_digest_may_be_kept_for_ever(
    client: httpx.AsyncClient, project: Project
) -> None:
    for path in ("/metadata/1.root.json", "/metadata/1.targets.json", a_target(project)):
        answer = await client.get(path)
        assert (answer.status_code, answer.headers["cache-control"]) == (200, CACHE_FOR_EVER)
    timestamp = await client.get("/metadata/timestamp.json")
    assert timestamp.headers["cache-control"] == CACHE_SHORT


async def test_no_newer_root_is_remembered_for_moments_only(client: httpx.AsyncClient) -> None:
    answer = await client.get("/metadata/2.root.json")
    assert (answer.status_code, answer.headers["cache-control"]) == (404, CACHE_NO_ROOT_YET)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1/canary/bundle.json",
        "/v1/../keys/keyring.json",
        "/v1/%2e%2e/keys/bundle.json",
        "/..%2fkeys/keyring.json",
        "/metadata/..%2f..%2fkeys/keyring.json",
        "/metadata/9.targets.json",
        "/metadata/1.full.json",
        "/metadata/1.root.json%00",
        "/metadata/1.root.json%0a",
        "/metadata/",
        "//etc/passwd",
        "/keys/keyring.json",
        "/root.json",
        "/v1/prod/full/../../../keys/keyring.json",
        f"/targets/full/{'a' * 64}.prod.json",
    ],
)
async def test_nothing_but_what_is_published_is_found(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_nobody_writes_to_the_edge(client: httpx.AsyncClient, method: str) -> None:
    answer = await client.request(method, BUNDLE)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD"
    assert answer.json()["error"]["code"] == "method_not_allowed"


async def test_a_head_request_tells_what_a_get_would(client: httpx.AsyncClient) -> None:
    head, get = await client.head(BUNDLE), await client.get(BUNDLE)
    assert head.headers["etag"] == get.headers["etag"]


async def test_the_probe_is_empty_and_never_cached(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/probe")
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["cache-control"] == "no-store"
    assert (await client.get("/livez")).json() == {"status": "ok"}


# ── the full projection ────────────────────────────────────────────────────────────────────────


async def test_the_full_manifest_is_for_who_has_the_validators_token(
    client: httpx.AsyncClient, project: Project
) -> None:
    answer = await client.get(
        "/v1/prod/full/bundle.json", headers={"Authorization": f"Bearer {TOKEN}"}
    )
    assert answer.content == (project.private / BUNDLE[1:]).read_bytes()
    assert b"large" in answer.content
    assert answer.headers["cache-control"] == "private, no-cache"


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN])
async def test_without_the_token_the_full_manifest_is_refused(
    client: httpx.AsyncClient, given: str | None
) -> None:
    headers = {} if given is None else {"Authorization": given}
    answer = await client.get("/v1/prod/full/bundle.json", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in answer.text


@pytest.mark.parametrize("token", [None, ""])
async def test_an_edge_without_a_token_serves_the_full_manifest_to_nobody(
    project: Project, token: str | None
) -> None:
    app = create_app(project.public, private=project.private, private_token=token)
    for given in ("Bearer ", "Bearer None", f"Bearer {TOKEN}", "Bearer"):
        answer = await client_of(app).get(
            "/v1/prod/full/bundle.json", headers={"Authorization": given}
        )
        assert answer.status_code == 404


# ── changes ────────────────────────────────────────────────────────────────────────────────────


async def test_a_publication_is_served_at_once(tmp_path: Path) -> None:
    project = a_project(tmp_path / "project")
    client = client_of(create_app(project.public))
    assert (await client.get(BUNDLE)).status_code == 404
    publish_project(project)
    first = await client.get(BUNDLE)
    publish_project(project)
    second = await client.get(BUNDLE, headers={"If-None-Match": first.headers["etag"]})
    assert (first.status_code, second.status_code) == (200, 200)
    assert second.content == (project.public / BUNDLE[1:]).read_bytes()


async def test_the_edge_signs_anew_at_start_and_then_again_and_again(project: Project) -> None:
    turns: list[int] = []
    third = anyio.Event()

    def resign() -> None:
        turns.append(len(turns))
        if len(turns) == 3:
            from_thread.run_sync(third.set)

    app = create_app(project.public, resign=resign, resign_every_s=0.001)
    async with app.router.lifespan_context(app):
        assert turns[:1] == [0]
        with anyio.fail_after(20):
            await third.wait()
    count = len(turns)
    await anyio.sleep(0.01)
    assert len(turns) == count


@pytest.mark.parametrize("error", [StoreError("the disk is gone"), ValueError("the disk is gone")])
async def test_an_edge_that_cannot_sign_says_so_and_serves_on(
    project: Project, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def fail() -> None:
        raise error

    app = create_app(project.public, resign=fail, resign_every_s=60)
    with caplog.at_level(logging.ERROR, "waypost.edge"):
        async with app.router.lifespan_context(app):
            assert (await client_of(app).get(BUNDLE)).status_code == 200
    assert "the disk is gone" in caplog.text
