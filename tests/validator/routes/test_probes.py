"""What agents and browsers ask before they ask for anything: HEAD and OPTIONS."""

from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest

from support.echo import Wire, wired
from support.upstream import Upstream
from support.validator import HELLO, Running, running_validator, settings
from waypost.shared.requests.apis import ENDPOINT_BY_PATH
from waypost.validator.config import ConfigError

pytestmark = pytest.mark.anyio

PAGE = "https://app.example"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,waypost-facts,x-stainless-os",
}


@pytest.mark.parametrize("path", sorted(ENDPOINT_BY_PATH))
async def test_head_is_answered_without_a_body_and_so_is_the_request_behind_it(
    validator: Running, path: str
) -> None:
    async with httpx.AsyncClient(base_url=validator.url, timeout=20) as client:
        probed = await client.head(path)
        asked = await client.get(path)

    for answer in (probed, asked):
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert probed.content == b""
    # RFC 9110 §8.6: what a GET would have.
    assert probed.headers["content-length"] == str(len(asked.content))


async def test_head_and_what_is_sent_right_behind_it_are_told_apart() -> None:
    # The path that models answer: its head must not wait for a body.
    async with wired() as connect:
        wire: Wire = await connect()
        await wire.send(
            b"HEAD /v1/messages HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        head = await wire.reader.readuntil(b"\r\n\r\n")
        said = await wire.said()

    assert head.startswith(b"HTTP/1.1 200 ")
    assert said.path == "/b"


async def test_a_page_may_ask_nothing_unless_its_origin_is_allowed(validator: Running) -> None:
    preflight = await validator.client.options("/v1/chat/completions", headers=PREFLIGHT)
    answer = await validator.chat(headers={"Origin": PAGE})

    assert preflight.status_code == 405
    assert answer.status_code == 200
    for one in (preflight, answer):
        assert not [name for name in one.headers if name.startswith("access-control-")]


@pytest.fixture
async def open_to_pages(tmp_path: Path, acme: Upstream) -> AsyncGenerator[Running]:
    cors = {"origins": [PAGE], "max_age_s": 60}
    console = {"token": "CONSOLE_TOKEN"}
    async with running_validator(tmp_path, {"acme": acme}, cors=cors, console=console) as running:
        yield running


async def test_a_page_of_an_allowed_origin_asks_and_reads_what_was_decided(
    open_to_pages: Running,
) -> None:
    preflight = await open_to_pages.client.options("/v1/chat/completions", headers=PREFLIGHT)

    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert preflight.headers["access-control-max-age"] == "60"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    allowed = preflight.headers["access-control-allow-headers"].lower()
    assert "waypost-facts" in allowed
    assert "x-stainless-os" in allowed
    # No cookie of another page counts, so none may be sent.
    assert "access-control-allow-credentials" not in preflight.headers

    for answer in (
        await open_to_pages.chat(headers={"Origin": PAGE}),
        await open_to_pages.client.post(
            "/v1/chat/completions", json=HELLO, headers={"Origin": PAGE}
        ),
    ):
        assert answer.status_code in (200, 401)  # a page must be able to read why not
        assert answer.headers["access-control-allow-origin"] == PAGE
        exposed = answer.headers["access-control-expose-headers"].lower()
        assert "waypost-decision" in exposed
        assert "x-request-id" in exposed


async def test_a_page_of_any_other_origin_is_told_nothing(open_to_pages: Running) -> None:
    other = {"Origin": "https://app.example.evil.example"}
    preflight = await open_to_pages.client.options(
        "/v1/chat/completions", headers={**PREFLIGHT, **other}
    )
    answer = await open_to_pages.chat(headers=other)

    assert preflight.status_code == 400
    for one in (preflight, answer):
        assert "access-control-allow-origin" not in one.headers


@pytest.mark.parametrize("path", ["/console/login", "/admin/bundle", "/metrics", "/readyz"])
async def test_what_is_for_operators_is_for_no_other_page(
    open_to_pages: Running, path: str
) -> None:
    for answer in (
        await open_to_pages.client.options(path, headers=PREFLIGHT),
        await open_to_pages.client.get(path, headers={"Origin": PAGE}),
    ):
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "origin", ["app.example", "https://app.example/path", "https://*.example", "null"]
)
def test_an_origin_that_no_browser_sends_is_an_error(tmp_path: Path, origin: str) -> None:
    with pytest.raises((ValueError, ConfigError)):
        settings(tmp_path, {"acme": {"base_url": "http://x/v1"}}, cors={"origins": [origin]})
