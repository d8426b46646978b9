"""What a report says: sentences and tables, made of totals. Pure.

One document, which HTML, PDF and the terminal each show in their way, so that none of them can
tell another story. Everything that totals take from records is cut and rid of what cannot be seen.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from msgspec import Struct

from waypost.validator.console.words import count, money, percent, shown
from waypost.validator.records import RecordStats, StatsRow

__all__ = ["Gathered", "Report", "Table", "report_of"]

DAY_MS = 86_400_000
MAX_ROWS = 12

# Why a proposal was overridden or a request refused, as whoever pays would say it.
_REASONS = {
    "tier_not_allowed": "the app asked for a model that the customer's plan does not include",
    "duty_unmet": "the data may only go to providers that have promised to protect it",
    "unknown_data_class": "the data was of a kind that the policy does not know",
    "capability_missing": "the model could not do what the request needed",
    "context_too_small": "the request was too long for the model",
    "out_of_service": "the model's provider was down",
    "unaffordable": "the account could not have paid for it",
    "budget_downgrade": "the account's budget was enough for a cheaper model only",
    "budget_exhausted": "the account's budget was used up",
    "budget_undefined": "nobody had set a budget for the account",
    "not_in_token": "the customer's access did not include the model",
    "not_in_route": "a rule keeps this kind of request to other models",
    "unknown_model": "the app named a model that the policy does not have",
    "unknown_tier": "the customer's plan is not in the policy",
    "facts_incomplete": "the policy looks at something that could not be measured",
    "endpoint_unsupported": "the model cannot be called in the way the app called it",
    "upstream_unavailable": "no provider could answer",
    "upstream_timeout": "no provider answered in time",
    "upstream_rate_limited": "the providers allowed no more requests at the time",
}


class Table(Struct, frozen=True, kw_only=True):
    """A table; all columns but the first hold figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


class Report(Struct, frozen=True, kw_only=True):
    """A whole report.

    Attributes:
        headline: the one sentence that most read.
        figures: what it is about, in pairs: name, value.
        days: spent and saved per day, in nano-dollars: label, spent, saved.
        is_simulated: whether no provider was real.
    """

    title: str
    period: str
    headline: str
    figures: tuple[tuple[str, str], ...]
    sentences: tuple[str, ...]
    tables: tuple[Table, ...]
    days: tuple[tuple[str, int, int], ...]
    is_simulated: bool = False


class Gathered(Struct, frozen=True, kw_only=True):
    """The totals that a report is made of.

    Attributes:
        before: of the same length of time before; without rows if nothing was recorded.
        starts_ms: start of each day.
    """

    whole: RecordStats
    before: RecordStats
    models: RecordStats
    routes: RecordStats
    reasons: RecordStats
    days: RecordStats
    starts_ms: Sequence[int]


def report_of(gathered: Gathered, *, title: str, period: str, is_simulated: bool) -> Report:
    """Return the report of what was gathered.

    Args:
        period: in words, as ``17 to 23 November 2026``.
    """
    total = next(iter(gathered.whole.rows), StatsRow())
    reasons = gathered.reasons.rows
    overridden = _of(reasons, "overridden")
    refused = _of(reasons, "refused")
    tables = (
        _shares("Models", "Model", gathered.models.rows, "model"),
        _shares("Routes", "Route", gathered.routes.rows, "route"),
        _causes("Why proposals were overridden", overridden),
        _causes("Why requests were refused", refused),
    )
    return Report(
        title=title,
        period=period,
        headline=_headline(total),
        figures=(
            ("Requests", count(total.requests)),
            ("Spent", money(total.cost_nusd)),
            ("Saved", money(total.saved_nusd)),
            ("Overridden", percent(_sum(overridden), total.requests)),
            ("Refused", percent(_sum(refused), total.requests)),
            ("Failed", percent(total.failed, total.requests)),
        ),
        sentences=tuple(_sentences(total, gathered, overridden, refused)),
        tables=tuple(table for table in tables if table.rows),
        days=_days(gathered),
        is_simulated=is_simulated,
    )


def _of(rows: Iterable[StatsRow], verdict: str) -> list[StatsRow]:
    return [row for row in rows if row.verdict == verdict]


def _sum(rows: Iterable[StatsRow]) -> int:
    return sum(row.requests for row in rows)


