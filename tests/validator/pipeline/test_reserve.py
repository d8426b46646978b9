"""What a request may cost and how often it may come, counted once whatever becomes of it."""

from pathlib import Path
from typing import Any

import pytest

from support.upstream import Upstream, failing
from support.validator import HELLO, running_validator
from support.worlds import a_model, a_policy
from waypost.shared.contracts import Policy, Route

pytestmark = pytest.mark.anyio


def two_models() -> Policy:
    return a_policy(
        models=(a_model("small"), a_model("second", provider="medcloud")),
        routes=(Route(name="default", models=("small",), fallback=("second",)),),
        last_resort=(),
    )


def limited(**rule: object) -> dict[str, Any]:
    return {"budgets": {"default": [{"window": "total", "limit_usd": 1_000}, rule]}}


async def test_a_fallback_is_no_second_request_of_the_caller(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave = failing(500)
    async with running_validator(
        tmp_path,
        {"acme": acme, "medcloud": medcloud},
        policy=two_models(),
        **limited(window="hour", limit_requests=2),
    ) as validator:
        answers = [await validator.chat() for _ in range(3)]
        fallen_back = await validator.record(answers[0])

    assert [one.status_code for one in answers] == [200, 200, 429]
    assert [one.model for one in fallen_back.attempts] == ["small", "second"]


async def test_a_provider_whose_limit_is_used_up_is_passed_over_and_not_counted(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    budgets = {
        "default": [{"window": "total", "limit_usd": 1_000}],
        "providers": {"acme": [{"window": "hour", "limit_requests": 1}]},
    }
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=two_models(), budgets=budgets
    ) as validator:
        answers = [await validator.chat(HELLO) for _ in range(3)]
        records = [await validator.record(one) for one in answers]

    assert [one.status_code for one in answers] == [200, 200, 200]
    assert [one.model for one in records] == ["small", "second", "second"]
    assert (len(acme.seen), len(medcloud.seen)) == (1, 2)


@pytest.mark.parametrize("limit_usd", ["1000", "0.002", "0.0004", "0.0001", "0.0000001"])
async def test_a_preview_says_what_the_request_would_meet_and_costs_nothing(
    tmp_path: Path, acme: Upstream, medcloud: Upstream, limit_usd: str
) -> None:
    async with running_validator(
        tmp_path,
        {"acme": acme, "medcloud": medcloud},
        **limited(window="day", limit_usd=limit_usd),
    ) as validator:
        told = await validator.client.post("/v1/decide", json=HELLO, headers=validator.headers())
        spent = await validator.spent()
        answer = await validator.chat()
        record = await validator.record(answer)

    assert spent == (0, 0)
    assert told.status_code == answer.status_code
    if told.status_code == 200:
        assert told.json()["model"] == record.model
        sent = acme.seen[0].json
        limit = sent.get("max_completion_tokens", sent.get("max_tokens"))
        assert limit == told.json()["max_output_tokens"]
    else:
        assert told.json()["error"]["code"] == answer.json()["error"]["code"]


async def test_a_preview_of_who_has_no_limit_is_answered(tmp_path: Path, acme: Upstream) -> None:
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": acme}, budgets={"unlimited": True}
    ) as validator:
        free = await validator.client.post("/v1/decide", json=HELLO, headers=validator.headers())

    assert free.status_code == 200
