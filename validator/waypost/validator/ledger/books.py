"""The ledger's arithmetic, on rows that a store lends it for one transaction. Pure.

A store opens a write transaction, lets ``Books`` apply any number of operations, writes what
``Books`` changed, and commits. An operation changes everything or, when it refuses or raises,
nothing; so one bad operation does not spoil the others of its batch.
"""

from collections.abc import Iterable
from typing import Literal, Protocol

from waypost.shared.contracts import SpendLimit
from waypost.shared.errors import StoreError
from waypost.validator.ledger.base import (
    CALENDAR,
    Hold,
    Shortfall,
    resets_at,
    window_starts,
)

__all__ = ["MAX_NUSD", "Books", "HoldRow", "HoldState", "Rows", "WindowRow"]

MAX_NUSD = 2**53 - 1  # nine million dollars: no single hold or bill is larger
# SQL integers end at 2**63; half of that leaves room for bills that exceed their holds.
MAX_TOTAL_NUSD = 2**62
# Rows kept from one transaction to the next, about 100 bytes each.
MAX_REMEMBERED = 100_000

HoldState = Literal[
    "held",
    "settled",
    "released",
    "expired",  # nobody settled it in time: charged in full
    "corrected",  # had expired; the real cost came later
]


class HoldRow:
    """One hold, open or closed."""

    __slots__ = ("account", "amount_nusd", "at", "cost_nusd", "expires_at", "id", "state")

    def __init__(
        self,
        id: str,
        account: str,
        amount_nusd: int,
        at: int,
        expires_at: int,
        state: HoldState = "held",
        cost_nusd: int = 0,
    ) -> None:
        self.id = id
        self.account = account
        self.amount_nusd = amount_nusd
        self.at = at
        self.expires_at = expires_at
        self.state: HoldState = state
        self.cost_nusd = cost_nusd


class WindowRow:
    """What one account spent, owes beyond its holds, and has reserved in one window."""

    __slots__ = ("account", "debt_nusd", "reserved_nusd", "spent_nusd", "start", "window")

    def __init__(
        self,
        account: str,
        window: str,
        start: int,
        spent_nusd: int = 0,
        debt_nusd: int = 0,
        reserved_nusd: int = 0,
    ) -> None:
        self.account = account
        self.window = window
        self.start = start
        self.spent_nusd = spent_nusd
        self.debt_nusd = debt_nusd
        self.reserved_nusd = reserved_nusd


class Rows(Protocol):
    """Where rows come from, inside the transaction."""

    def hold(self, hold_id: str) -> HoldRow | None:
        """Return the hold as stored."""
        ...

    def windows(self, account: str, starts: tuple[int, ...]) -> Iterable[WindowRow]:
        """Return the stored windows of the account that begin at any of ``starts``."""
        ...

    def expired(self, now: int, *, at_most: int) -> Iterable[str]:
        """Return ids of stored holds that are still open at or after their expiry."""
        ...


