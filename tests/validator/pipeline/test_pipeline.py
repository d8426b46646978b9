"""What becomes of a request, from the caller's side, the provider's and the ledger's."""

from pathlib import Path

import pytest

from support.tokens import App
from support.upstream import Upstream, answering
from support.validator import HELLO, Running, running_validator
from waypost.shared.contracts import SpendLimit
from waypost.shared.money import Usage
from waypost.shared.wire.headers import parse_decision

pytestmark = pytest.mark.anyio

HARD = {**HELLO, "messages": [{"role": "user", "content": "Please prove that 2 + 2 = 4."}]}


def day(limit_nusd: int) -> tuple[SpendLimit, ...]:
    return (SpendLimit(window="day", limit_nusd=limit_nusd),)


# ── verdicts ───────────────────────────────────────────────────────────────────────────────────


async def test_an_open_choice_is_decided_by_the_policy(validator: Running, acme: Upstream) -> None:
    response = await validator.chat()

    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == "Four."
    decision = parse_decision(response.headers["waypost-decision"])
    assert (decision["verdict"], decision["model"]) == ("decided", "small")
    assert decision["id"] == response.headers["x-request-id"]
    assert acme.seen[0].json["model"] == "acme-small"


async def test_a_hard_question_goes_to_a_capable_model(validator: Running) -> None:
    response = await validator.chat(HARD)

    assert parse_decision(response.headers["waypost-decision"])["model"] == "large"


async def test_an_admissible_proposal_is_accepted(validator: Running, acme: Upstream) -> None:
    response = await validator.chat(headers={"Waypost-Proposal": 'model="large", manifest=1'})

    decision = parse_decision(response.headers["waypost-decision"])
    assert (decision["verdict"], decision["reason"]) == ("accepted", "proposal_admissible")
    assert acme.seen[0].json["model"] == "acme-large"


async def test_a_proposal_by_a_manifest_that_is_long_over_is_overridden(validator: Running) -> None:
    await validator.client.put("/admin/bundle", content=validator.publisher.publish(version=9))

    response = await validator.chat(
        headers={"Waypost-Proposal": 'model="large", route="short-chat", manifest=6'}
    )

    decision = parse_decision(response.headers["waypost-decision"])
    assert (decision["verdict"], decision["reason"]) == ("overridden", "proposal_stale")
    # From which the client learns of the newer one.
    assert response.headers["waypost-manifest"] == "9"


async def test_a_model_named_in_the_body_is_a_proposal(validator: Running) -> None:
    response = await validator.chat({**HELLO, "model": "large"})

    assert parse_decision(response.headers["waypost-decision"])["verdict"] == "accepted"


async def test_the_proposal_header_goes_before_the_body(validator: Running) -> None:
    response = await validator.chat(
        {**HELLO, "model": "large"}, headers={"Waypost-Proposal": 'model="small"'}
    )

    assert parse_decision(response.headers["waypost-decision"])["model"] == "small"


async def test_a_free_caller_cannot_have_the_enterprise_model(
    validator: Running, acme: Upstream
) -> None:
    response = await validator.chat(tier="free", headers={"Waypost-Proposal": 'model="frontier"'})

    decision = parse_decision(response.headers["waypost-decision"])
    assert (decision["verdict"], decision["reason"]) == ("overridden", "tier_not_allowed")
    assert decision["model"] == "small"
    assert [seen.json["model"] for seen in acme.seen] == ["acme-small"]


async def test_patient_data_goes_only_to_who_promised_to_protect_it(
    validator: Running, acme: Upstream, medcloud: Upstream
) -> None:
    response = await validator.chat(
        headers={"Waypost-Proposal": 'model="small"', "Waypost-Facts": 'data="phi"'}
    )

    decision = parse_decision(response.headers["waypost-decision"])
    assert (decision["verdict"], decision["reason"]) == ("overridden", "duty_unmet")
    assert (len(acme.seen), len(medcloud.seen)) == (0, 1)


async def test_a_duty_in_the_token_holds_whatever_the_client_declares(
    validator: Running, acme: Upstream
) -> None:
    response = await validator.chat({**HELLO, "model": "large"}, data_classes=("phi",))

    assert parse_decision(response.headers["waypost-decision"])["model"] == "clinical"
    assert not acme.seen


