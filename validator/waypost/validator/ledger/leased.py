"""A ledger that takes slices of budgets in advance, and spends them without asking the store.

A slice is a hold like any other, so the sum of all slices, of any number of validators, never
exceeds a limit, and one whose validator crashed is charged in full when it expires. Its unused
part comes back when it is over, at the latest when the validator stops. What exceeds a slice is
asked of the store; so are requests with a key or a rate limit, which all validators must see.

A pause or a skewed clock overspends nothing: a slice that expired meanwhile is charged in full,
and corrected to what was spent of it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from secrets import token_hex

from waypost.shared.contracts import Window
from waypost.shared.errors import StoreError
from waypost.validator.ledger.accounting import HELD
from waypost.validator.ledger.base import (
    MAX_NUSD,
    Balance,
    Entry,
    Grant,
    Held,
    Hold,
    Ledger,
    Refusal,
    Scope,
    WindowSum,
)
from waypost.validator.ledger.calendar import Calendar

__all__ = ["LeasedLedger"]

logger = logging.getLogger(__name__)

FIRST_HOLDS = 8  # a first slice pays for so many requests like the one that asks for it
CHECKS_PER_LEASE = 4
MAX_SIZES = 100_000


class _Slice:
    """Part of a budget, held in the store, spent here.

    Attributes:
        free_nusd: neither spent nor held for a request.
        ends_at: from here on nothing more is held of it.
        expires_at: from here on the store charges it in full.
        is_over: it is settled as soon as no hold of it is open.
    """

    __slots__ = (
        "amount_nusd",
        "ends_at",
        "expires_at",
        "free_nusd",
        "held",
        "id",
        "is_over",
        "open",
        "spent_nusd",
    )

    def __init__(
        self, id: str, amount_nusd: int, ends_at: float, expires_at: int, held: Held
    ) -> None:
        self.id = id
        self.amount_nusd = self.free_nusd = amount_nusd
        self.expires_at = expires_at
        self.ends_at = ends_at
        self.held = held
        self.spent_nusd = 0
        self.open = 0
        self.is_over = False


# The scopes by name, and the windows that pay.
_Key = tuple[tuple[str, ...], tuple[int, ...]]


class LeasedLedger:
    """A ``Ledger`` on another one. Use it from one event loop."""

    def __init__(
        self,
        ledger: Ledger,
        calendar: Calendar,
        *,
        lease_s: float,
        share: float,
        spends_when_down: bool,
        monotonic: Callable[[], float],
    ) -> None:
        """Args:
        share: of what is left of a budget, at most, in one slice.
        spends_when_down: go on with the slices at hand while the store does not answer.
        """
        self._ledger = ledger
        self._calendar = calendar
        self._lease_s = lease_s
        self._share = share
        self._spends_when_down = spends_when_down
        self._monotonic = monotonic
        self._slices: dict[_Key, _Slice] = {}
        self._sizes: dict[_Key, int] = {}
        self._holds: dict[str, tuple[_Slice, int, int]] = {}
        self._filling: dict[_Key, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._upkeep: asyncio.Task[None] | None = None
        self._is_down = self._is_closing = False

    @property
    def risks(self) -> frozenset[str]:
        """See ``Ledger.risks``."""
        return self._ledger.risks

    async def recognise(self) -> None:
        """See ``Ledger.recognise``."""
        await self._ledger.recognise()

    # ── the hot path: no await that waits ──────────────────────────────────────────────────

    async def reserve(self, hold: Hold) -> Held | Refusal:
        """See ``Ledger.reserve``."""
        if self._is_down and not self._spends_when_down:
            raise StoreError("the budget ledger does not answer", code="ledger_unavailable")
        if hold.id in self._holds:
            return HELD
        if hold.key is not None or not _may_lease(hold):
            return await self._ledger.reserve(hold)
        key = self._key(hold)
        part = self._take(key, hold)
        if part is None:
            part = await self._fill(key, hold)
        return await self._ledger.reserve(hold) if part is None else part.held

    def _take(self, key: _Key, hold: Hold) -> _Slice | None:
        part = self._slices.get(key)
        if part is None or hold.amount_nusd > part.free_nusd:
            return None
        if self._monotonic() >= part.ends_at or hold.expires_at > part.expires_at:
            return None
        part.free_nusd -= hold.amount_nusd
        part.open += 1
        self._holds[hold.id] = (part, hold.amount_nusd, hold.expires_at)
        return part

    async def settle(
        self, hold_id: str, cost_nusd: int, *, tokens: int | None = None, is_confirmed: bool = True
    ) -> None:
        """See ``Ledger.settle``. What a slice has paid for is not corrected later."""
        if hold_id in self._holds:
            self._spend(hold_id, min(cost_nusd, MAX_NUSD))
        else:
            await self._ledger.settle(hold_id, cost_nusd, tokens=tokens, is_confirmed=is_confirmed)

    async def release(self, hold_id: str) -> None:
        """See ``Ledger.release``."""
        if hold_id in self._holds:
            self._spend(hold_id, 0)
        else:
            await self._ledger.release(hold_id)

    async def renew(self, hold_ids: Iterable[str], *, expires_at: int) -> None:
        """See ``Ledger.renew``. A slice lives as long as what is held of it."""
        others: list[str] = []
        parts: dict[str, _Slice] = {}
        for hold_id in hold_ids:
            if hold_id not in self._holds:
                others.append(hold_id)
                continue
            part, amount_nusd, ends_at = self._holds[hold_id]
            self._holds[hold_id] = (part, amount_nusd, max(ends_at, expires_at))
            if part.expires_at < expires_at:
                parts[part.id] = part
        if others or parts:
            await self._ledger.renew((*others, *parts), expires_at=expires_at)
        for part in parts.values():
            part.expires_at = max(part.expires_at, expires_at)

    def _spend(self, hold_id: str, cost_nusd: int) -> None:
        part, amount_nusd, _ = self._holds.pop(hold_id)
        part.spent_nusd += cost_nusd
        part.free_nusd += amount_nusd - cost_nusd
        part.open -= 1
        if part.is_over and not part.open:
            self._hand_back(part)

    def _key(self, hold: Hold) -> _Key:
        starts: tuple[int, ...] = self._calendar.starts(hold.now)
        if all("minute" not in scope.windows for scope in hold.scopes):
            starts = starts[1:]
        return tuple([scope.name for scope in hold.scopes]), starts

    # ── slices ─────────────────────────────────────────────────────────────────────────────

    async def _fill(self, key: _Key, hold: Hold) -> _Slice | None:
        """Return a slice that holds ``hold``; ``None`` if it must be asked of the store."""
        if self._upkeep is None:
            self._upkeep = asyncio.create_task(self._keep())
        async with self._filling.setdefault(key, asyncio.Lock()):
            part = self._take(key, hold)  # whoever waited may find a new one
            if part is not None:
                return part
            old = self._slices.pop(key, None)
            if old is not None:
                if self._monotonic() < old.ends_at:
                    self._sizes[key] = 2 * old.amount_nusd  # it did not last
                self._end(old)
            size = await self._size(key, hold)
            if size <= hold.amount_nusd:
                return None
            part = await self._lease(hold, size)
            if part is None:
                return None
            self._slices[key] = part
            return self._take(key, hold)

    async def _size(self, key: _Key, hold: Hold) -> int:
        wanted = self._sizes.get(key, FIRST_HOLDS * hold.amount_nusd)
        left = [
            balance.limit_nusd - balance.spent_nusd - balance.reserved_nusd
            for balance in await self._ledger.balances(hold.scopes, now=hold.now)
            if balance.window != "request"
        ]
        return min([wanted, MAX_NUSD, *(int(one * self._share) for one in left)])

    async def _lease(self, hold: Hold, size: int) -> _Slice | None:
        ends_at = self._monotonic() + self._lease_s
        lease = Hold(
            id=f"lease-{token_hex(16)}",
            amount_nusd=size,
            scopes=tuple(map(_for_any_request, hold.scopes)),
            now=hold.now,
            # The last request of the slice may take as long as any.
            expires_at=hold.expires_at + int(self._lease_s) + 1,
        )
        held = await self._ledger.reserve(lease)
        if not isinstance(held, Held):
            return None
        return _Slice(lease.id, size, ends_at, lease.expires_at, held)

    def _end(self, part: _Slice) -> None:
        part.is_over = True
        if not part.open:
            self._hand_back(part)

    def _hand_back(self, part: _Slice) -> None:
        task = asyncio.get_running_loop().create_task(self._settle(part))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settle(self, part: _Slice) -> None:
        try:
            await self._ledger.settle(part.id, part.spent_nusd)
        except StoreError as exc:
            # The ledger below makes it when the store answers again.
            logger.error("a slice of a budget not handed back: %s", exc)

    async def _keep(self) -> None:
        """End slices in time, and notice when the store is down or back."""
        # Not for ever: a store's client may swallow the cancellation that should end this.
        while not self._is_closing:
            await asyncio.sleep(self._lease_s / CHECKS_PER_LEASE)
            now = self._monotonic()
            for key, part in [*self._slices.items()]:
                if now >= part.ends_at:
                    del self._slices[key]
                    self._sizes[key] = max(part.spent_nusd, 1)
                    self._end(part)
            for key in self._filling.keys() - self._slices.keys():
                if not self._filling[key].locked():
                    del self._filling[key]
            if len(self._sizes) > MAX_SIZES:
                self._sizes.clear()
            try:
                await self._ledger.balances((), now=0)
            except StoreError:
                self._is_down = True
            else:
                self._is_down = False

    # ── the rest ───────────────────────────────────────────────────────────────────────────

    async def free_key(self, digest: str, request_id: str) -> None:
        """See ``Ledger.free_key``."""
        await self._ledger.free_key(digest, request_id)

    async def balances(self, scopes: Iterable[Scope], *, now: int) -> tuple[Balance, ...]:
        """See ``Ledger.balances``. Slices count as reserved."""
        return await self._ledger.balances(scopes, now=now)

    async def sweep(self, *, now: int) -> int:
        """See ``Ledger.sweep``."""
        expired = [hold_id for hold_id, (_, _, ends_at) in self._holds.items() if ends_at <= now]
        for hold_id in expired:
            self._spend(hold_id, self._holds[hold_id][1])
        return len(expired) + await self._ledger.sweep(now=now)

    async def grant(self, grant: Grant) -> int:
        """See ``Ledger.grant``."""
        return await self._ledger.grant(grant)

    def sums(self, window: Window, *, now: int) -> AsyncIterator[WindowSum]:
        """See ``Ledger.sums``."""
        return self._ledger.sums(window, now=now)

    def journal(self, *, since: int, until: int) -> AsyncIterator[Entry]:
        """See ``Ledger.journal``. A slice is one line."""
        return self._ledger.journal(since=since, until=until)

    async def close(self) -> None:
        """See ``Ledger.close``. What is held of slices still is charged in full."""
        self._is_closing = True
        if self._upkeep is not None:
            self._upkeep.cancel()
            with suppress(asyncio.CancelledError):
                await self._upkeep
            self._upkeep = None
        for hold_id, (_, amount_nusd, _) in [*self._holds.items()]:
            self._spend(hold_id, amount_nusd)
        for part in self._slices.values():
            self._end(part)
        self._slices.clear()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._ledger.close()


def _may_lease(hold: Hold) -> bool:
    for scope in hold.scopes:
        if scope.rates:
            return False
        for limit in scope.limits:
            if limit.window == "request" and hold.amount_nusd > limit.limit_nusd:
                return False
    return True


def _for_any_request(scope: Scope) -> Scope:
    """Return the scope without its ceiling on one request, which a slice is not."""
    limits = tuple(limit for limit in scope.limits if limit.window != "request")
    if len(limits) == len(scope.limits):
        return scope
    return Scope(name=scope.name, limits=limits, warnings=scope.warnings, windows=scope.windows)
