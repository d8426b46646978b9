"""What a budget ledger does, one fact each, in every store.

Stores are real servers; a machine that has none runs the rest, and says so.
"""

import asyncio
import os
import signal
import sqlite3
import stat
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any, cast
from zoneinfo import ZoneInfo

import psycopg
import pytest
import redis
from msgspec import structs

from support.ledgers import (
    LEASE_S,
    NOON,
    USD,
    a_hold,
    assert_accounts_balance,
    assert_books_balance,
    holds,
    journal,
    limit,
    spent_and_reserved,
    until,
)
from support.redis import RedisServer
from waypost.shared.errors import StoreError
from waypost.validator.ledger import (
    Calendar,
    Grant,
    Held,
    Hold,
    IdempotencyKey,
    RateLimit,
    Repeat,
    Shortfall,
    Throttled,
    lowest,
    open_sqlite,
    scope_of,
)
from waypost.validator.ledger.group_commit import GroupedLedger
from waypost.validator.ledger.operations import Operation, Reserve
from waypost.validator.ledger.postgres import open_postgres
from waypost.validator.ledger.redis import open_redis

pytestmark = pytest.mark.anyio

DAY_S = 86_400
MIDNIGHT = NOON + DAY_S // 2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture(params=["normal", "full", "redis", "postgres"])
async def ledger(path: Path, request: pytest.FixtureRequest) -> AsyncIterator[GroupedLedger]:
    match request.param:
        case "redis":
            url = request.getfixturevalue("redis_server").url
            made = open_redis(url, prefix=token_hex(4))
        case "postgres":
            dsn = request.getfixturevalue("postgres_dsn")
            made = open_postgres(dsn, schema=f"w{token_hex(4)}")
        case durability:
            made = open_sqlite(path, durability=durability, patience_s=0.2)
    yield made
    await assert_accounts_balance(made)
    await made.close()
    if request.param in ("normal", "full"):
        assert_books_balance(path)


@pytest.fixture(params=["normal", "full"])
async def file_ledger(path: Path, request: pytest.FixtureRequest) -> AsyncIterator[GroupedLedger]:
    made = open_sqlite(path, durability=request.param, patience_s=0.2)
    yield made
    await made.close()
    assert_books_balance(path)


# ── reserve ────────────────────────────────────────────────────────────────────────────────────


async def test_a_hold_takes_from_what_is_left_and_a_settlement_gives_the_rest_back(
    ledger: GroupedLedger,
) -> None:
    assert await ledger.reserve(a_hold("a", USD)) == Held()
    assert await spent_and_reserved(ledger) == (0, USD)

    await ledger.settle("a", 3)

    assert await spent_and_reserved(ledger) == (3, 0)


async def test_the_last_nano_dollar_can_be_held_and_not_one_more(ledger: GroupedLedger) -> None:
    assert await ledger.reserve(a_hold("a", USD - 1)) == Held()
    assert await ledger.reserve(a_hold("b", 1)) == Held()

    shortfall = await ledger.reserve(a_hold("c", 1))

    assert shortfall == Shortfall(
        scope="account:acme", window="day", limit_nusd=USD, available_nusd=0, resets_at=MIDNIGHT
    )


