"""Holds to try a ledger with, and its file read past it."""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from waypost.shared.contracts import SpendLimit, Window
from waypost.validator.ledger import Hold, Ledger
from waypost.validator.ledger.base import CALENDAR, window_starts

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
) -> Hold:
    """A hold against a dollar a day, unless other limits are given."""
    return Hold(
        id=id,
        account=account,
        amount_nusd=nusd,
        limits=limits or (limit("day", USD),),
        now=now,
        expires_at=now + LEASE_S if expires_at is None else expires_at,
    )


async def spent_and_reserved(
    ledger: Ledger, window: Window = "day", *, account: str = "acme", now: int = NOON
) -> tuple[int, int]:
    (balance,) = await ledger.balances(account, (limit(window, USD),), now=now)
    return balance.spent_nusd, balance.reserved_nusd


async def until(is_so: Callable[[], bool], *, pause_s: float = 0.0) -> None:
    """Return when it is so; for what other threads do, which no event tells."""
    async with asyncio.timeout(5):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(pause_s)


def holds(path: Path) -> dict[str, tuple[str, int]]:
    """Return the state and cost of each hold in the file."""
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT id, state, cost_nusd FROM holds").fetchall()
    return {hold_id: (state, cost) for hold_id, state, cost in rows}


def assert_books_balance(path: Path) -> None:
    """Every window's row is the sum of its holds, and every nano-dollar is in one place."""
    with closing(sqlite3.connect(path)) as db:
        # One statement each could see two moments of a file that is written to.
        db.execute("BEGIN")
        journal = db.execute("SELECT account, at, amount_nusd, state, cost_nusd FROM holds")
        paid: Counter[tuple[str, str, int]] = Counter()
        debt: Counter[tuple[str, str, int]] = Counter()
        held: Counter[tuple[str, str, int]] = Counter()
        for account, at, amount, state, cost in journal:
            for window, start in zip(CALENDAR, window_starts(at), strict=True):
                key = (account, window, start)
                paid[key] += min(cost, amount)
                debt[key] += max(0, cost - amount)
                held[key] += amount if state == "held" else 0
        rows = db.execute(
            "SELECT account, window, start, spent_nusd, debt_nusd, reserved_nusd, archived_nusd"
            " FROM windows"
        ).fetchall()
    assert {(a, w, s) for a, w, s, *_ in rows} >= paid.keys()
    for account, window, start, spent, owed, reserved, archived in rows:
        key = (account, window, start)
        assert reserved == held[key], key
        assert spent + owed == archived + paid[key] + debt[key], key
        if archived == 0:
            assert owed == debt[key], key
