"""Errors that come with status 200, or with a status that says less than they: whose they are."""

import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.upstream import Behaviour, Exchange, Upstream, answering, running_upstream
from support.validator import Running, running_validator
from support.worlds import a_model, a_policy
from waypost.shared.contracts import ENDPOINTS, Route
from waypost.shared.records import AttemptOutcome
from waypost.validator.upstream.key_pool import KeyPool

pytestmark = pytest.mark.anyio

PATHS = {
    "chat.completions": "/v1/chat/completions",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
}
BODIES: dict[str, dict[str, Any]] = {
    "chat.completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 50},
    "responses": {"input": "Hi"},
}
WAYS = [(dialect, api) for dialect in ("openai", "anthropic", "gemini") for api in PATHS]

TOO_LONG = "Your input exceeds the context window of this model. Please adjust your input."
TOO_LARGE = (
    "Request too large for gpt-4o in organization org-1 on tokens per min (TPM): Limit 30000,"
    " Requested 31538. The input or output tokens must be reduced in order to run successfully."
)
EXTRA = "Extra usage is required for long context requests."


@dataclass
class World:
    """A validator whose first choice is a provider of some dialect; the second is larger."""

    validator: Running
    first: Upstream
    larger: Upstream

    async def ask(self, api: str, *, account: str = "acme", **body: Any) -> httpx.Response:  # noqa: ANN401
        return await self.validator.client.post(
            PATHS[api],
            json={"model": "auto", **BODIES[api], **body},
            headers=self.validator.headers(account=account),
        )


