"""What no decoder can read is that provider's failure: nobody's money, and nobody's crash.

Answers as providers give them are mutated, whole and streamed, and sent over sockets through the
whole validator.
"""

import asyncio
import copy
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.dialects import Dialects, running_dialects
from support.upstream import (
    DONE,
    Behaviour,
    Exchange,
    Upstream,
    answering,
    completion,
    event,
    failing,
    usage_event,
)
from support.wires import (
    Call,
    gemini_error,
    generated,
    generating,
    message,
    message_error,
    message_events,
    messaging,
    named_event,
)
from waypost.shared.records import DecisionRecord
from waypost.validator.pipeline import attempt

PROVIDERS = {"openai": "openai", "anthropic": "anthropic", "gemini": "google"}
MODELS = {"openai": "gpt", "anthropic": "claude", "gemini": "gemini"}
ASKED: dict[str, dict[str, Any]] = {
    "chat.completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "completions": {"prompt": "Hi"},
    "embeddings": {"input": "Hi"},
    "messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 50},
    "responses": {"input": "Hi"},
}
NATIVE = {
    "openai": ("chat.completions", "completions", "embeddings", "responses"),
    "anthropic": ("chat.completions", "messages", "responses"),
    "gemini": ("chat.completions", "messages", "responses"),
}
CALL = Call()

# ── what providers send ────────────────────────────────────────────────────────────────────────

TOOL = {"index": 0, "id": CALL.id, "type": "function"}
CHAT_CALL = {**TOOL, "function": {"name": CALL.name, "arguments": CALL.arguments}}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "status": "completed",
    "model": "gpt-1",
    "output": [{"type": "message", "content": [{"type": "output_text", "text": "Four."}]}],
    "usage": {
        "input_tokens": 20,
        "input_tokens_details": {"cached_tokens": 5},
        "output_tokens": 7,
    },
}


def _payload(sent: bytes) -> Any:  # noqa: ANN401 - JSON
    return json.loads(sent.partition(b"data: ")[2])


CHAT = json.loads(completion())
CHAT["choices"][0]["message"]["tool_calls"] = [CHAT_CALL]
CHAT_DELTA = {"index": 0, "delta": {"tool_calls": [CHAT_CALL]}, "finish_reason": "tool_calls"}

# API or dialect → an answer in one piece.
WHOLE: dict[str, Any] = {
    "chat.completions": CHAT,
    "completions": {"choices": [{"index": 0, "text": "def", "finish_reason": "stop"}], "usage": {}},
    "embeddings": {"data": [{"index": 0, "embedding": [0.5]}], "usage": {"prompt_tokens": 3}},
    "responses": RESPONSE,
    "anthropic": message("Four.", CALL, thinking="Hm."),
    "gemini": generated("Four.", CALL, thinking="Hm."),
}
# API or dialect → the events of one.
STREAMED: dict[str, list[Any]] = {
    "chat.completions": [
        _payload(event("")),
        _payload(event("Four.")),
        _payload(event(None, choices=[CHAT_DELTA])),
        _payload(usage_event()),
    ],
    "completions": [
        {"choices": [{"index": 0, "text": "def", "finish_reason": None}]},
        {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]},
        _payload(usage_event()),
    ],
    "responses": [
        {"type": "response.created", "sequence_number": 0, "response": RESPONSE},
        {"type": "response.output_text.delta", "sequence_number": 1, "delta": "Four."},
        {"type": "response.completed", "sequence_number": 2, "response": RESPONSE},
    ],
    "anthropic": [_payload(one) for one in message_events(message("Four.", CALL, thinking="Hm."))],
    "gemini": [
        generated("Four.", stop=None, thinking="Hm.", usage=None),
        generated(None, CALL, stop=None),
        generated("", stop="end"),
    ],
}
ERRORS: dict[str, Any] = {
    "openai": {"error": {"message": "No.", "type": "x", "code": "bad", "param": None}},
    "anthropic": json.loads(message_error("invalid_request_error", "No.")),
    "gemini": json.loads(gemini_error("INVALID_ARGUMENT", "No.")),
}

# ── how it goes wrong ──────────────────────────────────────────────────────────────────────────

ODD: tuple[Any, ...] = (
    None, True, 0, -1, 7, 2**63, 2**70, -(2**70), 1e308, 0.5, "", "x", "\x00", "\U0001f600",
    [], {}, [[]], [None], {"": None}, [7], {"error": {}}, {"type": "error"}, "message_stop",
)  # fmt: skip
# Put into the JSON as it stands, by way of a text that stands for it.
RAW: tuple[bytes, ...] = (
    b"[" * 3_000 + b"]" * 3_000,
    b'{"a":' * 3_000 + b"1" + b"}" * 3_000,
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 5_000,
    b'"\xff\xfe"',
    b'"\\ud800"',
    b'"\\u0000"',
    b"{",
    b"",
)
MARKER = "~raw~"


@dataclass(frozen=True)
class Change:
    """One thing done to a JSON document, ``place`` counted over all that is in it."""

    kind: str
    place: int
    value: Any = None
    raw: bytes = b""


