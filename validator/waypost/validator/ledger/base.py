"""What a budget ledger promises, whatever stores it. Pure: no clock, no I/O.

The rule: for each account and window, ``spent + reserved <= limit`` at any instant, for any
number of concurrent writers. Money that a provider charged beyond its hold cannot be refused
any more; it is kept apart as debt, counts as spent, and so blocks what comes next.

Amounts are whole nano-dollars, instants are Unix seconds, windows are calendar windows in UTC.
A window is named by its start, so a new window is a new row: nothing is ever reset, and a late
settlement finds the window it was reserved in.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

from msgspec import Struct

from waypost.shared.contracts import SpendLimit, Window

__all__ = [
    "CALENDAR",
    "Balance",
    "Hold",
    "Ledger",
    "Shortfall",
    "lowest",
    "month_start",
    "resets_at",
    "window_starts",
]

HOUR_S = 3_600
DAY_S = 86_400

# The windows that are rows; ``request`` is a ceiling on one hold and needs none. Each spend
# counts in all four, limited or not: a limit that a later token brings must see earlier spend.
CALENDAR: tuple[Window, ...] = ("hour", "day", "month", "total")


class Hold(Struct, frozen=True, kw_only=True):
    """Money set aside for one try at one provider, before anything is sent.

    Attributes:
        id: unique; reserving it again changes nothing.
        amount_nusd: upper bound of what the try can cost.
        limits: what the account may spend; of several for one window, the lowest holds.
        now: decides the windows that pay, also when settled later.
        expires_at: from here on a hold that nobody settled is charged in full.
    """

    id: str
    account: str
    amount_nusd: int
    limits: tuple[SpendLimit, ...]
    now: int
    expires_at: int


class Shortfall(Struct, frozen=True, kw_only=True):
    """Why a hold was refused: the window with the least left.

    Attributes:
        available_nusd: the most that a hold could be, now, over all windows; never negative.
        resets_at: when the window ends; ``None`` for ``request`` and ``total``.
    """

    window: Window
    limit_nusd: int
    available_nusd: int
    resets_at: int | None


class Balance(Struct, frozen=True, kw_only=True):
    """One window of one account.

    Attributes:
        spent_nusd: charged, debt included.
        reserved_nusd: held for requests under way.
        debt_nusd: the part of ``spent_nusd`` that exceeded its holds.
    """

    window: Window
    limit_nusd: int
    spent_nusd: int
    reserved_nusd: int
    debt_nusd: int
    resets_at: int | None


class Ledger(Protocol):
    """Budgets that cannot be overspent.

    Every method may raise StoreError (``ledger_unavailable``): the store did not answer in
    time. A caller must then refuse, never serve for free.
    """

    async def reserve(self, hold: Hold) -> Shortfall | None:
        """Hold the amount in all windows or in none; return ``None`` when it is held.

        A refusal leaves no trace, so the same id may come again with a smaller amount. A
        cancelled call holds nothing.

        Raises:
            StoreError: ``hold_conflict``, the id is settled already or was another hold's.
        """
        ...

    async def settle(self, hold_id: str, cost_nusd: int) -> None:
        """Charge ``cost_nusd`` once and give back the rest of the hold.

        Only the first call counts. A hold that had expired is credited back down to the cost.
        The charge is made even if the call is cancelled or the store is late.

        Raises:
            StoreError: ``hold_unknown``.
        """
        ...

    async def release(self, hold_id: str) -> None:
        """Give the whole hold back: it is certain that no provider will charge for it.

        A hold that does not exist, or is settled, is left as it is.
        """
        ...

    async def balances(
        self, account: str, limits: tuple[SpendLimit, ...], *, now: int
    ) -> tuple[Balance, ...]:
        """Return one balance per limited window, the lowest limit of each."""
        ...

    async def sweep(self, *, now: int) -> int:
        """Charge expired holds in full, flagged as expired; return how many."""
        ...

    async def close(self) -> None:
        """Write what is still to be written and let go of the store. May be called twice."""
        ...


def lowest(limits: Iterable[SpendLimit]) -> tuple[SpendLimit, ...]:
    """Return one limit per window: of several, the lowest holds."""
    by_window: dict[Window, SpendLimit] = {}
    for limit in limits:
        known = by_window.get(limit.window)
        if known is None or limit.limit_nusd < known.limit_nusd:
            by_window[limit.window] = limit
    return tuple(by_window.values())


# A day's worth of hours is asked for over and over.
@lru_cache(maxsize=256)
def _starts_of_hour(hour: int) -> tuple[int, int, int, int]:
    now = hour * HOUR_S
    return now, now - now % DAY_S, month_start(now), 0


def window_starts(now: int) -> tuple[int, int, int, int]:
    """Return the start of each ``CALENDAR`` window that ``now`` falls into."""
    return _starts_of_hour(now // HOUR_S)


def month_start(now: int, *, months_back: int = 0) -> int:
    """Return the first second of ``now``'s month, or of one before it."""
    day = datetime.fromtimestamp(now, UTC)
    year, month = divmod(day.year * 12 + day.month - 1 - months_back, 12)
    return int(datetime(year, month + 1, 1, tzinfo=UTC).timestamp())


def resets_at(window: Window, now: int) -> int | None:
    """Return when ``window`` ends; ``None`` where waiting does not help."""
    match window:
        case "hour":
            return now - now % HOUR_S + HOUR_S
        case "day":
            return now - now % DAY_S + DAY_S
        case "month":
            return month_start(now, months_back=-1)
        case "request" | "total":
            return None
