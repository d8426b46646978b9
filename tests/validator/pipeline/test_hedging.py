"""A second request beside one that is late: who wins, who pays, and how often."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from support.upstream import Exchange, Upstream, answering, event, failing, hanging
from support.validator import HELLO, running_validator
from support.worlds import a_model, a_policy
from waypost.shared.contracts import Hedge, Policy, Route
from waypost.shared.decision.costs import cost_bound_nusd
from waypost.validator.upstream.limiter import ENOUGH, Limiter

pytestmark = pytest.mark.anyio

STREAM = {**HELLO, "stream": True}


def hedging(**changes: Any) -> Policy:  # noqa: ANN401
    return a_policy(
        models=(a_model("small"), a_model("second", provider="medcloud", cents_in=150)),
        routes=(
            Route(
                name="default",
                models=("small",),
                fallback=("second",),
                hedge=Hedge(**{"after_ms": 50, "max_extra_percent": 20, **changes}),
            ),
        ),
        last_resort=(),
    )


async def late(exchange: Exchange) -> None:
    await asyncio.sleep(0.5)
    await answering("Late.")(exchange)


BOTH = ("small", "second")


async def warmed_up(
    validator: Any,  # noqa: ANN401
    requests: int = 5,
    *,
    models: tuple[str, ...] = ("small",),
) -> None:
    """Let enough pass for one in five to be asked twice.

    Without the other model in the token: on a busy machine these would use up what is allowed.
    """
    for _ in range(requests):
        assert (await validator.chat(models=models)).status_code == 200


async def test_the_sooner_of_two_answers_and_both_are_paid(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    medcloud.behave = answering("Sooner.")
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=hedging()
    ) as validator:
        await warmed_up(validator)
        before, _ = await validator.settled()
        acme.behave = hanging
        response = await validator.chat(STREAM)
        record = await validator.record(response)
        spent = await validator.settled()
        async with asyncio.timeout(20):
            await acme.hung_up.wait()

    assert "Sooner." in response.text
    assert {(one.model, one.kind, one.outcome) for one in record.attempts} == {
        ("small", "first", "cancelled"),
        ("second", "hedge", "ok"),
    }
    facts = record.facts
    assert facts is not None
    # The one that was hung up on may have read the prompt; a stream stops there.
    loser = facts.measured.max_input_tokens * 150
    assert record.unconfirmed_nusd == loser
    assert record.cost_nusd == loser + 20 * 1_500 + 7 * 600
    assert spent == (before + record.cost_nusd, 0)
    assert record.model == "second"


async def test_an_answer_in_one_piece_that_was_outrun_costs_what_it_says_at_its_end(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    medcloud.behave = answering("Sooner.")
    let_go = asyncio.Event()

    async def outrun(exchange: Exchange) -> None:
        await let_go.wait()
        await answering("Late.")(exchange)

    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=hedging()
    ) as validator:
        await warmed_up(validator)
        before, _ = await validator.settled()
        acme.behave = outrun
        response = await validator.chat()
        assert "Sooner." in response.text
        await validator.chat(headers={"Waypost-Facts": "interactive=?1"}, models=("second",))
        let_go.set()  # long after the caller has been answered, and has asked anew
        record = await validator.record(response)
        spent, held = await validator.settled()

    assert [(one.model, one.outcome, one.cost_nusd) for one in record.attempts] == [
        ("second", "ok", 20 * 1_500 + 7 * 600),
        ("small", "cancelled", 20 * 150 + 7 * 600),
    ]
    assert record.unconfirmed_nusd == 0
    assert record.duration_ms < record.attempts[1].started_ms + record.attempts[1].duration_ms
    other = 20 * 1_500 + 7 * 600
    assert (spent, held) == (before + record.cost_nusd + other, 0)


@pytest.mark.parametrize("how", ["patience", "shutdown"])
async def test_one_that_was_outrun_and_does_not_end_is_bounded_by_its_hold(
    tmp_path: Path, acme: Upstream, medcloud: Upstream, how: str
) -> None:
    def hasty(providers: dict[str, Any]) -> None:
        for settings in providers.values():
            settings["timeout_s"] = 0.5 if how == "patience" else 30

    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=hedging(), change=hasty
    ) as validator:
        await warmed_up(validator)
        before, _ = await validator.settled()
        acme.behave = hanging
        response = await validator.chat()
        if how == "shutdown":
            assert len(validator.services.shutdown.under_way) == 1
            validator.services.shutdown.cut_off()
        record = await validator.record(response)
        spent = await validator.settled()
        async with asyncio.timeout(5):
            await acme.hung_up.wait()
        assert not validator.services.shutdown.under_way

    assert response.status_code == 200
    facts = record.facts
    assert facts is not None
    assert record.unconfirmed_nusd == cost_bound_nusd(hedging().models[0], facts)
    assert spent == (before + record.cost_nusd, 0)
    assert record.usage is not None


async def test_a_first_that_comes_in_time_is_not_asked_for_twice(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=hedging(after_ms=5_000)
    ) as validator:
        await warmed_up(validator, 10, models=BOTH)

    assert not medcloud.seen


async def test_no_more_are_asked_twice_than_the_route_allows(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    async def rather_late(exchange: Exchange) -> None:
        await asyncio.sleep(0.05)
        await answering()(exchange)

    acme.behave = rather_late
    async with running_validator(
        tmp_path,
        {"acme": acme, "medcloud": medcloud},
        policy=hedging(after_ms=1, max_extra_percent=10),
    ) as validator:
        await warmed_up(validator, 20, models=BOTH)

    assert len(medcloud.seen) == 2


async def test_without_a_time_of_its_own_a_route_hedges_what_is_later_than_usual(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=hedging(after_ms=None)
    ) as validator:
        acme.behave = late
        unmeasured = await validator.record(await validator.chat())
        acme.behave = answering()
        await warmed_up(validator, ENOUGH)
        acme.behave = late
        record = await validator.record(await validator.chat())

    assert len(unmeasured.attempts) == 1
    assert {(one.model, one.kind, one.outcome) for one in record.attempts} == {
        ("small", "first", "cancelled"),
        ("second", "hedge", "ok"),
    }


async def test_a_second_request_goes_nowhere_that_the_first_might_not(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=hedging()
    ) as validator:
        await warmed_up(validator)
        acme.behave = late
        record = await validator.record(await validator.chat(models=("small",)))

    assert {(one.model, one.kind) for one in record.attempts} == {
        ("small", "first"),
        ("small", "hedge"),
    }
    assert not medcloud.seen


async def test_what_runs_in_the_background_is_not_asked_twice(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=hedging()
    ) as validator:
        await warmed_up(validator)
        acme.behave = late
        record = await validator.record(
            await validator.chat(headers={"Waypost-Facts": "interactive=?0"})
        )

    assert [one.model for one in record.attempts] == ["small"]


async def test_a_second_that_fails_leaves_the_first_to_answer(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    medcloud.behave = failing(500)
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=hedging()
    ) as validator:
        await warmed_up(validator)
        before, _ = await validator.settled()
        acme.behave = late
        record = await validator.record(await validator.chat())
        spent = await validator.settled()

    assert {(one.model, one.outcome) for one in record.attempts} == {
        ("small", "ok"),
        ("second", "server_error"),
    }
    assert spent == (before + record.cost_nusd, 0)
    assert record.cost_nusd == 20 * 150 + 7 * 600


async def test_a_caller_who_hangs_up_stops_both(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=hedging()
    ) as validator:
        await warmed_up(validator)
        before, _ = await validator.settled()
        both = asyncio.Barrier(3)

        async def behave(exchange: Exchange) -> None:
            await both.wait()
            await hanging(exchange)

        acme.behave = medcloud.behave = behave
        asking = asyncio.create_task(validator.chat(STREAM))
        async with asyncio.timeout(20):
            await both.wait()
            asking.cancel()
            await acme.hung_up.wait()
            await medcloud.hung_up.wait()
            spent, held = await validator.settled()

    assert held == 0
    assert spent == before + 78 * 150 + 78 * 1_500


async def test_the_loser_of_a_stream_that_has_begun_is_not_heard_of(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    async def trickling(exchange: Exchange) -> None:
        await asyncio.sleep(0.15)
        await exchange.start_stream()
        while True:
            await exchange.chunk(event("never"))
            await asyncio.sleep(0.01)

    medcloud.behave = answering("Sooner.")
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=hedging()
    ) as validator:
        await warmed_up(validator)
        acme.behave = trickling
        response = await validator.chat(STREAM)

    assert "never" not in response.text
    assert response.text.endswith("data: [DONE]\n\n")


async def test_of_two_streams_that_begin_at_the_same_moment_one_is_let_go_of(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=hedging()
    ) as validator:
        await warmed_up(validator, 15)
        for _ in range(3):
            both = asyncio.Barrier(2)

            async def behave(exchange: Exchange, both: asyncio.Barrier = both) -> None:
                await both.wait()
                await answering("At once.")(exchange)

            acme.behave = medcloud.behave = behave
            assert "once." in (await validator.chat(STREAM)).text
        _, held = await validator.settled()
        upstreams = validator.services.upstreams.values()

    assert held == 0
    assert [one.limiter.in_flight for one in upstreams] == [0, 0]


def test_late_is_later_than_95_of_100() -> None:
    limiter = Limiter(100)
    for took_s in range(ENOUGH - 1):
        limiter.answered("m", float(took_s), beside=1, now=0.0)
    assert limiter.late_s("m") is None
    assert limiter.late_s("unknown") is None

    for took_s in range(200):
        limiter.answered("m", float(took_s % 100), beside=1, now=0.0)
    late_s = limiter.late_s("m")
    assert late_s is not None
    assert 90 <= late_s <= 99
