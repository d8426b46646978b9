"""Enters again what a ledger has forgotten, from the decision records.

What a record says was charged, and the journal does not, is held and settled once more, at the
time of the request: by the ordinary operations, in any store, while it is in use. Done twice, it
changes nothing, since what was entered is in the journal.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Protocol

from msgspec import Struct

from waypost.shared.errors import StoreError
from waypost.shared.records import DecisionRecord
from waypost.validator.ledger.base import ENTERED_AGAIN, Hold, Ledger, Scope

__all__ = ["Forgotten", "ScopesOf", "enter", "forgotten_in", "rebuild"]

PAGE = 500
REQUEST_ID_CHARS = 36  # a hold's id begins with that of its request
LEASE = "lease-"
LATE_S = 3_600
JOURNAL_S = 6 * 86_400  # every store keeps at least a week, but for what it is just dropping


# Gives those from one instant to before another, Unix seconds.
Records = Callable[[int, int], AsyncIterator[DecisionRecord]]


class ScopesOf(Protocol):
    """The limits that are configured, as ``Budgets`` has them."""

    def account(self, name: str) -> Scope:
        """Return the account."""
        ...

    def principal(
        self, *, subject: str, pseudonym: str, tenant: str | None, tier: str
    ) -> tuple[Scope, ...]:
        """Return what else a caller's requests count for."""
        ...

    def target(self, *, provider: str, model: str) -> tuple[Scope, ...]:
        """Return what a request counts for that ``model`` serves."""
        ...


class Forgotten(Struct, frozen=True, kw_only=True):
    """What one request cost, and what the journal does not have of it."""

    record: DecisionRecord
    nusd: int


async def forgotten_in(
    ledger: Ledger, records: Records, *, since: int, until: int
) -> AsyncIterator[Forgotten]:
    """Give the requests of that time of which the ledger's journal lacks a charge.

    A journal is not kept for ever. What is older counts as forgotten only where all that an
    account has spent is in the journal, so that there is nothing older in the books. A lease pays
    for many requests in one line: what is younger than the first one cannot be told apart.
    """
    known: Counter[str] = Counter()
    by_scope: Counter[str] = Counter()
    first_lease = until
    async for entry in ledger.journal(since=0, until=until):
        nusd = entry.cost_nusd + (entry.amount_nusd if entry.state == "held" else 0)
        known[entry.id[:REQUEST_ID_CHARS]] += nusd
        by_scope.update(dict.fromkeys(entry.scopes, nusd))
        if entry.id.startswith(LEASE):
            first_lease = min(first_lease, entry.at)
    has_older = {
        used.scope
        async for used in ledger.sums("total", now=until)
        if used.spent_nusd + used.debt_nusd + used.reserved_nusd > by_scope[used.scope]
    }
    async for record in records(since, first_lease):
        lacks = record.cost_nusd - known[record.id]
        is_kept = record.at_ms // 1_000 >= until - JOURNAL_S
        if lacks > 0 and (is_kept or f"account:{record.account}" not in has_older):
            yield Forgotten(record=record, nusd=lacks)


async def rebuild(
    ledger: Ledger, records: Records, budgets: ScopesOf, *, since: int, until: int
) -> int:
    """Enter all that was forgotten, and let the ledger be used again; return how much it was."""
    found = forgotten_in(ledger, records, since=since, until=until)
    entered = await enter(ledger, [one async for one in found], budgets)
    await ledger.recognise()
    return entered


async def enter(ledger: Ledger, found: Sequence[Forgotten], budgets: ScopesOf) -> int:
    """Charge what was forgotten; return how much. Never refused: it is spent."""
    entered = 0
    for start in range(0, len(found), PAGE):
        page = found[start : start + PAGE]
        entered += sum(await asyncio.gather(*(_enter(ledger, one, budgets) for one in page)))
    return entered


async def _enter(ledger: Ledger, one: Forgotten, budgets: ScopesOf) -> int:
    now = one.record.at_ms // 1_000
    hold = Hold(
        id=f"{one.record.id}.{one.nusd}{ENTERED_AGAIN}",
        amount_nusd=one.nusd,
        scopes=tuple(_unlimited(_scopes(one.record, budgets))),
        now=now,
        expires_at=now + LATE_S,
        requests=0,
    )
    try:
        await ledger.reserve(hold)
    except StoreError as error:
        if error.code == "hold_conflict":
            return 0  # another validator has just entered it
        raise
    await ledger.settle(hold.id, one.nusd)
    return one.nusd


def _scopes(record: DecisionRecord, budgets: ScopesOf) -> Iterable[Scope]:
    yield budgets.account(record.account or "")
    yield from budgets.principal(
        subject="", pseudonym=record.subject, tenant=record.tenant, tier=record.tier or ""
    )
    paid = [attempt for attempt in record.attempts if attempt.cost_nusd]
    if paid:
        yield from budgets.target(provider=paid[-1].provider, model=paid[-1].model)


def _unlimited(scopes: Iterable[Scope]) -> Iterable[Scope]:
    return (Scope(name=scope.name, windows=scope.windows) for scope in scopes)
