"""Streams: passed on as they arrive, and settled honestly however they end."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from support.upstream import (
    DONE,
    USAGE,
    Exchange,
    Upstream,
    answering,
    breaking_off_after,
    event,
    failing,
    usage_event,
)
from support.validator import HELLO, Running
from waypost.shared.money import Usage

pytestmark = pytest.mark.anyio

STREAM = {**HELLO, "stream": True}


def events(text: str) -> list[Any]:
    """Return the JSON of each event, and ``[DONE]`` as it is."""
    payloads = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [payload if payload == "[DONE]" else json.loads(payload) for payload in payloads]


def said(text: str) -> str:
    return "".join(
        choice["delta"].get("content", "")
        for one in events(text)
        if one != "[DONE]"
        for choice in one.get("choices", [])
    )


async def test_each_event_arrives_when_the_provider_sends_it(
    validator: Running, acme: Upstream
) -> None:
    may_go_on = asyncio.Event()

    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.chunk(event("first"))
        await may_go_on.wait()
        await exchange.chunk(event("second") + usage_event() + DONE)
        await exchange.end_stream()

    acme.behave = behave
    async with validator.client.stream(
        "POST", "/v1/chat/completions", json=STREAM, headers=validator.headers()
    ) as response:
        chunks = response.aiter_text()
        assert said(await anext(chunks)) == "first"
        may_go_on.set()
        assert said("".join([chunk async for chunk in chunks])) == "second"

    assert response.headers["content-type"].startswith("text/event-stream")
    record = await validator.record(response)
    assert (record.streamed, record.usage) == (True, Usage(input_tokens=20, output_tokens=7))
    assert record.ttft_ms is not None
    assert record.ttft_ms <= record.duration_ms


async def test_the_provider_is_always_asked_for_its_usage(
    validator: Running, acme: Upstream
) -> None:
    await validator.chat({**STREAM, "stream_options": {"include_obfuscation": False}})

    assert acme.seen[0].json["stream_options"] == {
        "include_obfuscation": False,
        "include_usage": True,
    }


async def test_a_usage_that_the_caller_did_not_order_is_kept_from_them(
    validator: Running,
) -> None:
    response = await validator.chat(STREAM)

    assert all(one == "[DONE]" or one["choices"] for one in events(response.text))
    assert (await validator.record(response)).usage is not None


async def test_a_usage_that_the_caller_ordered_reaches_them(validator: Running) -> None:
    response = await validator.chat({**STREAM, "stream_options": {"include_usage": True}})

    assert [one["usage"] for one in events(response.text)[:-1] if not one["choices"]] == [USAGE]


async def test_a_usage_on_an_event_with_text_is_counted_and_passed_on(
    validator: Running, acme: Upstream
) -> None:
    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.chunk(event("all of it", usage=USAGE) + DONE)
        await exchange.end_stream()

    acme.behave = behave
    response = await validator.chat(STREAM)

    assert said(response.text) == "all of it"
    assert (await validator.record(response)).usage == Usage(input_tokens=20, output_tokens=7)


async def test_events_that_come_in_pieces_are_passed_on_whole(
    validator: Running, acme: Upstream
) -> None:
    whole = event("ein") + event("zwei") + event(None) + usage_event() + DONE

    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        for place in range(0, len(whole), 11):
            await exchange.chunk(whole[place : place + 11])
        await exchange.end_stream()

    acme.behave = behave
    response = await validator.chat({**STREAM, "stream_options": {"include_usage": True}})

    assert response.content == whole


async def test_a_provider_that_dies_in_the_middle_is_told_and_charged_for_what_came(
    validator: Running, acme: Upstream
) -> None:
    text = "word " * 40
    acme.behave = breaking_off_after(event(text), event("more"), b'data: {"cho')

    response = await validator.chat(STREAM)

    *answer, error = events(response.text)
    assert len(answer) == 2
    assert error["error"]["code"] == "upstream_cut_short"
    record = await validator.record(response)
    assert [attempt.outcome for attempt in record.attempts] == ["cut_short"]
    facts = record.facts
    assert facts is not None
    produced = len(text) + len("more")
    assert record.cost_nusd == facts.measured.max_input_tokens * 150 + produced * 600
    assert await validator.spent() == (record.cost_nusd, 0)


async def test_a_stream_that_stops_without_its_end_is_told(
    validator: Running, acme: Upstream
) -> None:
    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.chunk(event("half an ans"))
        await exchange.end_stream()

    acme.behave = behave
    response = await validator.chat(STREAM)

    assert events(response.text)[-1]["error"]["code"] == "upstream_cut_short"


async def test_a_provider_that_dies_before_the_first_event_is_replaced(
    validator: Running, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave = breaking_off_after(b'data: {"half')
    medcloud.behave = answering("Here instead.")

    response = await validator.chat(STREAM)

    assert said(response.text) == "Hereinstead."
    record = await validator.record(response)
    assert record.attempts[-1].provider == "medcloud"
    assert {attempt.provider for attempt in record.attempts[:-1]} == {"acme"}
    assert await validator.spent() == (record.cost_nusd, 0)


async def test_an_error_as_first_event_is_an_error_and_not_an_answer(
    validator: Running, acme: Upstream, medcloud: Upstream
) -> None:
    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.chunk(b'data: {"error": {"message": "overloaded"}}\n\n')
        await exchange.end_stream()

    acme.behave = behave
    response = await validator.chat(STREAM)

    assert response.status_code == 200
    assert (await validator.record(response)).model == "clinical"


async def test_an_error_event_in_the_middle_reaches_the_caller_once(
    validator: Running, acme: Upstream
) -> None:
    may_fail = asyncio.Event()

    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.chunk(event("so far"))
        await may_fail.wait()
        await exchange.chunk(b'data: {"error": {"message": "overloaded"}}\n\n')
        await exchange.end_stream()

    acme.behave = behave
    async with validator.client.stream(
        "POST", "/v1/chat/completions", json=STREAM, headers=validator.headers()
    ) as response:
        chunks = response.aiter_text()
        first = await anext(chunks)
        may_fail.set()
        text = first + "".join([chunk async for chunk in chunks])

    assert [one for one in events(text) if "error" in one] == [{"error": {"message": "overloaded"}}]
    assert (await validator.record(response)).attempts[0].outcome == "cut_short"


async def test_a_stream_request_answered_with_a_rejection_passes_that_on(
    validator: Running, acme: Upstream
) -> None:
    acme.behave = failing(400, code="bad_tool")

    response = await validator.chat(STREAM)

    assert (response.status_code, response.json()["error"]["code"]) == (400, "bad_tool")
    await validator.record(response)
    assert await validator.spent() == (0, 0)


async def test_a_caller_who_hangs_up_stops_the_provider_and_pays_for_what_came(
    validator: Running, acme: Upstream
) -> None:
    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        while True:
            await exchange.chunk(event("word"))
            await asyncio.sleep(0.01)

    acme.behave = behave
    async with validator.client.stream(
        "POST", "/v1/chat/completions", json=STREAM, headers=validator.headers()
    ) as response:
        await anext(response.aiter_raw())

    async with asyncio.timeout(20):
        await acme.hung_up.wait()
    record = await validator.record(response)
    assert [attempt.outcome for attempt in record.attempts] == ["cancelled"]
    assert 0 < record.cost_nusd < record.reserved_nusd
    assert await validator.spent() == (record.cost_nusd, 0)


async def test_a_caller_who_hangs_up_before_the_first_word_pays_for_the_prompt(
    validator: Running, acme: Upstream
) -> None:
    arrived = asyncio.Event()

    async def behave(_: Exchange) -> None:
        arrived.set()
        await asyncio.sleep(3_600)

    acme.behave = behave
    asking = asyncio.create_task(validator.chat(STREAM))
    async with asyncio.timeout(20):
        await arrived.wait()
        asking.cancel()
        await acme.hung_up.wait()
        assert await validator.settled() == (78 * 150, 0)


async def test_a_slow_reader_holds_the_provider_back(validator: Running, acme: Upstream) -> None:
    sent = 0

    async def behave(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.start_stream()
        for _ in range(2_000):
            await exchange.chunk(event("x" * 20_000))
            sent += 1

    acme.behave = behave
    host, port = validator.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1_024)
    body = json.dumps(STREAM).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: {validator.bearer()}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await reader.readuntil(b"\r\n\r\n")
    settled = -1
    async with asyncio.timeout(20):
        while settled != sent:
            settled = sent
            await asyncio.sleep(0.3)
    writer.close()

    # What is under way fits the sockets' buffers; 40 MB would not.
    assert sent < 1_500


async def test_the_decision_of_a_stream_can_be_looked_up(validator: Running) -> None:
    response = await validator.chat(STREAM)
    await validator.record(response)

    found: httpx.Response = await validator.client.get(
        f"/v1/decisions/{response.headers['x-request-id']}", headers=validator.headers()
    )

    assert found.json()["record"]["streamed"] is True
