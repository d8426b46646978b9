"""Where a stream begins and where it ends, as providers really end them, in every API."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types.responses import ResponseErrorEvent, ResponseFailedEvent

from support.upstream import (
    DONE,
    USAGE,
    Behaviour,
    Exchange,
    Upstream,
    answering,
    event,
    running_upstream,
    usage_event,
)
from support.validator import Running, running_validator
from support.wires import gemini_error, generated, message, message_events, named_event
from support.worlds import a_model, a_policy
from waypost.shared.contracts import ENDPOINTS, Route
from waypost.shared.money import Usage
from waypost.validator.pipeline import attempt

pytestmark = pytest.mark.anyio

APIS = ("chat.completions", "messages", "responses")
PATHS = {api: f"/v1/{api.replace('.', '/')}" for api in APIS}
BODIES: dict[str, dict[str, Any]] = {
    "chat.completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 50},
    "responses": {"input": "Hi"},
}
LAST = {
    "chat.completions": "[DONE]",
    "messages": "message_stop",
    "responses": "response.completed",
}
OPENAI_USAGE = Usage(input_tokens=20, output_tokens=7)


@dataclass
class World:
    """A validator whose first choice is a provider of some dialect, and whose second is openai."""

    validator: Running
    first: Upstream
    spare: Upstream

    async def ask(self, api: str) -> httpx.Response:
        return await self.validator.client.post(
            PATHS[api],
            json={"model": "auto", "stream": True, **BODIES[api]},
            headers=self.validator.headers(),
        )


@asynccontextmanager
async def running(folder: Path, dialect: str, **settings: Any) -> AsyncGenerator[World]:  # noqa: ANN401
    def change(providers: dict[str, Any]) -> None:
        providers["first"] |= {"dialect": dialect, **settings}

    policy = a_policy(
        models=(
            a_model("one", provider="first", endpoints=ENDPOINTS),
            a_model("two", provider="spare", endpoints=ENDPOINTS),
        ),
        data_classes={},
        routes=(Route(name="default", models=("one",), fallback=("two",)),),
        last_resort=(),
    )
    async with (
        running_upstream() as first,
        running_upstream(answering("Here instead.")) as spare,
        running_validator(
            folder, {"first": first, "spare": spare}, policy=policy, change=change
        ) as validator,
    ):
        yield World(validator, first, spare)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def worlds(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[dict[str, World]]:
    """By the dialect of the first choice; many tests fail it, and none rests it."""
    patient = {"timeout_s": 600, "breaker": {"failures": 1_000, "min_calls": 100_000}}
    async with AsyncExitStack() as stack:
        yield {
            dialect: await stack.enter_async_context(
                running(tmp_path_factory.mktemp(dialect), dialect, **patient)
            )
            for dialect in ("openai", "anthropic", "gemini")
        }


@pytest.fixture(autouse=True)
def _spare(worlds: dict[str, World]) -> None:
    """Each second choice does as it did in the beginning."""
    for world in worlds.values():
        world.spare.behave = answering("Here instead.")


def streaming(*pieces: bytes, then: str = "end", pause_s: float = 0.0) -> Behaviour:
    """Sends these pieces; then ends the body, resets, or leaves the connection as it is."""

    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        for piece in pieces:
            await exchange.chunk(piece)
            await asyncio.sleep(pause_s)
        match then:
            case "end":
                await exchange.end_stream()
            case "reset":
                await asyncio.sleep(0.05)  # let the bytes out before the reset overtakes them
                exchange.reset()
            case _:
                await asyncio.sleep(3_600)

    return behave


def payloads(text: str) -> list[Any]:
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


def kinds(text: str) -> list[str]:
    return [
        one if isinstance(one, str) else one.get("type", "error" if "error" in one else "chunk")
        for one in payloads(text)
    ]


def text_of(text: str) -> str:
    """Return what was said, in whatever API."""
    said = ""
    for one in payloads(text):
        if one == "[DONE]":
            continue
        for choice in one.get("choices") or ():
            said += choice["delta"].get("content") or ""
        if one.get("type") in ("content_block_delta", "response.output_text.delta"):
            piece: Any = one["delta"]
            said += piece if isinstance(piece, str) else piece.get("text", "")
    return said


def response(kind: str, number: int, **changes: object) -> bytes:
    whole: dict[str, Any] = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "in_progress",
        "model": "gpt-1",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        **changes,
    }
    return named_event({"type": kind, "sequence_number": number, "response": whole})


def delta(number: int, text: str = "Half") -> bytes:
    fields: dict[str, Any] = {"item_id": "m", "output_index": 0, "content_index": 0, "logprobs": []}
    return named_event(
        {
            "type": "response.output_text.delta",
            "sequence_number": number,
            "delta": text,
            **fields,
        }
    )


CHAT = (event("Four."), event(None))
ANTHROPIC = message_events(message("Four."))
GEMINI_END = b"data: " + json.dumps(generated("Four.")).encode() + b"\r\n\r\n"
RESPONSE = (
    response("response.created", 0),
    delta(1, "Four."),
    response("response.completed", 2, usage={"input_tokens": 20, "output_tokens": 7}),
)

# Whole answers as providers end them, and the usage they told: perplexity, cerebras and GPUStack
# send no mark of the end (llmgateway#1901, GoModel#1017).
WHOLE: dict[str, tuple[str, Sequence[bytes], Usage | None]] = {
    "no mark": ("openai", (*CHAT, usage_event()), OPENAI_USAGE),
    "no mark and no usage": ("openai", CHAT, None),
    "usage with the last word": ("openai", (CHAT[0], event(None, usage=USAGE)), OPENAI_USAGE),
    "a mark without a blank line": (
        "openai",
        (*CHAT, usage_event(), b"data: [DONE]\n"),
        OPENAI_USAGE,
    ),
    "a mark without a line end": ("openai", (*CHAT, usage_event(), b"data: [DONE]"), OPENAI_USAGE),
    "an end without a line end": ("openai", (CHAT[0], event(None, usage=USAGE)[:-2]), OPENAI_USAGE),
    "lines that end in returns": (
        "openai",
        tuple(one.replace(b"\n", b"\r") for one in (*CHAT, usage_event(), DONE)),
        OPENAI_USAGE,
    ),
    "no message_stop": (
        "anthropic",
        ANTHROPIC[:-1],
        Usage(input_tokens=20, output_tokens=7, cached_tokens=5, cache_write_tokens=3),
    ),
    "a message_stop without a line end": (
        "anthropic",
        (*ANTHROPIC[:-1], ANTHROPIC[-1][:-2]),
        Usage(input_tokens=20, output_tokens=7, cached_tokens=5, cache_write_tokens=3),
    ),
    "gemini": (
        "gemini",
        (GEMINI_END[:-4],),
        Usage(input_tokens=20, output_tokens=7, cached_tokens=5, reasoning_tokens=3),
    ),
}


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini"])
async def test_an_answer_is_whole_however_its_provider_ends_it(
    dialect: str, tmp_path: Path
) -> None:
    apis = ["chat.completions"] if dialect == "openai" else None
    # Whose breaker opens after five failures in a row.
    async with running(tmp_path, dialect, apis=apis) as world:
        for name, (whose, pieces, usage) in WHOLE.items():
            if whose != dialect:
                continue
            world.first.behave = streaming(*pieces)
            for api in APIS * 2:
                answer = await world.ask(api)
                record = await world.validator.record(answer)

                assert (text_of(answer.text), kinds(answer.text)[-1]) == ("Four.", LAST[api]), name
                assert kinds(answer.text).count(LAST[api]) == 1
                assert [one.outcome for one in record.attempts] == ["ok"], name
                assert (record.model, record.usage) == ("one", usage), name
    assert not world.spare.seen


# The last bytes of an answer, after which a provider may leave the connection open
# (opencode-copilot-chat#170).
OPEN: dict[str, tuple[str, Sequence[bytes]]] = {
    "chat": ("openai", (*CHAT, usage_event(), DONE)),
    "chat without a mark": ("openai", (*CHAT, usage_event())),
    "chat without mark and usage": ("openai", CHAT),
    "messages": ("anthropic", ANTHROPIC),
    "gemini": ("gemini", (GEMINI_END,)),
}


@pytest.mark.parametrize("name", OPEN)
async def test_a_stream_ends_with_its_answer_and_not_with_the_connection(
    name: str, worlds: dict[str, World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "USAGE_WAIT_S", 0.05)
    dialect, pieces = OPEN[name]
    world = worlds[dialect]
    world.first.behave = streaming(*pieces, then="nothing")
    async with asyncio.timeout(15):  # the provider would be waited for ten minutes
        for api in ("chat.completions", "messages"):
            answer = await world.ask(api)
            record = await world.validator.record(answer)
            assert (text_of(answer.text), kinds(answer.text)[-1]) == ("Four.", LAST[api])
            assert [one.outcome for one in record.attempts] == ["ok"]


async def test_a_response_ends_when_it_is_completed(worlds: dict[str, World]) -> None:
    world = worlds["openai"]
    world.first.behave = streaming(*RESPONSE, then="nothing")
    async with asyncio.timeout(15):
        answer = await world.ask("responses")

    assert answer.content == b"".join(RESPONSE)


async def test_usage_that_comes_late_is_read(worlds: dict[str, World]) -> None:
    world = worlds["openai"]
    world.first.behave = streaming(*CHAT, usage_event(), DONE, pause_s=0.1)
    for api in ("chat.completions", "messages"):
        record = await world.validator.record(await world.ask(api))
        assert record.usage == OPENAI_USAGE, api


async def test_the_end_of_the_body_may_come_later_and_the_connection_is_used_again(
    worlds: dict[str, World],
) -> None:
    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.chunk(b"".join(CHAT) + usage_event() + DONE)
        await asyncio.sleep(0.1)
        await exchange.end_stream()

    world = worlds["openai"]
    world.first.behave, connections = behave, world.first.connections
    for _ in range(3):
        await world.ask("chat.completions")
        await asyncio.sleep(0.3)

    # The first may find one that another test left to it.
    assert world.first.connections - connections <= 1


async def test_several_answers_end_with_the_last_of_them(worlds: dict[str, World]) -> None:
    def choice(index: int, **changes: object) -> bytes:
        fields = {"index": index, "delta": {"content": "a"}, "finish_reason": None, **changes}
        return event(None, choices=[fields])

    half = (choice(0), choice(1), choice(0, finish_reason="stop"))
    world = worlds["openai"]
    two = {"n": 2, **BODIES["chat.completions"]}
    for pieces, outcome in (
        (half, "cut_short"),
        ((*half, choice(1, finish_reason="length")), "ok"),
        # Some give one answer whatever is asked for.
        ((choice(0), choice(0, finish_reason="stop")), "ok"),
    ):
        world.first.behave = streaming(*pieces)
        answer = await world.validator.client.post(
            PATHS["chat.completions"],
            json={"model": "one", "stream": True, **two},
            headers=world.validator.headers(),
        )
        record = await world.validator.record(answer)
        assert record.attempts[0].outcome == outcome
        assert kinds(answer.text)[-1] == ("[DONE]" if outcome == "ok" else "error")


# ── what is no answer yet ──────────────────────────────────────────────────────────────────────

START, PING = ANTHROPIC[0], ANTHROPIC[1]
OVERLOADED = named_event(
    {"type": "error", "error": {"type": "overloaded_error", "message": "Busy."}}
)
ROLE = event(None, choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])
CHAT_ERROR = b'data: {"error": {"message": "Busy.", "code": 502}}\n\n'

BEFORE: dict[str, tuple[str, str, Sequence[bytes]]] = {
    "a ping": ("anthropic", "messages", (PING, OVERLOADED)),
    "a message_start": ("anthropic", "messages", (START, OVERLOADED)),
    "both": ("anthropic", "chat.completions", (START, PING, PING, OVERLOADED)),
    "a message_start and the end": ("anthropic", "messages", (START, PING)),
    "a comment": ("openai", "chat.completions", (b": PROCESSING\n\n", CHAT_ERROR)),
    "a role": ("openai", "chat.completions", (ROLE, CHAT_ERROR)),
    "a role and the end": ("openai", "messages", (ROLE,)),
    "a role and nonsense": ("openai", "chat.completions", (ROLE, b"data: {oh\n\n")),
    "an announced response": (
        "openai",
        "responses",
        (
            response("response.created", 0),
            response("response.queued", 1),
            response("response.in_progress", 2),
            named_event({"type": "error", "sequence_number": 3, "code": "x", "message": "Busy."}),
        ),
    ),
    "a response that fails at once": (
        "openai",
        "responses",
        (response("response.created", 0), response("response.failed", 1)),
    ),
    "nothing generated": (
        "gemini",
        "chat.completions",
        (
            b'data: {"candidates":[],"modelVersion":"g"}\n\n',
            b"data: " + gemini_error("UNAVAILABLE", "Busy.", code=503) + b"\n\n",
        ),
    ),
}


@pytest.mark.parametrize("name", BEFORE)
@pytest.mark.parametrize("then", ["end", "reset"])
async def test_a_failure_before_any_of_the_answer_is_nothing_the_caller_sees(
    name: str, then: str, worlds: dict[str, World]
) -> None:
    dialect, api, pieces = BEFORE[name]
    world = worlds[dialect]
    before, _ = await world.validator.settled()
    world.first.behave = streaming(*pieces, then=then, pause_s=0.02)
    if api == "responses":
        world.spare.behave = streaming(*RESPONSE)
    answer = await world.ask(api)
    record = await world.validator.record(answer)
    spent, held = await world.validator.settled()

    expected = "Four." if api == "responses" else "Hereinstead."
    assert (text_of(answer.text), record.model) == (expected, "two")
    assert "Busy" not in answer.text
    assert kinds(answer.text)[-1] == LAST[api]
    assert [one.provider for one in record.attempts] == ["first", "spare"]
    assert (spent - before, held) == (record.cost_nusd, 0)


@pytest.mark.parametrize("bound", ["time", "bytes"])
async def test_what_is_no_answer_yet_is_not_kept_for_ever(
    bound: str, worlds: dict[str, World], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, limit = ("HELD_BACK_S", 0.0) if bound == "time" else ("MAX_HELD_BACK_BYTES", 5)
    monkeypatch.setattr(attempt, name, limit)
    world = worlds["anthropic"]
    world.first.behave = streaming(START, PING, OVERLOADED, pause_s=0.05)
    answer = await world.ask("messages")
    record = await world.validator.record(answer)

    assert answer.content == START + PING + OVERLOADED
    assert [one.outcome for one in record.attempts] == ["cut_short"]
    assert record.cost_nusd == 0, "it was refused, and nothing came of it"


# ── how a response fails ───────────────────────────────────────────────────────────────────────


def failing_events(text: str) -> tuple[ResponseErrorEvent, ResponseFailedEvent]:
    """Return the last two events, as OpenAI's SDK has them, strictly."""
    *_, error, failed = payloads(text)
    return ResponseErrorEvent.model_validate(error), ResponseFailedEvent.model_validate(failed)


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini"])
@pytest.mark.parametrize("then", ["end", "reset"])
async def test_a_response_that_breaks_off_ends_failed(
    dialect: str, then: str, worlds: dict[str, World]
) -> None:
    half: dict[str, Sequence[bytes]] = {
        "openai": RESPONSE[:2],
        "anthropic": ANTHROPIC[:4],
        "gemini": (b"data: " + json.dumps(generated("Half", stop=None)).encode() + b"\n\n",),
    }
    world = worlds[dialect]
    world.first.behave = streaming(*half[dialect], then=then)
    answer = await world.ask("responses")
    await world.validator.record(answer)
    spent = await world.validator.settled()

    error, failed = failing_events(answer.text)
    assert (error.code, error.message[:24]) == ("upstream_cut_short", "The provider broke off i")
    assert (failed.response.status, failed.response.model[-1]) == ("failed", "1")
    told = failed.response.error
    assert told is not None
    assert (told.code, told.type, told.message) == ("server_error", error.code, error.message)
    numbers = [one["sequence_number"] for one in payloads(answer.text)]
    assert numbers == list(range(len(numbers)))
    assert spent[1] == 0


