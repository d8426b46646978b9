"""Requests that are wrong: a clear error with a stable code, nothing charged, nothing forwarded."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.shared_validator import fixtures
from support.tokens import App
from support.upstream import Upstream
from support.validator import HELLO, Running, running_validator
from waypost.validator.pipeline.understand import read_body

pytestmark = pytest.mark.anyio

acme, medcloud, validator, forgetful = fixtures()

CHAT = "/v1/chat/completions"


def hello(**changes: object) -> dict[str, Any]:
    return {**HELLO, **changes}


BODIES: dict[str, tuple[bytes | dict[str, Any], str, str | None]] = {
    "empty": (b"", "invalid_json", None),
    "not JSON": (b"hello", "invalid_json", None),
    "cut off": (b'{"model": "auto", "messages": [', "invalid_json", None),
    "not UTF-8": (b'{"messages": [{"role": "user", "content": "\xff"}]}', "invalid_json", None),
    "a list": (b"[]", "invalid_body", None),
    "too deep": (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json", None),
    "no messages": ({"model": "auto"}, "invalid_body", None),
    "empty messages": (hello(messages=[]), "invalid_body", "messages"),
    "messages as text": (hello(messages="hi"), "invalid_body", "messages"),
    "an unknown role": (
        hello(messages=[{"role": "wizard", "content": "hi"}]),
        "invalid_body",
        "messages[0].role",
    ),
    "a number as content": (
        hello(messages=[{"role": "user", "content": 7}]),
        "invalid_body",
        "messages[0].content",
    ),
    "negative max_tokens": (hello(max_tokens=-1), "invalid_body", "max_tokens"),
    "max_tokens as text": (hello(max_tokens="10"), "invalid_body", "max_tokens"),
    "a thousand answers": (hello(n=1_000), "invalid_body", "n"),
    "stream as text": (hello(stream="yes"), "invalid_body", "stream"),
    "a number as model": (hello(model=4), "invalid_body", "model"),
    "an unknown model": (hello(model="gpt-99"), "unknown_model", "model"),
}


@pytest.mark.parametrize("case", BODIES)
async def test_a_body_that_is_wrong_is_a_400_with_its_code(
    validator: Running, acme: Upstream, medcloud: Upstream, case: str
) -> None:
    body, code, param = BODIES[case]

    response = await validator.chat(body)

    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["code"], error["type"]) == (code, "invalid_request_error")
    assert error["param"] == param
    await nothing_came_of_it(validator, response, acme, medcloud)


async def nothing_came_of_it(
    validator: Running, response: httpx.Response, *upstreams: Upstream
) -> None:
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "code", "param"}
    assert "Traceback" not in response.text
    record = await validator.record(response)
    assert (record.verdict, record.reason) == ("refused", error["code"])
    assert record.http_status == response.status_code
    assert await validator.spent() == (0, 0)
    assert not any(upstream.seen for upstream in upstreams)


async def test_ten_megabytes_are_refused_before_they_are_read(
    validator: Running, acme: Upstream
) -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'{"messages": [{"role": "user", "content": "'
        for _ in range(160):
            sent += 1
            yield b"x" * 65_536
        yield b'"}]}'

    announced = await validator.chat(b'"' + b"x" * 10_000_000 + b'"')
    streamed = await validator.client.post(
        CHAT,
        content=body(),
        headers={**validator.headers(), "Content-Type": "application/json"},
    )

    for response in (announced, streamed):
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"
        await nothing_came_of_it(validator, response, acme)


async def test_a_body_in_chunks_is_as_good_as_one_in_a_piece(validator: Running) -> None:
    whole = json.dumps(HELLO).encode()

    async def body() -> AsyncIterator[bytes]:
        for place in range(0, len(whole), 7):
            yield whole[place : place + 7]
            await asyncio.sleep(0)

    response = await validator.client.post(
        CHAT,
        content=body(),
        headers={**validator.headers(account="bee"), "Content-Type": "application/json"},
    )

    assert response.status_code == 200


async def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path, acme: Upstream) -> None:
    limits = {"body_timeout_s": 0.1}
    async with running_validator(tmp_path, {"acme": acme}, limits=limits) as validator:
        host, port = validator.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: {validator.bearer()}\r\n"
            "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{".encode()
        )
        try:
            async with asyncio.timeout(20):
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readuntil(b'"code":"body_timeout"')
        finally:
            writer.close()
            await writer.wait_closed()

    assert head.startswith(b"HTTP/1.1 408 ")


async def test_a_caller_who_goes_away_in_the_middle_of_the_body_is_recorded(
    validator: Running, acme: Upstream
) -> None:
    host, port = validator.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: {validator.bearer()}\r\n"
        "Content-Length: 100\r\n\r\n{"
    )
    writer.write(head.encode())
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()
    await writer.wait_closed()

    # The server goes on with the next caller.
    assert (await validator.chat(account="bee")).status_code == 200
    assert len(acme.seen) == 1


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Content-Type": "text/plain"}, 415, "content_type_unsupported"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "content_type_unsupported"),
        ({"Content-Encoding": "gzip"}, 415, "content_encoding_unsupported"),
        ({"Waypost-Facts": 'data="phi'}, 400, "header_malformed"),
        ({"Waypost-Facts": "data=1"}, 400, "header_malformed"),
        ({"Waypost-Facts": "x" * 5_000}, 400, "header_malformed"),
        ({"Waypost-Proposal": "small"}, 400, "header_malformed"),
        ({"Waypost-Proposal": 'route="short-chat"'}, 400, "header_malformed"),
        ({"Waypost-Facts": 'data="unheard-of"'}, 403, "unknown_data_class"),
    ],
)
async def test_a_header_that_is_wrong_is_never_ignored(
    validator: Running,
    acme: Upstream,
    medcloud: Upstream,
    headers: dict[str, str],
    status: int,
    code: str,
) -> None:
    response = await validator.chat(headers=headers)

    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    await nothing_came_of_it(validator, response, acme, medcloud)


async def test_a_proposal_of_a_model_that_does_not_exist_is_overridden(
    validator: Running,
) -> None:
    response = await validator.chat(headers={"Waypost-Proposal": 'model="gpt-99"'}, account="bee")

    assert response.status_code == 200
    assert 'reason="unknown_model"' in response.headers["waypost-decision"]


async def test_declared_duties_on_two_lines_cannot_hide_each_other(
    validator: Running, acme: Upstream, medcloud: Upstream
) -> None:
    response = await validator.client.post(
        CHAT,
        json=HELLO,
        headers=[
            *validator.headers().items(),
            ("Waypost-Facts", 'data="phi"'),
            ("Waypost-Facts", 'data="pii"'),
        ],
    )

    assert (response.status_code, response.json()["error"]["code"]) == (400, "header_repeated")
    await nothing_came_of_it(validator, response, acme, medcloud)


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("missing", "token_missing"),
        ("basic", "token_auth_header"),
        ("repeated", "token_auth_header"),
        ("nonsense", "token_format"),
        ("expired", "token_expired"),
        ("unsigned", "token_format"),
        ("forged", "token_signature"),
        ("other key", "token_unknown_kid"),
        ("other audience", "token_audience"),
        ("not text", "token_auth_header"),
    ],
)
async def test_a_token_that_does_not_hold_is_a_401_with_its_code(
    validator: Running, acme: Upstream, medcloud: Upstream, case: str, code: str
) -> None:
    now = int(time.time())
    good = validator.bearer()
    headers: dict[str, list[tuple[bytes, bytes]]] = {
        "missing": [],
        "basic": [(b"authorization", b"Basic dXNlcjpwYXNz")],
        "repeated": [(b"authorization", good.encode())] * 2,
        "nonsense": [(b"authorization", b"Bearer abc")],
        "expired": [(b"authorization", validator.bearer(now=now - 3_600).encode())],
        "unsigned": [(b"authorization", good.rpartition(".")[0].encode() + b".")],
        "forged": [(b"authorization", App(kid=validator.app.kid).bearer(now=now).encode())],
        "other key": [(b"authorization", App(kid="nobody").bearer(now=now).encode())],
        "other audience": [(b"authorization", validator.bearer(aud="another").encode())],
        "not text": [(b"authorization", b"Bearer \xff\xfe")],
    }

    response = await validator.client.post(CHAT, json=HELLO, headers=headers[case])

    assert (response.status_code, response.json()["error"]["code"]) == (401, code)
    assert response.headers["www-authenticate"].startswith("Bearer")
    await nothing_came_of_it(validator, response, acme, medcloud)


async def test_a_token_anywhere_but_in_its_header_is_none(
    validator: Running, acme: Upstream, medcloud: Upstream
) -> None:
    # RFC 6750 §2.2 and §2.3 allow both; addresses and bodies are logged and cached.
    token = validator.bearer().removeprefix("Bearer ")

    response = await validator.client.post(
        CHAT,
        params={"access_token": token},
        json={**HELLO, "access_token": token},
        headers={"Cookie": f"access_token={token}", "Proxy-Authorization": f"Bearer {token}"},
    )

    assert (response.status_code, response.json()["error"]["code"]) == (401, "token_missing")
    await nothing_came_of_it(validator, response, acme, medcloud)


async def test_a_tier_that_the_policy_does_not_know_is_refused(
    validator: Running, acme: Upstream, medcloud: Upstream
) -> None:
    response = await validator.chat(tier="platinum")

    assert (response.status_code, response.json()["error"]["code"]) == (403, "unknown_tier")
    await nothing_came_of_it(validator, response, acme, medcloud)


async def test_a_picture_that_no_model_of_the_caller_can_see_is_a_400(
    validator: Running, acme: Upstream, medcloud: Upstream
) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    body = hello(messages=[{"role": "user", "content": [picture]}])

    response = await validator.chat(body, models=("small",))

    assert (response.status_code, response.json()["error"]["code"]) == (400, "capability_missing")
    await nothing_came_of_it(validator, response, acme, medcloud)


async def test_a_body_that_trickles_in_costs_no_more_than_one_that_comes_at_once() -> None:
    pieces = iter([b"x" * 4_000_000, *[b"x"] * 20_000])
    left = 20_001

    async def receive() -> dict[str, object]:
        nonlocal left
        left -= 1
        return {"type": "http.request", "body": next(pieces), "more_body": left > 0}

    before_s = time.process_time()
    body = await read_body(receive, {}, limit=5_000_000, timeout_s=60)

    assert len(body) == 4_020_000
    assert time.process_time() - before_s < 2  # copying all for each piece would take five