async def test_a_burst_of_requests_cannot_run_through_a_budget(ledger: GroupedLedger) -> None:
    outcomes = await asyncio.gather(
        *(ledger.reserve(a_hold(f"h{n}", USD // 10)) for n in range(500))
    )
    assert outcomes.count(Held()) == 10
    assert await spent_and_reserved(ledger) == (0, USD)


async def test_first_requests_of_an_unknown_account_share_one_budget(
    ledger: GroupedLedger,
) -> None:
    # Where the first use makes the row, several first uses may each make their own.
    holding = [ledger.reserve(a_hold(f"h{n}", USD, account="new")) for n in range(20)]
    assert (await asyncio.gather(*holding)).count(Held()) == 1


async def test_a_hold_needs_room_in_every_window_and_a_refusal_takes_from_none(
    ledger: GroupedLedger,
) -> None:
    limits = (limit("hour", 10 * USD), limit("month", USD), limit("total", 50 * USD))
    shortfall = await ledger.reserve(a_hold("a", USD + 1, *limits))

    assert isinstance(shortfall, Shortfall)
    assert shortfall.window == "month"
    assert await journal(ledger) == {}
    for window in ("hour", "month", "total"):
        assert await spent_and_reserved(ledger, window) == (0, 0)


async def test_after_a_refusal_the_same_id_may_hold_what_is_available(
    ledger: GroupedLedger,
) -> None:
    shortfall = await ledger.reserve(a_hold("a", 2 * USD))
    assert isinstance(shortfall, Shortfall)
    assert await ledger.reserve(a_hold("a", shortfall.available_nusd)) == Held()


async def test_a_shortfall_says_what_all_windows_together_leave(ledger: GroupedLedger) -> None:
    await ledger.reserve(a_hold("a", 7, limit("total", 100)))
    shortfall = await ledger.reserve(
        a_hold("b", 100, limit("request", 99), limit("day", 98), limit("total", 100))
    )
    assert shortfall == Shortfall(
        scope="account:acme", window="day", limit_nusd=98, available_nusd=91, resets_at=MIDNIGHT
    )


async def test_of_two_exhausted_windows_the_one_that_ends_last_is_named(
    ledger: GroupedLedger,
) -> None:
    # "Try again in an hour" would be wrong advice.
    shortfall = await ledger.reserve(a_hold("a", 11, limit("month", 10), limit("hour", 10)))
    assert isinstance(shortfall, Shortfall)
    assert shortfall.window == "month"


async def test_the_request_window_is_a_ceiling_on_one_hold(ledger: GroupedLedger) -> None:
    ceiling = limit("request", 10)
    assert await ledger.reserve(a_hold("a", 10, ceiling)) == Held()
    assert await ledger.reserve(a_hold("b", 10, ceiling)) == Held()
    assert await ledger.reserve(a_hold("c", 11, ceiling)) == Shortfall(
        scope="account:acme", window="request", limit_nusd=10, available_nusd=10, resets_at=None
    )


async def test_of_several_limits_for_one_window_the_lowest_holds(ledger: GroupedLedger) -> None:
    limits = (limit("day", 10), limit("day", 5), limit("day", 7))
    shortfall = await ledger.reserve(a_hold("a", 6, *limits))
    assert isinstance(shortfall, Shortfall)
    assert shortfall.limit_nusd == 5
    (balance,) = await ledger.balances((scope_of("account:acme", limits),), now=NOON)
    assert balance.limit_nusd == 5


async def test_a_new_token_with_other_windows_sees_what_was_spent_before(
    ledger: GroupedLedger,
) -> None:
    await ledger.reserve(a_hold("a", 90, limit("day", 100)))
    await ledger.settle("a", 90)

    shortfall = await ledger.reserve(a_hold("b", 20, limit("month", 100)))

    assert isinstance(shortfall, Shortfall)
    assert shortfall.available_nusd == 10


async def test_a_limit_lowered_below_what_is_spent_leaves_nothing_not_less(
    ledger: GroupedLedger,
) -> None:
    await ledger.reserve(a_hold("a", 90))
    shortfall = await ledger.reserve(a_hold("b", 1, limit("day", 50)))
    assert isinstance(shortfall, Shortfall)
    assert shortfall.available_nusd == 0


async def test_an_account_without_limits_is_only_counted(ledger: GroupedLedger) -> None:
    hold = structs.replace(a_hold("a", 10**6 * USD), scopes=(scope_of("account:acme"),))
    assert await ledger.reserve(hold) == Held()
    assert await spent_and_reserved(ledger) == (0, 10**6 * USD)


async def test_accounts_do_not_share(ledger: GroupedLedger) -> None:
    assert await ledger.reserve(a_hold("a", USD, account="one")) == Held()
    assert await ledger.reserve(a_hold("b", USD, account="two")) == Held()


async def test_reserving_the_same_hold_twice_holds_it_once(ledger: GroupedLedger) -> None:
    for _ in range(2):
        assert await ledger.reserve(a_hold("a", USD)) == Held()
    outcomes = await asyncio.gather(*(ledger.reserve(a_hold("b", 0)) for _ in range(3)))
    assert outcomes == [Held()] * 3
    assert await spent_and_reserved(ledger) == (0, USD)


@pytest.mark.parametrize("other", [a_hold("a", 8), a_hold("a", 7, account="other")])
async def test_an_id_cannot_stand_for_two_holds(ledger: GroupedLedger, other: Hold) -> None:
    await ledger.reserve(a_hold("a", 7))
    with pytest.raises(StoreError, match="another hold") as caught:
        await ledger.reserve(other)
    assert caught.value.code == "hold_conflict"


async def test_a_settled_hold_cannot_be_held_again_to_be_used_for_free(
    ledger: GroupedLedger,
) -> None:
    await ledger.reserve(a_hold("a", 7))
    await ledger.settle("a", 7)
    with pytest.raises(StoreError, match="settled"):
        await ledger.reserve(a_hold("a", 7))
    assert await journal(ledger) == {"a": ("settled", 7)}


async def test_one_conflict_does_not_spoil_what_comes_with_it(ledger: GroupedLedger) -> None:
    await ledger.reserve(a_hold("a", 7))
    await ledger.settle("a", 7)
    outcomes = await asyncio.gather(
        *(ledger.reserve(a_hold(name, 1)) for name in ("b", "a", "c")), return_exceptions=True
    )
    assert [isinstance(outcome, StoreError) for outcome in outcomes] == [False, True, False]
    assert await spent_and_reserved(ledger) == (7, 2)


@pytest.mark.parametrize("amount", [2**53, 2**63, 2**80])
async def test_a_hold_larger_than_any_bill_is_refused_even_without_limits(
    ledger: GroupedLedger, amount: int
) -> None:
    shortfall = await ledger.reserve(a_hold("a", amount, limit("total", 2**53 - 1)))
    assert isinstance(shortfall, Shortfall)
    assert shortfall.available_nusd == 2**53 - 1


async def test_what_cannot_be_a_hold_is_a_programming_error(ledger: GroupedLedger) -> None:
    for wrong in (a_hold("a", -1), a_hold("ä", 1), a_hold("a", 1, account="\udcff")):
        with pytest.raises(ValueError, match="not a hold"):
            await ledger.reserve(wrong)
    with pytest.raises(ValueError, match="not a settlement"):
        await ledger.settle("a", -1)


# ── settle, release, sweep ─────────────────────────────────────────────────────────────────────


async def test_settling_twice_charges_once(ledger: GroupedLedger) -> None:
    await ledger.reserve(a_hold("a", 10))
    await asyncio.gather(ledger.settle("a", 4), ledger.settle("a", 9))
    await ledger.settle("a", 10)
    assert await spent_and_reserved(ledger) == (4, 0)


async def test_a_bill_beyond_its_hold_becomes_debt_that_blocks_what_comes_next(
    ledger: GroupedLedger,
) -> None:
    await ledger.reserve(a_hold("a", USD - 10))
    await ledger.settle("a", USD + 5)

    (balance,) = await ledger.balances(a_hold("b", 1).scopes, now=NOON)
    assert (balance.spent_nusd, balance.debt_nusd) == (USD + 5, 15)
    shortfall = await ledger.reserve(a_hold("b", 1))
    assert isinstance(shortfall, Shortfall)
    assert shortfall.available_nusd == 0


async def test_what_costs_nothing_is_settled_and_released_like_all_else(
    ledger: GroupedLedger,
) -> None:
    for hold_id in ("served", "lost", "left"):
        await ledger.reserve(a_hold(hold_id, 0))
    await ledger.settle("served", 0)
    await ledger.release("lost")
    await ledger.sweep(now=NOON + LEASE_S)

    assert await journal(ledger) == {
        "served": ("settled", 0),
        "lost": ("released", 0),
        "left": ("expired", 0),
    }


async def test_what_costs_nothing_may_be_had_even_in_debt(ledger: GroupedLedger) -> None:
    await ledger.reserve(a_hold("a", USD))
    await ledger.settle("a", 2 * USD)
    assert await ledger.reserve(a_hold("free", 0)) == Held()


async def test_an_absurd_bill_is_charged_as_far_as_numbers_go(ledger: GroupedLedger) -> None:
    await ledger.reserve(a_hold("a", 10))
    await ledger.settle("a", 2**90)
    assert await spent_and_reserved(ledger) == (2**53 - 1, 0)


async def test_settling_what_was_never_held_is_told(ledger: GroupedLedger) -> None:
    with pytest.raises(StoreError) as caught:
        await ledger.settle("ghost", 1)
    assert caught.value.code == "hold_unknown"


async def test_releasing_gives_all_back_once(ledger: GroupedLedger) -> None:
    await ledger.reserve(a_hold("a", 10))
    await ledger.release("a")
    await ledger.release("a")
    await ledger.release("ghost")
    await ledger.settle("a", 10)
    assert await spent_and_reserved(ledger) == (0, 0)


async def test_a_release_after_the_bill_gives_nothing_back(ledger: GroupedLedger) -> None:
    await ledger.reserve(a_hold("a", 10))
    await ledger.settle("a", 8)
    await ledger.release("a")
    assert await spent_and_reserved(ledger) == (8, 0)


async def test_a_hold_that_nobody_settles_is_charged_in_full_when_it_expires(
    ledger: GroupedLedger,
) -> None:
    await ledger.reserve(a_hold("a", 10))
    assert await ledger.sweep(now=NOON + LEASE_S - 1) == 0
    assert await ledger.sweep(now=NOON + LEASE_S) == 1
    assert await ledger.sweep(now=NOON + LEASE_S) == 0
    assert await spent_and_reserved(ledger) == (10, 0)
    assert await journal(ledger) == {"a": ("expired", 10)}


@pytest.mark.parametrize("cost", [3, 10, 12])
async def test_a_bill_that_comes_after_expiry_corrects_the_charge_once(
    ledger: GroupedLedger, cost: int
) -> None:
    await ledger.reserve(a_hold("a", 10))
    await ledger.sweep(now=NOON + LEASE_S)

    await ledger.settle("a", cost)
    await ledger.settle("a", 1)

    assert await spent_and_reserved(ledger) == (cost, 0)
    assert await journal(ledger) == {"a": ("corrected", cost)}


async def test_a_charge_that_no_provider_confirmed_is_corrected_once(
    ledger: GroupedLedger,
) -> None:
    await ledger.reserve(a_hold("lost", 100))
    await ledger.settle("lost", 130, is_confirmed=False)
    await ledger.settle("lost", 90, is_confirmed=False)
    assert await journal(ledger) == {"lost": ("unconfirmed", 130)}
    assert await spent_and_reserved(ledger) == (130, 0)

    await ledger.settle("lost", 40)
    await ledger.settle("lost", 50)
    await ledger.release("lost")
    assert await journal(ledger) == {"lost": ("corrected", 40)}
    assert await spent_and_reserved(ledger) == (40, 0)


async def test_a_correction_upwards_is_debt_since_others_may_hold_the_rest_by_now(
    ledger: GroupedLedger,
) -> None:
    await ledger.reserve(a_hold("lost", 100, limit("day", 100)))
    await ledger.settle("lost", 10, is_confirmed=False)
    assert isinstance(await ledger.reserve(a_hold("next", 90, limit("day", 100))), Held)

    await ledger.settle("lost", 30)

    (balance,) = await ledger.balances((scope_of("account:acme", (limit("day", 100),)),), now=NOON)
    assert (balance.spent_nusd, balance.debt_nusd, balance.reserved_nusd) == (30, 20, 90)


async def test_a_part_of_an_answer_bounds_a_hold_that_had_expired(ledger: GroupedLedger) -> None:
    await ledger.reserve(a_hold("slow", 100))
    await ledger.sweep(now=NOON + LEASE_S)
    await ledger.settle("slow", 60, is_confirmed=False)
    assert await journal(ledger) == {"slow": ("unconfirmed", 60)}

    await ledger.settle("slow", 20)
    assert await journal(ledger) == {"slow": ("corrected", 20)}
    assert await spent_and_reserved(ledger) == (20, 0)


async def test_many_expired_holds_are_charged_without_blocking_others(
    ledger: GroupedLedger,
) -> None:
    await asyncio.gather(*(ledger.reserve(a_hold(f"h{n}", 1)) for n in range(450)))
    swept, held = await asyncio.gather(
        ledger.sweep(now=NOON + LEASE_S), ledger.reserve(a_hold("new", 1, now=NOON + 1))
    )
    assert (swept, held) == (450, Held())


async def test_a_settlement_beats_the_sweep_it_shares_a_batch_with(ledger: GroupedLedger) -> None:
    await ledger.reserve(a_hold("a", 10))
    await asyncio.gather(ledger.settle("a", 4), ledger.sweep(now=NOON + LEASE_S))
    assert await spent_and_reserved(ledger) == (4, 0)


# ── windows ────────────────────────────────────────────────────────────────────────────────────


async def test_a_new_window_starts_empty_and_the_old_one_gets_its_late_bills(
    ledger: GroupedLedger,
) -> None:
    last_second = MIDNIGHT - 1
    await ledger.reserve(a_hold("a", USD, now=last_second))
    assert await ledger.reserve(a_hold("b", USD, now=MIDNIGHT)) == Held()

    await ledger.settle("a", 7)

    assert await spent_and_reserved(ledger, now=last_second) == (7, 0)
    assert await spent_and_reserved(ledger, now=MIDNIGHT) == (0, USD)
    assert await spent_and_reserved(ledger, "total", now=MIDNIGHT) == (7, USD)


async def test_the_total_never_resets(ledger: GroupedLedger) -> None:
    whole = limit("total", USD)
    await ledger.reserve(a_hold("a", USD, whole))
    await ledger.settle("a", USD)
    shortfall = await ledger.reserve(a_hold("b", 1, whole, now=NOON + 400 * DAY_S))
    assert isinstance(shortfall, Shortfall)
    assert shortfall.resets_at is None


@pytest.mark.parametrize(
    ("text", "month", "next_month"),
    [
        ("2024-02-29T23:59:59", "2024-02-01", "2024-03-01"),
        ("2025-12-31T23:59:59", "2025-12-01", "2026-01-01"),
        ("2026-01-01T00:00:00", "2026-01-01", "2026-02-01"),
    ],
)
def test_months_are_calendar_months_in_utc(text: str, month: str, next_month: str) -> None:
    now = _at(text)
    calendar = Calendar()
    _, hour, day, _, start, total = calendar.starts(now)
    assert (start, calendar.resets_at("month", now)) == (_at(month), _at(next_month))
    assert (now - hour, day, total) == (now % 3_600, _at(text[:10]), 0)
    assert calendar.resets_at("hour", now) == hour + 3_600
    assert calendar.resets_at("day", now) == day + DAY_S


def test_lowest_keeps_one_limit_per_window() -> None:
    assert lowest((limit("day", 3), limit("hour", 1), limit("day", 2))) == (
        limit("day", 2),
        limit("hour", 1),
    )


# ── scopes, rates, keys, grants ────────────────────────────────────────────────────────────────


async def test_one_scope_that_refuses_leaves_nothing_in_the_others(ledger: GroupedLedger) -> None:
    tier = scope_of("tier:pro", (limit("day", 5),))
    refused = await ledger.reserve(a_hold("a", 6, also=(tier,)))

    assert isinstance(refused, Shortfall)
    assert (refused.scope, refused.available_nusd) == ("tier:pro", 5)
    assert await ledger.reserve(a_hold("b", 5, also=(tier,))) == Held()
    for scope in ("account:acme", "tier:pro"):
        assert await spent_and_reserved(ledger, scope=scope) == (0, 5)


async def test_a_rate_lets_a_window_s_worth_through_and_then_as_it_wears_off(
    ledger: GroupedLedger,
) -> None:
    rates = (RateLimit(unit="requests", window="minute", limit=7),)
    for n in range(7):
        assert await ledger.reserve(a_hold(f"h{n}", 1, rates=rates)) == Held()

    refused = await ledger.reserve(a_hold("late", 1, rates=rates))

    assert refused == Throttled(scope="account:acme", rate=rates[0], retry_after_s=9)
    assert await ledger.reserve(a_hold("later", 1, rates=rates, now=NOON + 9)) == Held()


async def test_a_rate_outlives_the_process_that_counted_it(path: Path) -> None:
    rates = (
        RateLimit(unit="requests", window="hour", limit=2),
        RateLimit(unit="tokens", window="hour", limit=1_000),
    )
    for number in range(2):
        ledger = open_sqlite(path)
        assert await ledger.reserve(a_hold(f"h{number}", 1, rates=rates, tokens=600)) == Held()
        await ledger.settle(f"h{number}", 1, tokens=100)
        await ledger.close()

    ledger = open_sqlite(path)
    refused = await ledger.reserve(a_hold("late", 1, rates=rates, tokens=1))
    larger = await ledger.reserve(a_hold("large", 1, rates=rates[1:], tokens=900))
    smaller = await ledger.reserve(a_hold("small", 1, rates=rates[1:], tokens=800))
    await ledger.close()

    assert isinstance(refused, Throttled)
    assert refused.rate == rates[0]
    assert isinstance(larger, Throttled)  # 200 of the first two were used
    assert smaller == Held()


async def test_a_rate_counts_what_others_that_share_the_file_have_let_through(path: Path) -> None:
    rates = (RateLimit(unit="requests", window="hour", limit=3),)
    one, other = open_sqlite(path), open_sqlite(path)
    for number, ledger in enumerate((one, other, one)):
        assert await ledger.reserve(a_hold(f"h{number}", 1, rates=rates)) == Held()

    for number, ledger in enumerate((one, other)):
        assert isinstance(await ledger.reserve(a_hold(f"late{number}", 1, rates=rates)), Throttled)
    await one.close()
    await other.close()


async def test_tokens_that_were_not_used_come_back_to_the_rate(ledger: GroupedLedger) -> None:
    rates = (RateLimit(unit="tokens", window="minute", limit=1_000),)
    await ledger.reserve(a_hold("a", 1, rates=rates, tokens=1_000))
    assert isinstance(await ledger.reserve(a_hold("b", 1, rates=rates, tokens=900)), Throttled)

    await ledger.settle("a", 1, tokens=100)

    assert await ledger.reserve(a_hold("c", 1, rates=rates, tokens=900)) == Held()


async def test_a_request_larger_than_its_rate_is_told_not_to_wait(ledger: GroupedLedger) -> None:
    rates = (RateLimit(unit="tokens", window="hour", limit=1_000),)
    refused = await ledger.reserve(a_hold("a", 1, rates=rates, tokens=1_001))
    assert isinstance(refused, Throttled)
    assert refused.retry_after_s is None


async def test_an_idempotency_key_stands_for_one_request(ledger: GroupedLedger) -> None:
    key = IdempotencyKey(digest="k", body="b", request_id="first")
    again = IdempotencyKey(digest="k", body="b", request_id="second")
    other = IdempotencyKey(digest="k", body="c", request_id="third")
    await ledger.reserve(a_hold("first", 1, key=key))

    assert await ledger.reserve(a_hold("second", 1, key=again)) == Repeat(
        hold_id="first", state="in_progress"
    )
    await ledger.release("first")
    assert await ledger.reserve(a_hold("first.1", 1, key=key)) == Held()
    await ledger.settle("first.1", 1)
    assert await ledger.reserve(a_hold("second", 1, key=again)) == Repeat(
        hold_id="first.1", state="done"
    )
    assert await ledger.reserve(a_hold("third", 1, key=other)) == Repeat(
        hold_id="first.1", state="other_body"
    )
    await ledger.free_key("k", "first")
    assert await ledger.reserve(a_hold("second", 1, key=again)) == Held()


async def test_a_grant_makes_room_once_and_a_reset_grants_what_is_spent(
    ledger: GroupedLedger,
) -> None:
    await ledger.reserve(a_hold("a", USD))
    await ledger.settle("a", USD)
    more = Grant(id="g", scope="account:acme", window="day", at=NOON, amount_nusd=5, by="me")
    for _ in range(2):
        assert await ledger.grant(more) == 5
    assert await ledger.reserve(a_hold("b", 5)) == Held()
    assert isinstance(await ledger.reserve(a_hold("c", 1)), Shortfall)

    reset = Grant(id="r", scope="account:acme", window="day", at=NOON, amount_nusd=None, by="me")
    assert await ledger.grant(reset) == USD - 5
    assert await ledger.reserve(a_hold("c", USD - 5)) == Held()


async def test_a_soft_limit_is_told_and_refuses_nothing(ledger: GroupedLedger) -> None:
    tier = scope_of("tier:pro", warnings=(limit("day", 10),))
    assert await ledger.reserve(a_hold("a", 9, also=(tier,))) == Held()
    held = await ledger.reserve(a_hold("b", 1, also=(tier,)))
    assert isinstance(held, Held)
    assert [(one.scope, one.used_nusd, one.is_new) for one in held.crossed] == [
        ("tier:pro", 10, True)
    ]


def test_days_and_months_are_those_of_the_time_zone() -> None:
    berlin = Calendar(ZoneInfo("Europe/Berlin"))
    spring = _at("2026-03-29T12:00:00")  # clocks go forward: the day has 23 hours
    assert berlin.starts(spring)[2] == _at("2026-03-28T23:00:00")
    assert berlin.resets_at("day", spring) == _at("2026-03-29T22:00:00")
    assert berlin.starts(spring)[4] == _at("2026-02-28T23:00:00")
    assert berlin.resets_at("week", spring) == _at("2026-03-29T22:00:00")


async def test_a_ledger_that_counts_in_another_zone_is_left_alone(path: Path) -> None:
    await open_sqlite(path).close()
    with pytest.raises(StoreError, match="those of UTC, not of Europe/Berlin"):
        open_sqlite(path, calendar=Calendar(ZoneInfo("Europe/Berlin")))


# ── a caller that goes away ────────────────────────────────────────────────────────────────────


async def test_a_caller_that_goes_away_before_the_commit_holds_nothing(
    file_ledger: GroupedLedger, path: Path
) -> None:
    with _locked(path):
        waiting = asyncio.create_task(file_ledger.reserve(a_hold("a", USD)))
        await asyncio.sleep(0.005)
        waiting.cancel()
        await asyncio.wait((waiting,))
    assert await file_ledger.reserve(a_hold("b", USD)) == Held()


async def test_a_caller_that_goes_away_right_after_the_commit_holds_nothing(
    file_ledger: GroupedLedger, path: Path
) -> None:
    going = asyncio.create_task(file_ledger.reserve(a_hold("a", USD)))
    await until(lambda: bool(holds(path)))  # committed; its task has not run since
    going.cancel()
    await asyncio.wait((going,))

    await file_ledger.release("ghost")  # after the release that the cancelled call left behind
    if going.cancelled():
        assert holds(path) == {"a": ("released", 0)}
    else:  # a thread's answer may have been delivered first
        assert await spent_and_reserved(file_ledger) == (0, USD)


async def test_a_settlement_is_made_though_its_caller_goes_away(ledger: GroupedLedger) -> None:
    await ledger.reserve(a_hold("a", 10))
    settling = asyncio.create_task(ledger.settle("a", 4))
    await asyncio.sleep(0)
    settling.cancel()
    await asyncio.wait((settling,))
    await ledger.release("ghost")
    assert await spent_and_reserved(ledger) == (4, 0)


async def test_a_settlement_shares_the_transaction_of_the_next_hold(
    file_ledger: GroupedLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await file_ledger.reserve(a_hold("a", 10))
    batches: list[int] = []
    transact = file_ledger.store.transact

    def counted(batch: Sequence[Operation]) -> list[Any] | Awaitable[list[Any]]:
        batches.append(len(batch))
        return transact(batch)

    monkeypatch.setattr(file_ledger.store, "transact", counted)
    await asyncio.gather(file_ledger.settle("a", 4), file_ledger.reserve(a_hold("b", 10)))
    await file_ledger.settle("b", 4)  # and no longer than a moment, if nobody else comes

    assert batches == [2, 1]


# ── a store in trouble ─────────────────────────────────────────────────────────────────────────


async def test_a_short_lock_by_another_process_is_waited_for_without_blocking_the_loop(
    file_ledger: GroupedLedger, path: Path
) -> None:
    with _locked(path):
        holding = asyncio.create_task(file_ledger.reserve(a_hold("a", 1)))
        await asyncio.sleep(0.01)
        assert not holding.done()
    assert await holding == Held()


async def test_a_store_that_does_not_answer_refuses_and_recovers_by_itself(
    file_ledger: GroupedLedger, path: Path
) -> None:
    with _locked(path):
        with pytest.raises(StoreError, match="does not answer") as caught:
            await file_ledger.reserve(a_hold("a", 1))
        assert caught.value.code == "ledger_unavailable"
    assert await file_ledger.reserve(a_hold("b", 1)) == Held()
    assert set(holds(path)) == {"b"}


async def test_a_bill_is_not_lost_while_the_store_does_not_answer(
    file_ledger: GroupedLedger, path: Path
) -> None:
    await file_ledger.reserve(a_hold("a", 10))
    with _locked(path), pytest.raises(StoreError):
        await file_ledger.settle("a", 4)
    await file_ledger.release("ghost")
    assert await spent_and_reserved(file_ledger) == (4, 0)


@contextmanager
def _stalled(pids: list[int]) -> Iterator[None]:
    """Processes that neither answer nor hang up, as on a machine that is swapped out."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("store", ["redis", "postgres"])
async def test_a_store_that_stalls_in_the_middle_ends_in_an_error_and_is_found_again(
    store: str, request: pytest.FixtureRequest
) -> None:
    # Patience is longer than the garbage collector's pauses in a process that runs all tests.
    if store == "redis":
        url = request.getfixturevalue("redis_server").url
        ledger = open_redis(url, prefix=token_hex(4), patience_s=1)
        with closing(redis.Redis.from_url(url)) as client:
            pids = [int(cast(Any, client.info())["process_id"])]
        await ledger.reserve(a_hold("h", 40))
    else:
        dsn = request.getfixturevalue("postgres_dsn")
        ledger = open_postgres(dsn, schema=f"w{token_hex(4)}", patience_s=1)
        await ledger.reserve(a_hold("h", 40))
        with psycopg.connect(dsn) as db:
            # The first is the one that would serve a new connection.
            pids = [int(pid) for (pid,) in db.execute(
                "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1) UNION ALL"
                " SELECT pid::text FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid != pg_backend_pid()"
            )]  # fmt: skip

    async with asyncio.timeout(20):
        with _stalled(pids):
            refused = await asyncio.gather(
                ledger.reserve(a_hold("other", 10)), ledger.settle("h", 30), return_exceptions=True
            )
        for error in refused:
            assert isinstance(error, StoreError)
            assert error.code == "ledger_unavailable"
            assert "does not answer" in error.message
        assert isinstance(await ledger.reserve(a_hold("next", 10)), Held)
    assert await spent_and_reserved(ledger) == (30, 10)
    await ledger.close()


async def test_a_connection_that_was_broken_off_after_the_commit_is_not_used_again(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_postgres(postgres_dsn, schema=f"w{token_hex(4)}", patience_s=5)
    await ledger.reserve(a_hold("first", 1))

    async def pauses(db: object) -> None:
        await asyncio.sleep(0.5)

    with monkeypatch.context() as patch:
        patch.setattr(ledger.store, "_patience_s", 0.4)
        patch.setattr(ledger.store, "_prune", pauses)  # it comes after the commit
        await ledger.reserve(a_hold("late", 1))

    # Asked without the queue, which would try again.
    assert await cast(Any, ledger.store.transact([Reserve(a_hold("next", 1))])) == [Held()]
    await ledger.close()


async def test_a_fault_of_the_store_s_own_ends_in_an_error_and_not_in_waiting(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_sqlite(path, durability="full", patience_s=0.1)

    def fails(batch: object) -> None:
        raise RuntimeError("who would have thought")

    with monkeypatch.context() as patch:
        patch.setattr(ledger.store, "_transact", fails)
        async with asyncio.timeout(20):
            with pytest.raises(StoreError) as refused:
                await ledger.reserve(a_hold("h", 1))
    assert refused.value.code == "ledger_unavailable"
    assert isinstance(await ledger.reserve(a_hold("next", 1)), Held)
    await ledger.close()


async def test_a_damaged_row_in_redis_refuses_its_own_account_and_nobody_else(
    redis_server: RedisServer,
) -> None:
    prefix = token_hex(4)
    ledger = open_redis(redis_server.url, prefix=prefix, patience_s=5)
    with closing(redis.Redis.from_url(redis_server.url)) as client:
        client.hset(f"{{{prefix}}}:w:account:acme:total:0", "r", "not a number")

    broken, whole = await asyncio.gather(
        ledger.reserve(a_hold("h1", 1)),
        ledger.reserve(a_hold("h2", 1, account="bee")),
        return_exceptions=True,
    )

    assert isinstance(broken, StoreError)
    assert broken.code == "ledger_unavailable"
    assert isinstance(whole, Held)
    await ledger.close()


async def test_closing_writes_what_is_still_to_be_written(path: Path) -> None:
    ledger = open_sqlite(path)
    await ledger.reserve(a_hold("a", 10))
    settling = asyncio.create_task(ledger.settle("a", 4))
    await asyncio.sleep(0)
    await ledger.close()
    await ledger.close()
    await settling
    assert holds(path) == {"a": ("settled", 4)}
    with pytest.raises(StoreError, match="closed"):
        await ledger.reserve(a_hold("b", 1))


async def test_a_ledger_that_cannot_be_read_says_so(path: Path) -> None:
    ledger = open_sqlite(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE windows")
    with pytest.raises(StoreError, match="cannot be read") as caught:
        await ledger.balances(a_hold("b", 1).scopes, now=NOON)
    assert caught.value.code == "ledger_unavailable"
    await ledger.close()


async def test_closing_gives_up_on_a_store_that_stays_locked(path: Path) -> None:
    ledger = open_sqlite(path, patience_s=0.05)
    await ledger.reserve(a_hold("a", 10))
    with _locked(path):
        settling = asyncio.create_task(ledger.settle("a", 4))
        await asyncio.sleep(0)
        await ledger.close()
        with pytest.raises(StoreError):
            await settling
    assert holds(path) == {"a": ("held", 0)}  # and charged in full when it expires


async def test_old_holds_are_dropped_and_the_total_stays(path: Path) -> None:
    ledger = open_sqlite(path)
    for n in range(3):
        await ledger.reserve(a_hold(f"h{n}", 10, limit("total", USD)))
        await ledger.settle(f"h{n}", 12)
    await ledger.reserve(a_hold("open", 10, expires_at=NOON + 999 * DAY_S))
    await ledger.sweep(now=Calendar().month_start(NOON, months_back=-2))
    await until(lambda: len(holds(path)) == 1, pause_s=0.02)
    assert_books_balance(path)
    assert await spent_and_reserved(ledger, "total") == (36, 10)
    await ledger.settle("open", 4)
    assert await spent_and_reserved(ledger, "total") == (40, 0)
    await ledger.close()
    assert_books_balance(path)


async def test_the_log_is_written_back_without_the_event_loop(path: Path) -> None:
    ledger = open_sqlite(path)
    for batch in range(3):
        await asyncio.gather(*(ledger.reserve(a_hold(f"{batch}-{n}", 1)) for n in range(800)))
    # The main file grows by checkpoints alone.
    await until(lambda: path.stat().st_size > 100_000, pause_s=0.02)
    await ledger.close()


# ── the file ───────────────────────────────────────────────────────────────────────────────────


async def test_the_file_is_its_owners_alone(file_ledger: GroupedLedger, path: Path) -> None:
    assert _mode(path) == _mode(Path(f"{path}-wal")) == 0o600


def test_a_file_that_is_no_ledger_is_named(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to be read as one" * 100)
    with pytest.raises(StoreError, match=r"damaged \(file is not a database\)") as caught:
        open_sqlite(path)
    assert caught.value.code == "ledger_damaged"
    with pytest.raises(StoreError, match="No such file"):
        open_sqlite(tmp_path / "missing" / "ledger.sqlite")


async def test_a_ledger_of_a_newer_layout_is_left_alone(path: Path) -> None:
    await open_sqlite(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match="layout is version 99, this program knows 2"):
        open_sqlite(path)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class _locked:
    """Another process's write lock."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, timeout=5)

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, *_: object) -> None:
        self._db.execute("ROLLBACK")
        self._db.close()


def _at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())
