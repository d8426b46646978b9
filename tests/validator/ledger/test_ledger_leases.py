"""Slices of budgets, taken in advance: what is spent of them, and what becomes of the rest."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from support.ledgers import (
    NOON,
    USD,
    a_hold,
    assert_books_balance,
    holds,
    limit,
    spent_and_reserved,
)
from support.redis import running_redis
from waypost.shared.errors import StoreError
from waypost.validator.ledger import (
    Calendar,
    Held,
    IdempotencyKey,
    RateLimit,
    Shortfall,
    open_sqlite,
)
from waypost.validator.ledger.group_commit import GroupedLedger
from waypost.validator.ledger.leased import LeasedLedger
from waypost.validator.ledger.redis import open_redis

pytestmark = pytest.mark.anyio

LEASE_S = 0.2


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def leased(path: Path, clock: Clock, *, spends_when_down: bool = False) -> LeasedLedger:
    return LeasedLedger(
        open_sqlite(path),
        Calendar(),
        lease_s=LEASE_S,
        share=0.1,
        spends_when_down=spends_when_down,
        monotonic=clock,
    )


@pytest.fixture
async def ledger(path: Path, clock: Clock) -> AsyncIterator[LeasedLedger]:
    made = leased(path, clock)
    yield made
    await made.close()
    assert_books_balance(path)


@asynccontextmanager
async def beside(path: Path) -> AsyncIterator[GroupedLedger]:
    """Another validator's view of the same books."""
    other = open_sqlite(path)
    yield other
    await other.close()


async def test_many_requests_are_paid_for_from_one_slice(ledger: LeasedLedger, path: Path) -> None:
    for n in range(5):
        assert await ledger.reserve(a_hold(f"h{n}", 1_000)) == Held()
        await ledger.settle(f"h{n}", 600)

    assert len(holds(path)) == 1
    async with beside(path) as other:
        assert await spent_and_reserved(other) == (0, 8_000)


async def test_what_is_left_of_a_slice_comes_back_when_the_validator_stops(
    path: Path, clock: Clock
) -> None:
    ledger = leased(path, clock)
    await ledger.reserve(a_hold("a", 1_000))
    await ledger.settle("a", 600)
    await ledger.close()

    async with beside(path) as other:
        assert await spent_and_reserved(other) == (600, 0)


async def test_a_slice_ends_in_time_and_its_rest_comes_back(
    ledger: LeasedLedger, path: Path, clock: Clock
) -> None:
    await ledger.reserve(a_hold("a", 1_000))
    await ledger.settle("a", 600)
    clock.now_s = LEASE_S

    async with beside(path) as other:
        async with asyncio.timeout(20):
            while await spent_and_reserved(other) != (600, 0):  # noqa: ASYNC110 - a timer of its own
                await asyncio.sleep(0.02)


async def test_a_slice_waits_for_the_bills_of_its_requests(
    ledger: LeasedLedger, path: Path, clock: Clock
) -> None:
    await ledger.reserve(a_hold("slow", 1_000))
    clock.now_s = LEASE_S
    assert await ledger.reserve(a_hold("next", 1_000)) == Held()  # of another slice
    await ledger.settle("slow", 999)
    await ledger.release("next")

    async with beside(path) as other:
        async with asyncio.timeout(20):
            while (await spent_and_reserved(other))[0] != 999:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_a_crash_charges_the_slice_in_full_when_it_expires(path: Path, clock: Clock) -> None:
    crashed = leased(path, clock)
    await crashed.reserve(a_hold("a", 1_000))
    await crashed.settle("a", 1)

    async with beside(path) as other:
        assert await other.sweep(now=NOON + 3_600) == 1
        assert await spent_and_reserved(other) == (8_000, 0)
        # It was only asleep: what it spent is what it pays.
        await crashed.close()
        assert await spent_and_reserved(other) == (1, 0)


async def test_slices_of_many_validators_never_exceed_the_limit(path: Path) -> None:
    clocks = [Clock() for _ in range(4)]
    ledgers = [leased(path, clock) for clock in clocks]
    served = 0

    async def spend(ledger: LeasedLedger, name: str) -> int:
        held = 0
        for n in range(200):
            if not isinstance(await ledger.reserve(a_hold(f"{name}-{n}", USD // 100)), Held):
                break
            held += 1
            await ledger.settle(f"{name}-{n}", USD // 100)
        return held

    spent = await asyncio.gather(*(spend(ledger, f"v{n}") for n, ledger in enumerate(ledgers)))
    served = sum(spent)
    for ledger in ledgers:
        await ledger.close()

    async with beside(path) as other:
        assert await spent_and_reserved(other) == (served * USD // 100, 0)
    assert 90 <= served <= 100
    assert_books_balance(path)


async def test_the_last_dollar_can_be_spent_although_slices_are_small(ledger: LeasedLedger) -> None:
    held = 0
    while isinstance(await ledger.reserve(a_hold(f"h{held}", USD // 50)), Held):
        await ledger.settle(f"h{held}", USD // 50)
        held += 1
    assert held == 50


async def test_a_bill_beyond_its_slice_is_charged_all_the_same(path: Path, clock: Clock) -> None:
    ledger = leased(path, clock)
    await ledger.reserve(a_hold("a", 1_000))
    await ledger.settle("a", USD)
    await ledger.close()
    async with beside(path) as other:
        assert await spent_and_reserved(other) == (USD, 0)
        assert isinstance(await other.reserve(a_hold("b", 1)), Shortfall)


async def test_what_all_validators_must_see_is_asked_of_the_store(
    ledger: LeasedLedger, path: Path
) -> None:
    rate = RateLimit(unit="requests", window="minute", limit=5)
    await ledger.reserve(a_hold("rated", 10, rates=(rate,)))
    key = IdempotencyKey(digest="d", body="b", request_id="keyed")
    await ledger.reserve(a_hold("keyed", 10, key=key))
    above = await ledger.reserve(a_hold("above", 10, limit("request", 5), limit("day", USD)))

    assert {"rated", "keyed"} == holds(path).keys()
    assert isinstance(above, Shortfall)


async def test_a_hold_of_a_slice_that_nobody_settles_is_charged_in_full(
    ledger: LeasedLedger, path: Path
) -> None:
    await ledger.reserve(a_hold("lost", 1_000))
    assert await ledger.sweep(now=NOON + 60) == 1
    await ledger.close()
    async with beside(path) as other:
        assert await spent_and_reserved(other) == (1_000, 0)


@pytest.mark.parametrize("spends", [False, True])
async def test_slices_are_spent_while_the_store_is_down_only_where_the_operator_says_so(
    clock: Clock, spends: bool
) -> None:
    with running_redis() as server:
        ledger = LeasedLedger(
            open_redis(server.url, patience_s=0.2),
            Calendar(),
            lease_s=LEASE_S,
            share=0.1,
            spends_when_down=spends,
            monotonic=clock,
        )
        await ledger.reserve(a_hold("a", 1_000))
        server.kill()
        await asyncio.sleep(LEASE_S)
        if spends:
            for n in range(7):  # what the slice has left, and not one more
                assert await ledger.reserve(a_hold(f"b{n}", 1_000)) == Held()
        with pytest.raises(StoreError, match="does not answer"):
            await ledger.reserve(a_hold("c", 1_000))

        server.start()
        await asyncio.sleep(LEASE_S)
        assert await ledger.reserve(a_hold("d", 1_000)) == Held()
        await ledger.close()
