"""The ledger's arithmetic, on rows that a store lends it for one transaction. Pure.

A store opens a write transaction, lets ``Accounting`` apply any number of operations, writes what
``Accounting`` changed, and commits. An operation changes everything or, when it refuses or raises,
nothing; so one bad operation does not spoil the others of its batch.
"""

from waypost.shared.contracts import Window
from waypost.shared.errors import StoreError
from waypost.validator.ledger.base import (
    MAX_NUSD,
    Crossed,
    Grant,
    Held,
    Hold,
    HoldState,
    RateLimit,
    Refusal,
    Repeat,
    Scope,
)
from waypost.validator.ledger.calendar import CALENDAR, Calendar
from waypost.validator.ledger.limits import (
    US,
    Counted,
    backlog_us,
    crossed_by,
    longest_wait,
    rate_name,
    repeats,
    rooms_of,
    state_after,
    tightest,
)
from waypost.validator.ledger.operations import (
    FreeKey,
    GrantOp,
    Operation,
    Release,
    Renew,
    Reserve,
    Settle,
    Sweep,
)
from waypost.validator.ledger.rows import (
    BIT,
    Backlog,
    HoldRow,
    KeyRow,
    RateRow,
    Rows,
    WindowRow,
    backlogs_text,
    mask_of,
    masks_text,
)

__all__ = ["HELD", "Accounting"]

# Rows kept from one transaction to the next, about 100 bytes each.
MAX_REMEMBERED = 100_000

HELD = Held()


class Accounting:
    """Operations on rows; remembers rows until told that they may have changed.

    Attributes:
        opened: holds to insert.
        closed: holds to update.
        renewed: holds whose expiry is to be updated.
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
        self._windows: dict[tuple[str, int, int], Counted] = {}
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
        self.renewed: dict[str, HoldRow] = {}
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
                case Renew(hold_ids, expires_at):
                    self._renew(hold_ids, expires_at)
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
            (scope, self._counted(scope.name, mask_of(scope.windows), hold.now))
            for scope in hold.scopes
            if scope.windows
        ]
        shortfall = tightest(
            rooms_of(hold, counted), hold.amount_nusd, calendar=self._calendar, now=hold.now
        )
        if shortfall is not None:
            return shortfall
        backlogs = [
            (self._rate(scope.name, rate), rate, backlog_us(rate, hold))
            for scope in hold.scopes
            for rate in scope.rates
        ]
        throttled = longest_wait(backlogs, now=hold.now)
        if throttled is not None:
            return throttled
        self._open(hold, counted, backlogs)
        return self._held(hold, counted)

    def _open(
        self,
        hold: Hold,
        counted: list[tuple[Scope, Counted]],
        backlogs: list[tuple[RateRow, RateLimit, int]],
    ) -> None:
        windows = [row for _, rows in counted for row in rows]
        for row in windows:
            row.reserved_nusd += hold.amount_nusd
        self.touched.update(windows)
        of_tokens: list[Backlog] = []
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
            backlogs_text(of_tokens),
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

    def _held(self, hold: Hold, counted: list[tuple[Scope, Counted]]) -> Held:
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

    def _renew(self, hold_ids: tuple[str, ...], expires_at: int) -> None:
        for hold_id in hold_ids:
            row = self._hold(hold_id)
            if row is not None and row.state == "held" and row.expires_at < expires_at:
                row.expires_at = expires_at
                # Kept, as what else this batch does must see it.
                self._holds[hold_id] = self.renewed[hold_id] = row

    def _sweep(self, now: int, at_most: int) -> int:
        swept = 0
        for hold_id in self._rows.expired(now, at_most=at_most):
            row = self._hold(hold_id)
            # The store does not know yet what this same batch has settled or renewed.
            if row is not None and row.state == "held" and row.expires_at <= now:
                self._close(row, "expired", row.amount_nusd, None)
                swept += 1
        return swept

    def _grant(self, grant: Grant) -> int:
        entered = self._rows.granted(grant.id)
        if entered is not None:
            return entered
        (row,) = self._counted(grant.scope, BIT[grant.window], grant.at)
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

    def _counted(self, scope: str, mask: int, at: int) -> Counted:
        """Return the rows of the scope's windows in ``mask``, as of ``at``."""
        if not mask:
            return ()
        # Minutes are rarely counted; without them an hour shares its rows.
        key = (scope, mask, at // 60 if mask & 1 else at // 900)
        rows = self._windows.get(key)
        if rows is None:
            rows = self._windows[key] = self._load(scope, mask, self._calendar.starts(at))
        return rows

    def _load(self, scope: str, mask: int, starts: tuple[int, ...]) -> Counted:
        wanted: list[tuple[Window, int]] = [
            (window, start)
            for window, start in zip(CALENDAR, starts, strict=True)
            if mask & BIT[window]
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
