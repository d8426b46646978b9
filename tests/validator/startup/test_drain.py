"""What becomes of answers under way when a validator stops: they end, or are told that they cannot."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec import structs

from support.serving import Project, eventually
from support.upstream import DONE, Behaviour, Exchange, event, running_upstream
from waypost.shared.contracts import SpendLimit
from waypost.shared.records import DecisionRecord
from waypost.validator.config import load_config
from waypost.validator.dialects.sse import write_event
from waypost.validator.ledger import scope_of
from waypost.validator.startup.assembly import open_services

pytestmark = pytest.mark.anyio

CHAT = {"model": "auto", "messages": [{"role": "user", "content": "Tell me a story."}]}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/messages": {**CHAT, "max_tokens": 500},
    "/v1/responses": {"model": "auto", "input": "Tell me a story."},
}


RESPONSE_DELTA = write_event(
    {"type": "response.output_text.delta", "delta": "Once upon a time"},
    name="response.output_text.delta",
)


def beginning(goes_on: asyncio.Event) -> Behaviour:
    """Begin a stream, and end it only when the event says so; give no whole answer at all."""

    async def behave(exchange: Exchange) -> None:
        if exchange.seen.json.get("stream"):
            await exchange.start_stream()
            is_response = exchange.seen.path.endswith("/responses")
            await exchange.chunk(RESPONSE_DELTA if is_response else event("Once upon a time"))
        await goes_on.wait()
        await exchange.chunk(event(None) + DONE)
        await exchange.end_stream()

    return behave


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    policy = made.publisher.policy
    conversations = ("chat.completions", "messages", "responses")
    models = tuple(structs.replace(one, endpoints=conversations) for one in policy.models)
    made.publisher.policy = structs.replace(policy, models=models)
    made.publish()
    return made


async def begun(client: httpx.AsyncClient, path: str, project: Project) -> httpx.Response:
    """Return a stream that has said something."""
    request = client.build_request(
        "POST",
        path,
        json={**BODIES[path], "stream": True},
        headers={"Authorization": project.bearer()},
    )
    response = await client.send(request, stream=True)
    assert response.status_code == 200, await response.aread()
    return response


async def what_is_left(
    project: Project, ids: list[str]
) -> tuple[list[DecisionRecord | None], int, int]:
    """Return the records, what was spent, and what is still held."""
    environment = {**os.environ, "ACME_KEY": "sk"}
    async with open_services(load_config(project.file), environment=environment) as services:
        records = [await services.records.get(one) for one in ids]
        scope = scope_of("account:acme", (SpendLimit(window="total", limit_nusd=10**15),))
        (balance,) = await services.ledger.balances((scope,), now=int(time.time()))
    return records, balance.spent_nusd, balance.reserved_nusd


async def test_what_outlasts_the_drain_is_told_so_settled_and_recorded(project: Project) -> None:
    never = asyncio.Event()
    options = ("--workers", "2", "--grace-s", "0", "--drain-s", "1")
    async with running_upstream(beginning(never)) as acme:
        project.write(port=acme.port)
        serving = project.running(*options)
        running = await asyncio.to_thread(serving.__enter__)
        try:
            async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
                streams = [await begun(client, path, project) for path in BODIES]
                whole = asyncio.create_task(
                    client.post(
                        "/v1/chat/completions",
                        json=CHAT,
                        headers={"Authorization": project.bearer()},
                    )
                )
                await asyncio.to_thread(eventually, lambda: len(acme.seen) == 4, "all are asked")
                running.signal(signal.SIGTERM)

                for stream in streams:
                    said = await stream.aread()
                    assert b"Once upon a time" in said
                    assert b'"stopping"' in said, said
                answer = await whole
                assert answer.status_code == 503
                assert answer.json()["error"]["code"] == "stopping"
            assert await asyncio.to_thread(running.ended) == 0
        finally:
            await asyncio.to_thread(serving.__exit__, None, None, None)

    ids = [one.headers["x-request-id"] for one in (*streams, answer)]
    records, spent, held = await what_is_left(project, ids)
    assert [r and r.attempts[-1].outcome for r in records] == ["stopped"] * 4
    assert [r and r.http_status for r in records] == [200, 200, 200, 503]
    costs = [0 if record is None else record.cost_nusd for record in records]
    assert all(costs)
    assert (spent, held) == (sum(costs), 0)


async def test_without_a_limit_streams_end_by_themselves_while_the_port_refuses(
    project: Project,
) -> None:
    goes_on = asyncio.Event()
    options = ("--workers", "2", "--grace-s", "0", "--drain-s", "0")
    async with running_upstream(beginning(goes_on)) as acme:
        project.write(port=acme.port)
        serving = project.running(*options)
        running = await asyncio.to_thread(serving.__enter__)
        try:
            async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
                stream = await begun(client, "/v1/chat/completions", project)
                running.signal(signal.SIGTERM)
                await asyncio.to_thread(eventually, running.refuses, "the port refuses")
                goes_on.set()
                assert (await stream.aread()).endswith(b"data: [DONE]\n\n")
            assert await asyncio.to_thread(running.ended) == 0
        finally:
            await asyncio.to_thread(serving.__exit__, None, None, None)
