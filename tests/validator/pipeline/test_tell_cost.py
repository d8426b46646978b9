"""What callers are told of the cost is what is charged: by each API, whoever answers."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from pydantic import BaseModel

from support.dialects import three_models
from support.upstream import (
    USAGE,
    Behaviour,
    Exchange,
    answering,
    breaking_off_after,
    completion,
    event,
    running_upstream,
)
from support.validator import Running, running_validator
from support.wires import generating, messaging, named_event, streaming
from waypost.shared.wire.headers import parse_decision

pytestmark = pytest.mark.anyio

RESPONSE: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "created_at": 0,
    "model": "m",
    "output": [],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "status": "completed",
    "usage": {"input_tokens": 20, "output_tokens": 7, "total_tokens": 27},
}
TELLS = {"header": True, "usage": True}
HI = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI, "max_tokens": 64},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 64},
    "/v1/embeddings": {"input": "Hi"},
    "/v1/messages": {"messages": HI, "max_tokens": 64},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 64},
}
CASES = [
    (path, model)
    for path in BODIES
    for model in ("gpt", "claude", "gemini")
    if model == "gpt" or path not in ("/v1/completions", "/v1/embeddings")
]


async def speaking_openai(exchange: Exchange) -> None:
    """Answers by each of OpenAI's APIs."""
    path, streamed = exchange.seen.path, exchange.seen.json.get("stream")
    if path.endswith("/responses"):
        delta = {"type": "response.output_text.delta", "delta": "Four."}
        if streamed:
            end = {"type": "response.completed", "response": RESPONSE}
            await streaming([named_event(delta), named_event(end)])(exchange)
        else:
            await exchange.respond(200, json.dumps(RESPONSE, indent=1).encode())
    elif path.endswith("/embeddings"):
        data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
        body = {"object": "list", "model": "m", "data": data, "usage": {"prompt_tokens": 2}}
        await exchange.respond(200, json.dumps(body).encode())
    else:
        await answering()(exchange)


@asynccontextmanager
async def world(
    folder: Path, tells: dict[str, bool], *, behave: Behaviour = speaking_openai
) -> AsyncGenerator[Running]:
    def change(providers: dict[str, Any]) -> None:
        providers["anthropic"]["dialect"] = "anthropic"
        providers["google"]["dialect"] = "gemini"

    async with (
        running_upstream(behave) as gpt,
        running_upstream(messaging()) as claude,
        running_upstream(generating()) as gemini,
        running_validator(
            folder,
            {"openai": gpt, "anthropic": claude, "google": gemini},
            policy=three_models(),
            change=change,
            tell_cost=tells,
        ) as validator,
    ):
        yield validator


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def telling(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Running]:
    async with world(tmp_path_factory.mktemp("telling"), TELLS) as validator:
        yield validator


async def ask(validator: Running, path: str, **body: object) -> httpx.Response:
    whole = {"model": "gpt", **BODIES[path], **body}
    return await validator.client.post(path, json=whole, headers=validator.headers())


def nusd(cost: float) -> int:
    return round(cost * 10**9)


@pytest.mark.parametrize(("path", "model"), CASES)
async def test_an_answer_in_one_piece_tells_what_is_charged(
    telling: Running, path: str, model: str
) -> None:
    before, _ = await telling.settled()
    answer = await ask(telling, path, model=model)
    record = await telling.record(answer)
    after, _ = await telling.settled()

    assert record.cost_nusd == after - before > 0
    assert nusd(answer.json()["usage"]["cost"]) == record.cost_nusd
    told = parse_decision(answer.headers["waypost-cost"])
    assert told == {"nusd": record.cost_nusd, "confirmed": True}


def last_usage(path: str, text: str) -> dict[str, Any]:
    """Return the usage of the last event that has one; no other may have a cost."""
    lines = [line[5:] for line in text.splitlines() if line.startswith("data:")]
    told = [json.loads(line) for line in lines if not line.strip().startswith("[DONE]")]
    with_usage = [one.get("response", one) for one in told if '"usage"' in json.dumps(one)]
    with_usage = [one for one in with_usage if one.get("usage")]
    assert text.count('"cost"') == 1
    return dict(with_usage[-1]["usage"])


@pytest.mark.parametrize(("path", "model"), [c for c in CASES if c[0] != "/v1/embeddings"])
async def test_the_last_event_of_a_stream_tells_what_is_charged(
    telling: Running, path: str, model: str
) -> None:
    before, _ = await telling.settled()
    orders = {"stream_options": {"include_usage": True}} if "completions" in path else {}
    answer = await ask(telling, path, model=model, stream=True, **orders)
    record = await telling.record(answer)
    after, _ = await telling.settled()

    assert record.cost_nusd == after - before > 0
    assert nusd(last_usage(path, answer.text)["cost"]) == record.cost_nusd
    assert "waypost-cost" not in answer.headers, "not known yet when a stream begins"


async def test_a_stream_whose_usage_nobody_ordered_tells_no_cost(telling: Running) -> None:
    answer = await ask(telling, "/v1/chat/completions", stream=True)

    assert "usage" not in answer.text
    assert "cost" not in answer.text


