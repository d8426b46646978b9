"""What each attempt cost, however many there were and however they ended: it adds up."""

import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.upstream import (
    Behaviour,
    Exchange,
    Upstream,
    answering,
    breaking_off_after,
    event,
    failing,
    hanging,
    resetting,
)
from support.validator import HELLO, Running, running_validator
from support.worlds import a_model, a_policy
from waypost.shared.contracts import Cascade, Hedge, OneOf, Policy, Route
from waypost.shared.records import DecisionRecord

pytestmark = pytest.mark.anyio

REQUESTS = 60
MODELS = ("first", "second")


def policy() -> Policy:
    """Four routes to the same two models; a task tells them apart."""
    ways = {
        "hedge": {"hedge": Hedge(after_ms=20, max_extra_percent=20)},
        "cascade": {"cascade": Cascade(signal="confidence", threshold_per_mille=700)},
        "samples": {
            "cascade": Cascade(signal="self_consistency", threshold_per_mille=700, samples=3)
        },
    }
    return a_policy(
        models=(a_model("first"), a_model("second", provider="medcloud", cents_in=150)),
        routes=(
            *(
                Route(name=name, models=MODELS, when=(OneOf("task", (name,)),), **way)  # type: ignore[arg-type]
                for name, way in ways.items()
            ),
            Route(name="default", models=MODELS),
        ),
        last_resort=(),
    )


async def late(exchange: Exchange) -> None:
    await asyncio.sleep(0.05)
    await answering("Four.")(exchange)


BEHAVIOURS: Sequence[Behaviour] = (
    *[answering(json.dumps({"confidence": sure})) for sure in (0.2, 0.5, 0.9)],
    answering("Four."),
    answering("Five.", usage=None),
    late,
    failing(500),
    failing(400, code="content_filter"),
    resetting,
    hanging,
    breaking_off_after(event("half an")),
)


async def asked(validator: Running, draw: random.Random) -> DecisionRecord:
    headers = {"Waypost-Facts": f'task="{draw.choice(("hedge", "cascade", "samples", "none"))}"'}
    if draw.random() < 0.2:
        headers["Waypost-Deadline-Ms"] = str(draw.randrange(20, 100))
    body = {**HELLO, "stream": draw.random() < 0.5, "max_tokens": 16}
    return await validator.record(await validator.chat(body, headers=headers))


async def test_what_attempts_cost_adds_up_to_what_is_charged(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    draw = random.Random(20_261_125)

    async def moody(exchange: Exchange) -> None:
        await draw.choice(BEHAVIOURS)(exchange)

    def patient(providers: dict[str, dict[str, object]]) -> None:
        for settings in providers.values():
            # Never at rest, or nothing more would be tried.
            breaker = {"failures": 1_000, "min_calls": 100_000}
            settings |= {"timeout_s": 0.2, "retries": 1, "breaker": breaker}

    acme.behave = medcloud.behave = moody
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=policy(), change=patient
    ) as validator:
        records = await asyncio.gather(*(asked(validator, draw) for _ in range(REQUESTS)))
        spent, held = await validator.settled()

    for record in records:
        assert sum(one.cost_nusd for one in record.attempts) == record.cost_nusd, record
        # Several answers of one request: each has its price.
        paid = [one for one in record.attempts if one.outcome in ("ok", "cut_short")]
        assert all(one.cost_nusd for one in paid), record
        forward_ms = record.steps_ms.get("forward", 0.0)
        # One that another has outrun goes on when the caller has the answer.
        is_hedged = any(one.kind == "hedge" for one in record.attempts)
        longest_ms = max((one.duration_ms for one in record.attempts), default=0.0)
        assert is_hedged or longest_ms <= forward_ms + 1, record
        assert forward_ms <= record.duration_ms + 1, record
    assert (spent, held) == (sum(record.cost_nusd for record in records), 0)
    kinds = {one.kind for record in records for one in record.attempts}
    assert kinds >= {"first", "retry", "fallback", "escalation", "sample"}