class Books:
    """Operations on holds and windows; remembers rows until told that they may have changed.

    Attributes:
        opened: holds to insert.
        closed: holds to update.
        touched: windows to insert or replace.
        trusts_new_ids: take an id that is not remembered for a new one, without looking. The
            store must then run the batch again without trust if an id turns out to be taken.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.trusts_new_ids = False
        self._holds: dict[str, HoldRow] = {}
        self._windows: dict[tuple[str, int], tuple[WindowRow, ...]] = {}
        self._by_name: dict[tuple[str, str, int], WindowRow] = {}
        self.opened: list[HoldRow] = []
        self.closed: dict[str, HoldRow] = {}
        self.touched: set[WindowRow] = set()

    def forget(self) -> None:
        """Drop all rows: another writer changed the store, or this transaction failed."""
        self._holds.clear()
        self._windows.clear()
        self._by_name.clear()
        self.written()

    def written(self) -> None:
        """Note that all changes are committed."""
        for hold_id in self.closed:
            self._holds.pop(hold_id, None)
        self.opened = []
        self.closed = {}
        self.touched = set()
        if len(self._by_name) + len(self._holds) > MAX_REMEMBERED:
            self.forget()

    def reserve(self, hold: Hold) -> Shortfall | None:
        """Hold the amount in all windows, or say which window lacks it."""
        known = self._holds.get(hold.id) if self.trusts_new_ids else self._hold(hold.id)
        if known is not None:
            same = known.account == hold.account and known.amount_nusd == hold.amount_nusd
            if same and known.state == "held":
                return None
            found = known.state if same else "another hold"
            raise StoreError(f"hold {hold.id} exists already: {found}", code="hold_conflict")
        windows = self._windows_at(hold.account, hold.now)
        shortfall = _shortfall(hold, windows)
        if shortfall is not None:
            return shortfall
        for window in windows:
            window.reserved_nusd += hold.amount_nusd
        self.touched.update(windows)
        row = HoldRow(hold.id, hold.account, hold.amount_nusd, hold.now, hold.expires_at)
        self._holds[hold.id] = row
        self.opened.append(row)
        return None

    def settle(self, hold_id: str, cost_nusd: int) -> None:
        """Charge an open hold, or correct one that had expired; else do nothing."""
        row = self._hold(hold_id)
        if row is None:
            raise StoreError(f"no hold {hold_id} to settle", code="hold_unknown")
        # A provider's usage may be absurd; a bill that SQL cannot hold must not be lost.
        cost_nusd = min(cost_nusd, MAX_NUSD)
        if row.state == "held":
            self._close(row, "settled", cost_nusd)
        elif row.state == "expired":
            self._close(row, "corrected", cost_nusd)

    def release(self, hold_id: str) -> None:
        """Give back an open hold, or what was charged for one that had expired."""
        row = self._hold(hold_id)
        if row is None:
            return
        if row.state == "held":
            self._close(row, "released", 0)
        elif row.state == "expired":
            self._close(row, "corrected", 0)

    def sweep(self, now: int, *, at_most: int) -> int:
        """Charge open holds that have expired in full; return how many."""
        swept = 0
        for hold_id in self._rows.expired(now, at_most=at_most):
            row = self._hold(hold_id)
            # The store does not know yet what this same batch has settled.
            if row is not None and row.state == "held":
                self._close(row, "expired", row.amount_nusd)
                swept += 1
        return swept

    def _close(self, row: HoldRow, state: HoldState, cost_nusd: int) -> None:
        windows = self._windows_at(row.account, row.at)
        was_held = row.state == "held"
        spent = min(cost_nusd, row.amount_nusd)
        for window in windows:
            if was_held:
                window.reserved_nusd -= row.amount_nusd
            else:
                window.spent_nusd -= row.cost_nusd
            window.spent_nusd += spent
            window.debt_nusd += cost_nusd - spent
        self.touched.update(windows)
        row.state = state
        row.cost_nusd = cost_nusd
        self._holds[row.id] = row
        self.closed[row.id] = row

    def _hold(self, hold_id: str) -> HoldRow | None:
        return self._holds.get(hold_id) or self._rows.hold(hold_id)

    def _windows_at(self, account: str, at: int) -> tuple[WindowRow, ...]:
        starts = window_starts(at)
        key = (account, starts[0])
        windows = self._windows.get(key)
        if windows is None:
            windows = self._windows[key] = self._load(account, starts)
        return windows

    def _load(self, account: str, starts: tuple[int, ...]) -> tuple[WindowRow, ...]:
        stored = {(row.window, row.start): row for row in self._rows.windows(account, starts)}
        # Two hours of one day share the day's row: changes must meet in one object.
        return tuple(
            self._by_name.setdefault(
                (account, name, start),
                stored.get((name, start)) or WindowRow(account, name, start),
            )
            for name, start in zip(CALENDAR, starts, strict=True)
        )


_PLACE = {name: place for place, name in enumerate(CALENDAR)}
_LONGEST_LAST = {name: place for place, name in enumerate(("request", *CALENDAR))}


def _shortfall(hold: Hold, windows: tuple[WindowRow, ...]) -> Shortfall | None:
    total = windows[-1]
    most = MAX_NUSD
    tightest: SpendLimit | None = None
    if total.spent_nusd + total.debt_nusd + total.reserved_nusd > MAX_TOTAL_NUSD:
        most = 0
    for limit in hold.limits:
        room = limit.limit_nusd
        if limit.window != "request":
            window = windows[_PLACE[limit.window]]
            room -= window.spent_nusd + window.debt_nusd + window.reserved_nusd
        # Of equals the longer window is named: waiting for the shorter one would not help.
        if room < most or (
            room == most
            and (tightest is None or _LONGEST_LAST[limit.window] > _LONGEST_LAST[tightest.window])
        ):
            most = room
            tightest = limit
    most = max(0, most)  # what costs nothing may be had with nothing left, or in debt
    if hold.amount_nusd <= most:
        return None
    if tightest is None:
        tightest = SpendLimit(window="request", limit_nusd=MAX_NUSD)
    return Shortfall(
        window=tightest.window,
        limit_nusd=tightest.limit_nusd,
        available_nusd=most,
        resets_at=resets_at(tightest.window, hold.now),
    )
