"""What the books say: who spent most, the journal as rows, a provider's bill beside it. Pure."""

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from io import StringIO
from typing import Any

import msgspec
from msgspec import Struct

from waypost.shared.errors import WaypostError
from waypost.shared.money import NUSD_PER_USD
from waypost.validator.ledger.base import Entry, WindowSum

__all__ = [
    "JOURNAL_COLUMNS",
    "KINDS",
    "Difference",
    "Spent",
    "UsageExportError",
    "compare",
    "journal_row",
    "read_usage",
    "spent_of_entries",
    "spent_of_sums",
]

KINDS = ("account", "user", "tenant", "tier", "provider", "model")
JOURNAL_COLUMNS = ("id", "at", "state", "reserved_nusd", "cost_nusd", *KINDS)


class UsageExportError(WaypostError):
    """A provider's usage export that cannot be read."""

    code = "usage_invalid"


class Spent(Struct, frozen=True, kw_only=True):
    """What one scope spent, and has reserved."""

    scope: str
    spent_nusd: int
    reserved_nusd: int


class Difference(Struct, frozen=True, kw_only=True):
    """One day (UTC) of one model: what the books charged, and what the provider says."""

    day: str
    model: str
    ours_nusd: int
    theirs_nusd: int

    @property
    def nusd(self) -> int:
        """How much more the provider says."""
        return self.theirs_nusd - self.ours_nusd


def spent_of_sums(sums: Iterable[WindowSum], kind: str) -> list[Spent]:
    """Return the scopes of ``kind``, whoever spent most first."""
    return _ordered(
        Spent(
            scope=one.scope,
            spent_nusd=one.spent_nusd + one.debt_nusd,
            reserved_nusd=one.reserved_nusd,
        )
        for one in sums
        if one.scope.startswith(f"{kind}:")
    )


def spent_of_entries(entries: Iterable[Entry], kind: str) -> list[Spent]:
    """Return the same of a journal, which also names what is not counted by itself."""
    spent: defaultdict[str, int] = defaultdict(int)
    reserved: defaultdict[str, int] = defaultdict(int)
    for entry in entries:
        for scope in entry.scopes:
            if scope.startswith(f"{kind}:"):
                spent[scope] += entry.cost_nusd
                reserved[scope] += entry.amount_nusd if entry.state == "held" else 0
    return _ordered(
        Spent(scope=scope, spent_nusd=spent[scope], reserved_nusd=reserved[scope])
        for scope in spent
    )


def _ordered(spent: Iterable[Spent]) -> list[Spent]:
    return sorted(spent, key=lambda one: (-one.spent_nusd, one.scope))


def journal_row(entry: Entry) -> tuple[object, ...]:
    """Return one line of an export, in the order of ``JOURNAL_COLUMNS``."""
    names = dict(scope.split(":", 1) for scope in entry.scopes if ":" in scope)
    at = f"{datetime.fromtimestamp(entry.at, UTC):%Y-%m-%dT%H:%M:%SZ}"
    told = (entry.id, at, entry.state, entry.amount_nusd, entry.cost_nusd)
    return (*told, *(names.get(kind, "") for kind in KINDS))


# ── a provider's own count ─────────────────────────────────────────────────────────────────────


def read_usage(text: str, *, day: str, model: str, cost: str) -> dict[tuple[str, str], int]:
    """Return what a provider's export says each day of each model cost, in nano-dollars.

    Args:
        text: CSV with a head line, or JSON: a list of objects, or one under ``data``.
        day, model, cost: names of the columns. A day may be a date, an ISO time or Unix
            seconds; a cost is in dollars.

    Raises:
        UsageExportError: naming the line that cannot be read.
    """
    theirs: defaultdict[tuple[str, str], int] = defaultdict(int)
    for number, row in enumerate(_rows(text), 1):
        missing = [column for column in (day, model, cost) if row.get(column) in (None, "")]
        if missing:
            raise UsageExportError(f"row {number} has no {', '.join(missing)}")
        try:
            dollars = Decimal(str(row[cost]))
            when = _day(str(row[day]))
            nusd = int((dollars * NUSD_PER_USD).to_integral_value())
        except (InvalidOperation, ValueError, OverflowError):
            raise UsageExportError(
                f"row {number}: {row[day]!s:.40} should be a day, {row[cost]!s:.40} dollars"
            ) from None
        theirs[when, str(row[model])] += nusd
    return dict(theirs)


def _rows(text: str) -> Iterator[Mapping[str, Any]]:
    if text.lstrip()[:1] not in ("[", "{"):
        yield from csv.DictReader(StringIO(text))
        return
    try:
        found: Any = msgspec.json.decode(text)
        yield from msgspec.convert(
            found["data"] if isinstance(found, dict) else found, list[dict[str, Any]]
        )
    except (msgspec.MsgspecError, KeyError) as exc:
        raise UsageExportError("the JSON is no list of objects, nor has one under data") from exc


def _day(text: str) -> str:
    if text.isdigit():
        return f"{datetime.fromtimestamp(int(text), UTC):%Y-%m-%d}"
    moment = datetime.fromisoformat(text)
    return f"{moment if moment.tzinfo is None else moment.astimezone(UTC):%Y-%m-%d}"


def compare(
    entries: Iterable[Entry],
    theirs: Mapping[tuple[str, str], int],
    *,
    provider: str,
    names: Mapping[str, str],
) -> list[Difference]:
    """Return each day and model that either side knows, in order.

    Args:
        names: our name of a model → the provider's, where they differ.
    """
    ours: defaultdict[tuple[str, str], int] = defaultdict(int)
    for entry in entries:
        if f"provider:{provider}" in entry.scopes and entry.cost_nusd:
            day = f"{datetime.fromtimestamp(entry.at, UTC):%Y-%m-%d}"
            for scope in entry.scopes:
                kind, _, name = scope.partition(":")
                if kind == "model":
                    ours[day, names.get(name, name)] += entry.cost_nusd
    return [
        Difference(
            day=day,
            model=model,
            ours_nusd=ours.get((day, model), 0),
            theirs_nusd=theirs.get((day, model), 0),
        )
        for day, model in sorted({*ours, *theirs})
    ]
