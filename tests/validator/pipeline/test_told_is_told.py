"""What the wire told is what is charged: a whole validator, and providers that tell it their way.

Each case is a kind of report that was seen of a real provider; ledger and record agree on it.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.upstream import Behaviour, Exchange, answering, running_upstream
from support.validator import Running, running_validator
from support.worlds import a_model, a_policy
from waypost.shared.contracts import ENDPOINTS, Policy, Route
from waypost.shared.money import MTOK, Price
from waypost.shared.records import DecisionRecord

pytestmark = pytest.mark.anyio

# Claude's list price, in nano-dollars per token: 3,000 in, 15,000 out.
PRICE = Price(
    input_nusd_per_mtok=3_000 * MTOK,
    output_nusd_per_mtok=15_000 * MTOK,
    cached_input_nusd_per_mtok=300 * MTOK,
    cache_write_nusd_per_mtok=3_750 * MTOK,
)
HI = {"model": "auto", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 64}
# A turn of an agent: long enough that what is held bounds what is told of it below.
LONG = {**HI, "messages": [{"role": "user", "content": "x" * 200_000}]}
START = {"input_tokens": 3, "cache_read_input_tokens": 15_000, "cache_creation_input_tokens": 500}
START_NUSD = 3 * 3_000 + 15_000 * 300 + 500 * 3_750
PATHS = {
    "chat.completions": "/v1/chat/completions",
    "embeddings": "/v1/embeddings",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
}


def policy() -> Policy:
    def model(name: str) -> Any:  # noqa: ANN401
        return a_model(
            name, provider=name, price=PRICE, endpoints=ENDPOINTS, context_tokens=400_000
        )

    return a_policy(
        models=(model("one"), model("two")),
        routes=(Route(name="default", models=("one",), fallback=("two",)),),
        last_resort=(),
    )


@asynccontextmanager
async def world(folder: Path, behave: Behaviour, *, dialect: str) -> AsyncGenerator[Running]:
    def change(providers: dict[str, Any]) -> None:
        providers["one"]["dialect"] = dialect

    async with (
        running_upstream(behave) as one,
        running_upstream(answering("Here instead.")) as two,
        running_validator(
            folder, {"one": one, "two": two}, policy=policy(), change=change
        ) as validator,
    ):
        yield validator


async def charged(validator: Running, record: DecisionRecord) -> int:
    """Return what the request cost, on which ledger and record agree."""
    spent, held = await validator.settled()
    assert (spent, held) == (record.cost_nusd, 0)
    assert sum(attempt.cost_nusd for attempt in record.attempts) == record.cost_nusd
    return spent


def told(status: int, body: object) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        await exchange.respond(status, json.dumps(body).encode())

    return behave


def events(*some: object, then: str = "end") -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        for one in some:
            data = one if isinstance(one, bytes) else json.dumps(one).encode()
            await exchange.chunk(b"data: " + data + b"\n\n")
            await asyncio.sleep(0.01)
        match then:
            case "end":
                await exchange.end_stream()
            case "reset":
                await asyncio.sleep(0.05)
                exchange.reset()
            case _:
                await asyncio.sleep(3_600)

    return behave


def message_start(**usage: object) -> dict[str, Any]:
    message = {"type": "message", "role": "assistant", "content": [], "model": "m", "usage": usage}
    return {"type": "message_start", "message": {"id": "msg_1", **message}}


BLOCK = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
TEXT = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Four."}}
STOPPED = {"type": "message_stop"}


def message_delta(**usage: object) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}


def chunk(text: str | None = None, **more: object) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": None if text else "stop"}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [choice], **more}


async def ask(validator: Running, api: str, body: object) -> httpx.Response:
    return await validator.client.post(PATHS[api], json=body, headers=validator.headers())


# ── streams that do not come to their end ──────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["the caller hangs up", "the provider resets"])
async def test_a_stopped_stream_costs_the_prompt_as_told_and_the_answer_by_its_bytes(
    tmp_path: Path, how: str
) -> None:
    then = "stay" if how == "the caller hangs up" else "reset"
    behave = events(message_start(**START, output_tokens=1), BLOCK, TEXT, then=then)
    async with world(tmp_path, behave, dialect="anthropic") as validator:
        async with validator.client.stream(
            "POST", PATHS["messages"], json={**LONG, "stream": True}, headers=validator.headers()
        ) as response:
            async for line in response.aiter_lines():
                if "Four." in line and then == "stay":
                    break
        record = await validator.record(response)

        # One token was told, and five bytes came after that.
        assert await charged(validator, record) == START_NUSD + 6 * 15_000
        assert record.unconfirmed_nusd == record.cost_nusd


async def test_a_stream_that_ends_without_its_last_word_is_bounded_by_what_came_after_it(
    tmp_path: Path,
) -> None:
    behave = events(message_start(**START, output_tokens=1), BLOCK, TEXT, STOPPED)
    async with world(tmp_path, behave, dialect="anthropic") as validator:
        record = await validator.record(await ask(validator, "messages", {**LONG, "stream": True}))

        assert await charged(validator, record) == START_NUSD + 6 * 15_000


# ── reports that say too little ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("usage", [{}, None, {"total_tokens": 300}, {"cost": 0.01}, "much"])
@pytest.mark.parametrize("api", ["chat.completions", "messages", "responses"])
async def test_a_usage_without_counts_is_charged_like_none(
    tmp_path: Path, api: str, usage: object
) -> None:
    answers: dict[str, dict[str, Any]] = {
        "chat.completions": {
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "Four."}}]
        },
        "messages": {"type": "message", "content": [{"type": "text", "text": "Four."}]},
        "responses": {"object": "response", "output": []},
    }
    dialect = "anthropic" if api == "messages" else "openai"
    body = {"model": "auto", "input": "Hi", "max_output_tokens": 64} if api == "responses" else HI
    behave = told(200, {**answers[api], "usage": usage})
    async with world(tmp_path, behave, dialect=dialect) as validator:
        record = await validator.record(await ask(validator, api, body))

        cost = await charged(validator, record)
        assert cost > 60 * 3_000 + 40 * 15_000  # the bytes of prompt and answer at least
        assert record.unconfirmed_nusd == cost
        assert record.usage is None


@pytest.mark.parametrize("usage", [{"total_tokens": 300}, {"prompt_tokens": 300},
                                   {"prompt_tokens": 0, "total_tokens": 300}])  # fmt: skip
async def test_the_total_of_embeddings_is_their_input(tmp_path: Path, usage: object) -> None:
    behave = told(200, {"object": "list", "data": [], "usage": usage})
    body = {"model": "auto", "input": "x" * 2_000}
    async with world(tmp_path, behave, dialect="openai") as validator:
        record = await validator.record(await ask(validator, "embeddings", body))

        assert await charged(validator, record) == 300 * 3_000
        assert record.unconfirmed_nusd == 0


@pytest.mark.parametrize("later", [{}, {"cost": 0.01}, {"prompt_tokens": 0, "completion_tokens": 0},
                                   {"prompt_tokens": None}])  # fmt: skip
async def test_a_later_emptier_usage_erases_nothing(tmp_path: Path, later: object) -> None:
    usage = {"prompt_tokens": 20, "completion_tokens": 7}
    behave = events(chunk("Four."), chunk(usage=usage), {"choices": [], "usage": later}, b"[DONE]")
    async with world(tmp_path, behave, dialect="openai") as validator:
        response = await ask(validator, "chat.completions", {**HI, "stream": True})
        record = await validator.record(response)

        assert await charged(validator, record) == 20 * 3_000 + 7 * 15_000
        assert record.unconfirmed_nusd == 0


@pytest.mark.parametrize("api", ["messages", "chat.completions"], ids=["native", "translated"])
async def test_a_zero_in_the_end_does_not_take_the_prompt_back(tmp_path: Path, api: str) -> None:
    last = message_delta(input_tokens=0, output_tokens=7)
    behave = events(message_start(input_tokens=5_000, output_tokens=1), BLOCK, TEXT, last, STOPPED)
    async with world(tmp_path, behave, dialect="anthropic") as validator:
        record = await validator.record(await ask(validator, api, {**LONG, "stream": True}))

        assert await charged(validator, record) == 5_000 * 3_000 + 7 * 15_000
        assert record.unconfirmed_nusd == 0


async def test_the_usage_of_a_chunk_that_is_strange_is_read(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 20, "completion_tokens": 7}
    last = {"choices": None, "usage": usage}
    behave = events(chunk("Four."), chunk(), last, b"[DONE]")
    async with world(tmp_path, behave, dialect="openai") as validator:
        response = await ask(validator, "chat.completions", {**HI, "stream": True})
        record = await validator.record(response)

        assert await charged(validator, record) == 20 * 3_000 + 7 * 15_000
        assert record.unconfirmed_nusd == 0


async def test_what_is_thought_by_then_is_charged_of_a_stream_that_is_cut(tmp_path: Path) -> None:
    usage = {"promptTokenCount": 20, "thoughtsTokenCount": 30, "totalTokenCount": 50}
    part = {"candidates": [{"content": {"parts": [{"text": "Four."}]}}], "usageMetadata": usage}
    behave = events(part, then="reset")
    async with world(tmp_path, behave, dialect="gemini") as validator:
        response = await ask(validator, "chat.completions", {**HI, "stream": True})
        record = await validator.record(response)

        assert await charged(validator, record) == 20 * 3_000 + 35 * 15_000
        assert record.unconfirmed_nusd == record.cost_nusd


async def test_a_failure_that_tells_what_it_used_costs_that(tmp_path: Path) -> None:
    usage = {"input_tokens": 20, "output_tokens": 50, "total_tokens": 70}
    failed = {"status": "failed", "error": {"code": "server_error"}, "usage": usage}
    behave = events({"type": "response.failed", "response": failed})
    body = {"model": "auto", "input": "Hi", "max_output_tokens": 64, "stream": True}
    async with world(tmp_path, behave, dialect="openai") as validator:
        record = await validator.record(await ask(validator, "responses", body))

        assert record.attempts[0].outcome == "server_error"
        assert record.attempts[0].cost_nusd == 20 * 3_000 + 50 * 15_000
        assert await charged(validator, record) == record.cost_nusd


# ── reports that say more than the visible sides ───────────────────────────────────────────────


@pytest.mark.parametrize(
    "where",
    [
        lambda usage: {"usage": usage},
        lambda usage: {"x_groq": {"usage": usage}},
        lambda usage: {"choices": [{"index": 0, "delta": {}, "usage": usage}]},
    ],
    ids=["above", "x_groq", "choice"],
)
async def test_all_of_the_total_is_paid_wherever_it_is_told(tmp_path: Path, where: Any) -> None:  # noqa: ANN401
    usage = {"prompt_tokens": 35, "completion_tokens": 12, "total_tokens": 109}
    behave = events(chunk("Four."), chunk(), {"choices": [], **where(usage)}, b"[DONE]")
    async with world(tmp_path, behave, dialect="openai") as validator:
        response = await ask(
            validator, "chat.completions", {**HI, "max_tokens": 99, "stream": True}
        )
        record = await validator.record(response)

        assert await charged(validator, record) == 35 * 3_000 + 74 * 15_000


async def test_iterations_and_hour_long_cache_writes_are_paid(tmp_path: Path) -> None:
    usage = {
        "input_tokens": 3,
        "output_tokens": 7,
        "cache_creation_input_tokens": 1_000,
        "cache_creation": {"ephemeral_1h_input_tokens": 1_000, "ephemeral_5m_input_tokens": 0},
        "iterations": [
            {"type": "compaction", "input_tokens": 9_000, "output_tokens": 30},
            {"type": "message", "input_tokens": 3, "output_tokens": 7},
        ],
    }
    behave = told(200, {"type": "message", "content": [], "usage": usage})
    async with world(tmp_path, behave, dialect="anthropic") as validator:
        record = await validator.record(await ask(validator, "messages", LONG))

        assert await charged(validator, record) == 9_003 * 3_000 + 1_000 * 6_000 + 37 * 15_000


# ── answers that are none ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        b'{"error":{"message":"Provider returned error","code":502}}',
        b'{"error":{"message":"overloaded"},"user_id":"u"}',
        b"<!doctype html><title>Log in</title>",
        b"",
    ],
    ids=["OpenRouter", "short", "page", "empty"],
)
async def test_an_error_is_free_whatever_its_status_says(
    tmp_path: Path, body: bytes, streamed: bool
) -> None:
    async def behave(exchange: Exchange) -> None:
        await exchange.respond(200, body)

    async with world(tmp_path, behave, dialect="openai") as validator:
        response = await ask(validator, "chat.completions", {**HI, "stream": streamed})
        record = await validator.record(response)

        assert response.status_code == 200
        assert [attempt.cost_nusd > 0 for attempt in record.attempts] == [False, True]
        assert await charged(validator, record) == 20 * 3_000 + 7 * 15_000


@pytest.mark.parametrize("reason", ["UNEXPECTED_TOOL_CALL", "MALFORMED_FUNCTION_CALL", "OTHER"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_that_makes_no_sense_costs_what_it_told(
    tmp_path: Path, reason: str, streamed: bool
) -> None:
    usage = {"promptTokenCount": 100, "candidatesTokenCount": 7, "totalTokenCount": 107}
    answer = {"candidates": [{"finishReason": reason, "content": {}}], "usageMetadata": usage}
    behave = events(answer) if streamed else told(200, answer)
    async with world(tmp_path, behave, dialect="gemini") as validator:
        response = await ask(validator, "chat.completions", {**HI, "stream": streamed})
        record = await validator.record(response)

        assert [attempt.outcome for attempt in record.attempts] == ["bad_response", "ok"]
        first = 100 * 3_000 + 7 * 15_000
        assert record.attempts[0].cost_nusd == first
        assert await charged(validator, record) == first + 20 * 3_000 + 7 * 15_000


async def test_a_usage_beyond_what_the_request_can_cost_is_charged_as_that_and_said_to_be_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    usage = {"prompt_tokens": 10**12, "completion_tokens": 7}
    behave = told(200, {"choices": [{"index": 0, "message": {}}], "usage": usage})
    async with world(tmp_path, behave, dialect="openai") as validator:
        record = await validator.record(await ask(validator, "chat.completions", HI))

        assert await charged(validator, record) == record.reserved_nusd
        assert record.unconfirmed_nusd == record.cost_nusd
        assert record.attempts[0].told_nusd == 10**12 * 3_000 + 7 * 15_000
        assert record.usage is None
    assert any("more than the" in one.getMessage() for one in caplog.records)
