"""No body, whatever its shape, holds up the event loop; and none is read for who may have nothing.

What a turn of the loop does is counted in lines of Python, not in seconds.
"""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from msgspec import structs

from support.upstream import Behaviour, Exchange, completion, running_upstream
from support.validator import Running, running_validator
from support.worlds import a_policy
from waypost.shared.contracts import SpendLimit

pytestmark = pytest.mark.anyio

UNDERSTAND = sys.modules["waypost.validator.pipeline.understand"]  # not the function
MAX_LINES = 5_000  # of one turn; a plain request takes some hundred
TEXT = "a" * 70_000  # makes any body a large one
USER = {"role": "user", "content": "hi"}

CALLS = [
    {"id": f"c{n}", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    for n in range(3_000)
]
RESULTS = [{"role": "tool", "tool_call_id": call["id"], "content": "."} for call in CALLS]
BLOCKS = [{"type": "text", "text": "a"} for _ in range(5_000)]
USES = [{"type": "tool_use", "id": f"c{n}", "name": "f", "input": {}} for n in range(3_000)]
ITEMS = [
    {"type": "function_call", "call_id": f"c{n}", "name": "f", "arguments": "{}"}
    for n in range(3_000)
]
REASONING = [{"type": "reasoning", "summary": [], "encrypted_content": "x"} for _ in range(3_000)]
TOOLS = [{"type": "function", "function": {"name": f"f{n}"}} for n in range(3_000)]

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "tool calls": (
        "chat/completions",
        {"messages": [USER, {"role": "assistant", "tool_calls": CALLS}, *RESULTS, USER]},
    ),
    "parts": ("chat/completions", {"messages": [{"role": "user", "content": BLOCKS}]}),
    "turns": ("chat/completions", {"messages": [USER] * 5_000}),
    "tools": ("chat/completions", {"messages": [USER], "tools": TOOLS}),
    "metadata": (
        "chat/completions",
        {"messages": [USER], "metadata": {f"k{n}": "v" for n in range(10_000)}},
    ),
    "fields": ("chat/completions", {"messages": [USER], **{f"k{n}": 1 for n in range(10_000)}}),
    "blocks": ("messages", {"max_tokens": 9, "messages": [{"role": "user", "content": BLOCKS}]}),
    "tool uses": (
        "messages",
        {"max_tokens": 9, "messages": [USER, {"role": "assistant", "content": USES}, USER]},
    ),
    "items": ("responses", {"input": [USER, *ITEMS]}),
    "state of another maker": ("responses", {"input": [USER, *ITEMS, *REASONING, *ITEMS]}),
    "texts": ("embeddings", {"input": ["a"] * 2_000}),
}


@dataclass
class Work:
    """The lines that were run in the busiest turn of the loop."""

    most: int = 0
    now: int = 0

    def trace(self, _frame: FrameType, _event: str, _arg: object) -> Any:  # noqa: ANN401
        self.now += 1
        return self.trace


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Generator[Work]:
    """Count what this thread does; other threads are not counted."""
    work, run = Work(), asyncio.Handle._run

    def turn(handle: asyncio.Handle) -> None:
        work.now = 0
        run(handle)
        work.most = max(work.most, work.now)

    monkeypatch.setattr(asyncio.Handle, "_run", turn)
    before = sys.gettrace()
    sys.settrace(work.trace)
    try:
        yield work
    finally:
        sys.settrace(before)


def answering_at_length() -> Behaviour:
    """Answer in one piece that has many small ones."""
    calls = [{**call, "index": n} for n, call in enumerate(CALLS)]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    choices = [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
    body = completion(choices=choices)

    async def behave(exchange: Exchange) -> None:
        await exchange.respond(200, body)

    return behave


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """asyncio's own loop, of which each turn can be counted."""
    return "asyncio"


@pytest.fixture(scope="module")
async def validator(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Running]:
    everything = ("chat.completions", "messages", "responses", "embeddings")
    policy = a_policy()
    models = tuple(structs.replace(one, endpoints=everything) for one in policy.models)

    def speak(providers: dict[str, Any]) -> None:
        providers["medcloud"]["dialect"] = "gemini"

    folder: Path = tmp_path_factory.mktemp("large")
    async with (
        running_upstream(answering_at_length()) as acme,
        running_upstream() as medcloud,
        running_validator(
            folder,
            {"acme": acme, "medcloud": medcloud},
            policy=structs.replace(policy, models=models),
            change=speak,
            detectors={"email": "phi"},
        ) as running,
    ):
        await running.chat()  # what is made once is made by now
        yield running


async def ask(validator: Running, shape: str, **wishes: Any) -> Any:  # noqa: ANN401
    path, body = SHAPES[shape]
    content = json.dumps({"model": "auto", "user": TEXT, **body}).encode()
    return await validator.client.post(
        f"/v1/{path}",
        content=content,
        headers={
            **validator.headers(**wishes),
            "Content-Type": "application/json",
            "Waypost-Facts": 'session="clinical", cached=1',
        },
    )


@pytest.mark.parametrize("shape", SHAPES)
async def test_no_shape_of_a_body_or_an_answer_holds_up_the_loop(
    validator: Running, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counting(monkeypatch) as work:
        answer = await ask(validator, shape)

    assert answer.status_code in (200, 400, 502), answer.text[:300]
    assert 0 < work.most < MAX_LINES


@pytest.mark.parametrize("shape", ["tool calls", "blocks", "items"])
async def test_a_large_body_of_who_has_no_budget_is_not_read(
    validator: Running, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr(UNDERSTAND, "decode", read)
    limits = (SpendLimit(window="day", limit_nusd=0),)
    answer = await ask(validator, shape, account="poor", limits=limits)

    assert answer.status_code == 402
    record = await validator.record(answer)
    assert (record.verdict, record.reason, record.cost_nusd) == (
        "refused",
        "budget_exhausted",
        0,
    )


async def test_a_large_body_counts_as_one_request_and_asks_the_rate_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = [{"window": "total", "limit_usd": 1_000}, {"window": "hour", "limit_requests": 2}]
    budgets = {"default": rules}
    async with (
        running_upstream() as acme,
        running_validator(tmp_path, {"acme": acme}, budgets=budgets) as validator,
    ):
        assert [(await ask(validator, "turns")).status_code for _ in range(2)] == [200, 200]
        read = list[object]()
        monkeypatch.setattr(UNDERSTAND, "decode", lambda *told: read.append(told))

        assert (await ask(validator, "turns")).status_code == 429
        assert read == []
        assert (await validator.settled())[1] == 0