async def test_an_empty_set_is_refused_with_its_reason(
    validator: Running, acme: Upstream, medcloud: Upstream
) -> None:
    response = await validator.chat(models=("small",), headers={"Waypost-Facts": 'data="phi"'})

    assert response.status_code == 403
    error = response.json()["error"]
    assert (error["code"], error["type"]) == ("duty_unmet", "permission_error")
    assert "phi" in error["message"]
    record = await validator.record(response)
    assert (record.verdict, record.reason, record.cost_nusd) == ("refused", "duty_unmet", 0)
    assert not acme.seen
    assert not medcloud.seen


# ── money ──────────────────────────────────────────────────────────────────────────────────────


async def test_the_bill_is_the_providers_count_at_the_manifests_price(
    validator: Running,
) -> None:
    record = await validator.record(await validator.chat())

    assert record.usage == Usage(input_tokens=20, output_tokens=7)
    assert record.cost_nusd == 20 * 150 + 7 * 600
    assert record.reserved_nusd > record.cost_nusd
    assert await validator.spent() == (record.cost_nusd, 0)


async def test_without_a_usage_the_bill_is_what_bounds_the_answer(
    validator: Running, acme: Upstream
) -> None:
    acme.behave = answering(usage=None)

    record = await validator.record(await validator.chat())

    assert record.usage is None
    assert 0 < record.cost_nusd <= record.reserved_nusd
    assert await validator.spent() == (record.cost_nusd, 0)


async def test_the_bound_that_was_paid_for_is_sent_upstream(
    validator: Running, acme: Upstream
) -> None:
    await validator.chat({**HELLO, "max_completion_tokens": 50})
    await validator.chat()

    assert [seen.json["max_tokens"] for seen in acme.seen] == [50, 4_096]
    assert "max_completion_tokens" not in acme.seen[0].json


async def test_several_answers_are_reserved_for_severally(validator: Running) -> None:
    one = await validator.record(await validator.chat({**HELLO, "max_tokens": 100}))
    four = await validator.record(await validator.chat({**HELLO, "max_tokens": 100, "n": 4}))

    assert four.reserved_nusd - one.reserved_nusd >= 3 * 100 * 600


async def test_an_exhausted_budget_is_402_and_not_worth_a_retry(
    validator: Running, acme: Upstream, medcloud: Upstream
) -> None:
    response = await validator.chat(limits=day(20_000))

    assert response.status_code == 402
    assert response.headers["x-should-retry"] == "false"
    error = response.json()["error"]
    assert error["code"] == "budget_exhausted"
    assert "per day" in error["message"]
    assert "resets at" in error["message"]
    assert not acme.seen
    assert not medcloud.seen
    assert await validator.spent() == (0, 0)


async def test_spending_is_remembered_across_tokens(validator: Running) -> None:
    limits = day(2_470_000)  # one hold of a small answer, and no second after its bill

    first = await validator.chat({**HELLO, "max_tokens": 4_000}, limits=limits)
    await validator.record(first)
    second = await validator.chat({**HELLO, "max_tokens": 4_096}, limits=limits, sub="user-2")

    assert first.status_code == 200
    record = await validator.record(second)
    assert record.detail is not None
    assert "cut" in record.detail


async def test_a_budget_that_is_too_small_for_the_choice_pays_for_a_cheaper_model(
    validator: Running, acme: Upstream
) -> None:
    response = await validator.chat({**HELLO, "model": "large"}, limits=day(10_000_000))

    decision = parse_decision(response.headers["waypost-decision"])
    assert (decision["verdict"], decision["reason"]) == ("overridden", "budget_downgrade")
    assert [seen.json["model"] for seen in acme.seen] == ["acme-small"]


async def test_a_budget_that_is_too_small_for_a_long_answer_pays_for_a_shorter_one(
    validator: Running, acme: Upstream
) -> None:
    response = await validator.chat(limits=day(100_000))

    assert response.status_code == 200
    record = await validator.record(response)
    assert 64 <= acme.seen[0].json["max_tokens"] < 200
    assert record.reserved_nusd <= 100_000


