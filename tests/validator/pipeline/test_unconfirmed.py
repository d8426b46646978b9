"""What a provider was sent and never answered is charged, since it may bill it; once, and no more."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from support.upstream import Behaviour, Exchange, Upstream, answering, hanging, resetting
from support.validator import HELLO, Running, running_validator
from support.worlds import a_model, a_policy
from waypost.shared.contracts import Policy, Route
from waypost.shared.decision.costs import cost_bound_nusd

pytestmark = pytest.mark.anyio

KEY = {"Idempotency-Key": "order-67"}
FIRST = a_model("first")
BODY = {**HELLO, "max_tokens": 64}


def policy() -> Policy:
    second = a_model("second", provider="medcloud")
    return a_policy(
        models=(FIRST, second),
        routes=(Route(name="default", models=("first",), fallback=("second",)),),
        last_resort=(),
    )


def impatient(**settings: Any) -> Any:  # noqa: ANN401
    def change(providers: dict[str, Any]) -> None:
        providers["acme"] |= {"timeout_s": 0.2, **settings}

    return change


async def journal(validator: Running) -> list[tuple[str, int]]:
    entries = validator.services.ledger.journal(since=0, until=2**40)
    return sorted([(entry.state, entry.cost_nusd) async for entry in entries])


@pytest.mark.parametrize("behave", [hanging, resetting], ids=["timed out", "reset"])
async def test_a_try_and_the_next_are_held_apart_so_both_fit_the_budget(
    tmp_path: Path, acme: Upstream, medcloud: Upstream, behave: Behaviour
) -> None:
    acme.behave = behave
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=policy(), change=impatient()
    ) as validator:
        record = await validator.record(await validator.chat(BODY))
        facts = record.facts
        assert facts is not None
        most = cost_bound_nusd(FIRST, facts)
        answer = 20 * 150 + 7 * 600
        await validator.settled()

        assert await journal(validator) == [("settled", answer), ("unconfirmed", most)]
    assert [one.cost_nusd for one in record.attempts] == [most, answer]
    assert (record.cost_nusd, record.unconfirmed_nusd) == (most + answer, most)
    assert record.reserved_nusd == 2 * most


@pytest.mark.parametrize("retries", [0, 1], ids=["fallback", "retry"])
async def test_what_the_budget_cannot_hold_as_well_is_not_tried(
    tmp_path: Path, acme: Upstream, medcloud: Upstream, retries: int
) -> None:
    acme.behave = resetting
    async with running_validator(
        tmp_path,
        {"acme": acme, "medcloud": medcloud},
        policy=policy(),
        change=impatient(retries=retries),
        # One try of about 52,000 nano-dollars at most, and no second one worth an answer.
        budgets={"default": [{"window": "total", "limit_usd": "0.00007"}]},
    ) as validator:
        response = await validator.chat(BODY)
        record = await validator.record(response)
        spent = await validator.settled()
        after = await validator.chat(BODY)

    assert (response.status_code, len(acme.seen), len(medcloud.seen)) == (502, 1, 0)
    assert "What the attempts may have cost is charged" in response.text
    assert spent == (record.unconfirmed_nusd, 0)
    assert 0 < spent[0] <= 70_000
    assert after.status_code == 402


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("charge", ["full", "prompt", "nothing"])
async def test_an_operator_says_what_a_provider_charges_for_what_it_never_answered(
    tmp_path: Path, acme: Upstream, charge: str, stream: bool
) -> None:
    acme.behave = hanging
    async with running_validator(
        tmp_path, {"acme": acme}, change=impatient(charge_unanswered=charge)
    ) as validator:
        said = await validator.chat({**BODY, "stream": stream}, models=("small",))
        record = await validator.record(said)
        spent = await validator.settled()

    facts = record.facts
    assert facts is not None
    prompt = facts.measured.max_input_tokens * 150
    expected = {"full": cost_bound_nusd(FIRST, facts), "prompt": prompt, "nothing": 0}
    assert spent == (expected[charge], 0)
    assert record.cost_nusd == expected[charge]


async def test_an_answer_that_tells_no_usage_is_charged_by_its_bytes_until_somebody_knows(
    tmp_path: Path, acme: Upstream
) -> None:
    acme.behave = answering("Four.", usage=None)
    async with running_validator(tmp_path, {"acme": acme}) as validator:
        record = await validator.record(await validator.chat(BODY))
        await validator.settled()
        hold_id, cost = record.id, record.cost_nusd
        assert await journal(validator) == [("unconfirmed", cost)]

        await validator.services.ledger.settle(hold_id, 17)
        assert await validator.spent() == (17, 0)
    assert record.unconfirmed_nusd == cost > 17


async def test_a_key_whose_request_may_be_billed_is_used_up(tmp_path: Path, acme: Upstream) -> None:
    acme.behave = hanging
    async with running_validator(tmp_path, {"acme": acme}, change=impatient()) as validator:
        lost = await validator.chat(BODY, headers=KEY)
        acme.behave = answering()
        again = await validator.chat(BODY, headers=KEY)

    # One key is one charge, and there has been one.
    assert lost.status_code == 504
    assert (again.status_code, again.json()["error"]["code"]) == (409, "idempotency_done")


async def test_a_provider_that_breaks_off_what_it_worked_on_is_not_sent_it_twice_for_one_charge(
    tmp_path: Path, acme: Upstream
) -> None:
    # A connection that was idle and breaks at once was closed by the server meanwhile, and the
    # request is sent again. One that breaks later may have been at work.
    async def works_and_breaks(exchange: Exchange) -> None:
        await asyncio.sleep(1.2)
        exchange.reset()

    async with running_validator(tmp_path, {"acme": acme}) as validator:
        assert (await validator.chat(BODY)).status_code == 200
        acme.behave = works_and_breaks
        seen = len(acme.seen)
        lost = await validator.chat(BODY, models=("small",))

    assert lost.status_code == 502
    assert len(acme.seen) == seen + 1
