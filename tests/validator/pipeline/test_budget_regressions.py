"""What users of gateways complain of most, each as a fact about this one.

The complaints are public: budgets that a burst runs through, reservations that leak and refuse
honest users, first uses that race, caps that a new key resets, tags that a client makes up,
usage lost when a client hangs up, a store's outage that turns valid keys into wrong ones.
"""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.postgres import Postgres, a_postgres
from support.redis import RedisServer, running_redis
from support.upstream import Exchange, Upstream, answering
from support.validator import ENVIRONMENT, HELLO, Running, running_validator
from support.worlds import a_model, a_policy
from waypost.shared.contracts import Route, SpendLimit

pytestmark = pytest.mark.anyio

COST_NUSD = 20 * 150 + 7 * 600
SHORT: dict[str, Any] = {**HELLO, "max_tokens": 64}


def total(limit_nusd: int) -> tuple[SpendLimit, ...]:
    return (SpendLimit(window="total", limit_nusd=limit_nusd),)


async def test_a_burst_cannot_run_through_a_budget(validator: Running, acme: Upstream) -> None:
    limits = total(200_000)
    answers = await asyncio.gather(*(validator.chat(SHORT, limits=limits) for _ in range(40)))

    spent, _ = await validator.settled()
    assert spent == COST_NUSD * len(acme.seen) <= 200_000
    assert {answer.status_code for answer in answers} == {200, 402}


async def test_reservations_of_failed_requests_refuse_nobody(
    validator: Running, acme: Upstream
) -> None:
    async def fail(exchange: Exchange) -> None:
        await exchange.respond(500, b"{}")

    acme.behave = fail
    for _ in range(3):
        await validator.chat({**SHORT, "model": "small"}, limits=total(200_000), models=("small",))
    assert await validator.spent() == (0, 0)


async def test_a_new_token_resets_no_cap(validator: Running) -> None:
    limits = total(COST_NUSD * 2)
    for sub in ("one", "two", "three"):
        await validator.chat(SHORT, limits=limits, sub=sub)
    spent, _ = await validator.settled()
    assert spent <= COST_NUSD * 2


async def test_a_tag_that_a_client_makes_up_pays_from_nobody_else_s_budget(
    tmp_path: Path, acme: Upstream
) -> None:
    budgets = {
        "default": [{"window": "total", "limit_usd": 100}],
        "tiers": {"pro": [{"window": "total", "limit_usd": "0.00001"}]},
    }
    async with running_validator(tmp_path, {"acme": acme}, budgets=budgets) as validator:
        answer = await validator.chat(
            {**SHORT, "user": "somebody-else", "metadata": {"tier": "enterprise"}},
            headers={"Waypost-Facts": 'tags=("tier:enterprise")'},
        )
    assert answer.json()["error"]["code"] == "budget_exhausted"
    assert "this tier" in answer.json()["error"]["message"]


async def test_a_limit_of_one_provider_sends_requests_to_another_model(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    budgets = {
        "default": [{"window": "total", "limit_usd": 100}],
        "models": {"small": [{"window": "minute", "limit_requests": 1}]},
    }
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, budgets=budgets
    ) as validator:
        first, second = [await validator.chat(SHORT) for _ in range(2)]
    assert 'model="small"' in first.headers["waypost-decision"]
    assert 'reason="budget_downgrade"' in second.headers["waypost-decision"]


async def test_too_many_requests_are_told_when_to_come_back(tmp_path: Path, acme: Upstream) -> None:
    budgets = {
        "default": [
            {"window": "total", "limit_usd": 100},
            {"window": "minute", "limit_requests": 2},
        ]
    }
    async with running_validator(tmp_path, {"acme": acme}, budgets=budgets) as validator:
        answers = [await validator.chat(SHORT) for _ in range(3)]
    refused = answers[2]
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 30


async def test_the_same_key_and_body_are_one_charge(validator: Running, acme: Upstream) -> None:
    key = {"Idempotency-Key": "order-17"}
    first = await validator.chat(SHORT, headers=key)
    again = await validator.chat(SHORT, headers=key)
    other = await validator.chat({**SHORT, "max_tokens": 65}, headers=key)
    theirs = await validator.chat(SHORT, headers=key, sub="somebody-else")

    assert (first.status_code, again.status_code, other.status_code) == (200, 409, 422)
    assert again.json()["error"]["code"] == "idempotency_done"
    assert first.headers["x-request-id"] in again.json()["error"]["message"]
    assert theirs.status_code == 200
    assert len(acme.seen) == 2


async def test_a_key_whose_request_was_not_charged_may_be_used_again(
    validator: Running, acme: Upstream
) -> None:
    async def fail(exchange: Exchange) -> None:
        await exchange.respond(400, b'{"error": {"message": "no"}}')

    acme.behave = fail
    key = {"Idempotency-Key": "order-18"}
    refused = await validator.chat(SHORT, headers=key)
    acme.behave = answering()
    served = await validator.chat(SHORT, headers=key)

    assert (refused.status_code, served.status_code) == (400, 200)


