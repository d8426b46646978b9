"""The ledger's arithmetic, on rows that a store lends it for one transaction. Pure.

A store opens a write transaction, lets ``Books`` apply any number of operations, writes what
``Books`` changed, and commits. An operation changes everything or, when it refuses or raises,
nothing; so one bad operation does not spoil the others of its batch.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Protocol

import msgspec
from msgspec import Struct

from waypost.shared.contracts import SpendLimit, Window
from waypost.shared.errors import StoreError
from waypost.validator.ledger.base import (
    MAX_NUSD,
    Crossed,
    Entry,
    Grant,
    Held,
    Hold,
    HoldState,
    RateLimit,
    Refusal,
    Repeat,
    Scope,
    Shortfall,
    Throttled,
)
from waypost.validator.ledger.calendar import CALENDAR, DURATION_S, Calendar

__all__ = [
    "HELD",
    "KEEP_KEYS_S",
    "Books",
    "GrantOp",
    "HoldRow",
    "KeyRow",
    "Operation",
    "RateRow",
    "Release",
    "Reserve",
    "Rows",
    "Settle",
    "Sweep",
    "WindowRow",
    "backlog_us",
    "refuse_rate",
    "repeats",
    "tightest",
]

# SQL integers end at 2**63; half of that leaves room for bills that exceed their holds.
MAX_TOTAL_NUSD = 2**62
# Rows kept from one transaction to the next, about 100 bytes each.
MAX_REMEMBERED = 100_000
KEEP_KEYS_S = 86_400  # how long an idempotency key stands for its request
US = 1_000_000

HELD = Held()


# ── operations ─────────────────────────────────────────────────────────────────────────────────


class Reserve(Struct, frozen=True):
    """See ``Ledger.reserve``."""

    hold: Hold


class Settle(Struct, frozen=True):
    """See ``Ledger.settle``."""

    hold_id: str
    cost_nusd: int
    tokens: int | None = None
    is_confirmed: bool = True


class Release(Struct, frozen=True):
    """See ``Ledger.release``."""

    hold_id: str


class FreeKey(Struct, frozen=True):
    """See ``Ledger.free_key``."""

    digest: str
    request_id: str


class Sweep(Struct, frozen=True):
    """See ``Ledger.sweep``; of at most so many holds."""

    now: int
    at_most: int


class GrantOp(Struct, frozen=True):
    """See ``Ledger.grant``."""

    grant: Grant


Operation = Reserve | Settle | Release | FreeKey | Sweep | GrantOp


# ── rows ───────────────────────────────────────────────────────────────────────────────────────

# Each scope's name, and which of CALENDAR count, as bits. Then the rates' backlog of its tokens.
_ScopeMask = tuple[str, int]
_Backlog = tuple[str, str, int]
_encode = msgspec.json.Encoder().encode
_decode_masks = msgspec.json.Decoder(tuple[_ScopeMask, ...]).decode
_decode_backlogs = msgspec.json.Decoder(tuple[_Backlog, ...]).decode
_BIT = {window: 1 << place for place, window in enumerate(CALENDAR)}
_PLACE = {window: place for place, window in enumerate(CALENDAR)}


class HoldRow:
    """One hold, open or closed.

    Attributes:
        scopes: JSON, each scope's name and the windows that it counts.
        backlogs: JSON, what its tokens added to which rate, in microseconds.
        windows: the rows that it counts in, where these books opened it.
    """

    __slots__ = (
        "amount_nusd",
        "at",
        "backlogs",
        "cost_nusd",
        "expires_at",
        "id",
        "scopes",
        "state",
        "tokens",
        "windows",
    )

    def __init__(
        self,
        id: str,
        scopes: str,
        amount_nusd: int,
        tokens: int,
        backlogs: str,
        at: int,
        expires_at: int,
        state: HoldState = "held",
        cost_nusd: int = 0,
    ) -> None:
        self.id = id
        self.scopes = scopes
        self.amount_nusd = amount_nusd
        self.tokens = tokens
        self.backlogs = backlogs
        self.at = at
        self.expires_at = expires_at
        self.state: HoldState = state
        self.cost_nusd = cost_nusd
        self.windows: list[WindowRow] | None = None

    def masks(self) -> tuple[_ScopeMask, ...]:
        """Return each scope and the bits of its counted windows."""
        return _decode_masks(self.scopes)

    def added(self) -> tuple[_Backlog, ...]:
        """Return what its tokens added to which rate."""
        return _decode_backlogs(self.backlogs) if self.backlogs else ()

    def entry(self) -> Entry:
        """Return the row as the journal shows it."""
        return Entry(
            id=self.id,
            scopes=tuple(name for name, _ in self.masks()),
            amount_nusd=self.amount_nusd,
            at=self.at,
            expires_at=self.expires_at,
            state=self.state,
            cost_nusd=self.cost_nusd,
        )


class WindowRow:
    """What one scope spent, owes beyond its holds, has reserved and was granted in one window."""

    __slots__ = (
        "debt_nusd",
        "granted_nusd",
        "reserved_nusd",
        "scope",
        "spent_nusd",
        "start",
        "window",
    )

    def __init__(
        self,
        scope: str,
        window: Window,
        start: int,
        spent_nusd: int = 0,
        debt_nusd: int = 0,
        reserved_nusd: int = 0,
        granted_nusd: int = 0,
    ) -> None:
        self.scope = scope
        self.window: Window = window
        self.start = start
        self.spent_nusd = spent_nusd
        self.debt_nusd = debt_nusd
        self.reserved_nusd = reserved_nusd
        self.granted_nusd = granted_nusd


class RateRow:
    """When the backlog of one rate is worked off, in microseconds (GCRA's arrival time)."""

    __slots__ = ("free_at_us", "rate", "scope")

    def __init__(self, scope: str, rate: str, free_at_us: int = 0) -> None:
        self.scope = scope
        self.rate = rate
        self.free_at_us = free_at_us


class KeyRow:
    """Which hold an idempotency key stands for."""

    __slots__ = ("at", "body", "digest", "hold_id")

    def __init__(self, digest: str, body: str, hold_id: str, at: int) -> None:
        self.digest = digest
        self.body = body
        self.hold_id = hold_id
        self.at = at


class Rows(Protocol):
    """Where rows come from, inside the transaction."""

    def hold(self, hold_id: str) -> HoldRow | None:
        """Return the hold as stored."""
        ...

    def windows(self, scope: str, starts: tuple[int, ...]) -> Iterable[WindowRow]:
        """Return the stored windows of the scope that begin at any of ``starts``."""
        ...

    def rate(self, scope: str, rate: str) -> RateRow | None:
        """Return the rate as stored."""
        ...

    def key(self, digest: str) -> KeyRow | None:
        """Return the idempotency key as stored."""
        ...

    def granted(self, grant_id: str) -> int | None:
        """Return the amount of a grant that was entered before."""
        ...

    def expired(self, now: int, *, at_most: int) -> Iterable[str]:
        """Return ids of stored holds that are still open at or after their expiry."""
        ...


# ── what is enough, and what is too much ───────────────────────────────────────────────────────


def tightest(
    rooms: Iterable[tuple[str, SpendLimit, int]], amount_nusd: int, *, calendar: Calendar, now: int
) -> Shortfall | None:
    """Return why ``amount_nusd`` cannot be held; ``None`` if it can.

    Args:
        rooms: scope, limit, and what is left of it.
    """
    most = MAX_NUSD
    found: tuple[str, SpendLimit] | None = None
    for scope, limit, room in rooms:
        if room < most or (
            # Of equals the longer window is named: waiting for the shorter would not help.
            room == most and (found is None or _length(limit.window) > _length(found[1].window))
        ):
            most, found = room, (scope, limit)
    most = max(0, most)  # what costs nothing may be had with nothing left, or in debt
    if amount_nusd <= most:
        return None
    scope, limit = found or ("", SpendLimit(window="request", limit_nusd=MAX_NUSD))
    return Shortfall(
        scope=scope,
        window=limit.window,
        limit_nusd=limit.limit_nusd,
        available_nusd=most,
        resets_at=calendar.resets_at(limit.window, now),
    )


def _length(window: Window) -> int:
    return _PLACE.get(window, -1)


def backlog_us(rate: RateLimit, hold: Hold) -> int:
    """Return what ``hold`` adds to the rate's backlog.

    Rounded down, so that a whole window's worth fits into the window to the last one.
    """
    count = hold.requests if rate.unit == "requests" else hold.tokens
    if rate.limit == 0:
        return count * (DURATION_S[rate.window] * US + 1)
    return count * DURATION_S[rate.window] * US // rate.limit


def refuse_rate(
    scope: str, rate: RateLimit, *, free_at_us: int, adds_us: int, now: int
) -> Throttled | None:
    """Return why ``adds_us`` more are too many now; ``None`` if they are not."""
    window_us = DURATION_S[rate.window] * US
    excess_us = max(free_at_us, now * US) + adds_us - now * US - window_us
    if not adds_us or excess_us <= 0:
        return None
    waits = None if adds_us > window_us else -(-excess_us // US)
    return Throttled(scope=scope, rate=rate, retry_after_s=waits)


def rate_name(rate: RateLimit) -> str:
    """Return what the rate's row is called."""
    return f"{rate.unit}/{rate.window}"


def repeats(key: KeyRow, hold: Hold, state: HoldState | None) -> Repeat | None:
    """Return why a key that stands for another request refuses ``hold``.

    Args:
        state: of the hold that took the key; ``None`` if it is not kept any more. One that was
            released has a successor: a request that ends without a charge frees its key.
    """
    assert hold.key is not None  # noqa: S101 - for the type checker
    if key.hold_id.startswith(hold.key.request_id) or key.at + KEEP_KEYS_S <= hold.now:
        return None
    if key.body != hold.key.body:
        return Repeat(hold_id=key.hold_id, state="other_body")
    is_open = state in ("held", "released")
    return Repeat(hold_id=key.hold_id, state="in_progress" if is_open else "done")


def state_after(state: HoldState, closing: HoldState) -> HoldState | None:
    """Return what a hold in ``state`` becomes by ``closing``; ``None`` if it stays what it is."""
    if state == "held":
        return closing
    if state == "expired" and closing == "unconfirmed":
        return closing  # what came through by then bounds it better than the hold
    is_known = closing in ("settled", "released")
    return "corrected" if is_known and state in ("expired", "unconfirmed") else None


# ── the books ──────────────────────────────────────────────────────────────────────────────────

_Counted = tuple[WindowRow, ...]


class Books:
    """Operations on rows; remembers rows until told that they may have changed.

    Attributes:
        opened: holds to insert.
        closed: holds to update.
        touched, touched_rates, keys: rows to insert or replace.
        freed_keys: keys to delete.
        granted: grants to insert, with their amounts.
        trusts_new_ids: take an id that is not remembered for a new one, without looking. The
            store must then run the batch again without trust if an id turns out to be taken.
    """

    def __init__(self, rows: Rows, calendar: Calendar) -> None:
        self._rows = rows
        self._calendar = calendar
        self.trusts_new_ids = False
        self._holds: dict[str, HoldRow] = {}
        self._windows: dict[tuple[str, int, int], _Counted] = {}
        self._by_name: dict[tuple[str, str, int], WindowRow] = {}
        self._rates: dict[tuple[str, str], RateRow] = {}
        self.written()

    def forget(self) -> None:
        """Drop all rows: another writer changed the store, or this transaction failed."""
        self._holds.clear()
        self._windows.clear()
        self._by_name.clear()
        self._rates.clear()
        self.written()

    def written(self) -> None:
        """Note that all changes are committed."""
        for hold_id in getattr(self, "closed", ()):
            self._holds.pop(hold_id, None)
        self.opened: list[HoldRow] = []
        self.closed: dict[str, HoldRow] = {}
        self.touched: set[WindowRow] = set()
        self.touched_rates: set[RateRow] = set()
        self.keys: dict[str, KeyRow] = {}
        self.freed_keys: set[str] = set()
        self.granted: list[tuple[Grant, int]] = []
        if len(self._by_name) + len(self._holds) + len(self._rates) > MAX_REMEMBERED:
            self.forget()

    def apply(self, operation: Operation) -> object:
        """Return the outcome of ``operation``; of one that raises, its StoreError."""
        try:
            match operation:
                case Reserve(hold):
                    return self.reserve(hold)
                case Settle():
                    self._settle(operation)
                case Release(hold_id):
                    self._release(hold_id)
                case FreeKey(digest, request_id):
                    self._free(digest, request_id)
                case Sweep(now, at_most):
                    return self._sweep(now, at_most)
                case GrantOp(grant):
                    return self._grant(grant)
        except StoreError as exc:
            return exc
        return None

    def reserve(self, hold: Hold) -> Held | Refusal:
        """Hold the amount in all windows of all scopes, or say why not."""
        known = self._holds.get(hold.id) if self.trusts_new_ids else self._hold(hold.id)
        if known is not None:
            return _again(hold, known)
        if hold.key is not None and (repeat := self._repeat(hold)):
            return repeat
        counted = [
            (scope, self._counted(scope.name, _mask(scope.windows), hold.now))
            for scope in hold.scopes
            if scope.windows
        ]
        shortfall = tightest(
            _rooms(hold, counted), hold.amount_nusd, calendar=self._calendar, now=hold.now
        )
        if shortfall is not None:
            return shortfall
        backlogs = [
            (self._rate(scope.name, rate), rate, backlog_us(rate, hold))
            for scope in hold.scopes
            for rate in scope.rates
        ]
        throttled = _longest_wait(backlogs, now=hold.now)
        if throttled is not None:
            return throttled
        self._open(hold, counted, backlogs)
        return self._held(hold, counted)

    def _open(
        self,
        hold: Hold,
        counted: list[tuple[Scope, _Counted]],
        backlogs: list[tuple[RateRow, RateLimit, int]],
    ) -> None:
        windows = [row for _, rows in counted for row in rows]
        for row in windows:
            row.reserved_nusd += hold.amount_nusd
        self.touched.update(windows)
        of_tokens: list[_Backlog] = []
        for rated, rate, adds_us in backlogs:
            rated.free_at_us = max(rated.free_at_us, hold.now * US) + adds_us
            self.touched_rates.add(rated)
            if rate.unit == "tokens" and adds_us:
                of_tokens.append((rated.scope, rated.rate, adds_us))
        made = HoldRow(
            hold.id,
            masks_text(hold.scopes),
            hold.amount_nusd,
            hold.tokens,
            _encode(of_tokens).decode() if of_tokens else "",
            hold.now,
            hold.expires_at,
        )
        made.windows = windows
        self._holds[hold.id] = made
        self.opened.append(made)
        if hold.key is not None:
            key = KeyRow(hold.key.digest, hold.key.body, hold.id, hold.now)
            self.keys[key.digest] = key
            self.freed_keys.discard(key.digest)

    def _held(self, hold: Hold, counted: list[tuple[Scope, _Counted]]) -> Held:
        crossed: list[Crossed] = []
        for scope, rows in counted:
            for warning in scope.warnings:
                row = next((row for row in rows if row.window == warning.window), None)
                if row is not None:
                    used = row.spent_nusd + row.debt_nusd + row.reserved_nusd
                    if used >= warning.limit_nusd:
                        crossed.append(crossed_by(scope.name, warning, used, hold, self._calendar))
        return Held(tuple(crossed)) if crossed else HELD

    def _repeat(self, hold: Hold) -> Repeat | None:
        assert hold.key is not None  # noqa: S101 - for the type checker
        key = self._key(hold.key.digest)
        if key is None:
            return None
        of = self._hold(key.hold_id)
        return repeats(key, hold, None if of is None else of.state)

    def _settle(self, bill: Settle) -> None:
        row = self._hold(bill.hold_id)
        if row is None:
            raise StoreError(f"no hold {bill.hold_id} to settle", code="hold_unknown")
        state = state_after(row.state, "settled" if bill.is_confirmed else "unconfirmed")
        if state is not None:
            # A provider's usage may be absurd; a bill that SQL cannot hold must not be lost.
            self._close(row, state, min(bill.cost_nusd, MAX_NUSD), bill.tokens)

    def _release(self, hold_id: str) -> None:
        row = self._hold(hold_id)
        state = None if row is None else state_after(row.state, "released")
        if row is not None and state is not None:
            self._close(row, state, 0, 0)

    def _sweep(self, now: int, at_most: int) -> int:
        swept = 0
        for hold_id in self._rows.expired(now, at_most=at_most):
            row = self._hold(hold_id)
            # The store does not know yet what this same batch has settled.
            if row is not None and row.state == "held":
                self._close(row, "expired", row.amount_nusd, None)
                swept += 1
        return swept

    def _grant(self, grant: Grant) -> int:
        entered = self._rows.granted(grant.id)
        if entered is not None:
            return entered
        (row,) = self._counted(grant.scope, _BIT[grant.window], grant.at)
        amount = grant.amount_nusd
        if amount is None:
            amount = max(0, row.spent_nusd + row.debt_nusd - row.granted_nusd)
        row.granted_nusd += amount
        self.touched.add(row)
        self.granted.append((grant, amount))
        return amount

    def _close(self, row: HoldRow, state: HoldState, cost_nusd: int, tokens: int | None) -> None:
        was_held = row.state == "held"
        had_spent = min(row.cost_nusd, row.amount_nusd)
        # What a first charge left has been given back and may be held by others: beyond that
        # charge a correction is debt, as a bill beyond its hold is.
        spent = min(cost_nusd, row.amount_nusd if was_held else had_spent)
        debt = (cost_nusd - spent) - (row.cost_nusd - had_spent)
        freed = row.amount_nusd if was_held else 0
        windows = row.windows
        if windows is None:
            windows = [
                window
                for scope, mask in row.masks()
                for window in self._counted(scope, mask, row.at)
            ]
        for window in windows:
            window.reserved_nusd -= freed
            window.spent_nusd += spent - had_spent
            window.debt_nusd += debt
        self.touched.update(windows)
        if tokens is not None:
            for scope, rate, added_us in row.added():
                self._give_back(scope, rate, added_us * (row.tokens - tokens) // row.tokens)
        row.state = state
        row.cost_nusd = cost_nusd
        self._holds[row.id] = row
        self.closed[row.id] = row

    def _give_back(self, scope: str, rate: str, us: int) -> None:
        row = self._rate_row(scope, rate)
        row.free_at_us = max(0, row.free_at_us - us)
        self.touched_rates.add(row)

    def _free(self, digest: str, request_id: str) -> None:
        key = self._key(digest)
        if key is not None and key.hold_id.startswith(request_id):
            self.keys.pop(digest, None)
            self.freed_keys.add(digest)

    def _key(self, digest: str) -> KeyRow | None:
        if digest in self.freed_keys:
            return None
        return self.keys.get(digest) or self._rows.key(digest)

    # ── finding rows ───────────────────────────────────────────────────────────────────────

    def _hold(self, hold_id: str) -> HoldRow | None:
        return self._holds.get(hold_id) or self._rows.hold(hold_id)

    def _rate(self, scope: str, rate: RateLimit) -> RateRow:
        return self._rate_row(scope, rate_name(rate))

    def _rate_row(self, scope: str, name: str) -> RateRow:
        key = (scope, name)
        row = self._rates.get(key)
        if row is None:
            row = self._rates[key] = self._rows.rate(scope, name) or RateRow(scope, name)
        return row

    def _counted(self, scope: str, mask: int, at: int) -> _Counted:
        """Return the rows of the scope's windows in ``mask``, as of ``at``."""
        if not mask:
            return ()
        # Minutes are rarely counted; without them an hour shares its rows.
        key = (scope, mask, at // 60 if mask & 1 else at // 900)
        rows = self._windows.get(key)
        if rows is None:
            rows = self._windows[key] = self._load(scope, mask, self._calendar.starts(at))
        return rows

    def _load(self, scope: str, mask: int, starts: tuple[int, ...]) -> _Counted:
        wanted: list[tuple[Window, int]] = [
            (window, start)
            for window, start in zip(CALENDAR, starts, strict=True)
            if mask & _BIT[window]
        ]
        # Two hours of one day share the day's row: changes must meet in one object.
        missing = [
            (window, start)
            for window, start in wanted
            if (scope, window, start) not in self._by_name
        ]
        if missing:
            for row in self._rows.windows(scope, tuple(start for _, start in missing)):
                self._by_name.setdefault((scope, row.window, row.start), row)
        return tuple(
            self._by_name.setdefault((scope, window, start), WindowRow(scope, window, start))
            for window, start in wanted
        )


def _again(hold: Hold, known: HoldRow) -> Held:
    same = known.amount_nusd == hold.amount_nusd and known.scopes == masks_text(hold.scopes)
    if same and known.state == "held":
        return HELD
    found = known.state if same else "another hold"
    raise StoreError(f"hold {hold.id} exists already: {found}", code="hold_conflict")


def _rooms(hold: Hold, counted: list[tuple[Scope, _Counted]]) -> list[tuple[str, SpendLimit, int]]:
    rooms = [
        (scope.name, limit, limit.limit_nusd)
        for scope in hold.scopes
        for limit in scope.limits
        if limit.window == "request"
    ]
    for scope, rows in counted:
        for row in rows:
            used = row.spent_nusd + row.debt_nusd + row.reserved_nusd
            if used > MAX_TOTAL_NUSD:
                rooms.append((scope.name, SpendLimit(window=row.window, limit_nusd=MAX_NUSD), 0))
            for limit in scope.limits:
                if limit.window == row.window:
                    rooms.append((scope.name, limit, limit.limit_nusd + row.granted_nusd - used))
    return rooms


def crossed_by(
    scope: str, warning: SpendLimit, used_nusd: int, hold: Hold, calendar: Calendar
) -> Crossed:
    """Return the soft limit that is used up now that ``hold`` stands."""
    return Crossed(
        scope=scope,
        window=warning.window,
        warn_nusd=warning.limit_nusd,
        used_nusd=used_nusd,
        resets_at=calendar.resets_at(warning.window, hold.now),
        is_new=used_nusd - hold.amount_nusd < warning.limit_nusd,
    )


def _longest_wait(backlogs: list[tuple[RateRow, RateLimit, int]], *, now: int) -> Throttled | None:
    refused = [
        throttled
        for row, rate, adds_us in backlogs
        if (
            throttled := refuse_rate(
                row.scope, rate, free_at_us=row.free_at_us, adds_us=adds_us, now=now
            )
        )
    ]
    return max(refused, key=longest_first, default=None)


def longest_first(throttled: Throttled) -> float:
    """Return the sort key by which the longest wait is the largest."""
    waits = throttled.retry_after_s
    return float("inf") if waits is None else waits


# Callers come again, and combinations of windows are few, hence the caches.
@lru_cache(maxsize=64)
def _mask(windows: tuple[Window, ...]) -> int:
    return sum(_BIT[window] for window in windows)


@lru_cache(maxsize=20_000)
def _mask_text(scope: str, windows: tuple[Window, ...]) -> str:
    return _encode((scope, _mask(windows))).decode()


def masks_text(scopes: tuple[Scope, ...]) -> str:
    """Return each scope and the bits of its counted windows, as a journal's row has them."""
    return f"[{','.join([_mask_text(scope.name, scope.windows) for scope in scopes])}]"
