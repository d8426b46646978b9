"""What every ledger promises, whichever store it is in, and also where slices are taken of it."""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from support.ledgers import LEASE_S, NOON, USD, a_hold, limit, spent_and_reserved
from support.postgres import find_postgres, running_postgres
from support.redis import find_redis, running_cluster, running_redis
from waypost.shared.errors import StoreError
from waypost.validator.ledger import (
    Calendar,
    Held,
    IdempotencyKey,
    Ledger,
    RateLimit,
    Repeat,
    Shortfall,
    Throttled,
    open_sqlite,
)
from waypost.validator.ledger.leased import LeasedLedger
from waypost.validator.ledger.postgres import open_postgres
from waypost.validator.ledger.redis import open_redis

pytestmark = pytest.mark.anyio

STORES = ("normal", "full", "redis", "cluster", "postgres")
RATE = RateLimit(unit="requests", window="minute", limit=2)

# Opens the same books once more, as another process or a restart does.
Open = Callable[[], Ledger]


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Any]]:
    with_redis, with_postgres = find_redis() is not None, find_postgres() is not None
    found: dict[str, Any] = {}
    with ExitStack() as stack:

        def start(name: str) -> Any:  # noqa: ANN401 - a server of its kind
            if name not in found:
                if not (with_postgres if name == "postgres" else with_redis):
                    pytest.skip(f"no server for {name} here")
                match name:
                    case "postgres":
                        found[name] = stack.enter_context(running_postgres())
                    case "cluster":
                        found[name] = stack.enter_context(running_cluster())
                    case _:
                        found[name] = stack.enter_context(running_redis())
            return found[name]

        yield {"start": start}


@pytest.fixture(params=[f"{store}{kind}" for store in STORES for kind in ("", " leased")])
async def opened(
    request: pytest.FixtureRequest, tmp_path: Path, servers: dict[str, Any]
) -> AsyncIterator[Open]:
    store, _, leased = request.param.partition(" ")
    name = token_hex(4)
    async with AsyncExitStack() as stack:

        def plain() -> Ledger:
            match store:
                case "redis":
                    return open_redis(servers["start"](store).url, prefix=name)
                case "cluster":
                    return open_redis(servers["start"](store).urls[0], prefix=name)
                case "postgres":
                    return open_postgres(servers["start"](store), schema=f"w{name}")
                case durability:
                    return open_sqlite(tmp_path / "ledger.sqlite", durability=durability)

        def another() -> Ledger:
            ledger = plain()
            if leased:
                ledger = LeasedLedger(
                    ledger,
                    Calendar(),
                    lease_s=LEASE_S,
                    share=0.1,
                    spends_when_down=False,
                    monotonic=time.monotonic,
                )
            stack.push_async_callback(ledger.close)
            return ledger

        yield another


async def test_what_is_spent_is_spent_after_a_restart(opened: Open) -> None:
    first = opened()
    assert await first.reserve(a_hold("a", 1_000)) == Held()
    await first.settle("a", 700)
    assert await first.reserve(a_hold("b", 500)) == Held()
    await first.release("b")
    await first.close()

    assert await spent_and_reserved(opened()) == (700, 0)


async def test_rates_outlive_a_restart_and_are_seen_by_all(opened: Open) -> None:
    first, beside = opened(), opened()
    assert await first.reserve(a_hold("a", 1, rates=(RATE,))) == Held()
    assert await beside.reserve(a_hold("b", 1, rates=(RATE,))) == Held()
    await first.close()

    later = opened()

    assert isinstance(await later.reserve(a_hold("c", 1, rates=(RATE,))), Throttled)
    assert isinstance(await beside.reserve(a_hold("d", 1, rates=(RATE,))), Throttled)


async def test_a_fallback_is_no_second_request_of_the_caller(opened: Open) -> None:
    ledger = opened()
    for n in range(3):
        hold = a_hold(f"first.{n}", 1, rates=(RATE,), requests=0 if n else 1)
        assert await ledger.reserve(hold) == Held()
    assert await ledger.reserve(a_hold("second", 1, rates=(RATE,))) == Held()

    assert isinstance(await ledger.reserve(a_hold("third", 1, rates=(RATE,))), Throttled)


async def test_a_key_stands_for_its_request_after_a_restart(opened: Open) -> None:
    first = opened()
    key = IdempotencyKey(digest="k", body="b", request_id="one")
    assert await first.reserve(a_hold("one", 1, key=key)) == Held()
    await first.settle("one", 1)
    await first.close()

    again = IdempotencyKey(digest="k", body="b", request_id="two")
    assert await opened().reserve(a_hold("two", 1, key=again)) == Repeat(
        hold_id="one", state="done"
    )


async def test_a_limit_holds_for_all_that_share_the_books(opened: Open) -> None:
    ledgers = [opened(), opened()]
    held = 0
    for n in range(60):
        outcome = await ledgers[n % 2].reserve(a_hold(f"h{n}", USD // 50))
        if isinstance(outcome, Held):
            held += 1
            await ledgers[n % 2].settle(f"h{n}", USD // 50)
    for ledger in ledgers:
        await ledger.close()

    spent, reserved = await spent_and_reserved(opened())
    assert (spent, reserved) == (held * (USD // 50), 0)
    assert 45 <= held <= 50


async def test_a_refusal_takes_nothing_and_a_ceiling_is_a_ceiling(opened: Open) -> None:
    ledger = opened()
    over = await ledger.reserve(a_hold("a", 11, limit("request", 10), limit("day", USD)))
    assert isinstance(over, Shortfall)
    assert await spent_and_reserved(ledger) == (0, 0)


async def test_what_nobody_settles_is_charged_and_an_unknown_hold_is_told(opened: Open) -> None:
    ledger = opened()
    await ledger.reserve(a_hold("lost", 1_000, rates=(RATE,)))
    assert await ledger.sweep(now=NOON + LEASE_S) >= 1
    assert await spent_and_reserved(ledger) == (1_000, 0)

    with pytest.raises(StoreError) as caught:
        await ledger.settle("nobody's", 1)
    assert caught.value.code == "hold_unknown"
