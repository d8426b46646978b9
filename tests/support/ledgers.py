"""Holds to try a ledger with, and its file read past it."""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from waypost.shared.contracts import SpendLimit, Window
from waypost.validator.ledger import (
    Calendar,
    Hold,
    Ledger,
    RateLimit,
    Scope,
    open_sqlite,
    scope_of,
)
from waypost.validator.ledger.calendar import CALENDAR
from waypost.validator.ledger.group_commit import GroupedLedger
from waypost.validator.ledger.postgres import open_postgres
from waypost.validator.ledger.redis import open_redis
from waypost.validator.ledger.rows import HoldRow

NOON = 1_764_072_000  # Tue 25 Nov 2025 12:00 UTC
USD = 1_000_000_000
LEASE_S = 60


def limit(window: Window, nusd: int) -> SpendLimit:
    return SpendLimit(window=window, limit_nusd=nusd)


def a_hold(
    id: str,
    nusd: int,
    *limits: SpendLimit,
    account: str = "acme",
    now: int = NOON,
    expires_at: int | None = None,
    rates: tuple[RateLimit, ...] = (),
    also: tuple[Scope, ...] = (),
    **fields: Any,  # noqa: ANN401 - of Hold
) -> Hold:
    """A hold against a dollar a day, unless other limits are given."""
    pays = scope_of(f"account:{account}", limits or (limit("day", USD),), rates=rates)
    return Hold(
        id=id,
        amount_nusd=nusd,
        scopes=(pays, *also),
        now=now,
        **fields,
        expires_at=now + LEASE_S if expires_at is None else expires_at,
    )


async def spent_and_reserved(
    ledger: Ledger,
    window: Window = "day",
    *,
    account: str = "acme",
    scope: str | None = None,
    now: int = NOON,
) -> tuple[int, int]:
    counted = scope_of(scope or f"account:{account}", (limit(window, USD),))
    (balance,) = await ledger.balances((counted,), now=now)
    return balance.spent_nusd, balance.reserved_nusd


def open_at(address: str, *, patience_s: float = 30) -> GroupedLedger:
    """Open a ledger in another process: a file, or ``URL#prefix``, or ``DSN#schema``."""
    where, _, name = address.partition("#")
    if where.startswith("redis"):
        return open_redis(where, prefix=name, patience_s=patience_s)
    if name:
        return open_postgres(where, schema=name, patience_s=patience_s)
    return open_sqlite(where, patience_s=patience_s)


async def until(is_so: Callable[[], bool], *, pause_s: float = 0.0) -> None:
    """Return when it is so; for what other threads do, which no event tells."""
    async with asyncio.timeout(5):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(pause_s)


async def journal(ledger: Ledger) -> dict[str, tuple[str, int]]:
    """Return the state and cost of each hold in the books."""
    return {
        entry.id: (entry.state, entry.cost_nusd)
        async for entry in ledger.journal(since=0, until=2**40)
    }


async def assert_accounts_balance(ledger: Ledger) -> None:
    """What each account has spent and reserved in all is the sum of its holds, in any store."""
    charged: Counter[str] = Counter()
    reserved: Counter[str] = Counter()
    async for entry in ledger.journal(since=0, until=2**40):
        for scope in entry.scopes:
            charged[scope] += entry.cost_nusd
            reserved[scope] += entry.amount_nusd if entry.state == "held" else 0
    async for used in ledger.sums("total", now=NOON):
        assert used.spent_nusd + used.debt_nusd == charged[used.scope], used
        assert used.reserved_nusd == reserved[used.scope], used


def holds(path: Path) -> dict[str, tuple[str, int]]:
    """Return the state and cost of each hold in the file."""
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT id, state, cost_nusd FROM holds").fetchall()
    return {hold_id: (state, cost) for hold_id, state, cost in rows}


def assert_books_balance(path: Path, calendar: Calendar | None = None) -> None:
    """Every window's row is the sum of its holds, and every nano-dollar is in one place."""
    calendar = calendar or Calendar()
    with closing(sqlite3.connect(path)) as db:
        # One statement each could see two moments of a file that is written to.
        db.execute("BEGIN")
        journal = [HoldRow(*row) for row in db.execute("SELECT * FROM holds")]
        rows = db.execute("SELECT * FROM windows").fetchall()
    paid: Counter[tuple[str, str, int]] = Counter()
    debt: Counter[tuple[str, str, int]] = Counter()
    held: Counter[tuple[str, str, int]] = Counter()
    for hold in journal:
        starts = calendar.starts(hold.at)
        for scope, mask in hold.masks():
            for place, window in enumerate(CALENDAR):
                if mask >> place & 1:
                    key = (scope, window, starts[place])
                    paid[key] += min(hold.cost_nusd, hold.amount_nusd)
                    debt[key] += max(0, hold.cost_nusd - hold.amount_nusd)
                    held[key] += hold.amount_nusd if hold.state == "held" else 0
    assert {(a, w, s) for a, w, s, *_ in rows} >= paid.keys()
    for scope, window, start, spent, owed, reserved, _, archived in rows:
        key = (scope, window, start)
        assert reserved == held[key], key
        assert spent + owed == archived + paid[key] + debt[key], key
        if archived == 0:  # a correction beyond an unconfirmed charge is debt, within its hold too
            assert owed >= debt[key], key