changes = st.builds(
    Change,
    kind=st.sampled_from(("put", "put", "drop", "raw", "swap", "nest")),
    place=st.integers(0, 200),
    value=st.sampled_from(ODD),
    raw=st.sampled_from(RAW),
)


def _places(node: Any) -> Iterator[tuple[Any, Any]]:  # noqa: ANN401 - JSON
    items: Any = node.items() if hasattr(node, "items") else enumerate(node)
    for key, value in list(items):
        yield node, key
        if isinstance(value, dict | list):
            yield from _places(value)


def changed(whole: Any, made: list[Change]) -> bytes:  # noqa: ANN401 - JSON
    """Return ``whole`` as JSON, less or other than it was."""
    whole = copy.deepcopy(whole)
    raws: list[tuple[int, bytes]] = []
    for number, one in enumerate(made):
        places = list(_places(whole))
        if not places:
            break
        node, key = places[one.place % len(places)]
        match one.kind:
            case "drop":
                del node[key]
            case "raw":
                node[key] = f"{MARKER}{number}"
                raws.append((number, one.raw))
            case "swap":
                other, name = places[(one.place * 7) % len(places)]
                node[key] = (
                    copy.deepcopy(other[name])
                    if name in other or not isinstance(other, dict)
                    else None
                )
            case "nest":
                node[key] = [node[key]]
            case _:
                node[key] = copy.deepcopy(one.value)
    text = json.dumps(whole).encode()
    for number, raw in raws:
        text = text.replace(f'"{MARKER}{number}"'.encode(), raw)
    return text


@dataclass(frozen=True)
class Case:
    """A request, and what its provider makes of it."""

    dialect: str
    api: str
    is_streamed: bool
    status: int
    sent: bytes
    is_cut: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dialect = draw(st.sampled_from(tuple(NATIVE)))
    api = draw(st.sampled_from(NATIVE[dialect]))
    form = api if dialect == "openai" else dialect
    is_streamed = api != "embeddings" and draw(st.booleans())
    few = st.lists(changes, max_size=3)
    if draw(st.integers(0, 7)) == 0:
        status = draw(st.sampled_from((200, 400, 413, 422, 500)))
        body = changed(ERRORS[dialect], draw(few))
        return Case(dialect, api, is_streamed=is_streamed, status=status, sent=body, is_cut=False)
    if not is_streamed:
        body = changed(WHOLE[form], draw(few))
        return Case(dialect, api, is_streamed=False, status=200, sent=body, is_cut=False)
    events = draw(
        st.lists(st.sampled_from(STREAMED[form]), max_size=4)
        if draw(st.booleans())
        else st.just(STREAMED[form])
    )
    hit = draw(st.integers(0, max(0, len(events) - 1)))
    stream = b""
    for place, one in enumerate(events):
        data = changed(one, draw(few)) if place == hit else json.dumps(one).encode()
        name: str = one.get("type", "")
        stream += (f"event: {name}\n".encode() if name else b"") + b"data: " + data + b"\n\n"
    stream += draw(
        st.sampled_from((b"", DONE, b"data: {", b"data: \xff\n\n", named_event({"type": "error"})))
    )
    return Case(dialect, api, is_streamed=True, status=200, sent=stream, is_cut=draw(st.booleans()))


# ── the validator ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as running:
        yield running


@pytest.fixture(scope="module")
def world(portal: BlockingPortal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dialects]:
    manager: AbstractContextManager[Dialects] = portal.wrap_async_context_manager(
        running_dialects(tmp_path_factory.mktemp("unreadable"))
    )
    waits = pytest.MonkeyPatch()
    waits.setattr(attempt, "USAGE_WAIT_S", 0.01)
    with manager as dialects:
        yield dialects
    waits.undo()


def _upstreams(world: Dialects) -> dict[str, Upstream]:
    return {"openai": world.openai, "anthropic": world.anthropic, "gemini": world.gemini}


DOWN = dict.fromkeys(MODELS, failing(500))
WELL = {"openai": answering(), "anthropic": messaging(), "gemini": generating()}


async def _asked(
    world: Dialects, case: Case, others: dict[str, Behaviour]
) -> tuple[httpx.Response, DecisionRecord, Any]:
    async def behave(exchange: Exchange) -> None:
        if not case.is_streamed or case.status != 200:
            await exchange.respond(case.status, case.sent)
            return
        await exchange.start_stream()
        await exchange.chunk(case.sent) if case.sent else None
        if case.is_cut:
            exchange.close()
        else:
            await exchange.end_stream()

    for dialect, upstream in _upstreams(world).items():
        upstream.behave = behave if dialect == case.dialect else others[dialect]
    account = uuid4().hex
    answer = await world.validator.client.post(
        f"/v1/{case.api.replace('.', '/')}",
        json={
            "model": MODELS[case.dialect],
            **ASKED[case.api],
            **({"stream": True} if case.is_streamed else {}),
        },
        headers=world.validator.headers(account=account),
    )
    async with asyncio.timeout(10):
        record = await world.validator.record(answer)
        return answer, record, await world.validator.settled(account)