async def test_an_error_that_a_provider_names_ends_a_response_failed_and_is_told_once(
    worlds: dict[str, World],
) -> None:
    nested = {"code": "server_error", "message": "Busy.", "type": "server_error"}
    for error in ({"error": nested}, {"code": "server_error", "message": "Busy.", "param": None}):
        event = named_event({"type": "error", "sequence_number": 2, **error})
        failed = response("response.failed", 3, status="failed", error=nested)
        world = worlds["openai"]
        for pieces in ((*RESPONSE[:2], event), (*RESPONSE[:2], event, failed)):
            world.first.behave = streaming(*pieces)
            answer = await world.ask("responses")
            record = await world.validator.record(answer)

            assert answer.text.startswith(b"".join((*RESPONSE[:2], event)).decode())
            assert kinds(answer.text)[2:] == ["error", "response.failed"]
            last = ResponseFailedEvent.model_validate(payloads(answer.text)[-1])
            assert last.sequence_number == 3
            assert last.response.error is not None
            assert (last.response.error.message, last.response.id) == ("Busy.", "resp_1")
            assert [one.outcome for one in record.attempts] == ["cut_short"]


async def test_an_answer_that_ends_in_an_error_is_no_answer_though_a_mark_follows(
    worlds: dict[str, World],
) -> None:
    world = worlds["openai"]
    world.first.behave = streaming(event("Half"), CHAT_ERROR, DONE, pause_s=0.03)
    answer = await world.ask("chat.completions")
    record = await world.validator.record(answer)

    assert answer.content == event("Half") + CHAT_ERROR + DONE
    assert [one.outcome for one in record.attempts] == ["cut_short"]


@pytest.mark.parametrize(
    ("dialect", "api", "error"),
    [
        ("anthropic", "chat.completions", {"type": "error", "error": {"message": "Busy."}}),
        ("gemini", "messages", {"error": {"message": "Busy."}}),
        ("openai", "messages", {"error": {"message": "Busy."}}),
    ],
)
async def test_what_an_error_leaves_out_is_not_made_up(
    dialect: str, api: str, error: dict[str, Any], worlds: dict[str, World]
) -> None:
    async def behave(exchange: Exchange) -> None:
        await exchange.respond(400, json.dumps(error).encode())

    world = worlds[dialect]
    world.first.behave = behave
    told = (await world.ask(api)).json()["error"]

    expected = {"message": "Busy.", "type": "invalid_request_error"}
    assert {name: value for name, value in told.items() if value is not None} == expected