async def test_the_operators_limit_holds_where_the_token_allows_more(
    tmp_path: Path, acme: Upstream
) -> None:
    budgets = {"default": [{"window": "day", "limit_usd": "0.00002"}]}
    async with running_validator(tmp_path, {"acme": acme}, budgets=budgets) as validator:
        response = await validator.chat(limits=day(10**12))

    assert response.json()["error"]["code"] == "budget_exhausted"


async def test_an_account_that_nobody_limits_may_spend_nothing(
    tmp_path: Path, acme: Upstream
) -> None:
    async with running_validator(tmp_path, {"acme": acme}, budgets={}) as validator:
        response = await validator.chat()
        told = await validator.client.post("/v1/decide", json=HELLO, headers=validator.headers())

        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (402, "budget_undefined")
        assert response.headers["x-should-retry"] == "false"
        assert told.json()["error"]["code"] == "budget_undefined"
        assert (await validator.record(response)).reason == "budget_undefined"
        assert not acme.seen
        assert await validator.spent() == (0, 0)

        assert (await validator.chat(limits=day(10**9))).status_code == 200


async def test_an_account_is_unlimited_only_where_the_operator_says_so(
    tmp_path: Path, acme: Upstream
) -> None:
    budgets = {
        "unlimited": True,
        "default": [{"window": "day", "limit_usd": "0.00002"}],
        "accounts": {"batch": []},
    }
    async with running_validator(tmp_path, {"acme": acme}, budgets=budgets) as validator:
        free = await validator.chat(account="batch")
        other = await validator.chat(account="acme")

        assert free.status_code == 200
        assert (await validator.settled("batch"))[0] > 0
        assert other.json()["error"]["code"] == "budget_exhausted"


# ── tokens ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_forged_token_is_401_and_costs_nobody_anything(
    validator: Running, acme: Upstream
) -> None:
    forger = App(kid=validator.app.kid)
    token = forger.bearer(now=int(validator.clock()))

    response = await validator.client.post(
        "/v1/chat/completions", json=HELLO, headers={"Authorization": token}
    )

    assert response.status_code == 401
    assert response.json()["error"]["code"] == "token_signature"
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert not acme.seen
    assert (await validator.record(response)).subject == ""


async def test_records_name_a_subject_without_saying_who(validator: Running) -> None:
    one = await validator.record(await validator.chat(sub="alice@example.com"))
    same = await validator.record(await validator.chat(sub="alice@example.com"))
    other = await validator.record(await validator.chat(sub="bob@example.com"))

    assert one.subject == same.subject != other.subject
    assert "alice" not in repr(one)


async def test_a_record_holds_no_prompt_and_no_token(validator: Running) -> None:
    secret = "the merger is on Friday"
    headers = validator.headers()
    body = {**HELLO, "messages": [{"role": "user", "content": secret}]}

    response = await validator.client.post("/v1/chat/completions", json=body, headers=headers)

    record = repr(await validator.record(response))
    assert secret not in record
    assert headers["Authorization"].removeprefix("Bearer ") not in record


async def test_every_step_shows_how_long_it_took(validator: Running) -> None:
    response = await validator.chat()

    steps = ["authenticate", "understand", "decide", "reserve", "forward"]
    timing = response.headers["server-timing"].split(", ")
    assert [step.partition(";")[0] for step in timing] == steps
    assert [*(await validator.record(response)).steps_ms] == [*steps, "settle"]


async def test_an_expired_manifest_is_served_on_for_its_grace_and_no_longer(
    validator: Running,
) -> None:
    trusted = validator.services.manifests.keeper.current
    assert trusted is not None
    lapse = trusted.expires_at - validator.clock()

    validator.clock.ahead_s = lapse + 10
    within = await validator.chat(now=int(validator.clock()))
    validator.clock.ahead_s = lapse + validator.services.config.manifest.grace_s + 10
    beyond = await validator.chat(now=int(validator.clock()))

    assert within.status_code == 200
    assert (beyond.status_code, beyond.json()["error"]["code"]) == (503, "manifest_expired")
