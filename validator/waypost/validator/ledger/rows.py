"""What the books keep: holds, sums of windows, rates, keys; and where a store finds them.

Scopes and their windows are kept as a journal's row has them: names and bits, as JSON.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Protocol

import msgspec

from waypost.shared.contracts import Window
from waypost.validator.ledger.base import Entry, HoldState, Scope
from waypost.validator.ledger.calendar import CALENDAR

__all__ = [
    "BIT",
    "Backlog",
    "HoldRow",
    "KeyRow",
    "RateRow",
    "Rows",
    "WindowRow",
    "backlogs_text",
    "mask_of",
    "masks_text",
]

# Each scope's name, and which of CALENDAR count, as bits. Then the rates' backlog of its tokens.
ScopeMask = tuple[str, int]
Backlog = tuple[str, str, int]
_encode = msgspec.json.Encoder().encode
_decode_masks = msgspec.json.Decoder(tuple[ScopeMask, ...]).decode
_decode_backlogs = msgspec.json.Decoder(tuple[Backlog, ...]).decode
BIT = {window: 1 << place for place, window in enumerate(CALENDAR)}


# Callers come again, and combinations of windows are few, hence the caches.
@lru_cache(maxsize=64)
def mask_of(windows: tuple[Window, ...]) -> int:
    """Return the bits of ``windows``."""
    return sum(BIT[window] for window in windows)


@lru_cache(maxsize=20_000)
def _mask_text(scope: str, windows: tuple[Window, ...]) -> str:
    return _encode((scope, mask_of(windows))).decode()


def masks_text(scopes: tuple[Scope, ...]) -> str:
    """Return each scope and the bits of its counted windows, as a journal's row has them."""
    return f"[{','.join([_mask_text(scope.name, scope.windows) for scope in scopes])}]"


def backlogs_text(backlogs: list[Backlog]) -> str:
    """Return what tokens added to rates, as a journal's row has it; empty for nothing."""
    return _encode(backlogs).decode() if backlogs else ""


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

    def masks(self) -> tuple[ScopeMask, ...]:
        """Return each scope and the bits of its counted windows."""
        return _decode_masks(self.scopes)

    def added(self) -> tuple[Backlog, ...]:
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