def _headline(total: StatsRow) -> str:
    if not total.requests:
        return "Nothing was asked, and nothing was spent."
    alone = total.cost_nusd + total.saved_nusd
    spent = f"{_requests(total.requests)} cost {money(total.cost_nusd)}."
    if total.saved_nusd > 0:
        return (
            f"{spent} The best model alone would have cost {money(alone)}: routing saved"
            f" {money(total.saved_nusd)}, {percent(total.saved_nusd, alone)}."
        )
    if total.saved_nusd < 0:
        return (
            f"{spent} The best model alone would have cost {money(alone)}: routing cost"
            f" {money(-total.saved_nusd)} more than it saved."
        )
    return f"{spent} Routing saved nothing against the best model alone."


def _requests(number: int) -> str:
    return f"{count(number)} {'request' if number == 1 else 'requests'}"


def _sentences(
    total: StatsRow, gathered: Gathered, overridden: list[StatsRow], refused: list[StatsRow]
) -> Iterable[str]:
    if not total.requests:
        return
    before = next(iter(gathered.before.rows), None)
    if before is not None and before.cost_nusd:
        change = total.cost_nusd - before.cost_nusd
        yield (
            f"That is {percent(abs(change), before.cost_nusd)} {'more' if change > 0 else 'less'}"
            f" than the {money(before.cost_nusd)} of the same time before"
            f" ({_requests(before.requests)} then)."
        )
    dearest = max(gathered.models.rows, key=lambda row: row.cost_nusd)
    if dearest.cost_nusd and dearest.model is not None:
        yield (
            f"Most of it went to {shown(dearest.model)}: {money(dearest.cost_nusd)},"
            f" {percent(dearest.cost_nusd, total.cost_nusd)} of the bill for"
            f" {percent(dearest.requests, total.requests)} of the requests."
        )
    for rows, what in (
        (overridden, "apps asked for a model that the policy does not allow, and got another"),
        (refused, "requests were refused, at no cost"),
    ):
        if rows:
            first = rows[0]
            yield (
                f"{count(_sum(rows))} times {what}; mostly"
                f" ({count(first.requests)}) because {_because(first)}."
            )
    if total.failed:
        yield (
            f"{_requests(total.failed)} got no answer, because providers or the validator failed."
        )
    if total.good + total.bad:
        yield (
            f"Of {count(total.good + total.bad)} answers that were rated,"
            f" {percent(total.good, total.good + total.bad)} were rated good."
        )
    if gathered.whole.dropped:
        yield (
            f"{count(gathered.whole.dropped)} decisions could not be recorded, so all of these"
            " figures are too low."
        )


def _because(row: StatsRow) -> str:
    reason = row.reason or ""
    return _REASONS.get(reason) or f"of: {shown(reason.replace('_', ' '))}"


def _shares(title: str, name: str, rows: Sequence[StatsRow], field: str) -> Table:
    ordered = sorted(rows, key=lambda row: -row.cost_nusd)
    cells = [
        (
            str(shown(getattr(row, field) or "none: refused before")),
            count(row.requests),
            money(row.cost_nusd),
            money(row.saved_nusd),
            money(row.cost_nusd // row.requests if row.requests else 0),
        )
        for row in ordered[:MAX_ROWS]
    ]
    return Table(
        title=title,
        columns=(name, "Requests", "Spent", "Saved", "Each"),
        rows=tuple(cells),
        note=_more(ordered),
    )


def _causes(title: str, rows: Sequence[StatsRow]) -> Table:
    cells = [(_capital(_because(row)), count(row.requests)) for row in rows[:MAX_ROWS]]
    return Table(title=title, columns=("Because", "Requests"), rows=tuple(cells), note=_more(rows))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _more(rows: Sequence[StatsRow]) -> str:
    return f"And {count(len(rows) - MAX_ROWS)} more." if len(rows) > MAX_ROWS else ""


def _days(gathered: Gathered) -> tuple[tuple[str, int, int], ...]:
    by_day = {row.at_ms: row for row in gathered.days.rows}
    return tuple(
        (
            _day(at_ms),
            by_day[at_ms].cost_nusd if at_ms in by_day else 0,
            by_day[at_ms].saved_nusd if at_ms in by_day else 0,
        )
        for at_ms in gathered.starts_ms
    )


def _day(at_ms: int) -> str:
    day = datetime.fromtimestamp(at_ms / 1_000, UTC)
    return f"{day.day} {day:%b}"
