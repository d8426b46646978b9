"""Where a request goes when it cannot be served where it went first, and where it never goes."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.upstream import (
    Behaviour,
    Exchange,
    Upstream,
    answering,
    failing,
    hanging,
    resetting,
)
from support.validator import HELLO, Running, running_validator
from support.worlds import a_model, a_policy
from waypost.shared.contracts import Policy, Route, SpendLimit
from waypost.shared.decision.costs import cost_bound_nusd
from waypost.validator.upstream.key_pool import LONGEST_REST_S
from waypost.validator.upstream.retry_budget import RESERVE

pytestmark = pytest.mark.anyio

TOO_LONG = failing(400, code="context_length_exceeded")
FILTERED = failing(400, code="content_filter")


def setting(**changes: object) -> Callable[[dict[str, Any]], None]:
    """Change the settings of provider acme."""

    def change(providers: dict[str, Any]) -> None:
        providers["acme"].update(changes)

    return change


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """Do one thing after the other, and the last for ever."""
    left = list(behaviours)

    async def behave(exchange: Exchange) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(exchange)

    return behave


def small_then_second(**changes: object) -> Policy:
    """``small`` at acme, then ``second`` at medcloud, ten times as dear."""
    return a_policy(
        models=(
            a_model("small"),
            a_model("second", provider="medcloud", cents_in=150, cents_out=600),
        ),
        routes=(Route(name="default", models=("small",), fallback=("second",), **changes),),  # type: ignore[arg-type]
        last_resort=(),
    )


# ── too long for one window ────────────────────────────────────────────────────────────────────


def windows(**changes: object) -> Policy:
    """Three sizes; only ``small`` and ``middle`` are on the route, ``huge`` is for enterprise."""
    return a_policy(
        models=(
            a_model("small"),
            a_model("twin", provider="medcloud"),
            a_model("middle", provider="medcloud", context_tokens=64_000, cents_in=100),
            a_model("huge", provider="medcloud", context_tokens=500_000, tiers=("enterprise",)),
        ),
        routes=(Route(name="default", models=("small",), fallback=("twin",), **changes),),  # type: ignore[arg-type]
        last_resort=(),
    )


async def test_a_prompt_too_long_for_a_model_goes_to_one_that_holds_more(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave = TOO_LONG
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=windows()
    ) as validator:
        record = await validator.record(await validator.chat({**HELLO, "model": "small"}))
        spent = await validator.spent()

    # Not to the twin, which comes first in the chain but holds no more.
    assert [(a.model, a.outcome, a.kind) for a in record.attempts] == [
        ("small", "context_too_long", "first"),
        ("middle", "ok", "fallback"),
    ]
    # Held and paid at the price of the model that answered.
    assert record.cost_nusd == 20 * 1_000 + 7 * 600
    assert record.cost_nusd <= record.reserved_nusd
    assert spent == (record.cost_nusd, 0)


@pytest.mark.parametrize(
    "wishes", [{"tier": "free"}, {"tier": "enterprise", "models": ("small", "twin")}]
)
async def test_a_long_prompt_does_not_reach_a_larger_model_that_the_caller_may_not_use(
    tmp_path: Path, acme: Upstream, medcloud: Upstream, wishes: dict[str, Any]
) -> None:
    acme.behave = medcloud.behave = TOO_LONG
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=windows()
    ) as validator:
        response = await validator.chat(**wishes)
        await validator.record(response)
        spent = await validator.spent()

    assert (response.status_code, response.json()["error"]["code"]) == (
        400,
        "context_length_exceeded",
    )
    assert "acme-huge" not in [seen.json["model"] for seen in medcloud.seen]
    assert spent == (0, 0)


async def test_an_enforced_route_stays_the_whole_set_for_a_long_prompt_too(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave = TOO_LONG
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=windows(enforce=True)
    ) as validator:
        response = await validator.chat()

    assert response.status_code == 400
    assert not medcloud.seen


async def test_what_one_provider_filters_another_is_asked_and_the_last_word_is_told(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave = FILTERED
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=small_then_second()
    ) as validator:
        served = await validator.record(await validator.chat())
        medcloud.behave = failing(500)
        refused = await validator.chat()

    assert [(a.outcome, a.kind) for a in served.attempts] == [
        ("content_filter", "first"),
        ("ok", "fallback"),
    ]
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "content_filter")


async def test_a_route_says_for_what_the_next_is_tried(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    async with running_validator(
        tmp_path,
        {"acme": acme, "medcloud": medcloud},
        policy=small_then_second(fallback_on=("server_error",)),
    ) as validator:
        acme.behave = FILTERED
        filtered = await validator.chat()
        acme.behave = failing(429, extra="retry-after: 0\r\n")
        limited = await validator.chat()
        asked = len(medcloud.seen)
        acme.behave = failing(500)
        served = await validator.chat()

    assert (filtered.status_code, filtered.json()["error"]["code"]) == (400, "content_filter")
    assert (limited.status_code, limited.json()["error"]["code"]) == (503, "upstream_rate_limited")
    assert (asked, served.status_code) == (0, 200)


# ── never around what is allowed ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("behave", [failing(500), failing(429), resetting, TOO_LONG, FILTERED])
async def test_no_cause_sends_a_request_beyond_the_token_or_its_duties(
    tmp_path: Path, acme: Upstream, medcloud: Upstream, behave: Behaviour
) -> None:
    acme.behave = medcloud.behave = behave
    async with running_validator(tmp_path, {"acme": acme, "medcloud": medcloud}) as validator:
        await validator.chat(models=("small",))
        asked = [seen.json["model"] for seen in [*acme.seen, *medcloud.seen]]
        acme.seen.clear()
        await validator.chat(headers={"Waypost-Facts": 'data="phi"'})

    assert set(asked) == {"acme-small"}
    assert not acme.seen


async def test_limits_count_the_model_that_answered_and_not_the_one_that_was_asked_for(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave = failing(500)
    # What the cheap model may cost fits ten times over, what the dear one costs only once.
    limits = (SpendLimit(window="day", limit_nusd=20 * 1_500 + 7 * 6_000 + 150_000),)
    body = {**HELLO, "max_tokens": 8, "model": "small"}
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=small_then_second()
    ) as validator:
        first = await validator.record(await validator.chat(body, limits=limits))
        second = await validator.chat(body, limits=limits)
        spent = await validator.settled()

    assert first.model == "second"
    assert second.status_code == 502
    assert len(medcloud.seen) == 1
    assert spent == (first.cost_nusd, 0)


# ── the same target again ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("behave", [failing(503), resetting])
async def test_a_blip_is_tried_again_where_it_was(
    tmp_path: Path, acme: Upstream, medcloud: Upstream, behave: Behaviour
) -> None:
    acme.behave = in_turn(behave, answering())
    async with running_validator(
        tmp_path,
        {"acme": acme, "medcloud": medcloud},
        policy=small_then_second(),
        change=setting(retries=1),
    ) as validator:
        record = await validator.record(await validator.chat())

    assert [(a.model, a.outcome, a.kind) for a in record.attempts] == [
        ("small", "server_error", "first"),
        ("small", "ok", "retry"),
    ]


async def test_retries_are_a_fifth_more_at_most(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    def breakable(providers: dict[str, Any]) -> None:
        # Never at rest, or the breaker would spare the provider before the budget does.
        providers["acme"] |= {"retries": 3, "breaker": {"failures": 1_000, "min_calls": 100_000}}

    acme.behave = failing(500)
    async with running_validator(
        tmp_path,
        {"acme": acme, "medcloud": medcloud},
        policy=small_then_second(),
        change=breakable,
    ) as validator:
        for _ in range(50):
            assert (await validator.chat()).status_code == 200

    assert len(acme.seen) <= 50 + 50 * 0.2 + RESERVE


async def test_what_a_provider_calls_wrong_is_not_tried_again(
    tmp_path: Path, acme: Upstream
) -> None:
    acme.behave = failing(400, code="bad_tool")
    async with running_validator(tmp_path, {"acme": acme}, change=setting(retries=3)) as validator:
        await validator.chat()

    assert len(acme.seen) == 1


# ── limits that providers set ──────────────────────────────────────────────────────────────────


async def test_a_limit_is_waited_out_when_there_is_nowhere_else_to_go(
    tmp_path: Path, acme: Upstream
) -> None:
    acme.behave = in_turn(failing(429, extra="retry-after: 0\r\n"), answering())
    async with running_validator(tmp_path, {"acme": acme}, change=setting(retries=1)) as validator:
        record = await validator.record(await validator.chat(models=("small",)))

    assert [(a.outcome, a.kind) for a in record.attempts] == [
        ("rate_limited", "first"),
        ("ok", "retry"),
    ]


async def test_a_limit_that_lasts_is_told_with_how_long(tmp_path: Path, acme: Upstream) -> None:
    acme.behave = failing(429, extra="retry-after: 600\r\n")
    async with running_validator(tmp_path, {"acme": acme}) as validator:
        response = await validator.chat(models=("small",))
        resting = await validator.chat(models=("small",))

    assert (response.status_code, response.json()["error"]["code"]) == (
        503,
        "upstream_rate_limited",
    )
    assert LONGEST_REST_S - 2 <= int(response.headers["retry-after"]) <= LONGEST_REST_S + 1
    # While it lasts the provider is left alone.
    assert (resting.status_code, len(acme.seen)) == (503, 1)


async def test_a_limit_says_nothing_about_health(tmp_path: Path, acme: Upstream) -> None:
    acme.behave = in_turn(*[failing(429, extra="retry-after: 0\r\n")] * 20, answering())
    async with running_validator(tmp_path, {"acme": acme}) as validator:
        for _ in range(20):
            await validator.chat(models=("small",))
        breakers = validator.services.upstreams["acme"].opened
        response = await validator.chat(models=("small",))

    assert not breakers
    assert response.status_code == 200


def keys_of(upstream: Upstream) -> list[str]:
    return [seen.headers["authorization"].removeprefix("Bearer ") for seen in upstream.seen]


def by_key(**behaviours: Behaviour) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        key = exchange.seen.headers["authorization"].removeprefix("Bearer sk-")
        await behaviours.get(key, answering())(exchange)

    return behave


TWO_KEYS = {"api_key": None, "api_keys": ["KEY_A", "KEY_B"], "retries": 1}
ENVIRONMENT = {"KEY_A": "sk-a", "KEY_B": "sk-b", "ACME_KEY": "sk-acme-secret"}


@pytest.mark.parametrize(
    ("status", "outcome"), [(429, "rate_limited"), (401, "key_refused"), (403, "key_refused")]
)
async def test_a_key_that_does_not_serve_is_replaced_by_the_next_and_rests(
    tmp_path: Path, acme: Upstream, status: int, outcome: str
) -> None:
    acme.behave = by_key(a=failing(status))
    async with running_validator(
        tmp_path, {"acme": acme}, change=setting(**TWO_KEYS), environment=ENVIRONMENT
    ) as validator:
        first = await validator.record(await validator.chat(models=("small",)))
        for _ in range(3):
            await validator.chat(models=("small",))

    assert [(a.outcome, a.kind) for a in first.attempts] == [(outcome, "first"), ("ok", "retry")]
    assert keys_of(acme) == ["sk-a", "sk-b", "sk-b", "sk-b", "sk-b"]


async def test_keys_share_the_load(tmp_path: Path, acme: Upstream) -> None:
    async with running_validator(
        tmp_path, {"acme": acme}, change=setting(**TWO_KEYS), environment=ENVIRONMENT
    ) as validator:
        for _ in range(4):
            await validator.chat()

    assert keys_of(acme) == ["sk-a", "sk-b", "sk-a", "sk-b"]


# ── the caller's deadline ──────────────────────────────────────────────────────────────────────


async def hurried(validator: Running, deadline_ms: object, **body: object) -> Any:  # noqa: ANN401
    headers = {"Waypost-Deadline-Ms": str(deadline_ms)}
    return await validator.chat({**HELLO, **body}, headers=headers, models=("small",))


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon", "", "86400001", "9" * 30])
async def test_a_deadline_that_is_none_is_refused_before_anything_is_spent(
    validator: Running, acme: Upstream, value: str
) -> None:
    response = await hurried(validator, value)

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "header_malformed"
    assert response.json()["error"]["param"] == "waypost-deadline-ms"
    assert not acme.seen
    assert await validator.spent() == (0, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_that_passes_is_told_and_what_it_may_have_cost_is_paid_for(
    validator: Running, acme: Upstream, stream: bool
) -> None:
    acme.behave = hanging
    response = await hurried(validator, 150, stream=stream)

    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    record = await validator.record(response)
    assert [a.outcome for a in record.attempts] == ["deadline_exceeded"]
    # Or whoever sets short deadlines could have providers work for nothing.
    facts = record.facts
    assert facts is not None
    prompt, most = facts.measured.max_input_tokens * 150, cost_bound_nusd(a_model("small"), facts)
    assert record.cost_nusd == record.unconfirmed_nusd == (prompt if stream else most)
    assert await validator.spent() == (record.cost_nusd, 0)


async def test_a_deadline_spans_all_hops(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    async def late(exchange: Exchange) -> None:
        await asyncio.sleep(0.2)
        await failing(500)(exchange)

    acme.behave, medcloud.behave = late, hanging
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=small_then_second()
    ) as validator:
        response = await validator.chat(headers={"Waypost-Deadline-Ms": "400"})
        record = await validator.record(response)

    assert response.status_code == 504
    assert [a.outcome for a in record.attempts] == ["server_error", "deadline_exceeded"]


async def test_callers_in_a_hurry_cannot_put_a_provider_to_rest_for_everybody(
    validator: Running, acme: Upstream
) -> None:
    acme.behave = hanging
    for _ in range(8):
        await hurried(validator, 30)
    acme.behave = answering()

    assert (await validator.chat(models=("small",))).status_code == 200


async def test_a_route_says_how_long_all_tries_together_may_take(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave = medcloud.behave = hanging
    async with running_validator(
        tmp_path,
        {"acme": acme, "medcloud": medcloud},
        policy=small_then_second(timeout_ms=200),
    ) as validator:
        response = await validator.chat()
        record = await validator.record(response)
        spent = await validator.settled()

    assert (response.status_code, response.json()["error"]["code"]) == (504, "upstream_timeout")
    assert not medcloud.seen  # the first try had all of the time
    assert spent == (record.unconfirmed_nusd, 0)  # the provider may bill it, whoever was late


# ── as many as a provider takes ────────────────────────────────────────────────────────────────


async def test_what_a_provider_has_no_room_for_goes_elsewhere_at_once_or_is_told(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    both_are_in, may_go_on = asyncio.Event(), asyncio.Event()

    async def waiting(exchange: Exchange) -> None:
        if len(acme.seen) == 2:
            both_are_in.set()
        await may_go_on.wait()
        await answering()(exchange)

    acme.behave = waiting
    async with running_validator(
        tmp_path,
        {"acme": acme, "medcloud": medcloud},
        policy=small_then_second(),
        change=setting(max_concurrency=2),
    ) as validator:
        under_way = [asyncio.create_task(validator.chat()) for _ in range(2)]
        async with asyncio.timeout(20):
            await both_are_in.wait()
        elsewhere = await validator.record(await validator.chat())
        told = await validator.chat(models=("small",))
        may_go_on.set()
        done = await asyncio.gather(*under_way)
        after = await validator.chat(models=("small",))

    assert elsewhere.model == "second"
    assert (told.status_code, told.json()["error"]["code"]) == (503, "upstream_saturated")
    assert told.headers["retry-after"] == "1"
    assert [one.status_code for one in [*done, after]] == [200, 200, 200]