@asynccontextmanager
async def running(folder: Path, dialect: str, **settings: Any) -> AsyncGenerator[World]:  # noqa: ANN401
    def change(providers: dict[str, Any]) -> None:
        providers["first"] |= {"dialect": dialect, **settings}
        providers["larger"]["apis"] = ["chat.completions"]

    policy = a_policy(
        models=(
            a_model("one", provider="first", endpoints=ENDPOINTS),
            a_model("two", provider="larger", endpoints=ENDPOINTS, context_tokens=500_000),
        ),
        data_classes={},
        routes=(Route(name="default", models=("one",), fallback=("two",)),),
        last_resort=(),
    )
    async with (
        running_upstream() as first,
        running_upstream(answering("Here instead.")) as larger,
        running_validator(
            folder, {"first": first, "larger": larger}, policy=policy, change=change
        ) as validator,
    ):
        yield World(validator, first, larger)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def worlds(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[dict[str, World]]:
    patient = {"breaker": {"failures": 1_000, "min_calls": 100_000}}
    async with AsyncExitStack() as stack:
        yield {
            dialect: await stack.enter_async_context(
                running(tmp_path_factory.mktemp(dialect), dialect, **patient)
            )
            for dialect in ("openai", "anthropic", "gemini")
        }


def telling(error: object, *, status: int = 200) -> Behaviour:
    """Tells ``error`` in the first event of a stream, or as the body."""

    async def behave(exchange: Exchange) -> None:
        is_streamed = b"treamGenerate" in exchange.seen.path.encode() or exchange.seen.json.get(
            "stream"
        )
        data = json.dumps(error).encode()
        if not is_streamed or status != 200:
            await exchange.respond(status, data)
            return
        await exchange.start_stream()
        await exchange.chunk(b"data: " + data + b"\n\n")
        await exchange.end_stream()

    return behave


def openais(message: str, **fields: object) -> dict[str, Any]:
    return {"error": {"message": message, "type": "error", "param": None, **fields}}


def anthropics(message: str, kind: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


def failed(message: str, code: str) -> dict[str, Any]:
    response: dict[str, Any] = {
        "id": "resp_1",
        "object": "response",
        "status": "failed",
        "output": [],
    }
    return {
        "type": "response.failed",
        "sequence_number": 1,
        "response": {**response, "error": {"code": code, "message": message}},
    }


FORMS: list[tuple[object, AttemptOutcome]] = [
    (openais(TOO_LONG, code="context_length_exceeded"), "context_too_long"),
    (openais("prompt is too long: 210000 tokens > 200000 maximum"), "context_too_long"),
    (anthropics("prompt is too long: 210000 tokens > 200000", "invalid_request_error"),
     "context_too_long"),
    (openais(TOO_LARGE, type="tokens", code="rate_limit_exceeded"), "context_too_long"),
    (openais("You exceeded your current quota.", code="insufficient_quota"), "key_refused"),
    (anthropics("Your credit balance is too low to access", "invalid_request_error"),
     "key_refused"),
    (openais("Slow down.", code="rate_limit_exceeded"), "rate_limited"),
    (openais("Provider returned error", code=429), "rate_limited"),
    (anthropics("Slow down.", "rate_limit_error"), "rate_limited"),
    (anthropics("Overloaded", "overloaded_error"), "server_error"),
    (openais("Provider returned error", code=502), "server_error"),
    ({"error": "Something broke."}, "server_error"),
    ({"error": {"message": "Broke."}, "choices": None, "content": None}, "server_error"),
    ({"type": "error", "message": "Broke."}, "server_error"),
    ({"detail": "Broke."}, "server_error"),
]  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("dialect", "api"), WAYS)
async def test_an_error_in_the_place_of_an_answer_is_told_apart_and_costs_nothing(
    dialect: str, api: str, streamed: bool, worlds: dict[str, World]
) -> None:
    world = worlds[dialect]
    found: list[tuple[object, object]] = []
    for error, _ in FORMS:
        world.first.behave = telling(error)
        world.validator.services.upstreams["first"].keys = KeyPool(1)  # none rests
        record = await world.validator.record(await world.ask(api, stream=streamed))
        first, *others = record.attempts
        costs = [attempt.cost_nusd for attempt in record.attempts if attempt.model == "one"]
        found.append((error, (first.outcome, others and others[-1].outcome, sum(costs))))
    assert found == [(error, (outcome, "ok", 0)) for error, outcome in FORMS]


@pytest.mark.parametrize("api", PATHS)
async def test_what_no_model_can_hold_is_told_in_the_providers_words(
    api: str, worlds: dict[str, World]
) -> None:
    world = worlds["anthropic" if api == "messages" else "openai"]
    error: dict[str, Any] = {
        "chat.completions": openais(TOO_LONG, code="context_length_exceeded"),
        "messages": anthropics("prompt is too long: 2 > 1", "invalid_request_error"),
        "responses": failed(TOO_LONG, "context_length_exceeded"),
    }[api]
    world.first.behave = telling(error)
    world.larger.behave = telling(openais(TOO_LONG, code="context_length_exceeded"))
    try:
        streamed = await world.ask(api, stream=True)
        whole = await world.ask(api)
    finally:
        world.larger.behave = answering("Here instead.")

    record = await world.validator.record(streamed)
    assert whole.status_code == 400
    assert whole.json()["error"]["message"] == TOO_LONG
    assert streamed.headers["content-type"].startswith("text/event-stream")
    last = [line for line in streamed.text.splitlines() if line.startswith("data: ")][-1]
    assert TOO_LONG in last
    assert api != "responses" or json.loads(last[6:])["type"] == "response.failed"
    assert {attempt.outcome for attempt in record.attempts} == {"context_too_long"}
    assert (await world.validator.settled())[1] == 0


@pytest.mark.parametrize(
    ("dialect", "api", "error"),
    [
        ("openai", "chat.completions", openais(TOO_LARGE, code="rate_limit_exceeded")),
        ("anthropic", "messages", anthropics(EXTRA, "rate_limit_error")),
    ],
)
async def test_one_request_that_is_over_a_limit_by_itself_rests_no_key(
    dialect: str, api: str, error: object, worlds: dict[str, World]
) -> None:
    world = worlds[dialect]
    world.first.behave = telling(error, status=429)
    for _ in range(3):
        await world.ask(api, account="mallory")
    record = await world.validator.record(await world.ask(api, account="alice"))

    assert [attempt.outcome for attempt in record.attempts] == ["context_too_long", "ok"]