async def test_the_official_sdks_give_the_field_on(telling: Running) -> None:
    token = telling.bearer().removeprefix("Bearer ")
    async with openai.AsyncOpenAI(base_url=f"{telling.url}/v1", api_key=token) as gpt:
        chat = await gpt.chat.completions.create(model="gpt", messages=HI)  # type: ignore[arg-type]
        response = await gpt.responses.create(model="gpt", input="Hi")
        usages: list[BaseModel | None] = [chat.usage, response.usage]
    async with anthropic.AsyncAnthropic(base_url=telling.url, auth_token=token) as claude:
        answer = await claude.messages.create(model="claude", max_tokens=9, messages=HI)  # type: ignore[arg-type]
        async with claude.messages.stream(model="claude", max_tokens=9, messages=HI) as events:  # type: ignore[arg-type]
            streamed = await events.get_final_message()

    for usage in (*usages, answer.usage):
        assert usage is not None
        assert usage.model_extra is not None
        assert usage.model_extra["cost"] > 0
    # It adds up a stream's usage by the names it knows.
    assert streamed.usage.output_tokens == answer.usage.output_tokens


async def test_without_the_switch_nothing_is_told_and_no_byte_changes(tmp_path: Path) -> None:
    async with world(tmp_path, {}) as validator:
        answer = await ask(validator, "/v1/responses")

        assert answer.content == json.dumps(RESPONSE, indent=1).encode()
        assert "waypost-cost" not in answer.headers


async def test_each_switch_is_for_itself(tmp_path: Path) -> None:
    (tmp_path / "header").mkdir()
    (tmp_path / "usage").mkdir()
    async with world(tmp_path / "header", {"header": True}) as validator:
        answer = await ask(validator, "/v1/chat/completions")
        streamed = await ask(
            validator, "/v1/chat/completions", stream=True, stream_options={"include_usage": True}
        )
        assert "waypost-cost" in answer.headers
        assert "cost" not in answer.json()["usage"]
        assert '"cost"' not in streamed.text
    async with world(tmp_path / "usage", {"usage": True}) as validator:
        answer = await ask(validator, "/v1/chat/completions")
        assert "waypost-cost" not in answer.headers
        assert answer.json()["usage"]["cost"] > 0


async def test_a_cost_that_no_provider_confirmed_says_so(tmp_path: Path) -> None:
    async with world(tmp_path, TELLS, behave=answering(usage=None)) as validator:
        answer = await ask(validator, "/v1/chat/completions")
        record = await validator.record(answer)

        assert record.unconfirmed_nusd == record.cost_nusd > 0
        told = parse_decision(answer.headers["waypost-cost"])
        assert told == {"nusd": record.cost_nusd, "confirmed": False}
        assert "usage" not in answer.json(), "no usage is made for it"


async def test_what_another_attempt_cost_is_told_apart(tmp_path: Path) -> None:
    """The first model breaks off in its answer, and is charged; another answers."""
    torn = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{"

    async def breaking(exchange: Exchange) -> None:
        await exchange.send(torn)
        exchange.close()

    async with world(tmp_path, TELLS, behave=breaking) as validator:
        answer = await ask(validator, "/v1/chat/completions", model="gpt")
        record = await validator.record(answer)

        first, last = record.attempts
        assert first.cost_nusd > 0
        assert last.cost_nusd > 0
        told = parse_decision(answer.headers["waypost-cost"])
        assert told["nusd"] == last.cost_nusd
        assert told["others_nusd"] == first.cost_nusd
        assert nusd(answer.json()["usage"]["cost"]) == last.cost_nusd
        assert record.cost_nusd == first.cost_nusd + last.cost_nusd


async def test_a_stream_that_is_cut_tells_no_cost(tmp_path: Path) -> None:
    cut = breaking_off_after(event("Fo"), event("ur", usage=USAGE))
    async with world(tmp_path, TELLS, behave=cut) as validator:
        answer = await ask(
            validator, "/v1/chat/completions", stream=True, stream_options={"include_usage": True}
        )

        assert '"cost"' not in answer.text


async def test_a_usage_with_each_piece_has_the_cost_at_the_end_alone(tmp_path: Path) -> None:
    part = {"prompt_tokens": 20, "completion_tokens": 1, "total_tokens": 21}
    pieces = [event("Fo", usage=part), event("ur.", usage=part), event(None, usage=USAGE)]
    async with world(tmp_path, TELLS, behave=streaming(pieces, pause_s=0.01)) as validator:
        answer = await ask(
            validator, "/v1/chat/completions", stream=True, stream_options={"include_usage": True}
        )
        record = await validator.record(answer)

        assert nusd(last_usage("", answer.text)["cost"]) == record.cost_nusd
        assert json.loads(answer.text.split("data: ")[3])["usage"]["cost"] > 0


async def test_a_large_answer_is_told_its_cost_and_is_else_untouched(tmp_path: Path) -> None:
    whole = completion("x" * 300_000)

    async def large(exchange: Exchange) -> None:
        await exchange.respond(200, whole)

    async with world(tmp_path, TELLS, behave=large) as validator:
        answer = await ask(validator, "/v1/chat/completions")

    told = answer.json()
    assert told["usage"].pop("cost") > 0
    assert told == json.loads(whole)