@settings(
    max_examples=3 * settings().max_examples,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=cases())
def test_whatever_a_provider_sends_is_an_answer_or_its_failure(
    world: Dialects, portal: BlockingPortal, case: Case
) -> None:
    answer, record, (spent, held) = portal.call(_asked, world, case, DOWN)

    assert answer.status_code in (200, 400, 413, 422, 502), answer.text
    assert record.reason != "internal_error"
    assert (spent, held) == (record.cost_nusd, 0), record
    assert len(record.attempts) >= 1
    if answer.status_code != 200 or not case.is_streamed:
        told = json.loads(answer.content, parse_int=str)  # of any length
        assert isinstance(told, dict)
        assert answer.status_code == 200 or "error" in told
    elif record.attempts[-1].outcome != "ok":
        last = _payload(answer.content.rstrip().rpartition(b"\n\n")[2])
        assert "error" in last or last["type"] == "response.failed"


NONSENSE = {
    "a thousand brackets": b"[" * 5_000,
    "half a character": b'{"choices":"\xff","content":"\xff","candidates":"\xff"}',
    "nothing": b"",
    "a page": b"<html>",
    "a list": b"[]",
    "a number": b"7",
    "not a number": b'{"choices":NaN,"content":NaN,"candidates":NaN}',
}


@pytest.mark.parametrize("name", NONSENSE)
@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("api", ["chat.completions", "messages", "responses"])
def test_what_cannot_be_read_is_a_bad_response_and_another_model_is_asked(
    world: Dialects, portal: BlockingPortal, name: str, is_streamed: bool, api: str
) -> None:
    body = b"data: " + NONSENSE[name] + b"\n\n" if is_streamed else NONSENSE[name]
    for dialect in ("openai", "anthropic", "gemini"):
        case = Case(dialect, api, is_streamed=is_streamed, status=200, sent=body, is_cut=False)
        answer, record, (spent, held) = portal.call(_asked, world, case, WELL)

        assert answer.status_code == 200
        first, *_, last = record.attempts
        assert (first.provider, first.outcome, last.outcome) == (
            PROVIDERS[dialect],
            "bad_response",
            "ok",
        )
        assert (spent, held) == (record.cost_nusd, 0)


# Each meets another exception in another decoder.
IN_THE_MIDDLE = {
    "arguments of a call that never began": (
        "claude",
        "chat.completions",
        named_event(
            {
                "type": "content_block_delta",
                "index": 9,
                "delta": {"type": "input_json_delta", "partial_json": "{}"},
            }
        ),
    ),
    "a thousand brackets": ("gpt", "chat.completions", b"data: " + b"[" * 5_000 + b"\n\n"),
    "half a character": (
        "gpt",
        "chat.completions",
        b'data: {"choices":[{"index":0,"delta":{"content":"\xff"}}]}\n\n',
    ),
    "half a character that is passed over": (
        "claude",
        "messages",
        b'event: x\ndata: {"type":"x","y":"\xff"}\n\n',
    ),
    "no object": ("gemini", "messages", b"data: [1]\n\n"),
}


@pytest.mark.parametrize("name", IN_THE_MIDDLE)
def test_what_cannot_be_read_in_the_middle_ends_the_stream_with_an_error(
    world: Dialects, portal: BlockingPortal, name: str
) -> None:
    model, api, bad = IN_THE_MIDDLE[name]
    dialect = next(dialect for dialect, named in MODELS.items() if named == model)
    begun = {
        "openai": event("Half"),
        "anthropic": b"".join(message_events(message("Half"))[:5]),
        "gemini": b"data: " + json.dumps(generated("Half", stop=None)).encode() + b"\n\n",
    }[dialect]
    may_go_on = portal.call(asyncio.Event)

    async def ask() -> tuple[str, DecisionRecord, Any]:
        async def behave(exchange: Exchange) -> None:
            await exchange.start_stream()
            await exchange.chunk(begun)
            await may_go_on.wait()
            await exchange.chunk(bad)
            await exchange.end_stream()

        _upstreams(world)[dialect].behave = behave
        account = uuid4().hex
        async with world.validator.client.stream(
            "POST",
            f"/v1/{api.replace('.', '/')}",
            json={"model": model, "stream": True, **ASKED[api]},
            headers=world.validator.headers(account=account),
        ) as answer:
            chunks = answer.aiter_text()
            text = await anext(chunks)
            may_go_on.set()
            text += "".join([chunk async for chunk in chunks])
        record = await world.validator.record(answer)
        return text, record, await world.validator.settled(account)

    text, record, (spent, held) = portal.call(ask)

    assert "Ha" in text
    assert "cannot be read" in text.rstrip().rpartition("\n\n")[2]
    assert [one.outcome for one in record.attempts] == ["bad_response"]
    assert (spent, held) == (record.cost_nusd, 0)
    assert 0 < record.cost_nusd < record.reserved_nusd, "what came is charged"