async def test_a_soft_limit_warns_caller_and_operator_and_refuses_nothing(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    budgets = {
        "default": [{"window": "month", "limit_usd": 100, "warn_usd": "0.000001"}],
        "webhook": "HOOK",
    }
    environment = {**ENVIRONMENT, "HOOK": medcloud.base_url}
    async with running_validator(
        tmp_path, {"acme": acme}, budgets=budgets, environment=environment
    ) as validator:
        answers = [await validator.chat(SHORT) for _ in range(2)]
        async with asyncio.timeout(20):
            while not medcloud.seen:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].headers["waypost-budget"].startswith("account;window=month;warn_nusd=1000;")
    assert [seen.json["scope"] for seen in medcloud.seen] == ["account:acme"]
    assert "authorization" not in medcloud.seen[0].headers


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Another process that does not let go of the file."""
    # Begun and ended by whichever thread is free.
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as db:
        db.execute("BEGIN EXCLUSIVE")
        yield


class Outage:
    """A store that goes away and comes back, as whoever runs it sees it."""

    def __init__(self, folder: Path, server: RedisServer | Postgres | None) -> None:
        self._path = folder / "state" / "ledger.sqlite"
        self._server = server
        self._lock: AbstractContextManager[None] | None = None

    def begin(self) -> None:
        if self._server is not None:
            self._server.kill()
        else:
            self._lock = _locked(self._path)
            self._lock.__enter__()

    def end(self) -> None:
        if self._server is not None:
            self._server.start()
        elif self._lock is not None:
            self._lock.__exit__(None, None, None)


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def outage(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Outage, dict[str, Any]]]:
    """A store to take away, and the settings of a validator that has its ledger there."""
    patient = {"store": request.param, "patience_s": 0.3}
    with ExitStack() as stack:
        server: RedisServer | Postgres
        if request.param == "sqlite":
            yield Outage(tmp_path, None), {"ledger": patient}
            return
        if request.param == "redis":
            server = stack.enter_context(running_redis())
            dsn = server.url
        else:
            server = stack.enter_context(a_postgres())
            dsn = server.dsn
        settings = {
            "ledger": {**patient, "dsn": "LEDGER_DSN"},
            "environment": {**ENVIRONMENT, "LEDGER_DSN": dsn},
        }
        yield Outage(tmp_path, server), settings


async def test_an_outage_of_the_store_makes_no_valid_token_wrong_and_ends_without_a_restart(
    tmp_path: Path, acme: Upstream, outage: tuple[Outage, dict[str, Any]]
) -> None:
    store, settings = outage
    async with running_validator(tmp_path, {"acme": acme}, **settings) as validator:
        told: set[tuple[int, str]] = set()

        async def ask_for_ever() -> None:
            while True:
                answer = await validator.chat(SHORT)
                told.add((answer.status_code, answer.json().get("error", {}).get("code", "")))

        async with asyncio.timeout(30):
            callers = [asyncio.create_task(ask_for_ever()) for _ in range(16)]
            while len(acme.seen) < 20:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await asyncio.to_thread(store.begin)
            while len(told) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            ready = await validator.client.get("/readyz")
            await asyncio.to_thread(store.end)
            served = len(acme.seen)
            while len(acme.seen) < served + 20:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
            ready_again = await validator.client.get("/readyz")
            # No request was free, and nothing is held for one that was not served.
            while await validator.spent() != (COST_NUSD * len(acme.seen), 0):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    assert told == {(200, ""), (503, "ledger_unavailable")}
    assert (ready.status_code, ready_again.status_code) == (503, 200)


async def test_a_store_that_is_down_at_the_start_is_found_when_it_comes(
    tmp_path: Path, acme: Upstream, outage: tuple[Outage, dict[str, Any]]
) -> None:
    store, settings = outage
    if settings["ledger"]["store"] == "sqlite":
        pytest.skip("a file is opened before anything is served")
    store.begin()
    async with running_validator(tmp_path, {"acme": acme}, **settings) as validator:
        down = await validator.chat(SHORT)
        ready = await validator.client.get("/readyz")
        await asyncio.to_thread(store.end)
        async with asyncio.timeout(10):
            while (await validator.chat(SHORT)).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    assert (down.status_code, down.json()["error"]["code"]) == (503, "ledger_unavailable")
    assert ready.status_code == 503


MESSAGE = [{"role": "user", "content": "2 + 2?"}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": MESSAGE}),
        ("/v1/completions", {"prompt": "2 + 2?"}),
        ("/v1/embeddings", {"input": "2 + 2?"}),
        ("/v1/responses", {"input": "2 + 2?"}),
        ("/v1/messages", {"messages": MESSAGE, "max_tokens": 8}),
    ],
)
async def test_no_way_in_goes_past_the_budget(
    tmp_path: Path, acme: Upstream, path: str, body: dict[str, Any]
) -> None:
    # Of others, pass-through routes and one of two APIs had checks of their own, or none.
    every = ("chat.completions", "completions", "embeddings", "responses", "messages")
    model = a_model("small", endpoints=every)
    policy = a_policy(
        models=(model,), routes=(Route(name="default", models=("small",)),), last_resort=()
    )
    async with running_validator(tmp_path, {"acme": acme}, policy=policy) as validator:
        answer = await validator.client.post(
            path, json={"model": "auto", **body}, headers=validator.headers(limits=total(10))
        )

    assert answer.status_code == 402, answer.text
    assert not acme.seen


async def test_a_usage_of_zero_is_what_it_says_and_not_estimated(
    tmp_path: Path, acme: Upstream
) -> None:
    acme.behave = answering("Four.", usage={"prompt_tokens": 0, "completion_tokens": 0})
    async with running_validator(tmp_path, {"acme": acme}) as validator:
        record = await validator.record(await validator.chat(SHORT))

        assert (record.cost_nusd, record.unconfirmed_nusd) == (0, 0)
        assert await validator.settled() == (0, 0)
