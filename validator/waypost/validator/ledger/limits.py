"""What is enough, and what is too much: of money, of requests, of a key, of a hold's time. Pure."""

from collections.abc import Iterable

from waypost.shared.contracts import SpendLimit, Window
from waypost.validator.ledger.base import (
    MAX_NUSD,
    Crossed,
    Hold,
    HoldState,
    RateLimit,
    Repeat,
    Scope,
    Shortfall,
    Throttled,
)
from waypost.validator.ledger.calendar import CALENDAR, DURATION_S, Calendar
from waypost.validator.ledger.rows import KeyRow, RateRow, WindowRow

__all__ = [
    "KEEP_KEYS_S",
    "US",
    "Counted",
    "backlog_us",
    "crossed_by",
    "longest_first",
    "longest_wait",
    "rate_name",
    "refuse_rate",
    "repeats",
    "rooms_of",
    "state_after",
    "tightest",
]

# SQL integers end at 2**63; half of that leaves room for bills that exceed their holds.
MAX_TOTAL_NUSD = 2**62
KEEP_KEYS_S = 86_400  # how long an idempotency key stands for its request
US = 1_000_000

# The rows of one scope's counted windows.
Counted = tuple[WindowRow, ...]

_PLACE = {window: place for place, window in enumerate(CALENDAR)}


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


def rooms_of(hold: Hold, counted: list[tuple[Scope, Counted]]) -> list[tuple[str, SpendLimit, int]]:
    """Return scope, limit and what is left of it, for each limit that ``hold`` must fit."""
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


def longest_wait(backlogs: list[tuple[RateRow, RateLimit, int]], *, now: int) -> Throttled | None:
    """Return the rate that has to be waited for the longest; ``None`` if none refuses."""
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
