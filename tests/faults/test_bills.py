"""Ledger, records and the bill of a provider that keeps its own agree, in every dialect.

Exact where the charge is confirmed; where it is not, the charge is no less than the bill.
"""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from support.billing import Billing, Rates, marked
from support.upstream import running_upstream
from support.validator import Running, running_validator
from support.worlds import a_model, a_policy
from waypost.shared.contracts import ENDPOINTS, Cascade, Hedge, OneOf, Policy, Route
from waypost.shared.records import DecisionRecord

pytestmark = pytest.mark.anyio

# API → the dialects that can be asked it.
WAYS = (
    ("chat.completions", "openai"),
    ("chat.completions", "anthropic"),
    ("chat.completions", "gemini"),
    ("messages", "anthropic"),
    ("messages", "openai"),
    ("messages", "gemini"),
    ("responses", "openai"),
    ("responses", "anthropic"),
    ("responses", "gemini"),
    ("embeddings", "openai"),
)
PATHS = {
    "chat.completions": "/v1/chat/completions",
    "embeddings": "/v1/embeddings",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
}
DIALECTS = ("openai", "anthropic", "gemini")


def policy(rates: Rates) -> Policy:
    models = tuple(
        a_model(f"{dialect}-{place}", provider=dialect, price=rates.price(), endpoints=ENDPOINTS)
        for dialect in DIALECTS
        for place in ("a", "b")
    )
    names = tuple(model.id for model in models)
    samples = Cascade(signal="self_consistency", threshold_per_mille=700, samples=3)
    return a_policy(
        models=models,
        routes=(
            Route(
                name="hedged",
                models=names,
                when=(OneOf("task", ("hedged",)),),
                hedge=Hedge(after_ms=5, max_extra_percent=20),
            ),
            Route(
                name="sampled",
                models=names,
                when=(OneOf("task", ("sampled",)),),
                cascade=samples,
            ),
            Route(name="default", models=names),
        ),
        last_resort=names,
    )


def body(api: str, number: int, draw: random.Random, *, streamed: bool) -> dict[str, Any]:
    prompt = marked(number, draw.choice((40, 100, 400)))
    if api == "embeddings":
        return {"model": "auto", "input": prompt}
    stream = {"stream": True} if streamed else {}
    if api == "responses":
        return {"model": "auto", "input": prompt, "max_output_tokens": 32, "store": False, **stream}
    content: Any = prompt
    if api == "messages" and draw.random() < 0.5:
        kept = {"type": "ephemeral", "ttl": "1h"}
        content = [{"type": "text", "text": prompt, "cache_control": kept}]
    messages = [{"role": "user", "content": content}]
    return {"model": "auto", "messages": messages, "max_tokens": 32, **stream}


async def asked(
    validator: Running, number: int, way: tuple[str, str], draw: random.Random
) -> DecisionRecord | None:
    api, dialect = way
    streamed = api != "embeddings" and draw.random() < 0.6
    headers = validator.headers(models=(f"{dialect}-a", f"{dialect}-b"))
    headers["Waypost-Facts"] = f'task="{draw.choice(("hedged", "sampled", "none"))}"'
    if draw.random() < 0.1:
        headers["Waypost-Deadline-Ms"] = "60"
    sent = body(api, number, draw, streamed=streamed)
    async with validator.client.stream("POST", PATHS[api], json=sent, headers=headers) as response:
        hangs_up = streamed and draw.random() < 0.15
        async for _ in response.aiter_bytes():
            if hangs_up:
                break
    return await validator.record(response)


async def world(folder: Path, billing: Billing, *, requests: int, seed: int) -> None:
    def change(providers: dict[str, Any]) -> None:
        for name, settings in providers.items():
            breaker = {"failures": 1_000, "min_calls": 100_000}
            settings |= {"dialect": name, "timeout_s": 0.5, "retries": 1, "breaker": breaker}

    draw = random.Random(seed)
    async with running_upstream(billing.behave) as upstream:
        upstreams = dict.fromkeys(DIALECTS, upstream)
        async with running_validator(
            folder, upstreams, policy=policy(billing.rates), change=change
        ) as validator:
            ways = [WAYS[number % len(WAYS)] for number in range(requests)]
            records = await asyncio.gather(
                *(asked(validator, number, way, draw) for number, way in enumerate(ways))
            )
            spent, held = await validator.settled()

    assert (spent, held) == (sum(one.cost_nusd for one in records if one), 0)
    for number, record in enumerate(records):
        assert record is not None
        told = [(one.kind, one.outcome, one.cost_nusd) for one in record.attempts]
        bills = billing.of(number)
        due = sum(one.due(billing.rates) for one in bills)
        if not record.unconfirmed_nusd:
            assert record.cost_nusd == due, (number, ways[number], told, bills)
        least = sum(one.due(billing.rates, less_unseen=True) for one in bills)
        assert record.cost_nusd >= least, (number, ways[number], told, bills)
        assert record.cost_nusd <= record.reserved_nusd


async def test_without_faults_all_three_books_are_equal(tmp_path: Path) -> None:
    billing = Billing(seed=1)

    await world(tmp_path, billing, requests=40, seed=20_261_128)


async def test_whatever_goes_wrong_no_charge_is_less_than_the_bill(tmp_path: Path) -> None:
    billing = Billing(seed=2, faults=0.35, slow_s=0.03)

    await world(tmp_path, billing, requests=80, seed=20_261_129)
    assert any(one.unseen for one in billing.bills)
