"""What a report says: sentences and tables, made of totals. Pure.

One document, which HTML, PDF and the terminal each show in their way, so that none of them can
tell another story. Everything that totals take from records is cut and rid of what cannot be seen.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

from msgspec import Struct

from waypost.validator.console.reasons import because
from waypost.validator.console.words import count, money, percent, shown
from waypost.validator.records import RecordStats, StatsRow
from waypost.validator.records.savings import Alone, writes

__all__ = ["Gathered", "Report", "Table", "report_of"]

DAY_MS = 86_400_000
MAX_ROWS = 12


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
        against: what savings are told against, in words.
        days: spent and saved per day, in nano-dollars: label, spent, saved.
        is_simulated: whether no provider was real.
    """

    title: str
    period: str
    headline: str
    against: str
    figures: tuple[tuple[str, str], ...]
    sentences: tuple[str, ...]
    tables: tuple[Table, ...]
    days: tuple[tuple[str, int, int], ...]
    footnote: str
    is_simulated: bool = False


class Gathered(Struct, frozen=True, kw_only=True):
    """The totals that a report is made of, each row of one model.

    Attributes:
        alone: what savings are told against.
        before: of the same length of time before; without rows if nothing was recorded.
        starts_ms: start of each day.
    """

    alone: Alone
    before: RecordStats
    models: RecordStats
    routes: RecordStats
    reasons: RecordStats
    days: RecordStats
    starts_ms: Sequence[int]


class Cause(Struct, frozen=True):
    """Why something happened to so many requests."""

    words: str
    requests: int


class Sum(Struct, frozen=True, kw_only=True):
    """What the requests that have something in common came to. Money in nano-dollars.

    Attributes:
        alone_nusd: what they would have cost without routing.
    """

    name: str | None = None
    requests: int = 0
    failed: int = 0
    cost_nusd: int = 0
    alone_nusd: int = 0
    good: int = 0
    bad: int = 0

    @property
    def saved_nusd(self) -> int:
        """Negative if routing cost more."""
        return self.alone_nusd - self.cost_nusd


def _summed(rows: Iterable[StatsRow], alone: Alone, name: str | None = None) -> Sum:
    rows = tuple(rows)
    return Sum(
        name=name,
        requests=sum(row.requests for row in rows),
        failed=sum(row.failed for row in rows),
        cost_nusd=sum(row.cost_nusd for row in rows),
        alone_nusd=alone.cost_nusd(rows),
        good=sum(row.good for row in rows),
        bad=sum(row.bad for row in rows),
    )


def _sums(
    rows: Sequence[StatsRow], alone: Alone, name_of: Callable[[StatsRow], str | None]
) -> list[Sum]:
    """Return a sum for each name, the dearest first."""
    found = [
        _summed([row for row in rows if name_of(row) == name], alone, name)
        for name in dict.fromkeys(map(name_of, rows))
    ]
    return sorted(found, key=lambda one: -one.cost_nusd)


def report_of(gathered: Gathered, *, title: str, period: str, is_simulated: bool) -> Report:
    """Return the report of what was gathered.

    Args:
        period: in words, as ``17 to 23 November 2026``.
    """
    alone = gathered.alone
    total = _summed(gathered.models.rows, alone)
    models = _sums(gathered.models.rows, alone, lambda row: row.model)
    routes = _sums(gathered.routes.rows, alone, lambda row: row.route)
    reasons = gathered.reasons.rows
    overridden = _causes((row, row.requests) for row in reasons if row.verdict == "overridden")
    refused = _causes((row, row.refused) for row in reasons)
    failed = _causes((row, row.failed) for row in reasons)
    tables = (
        _shares("Models", "Model", models),
        _shares("Routes", "Route", routes),
        _singles(gathered, total),
        _table_of("Why proposals were overridden", overridden),
        _table_of("Why requests were refused", refused),
        _table_of("Why requests failed", failed),
    )
    return Report(
        title=title,
        period=period,
        headline=_headline(total, alone),
        against=_against(alone),
        figures=(
            ("Requests", count(total.requests)),
            ("Spent", money(total.cost_nusd)),
            ("Saved", money(total.saved_nusd)),
            ("Overridden", percent(_sum(overridden), total.requests)),
            ("Refused", percent(_sum(refused), total.requests)),
            ("Failed", percent(_sum(failed), total.requests)),
        ),
        sentences=tuple(_sentences(total, models, gathered, overridden, refused, failed)),
        tables=tuple(table for table in tables if table.rows),
        days=_days(gathered),
        footnote=_footnote(alone),
        is_simulated=is_simulated,
    )


def _against(alone: Alone) -> str:
    return str(shown(alone.name))


def _footnote(alone: Alone) -> str:
    spent = (
        "Spent is what budgets were charged: the providers' token counts at the policy's prices."
    )
    if alone.model is None:
        rest = (
            "Saved compares with sending each request to the best-rated model that it was allowed."
        )
    else:
        rest = (
            f"Saved compares with sending every request to {shown(alone.model.id)}, at its price in"
            " the policy, for as many tokens and with the discount for cached input that was had."
            " It might have written more or fewer, and not every request was allowed to go there."
            " Embeddings stay where they were."
        )
    return f"{spent} {rest} Days are in UTC."


def _causes(counted: Iterable[tuple[StatsRow, int]]) -> list[Cause]:
    """Return the causes of what was counted, the commonest first; equal words are one cause."""
    found: dict[str, int] = {}
    for row, requests in counted:
        if requests:
            words = _words(row, is_failure=requests == row.failed and row.verdict != "refused")
            found[words] = found.get(words, 0) + requests
    causes = [Cause(words, requests) for words, requests in found.items()]
    return sorted(causes, key=lambda one: (-one.requests, one.words))


def _sum(causes: Iterable[Cause]) -> int:
    return sum(one.requests for one in causes)


def _headline(total: Sum, alone: Alone) -> str:
    if not total.requests:
        return "Nothing was asked, and nothing was spent."
    spent = f"{_requests(total.requests)} cost {money(total.cost_nusd)}."
    if alone.model is None:
        instead = "Each on the best model it was allowed would have come to"
    else:
        instead = f"All of them on {_against(alone)}, would have cost"
        instead = instead if not alone.is_chosen else instead.replace(",", "")
    compared = f"{spent} {instead} {money(total.alone_nusd)}: routing"
    if total.saved_nusd > 0:
        share = percent(total.saved_nusd, total.alone_nusd)
        return f"{compared} saved {money(total.saved_nusd)}, {share}."
    if total.saved_nusd < 0:
        return f"{compared} cost {money(-total.saved_nusd)} more."
    return f"{compared} saved nothing."


def _requests(number: int) -> str:
    return f"{count(number)} {'request' if number == 1 else 'requests'}"


def _sentences(
    total: Sum,
    models: Sequence[Sum],
    gathered: Gathered,
    overridden: list[Cause],
    refused: list[Cause],
    failed: list[Cause],
) -> Iterable[str]:
    if not total.requests:
        return
    before = _summed(gathered.before.rows, gathered.alone)
    if before.cost_nusd:
        change = total.cost_nusd - before.cost_nusd
        yield (
            f"That is {percent(abs(change), before.cost_nusd)} {'more' if change > 0 else 'less'}"
            f" than the {money(before.cost_nusd)} of the same time before"
            f" ({_requests(before.requests)} then)."
        )
    if gathered.alone.model is not None:
        allowed = Alone().cost_nusd(gathered.models.rows) - total.cost_nusd
        yield (
            "By a stricter measure, the best-rated model that each request was allowed, routing"
            f" {'saved' if allowed >= 0 else 'cost'} {money(abs(allowed))}"
            f"{'' if allowed >= 0 else ' more'}."
        )
    dearest = models[0]
    if dearest.cost_nusd and dearest.name is not None:
        yield (
            f"Most of it went to {shown(dearest.name)}: {money(dearest.cost_nusd)},"
            f" {percent(dearest.cost_nusd, total.cost_nusd)} of the bill for"
            f" {percent(dearest.requests, total.requests)} of the requests."
        )
    for causes, what in (
        (overridden, "an app asked for a model that the policy does not allow, and got another"),
        (refused, "a request was refused, at no cost"),
        (failed, "a request failed"),
    ):
        if causes:
            first, times = causes[0], _sum(causes)
            mostly = f"; mostly ({count(first.requests)})" if len(causes) > 1 else ","
            often = "Once" if times == 1 else f"{count(times)} times"
            yield f"{often} {what}{mostly} because {first.words}."
    if rated := total.good + total.bad:
        were = "answer was" if rated == 1 else "answers were"
        yield f"{count(rated)} {were} rated, {percent(total.good, rated)} of them good."
    if gathered.models.dropped:
        yield (
            f"{count(gathered.models.dropped)} decisions could not be recorded, so all of these"
            " figures are too low."
        )


def _words(row: StatsRow, *, is_failure: bool) -> str:
    if is_failure:  # its reason is that of the decision, which held
        return "an answer that had begun broke off"
    return str(shown(because(row.reason or "")))


def _shares(title: str, name: str, sums: Sequence[Sum]) -> Table:
    cells = [
        (
            str(shown(one.name or "none: refused before")),
            count(one.requests),
            money(one.cost_nusd),
            money(one.saved_nusd),
            money(one.cost_nusd // one.requests if one.requests else 0),
        )
        for one in sums[:MAX_ROWS]
    ]
    return Table(
        title=title,
        columns=(name, "Requests", "Spent", "Saved", "Each"),
        rows=tuple(cells),
        note=_more(sums),
    )


def _singles(gathered: Gathered, total: Sum) -> Table:
    policy = gathered.alone.policy
    models = [] if policy is None else [one for one in policy.models if writes(one)]
    models.sort(key=lambda one: -one.quality)
    cells: list[tuple[str, ...]] = []
    for model in models:
        alone = Alone(policy, model).cost_nusd(gathered.models.rows)
        cells.append((str(shown(model.id)), money(alone), money(alone - total.cost_nusd)))
    return Table(
        title="If one model had answered everything",
        columns=("Model, the best-rated first", "Cost", "Saved by routing"),
        rows=tuple(cells[:MAX_ROWS]) if total.cost_nusd else (),
        note=_more(cells),
    )


def _table_of(title: str, causes: Sequence[Cause]) -> Table:
    cells = [(_capital(one.words), count(one.requests)) for one in causes[:MAX_ROWS]]
    return Table(
        title=title, columns=("Because", "Requests"), rows=tuple(cells), note=_more(causes)
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _more(rows: Sequence[object]) -> str:
    return f"And {count(len(rows) - MAX_ROWS)} more." if len(rows) > MAX_ROWS else ""


def _days(gathered: Gathered) -> tuple[tuple[str, int, int], ...]:
    rows, alone = gathered.days.rows, gathered.alone
    days = (
        (at_ms, _summed([row for row in rows if row.at_ms == at_ms], alone))
        for at_ms in gathered.starts_ms
    )
    return tuple((_day(at_ms), day.cost_nusd, day.saved_nusd) for at_ms, day in days)


def _day(at_ms: int) -> str:
    day = datetime.fromtimestamp(at_ms / 1_000, UTC)
    return f"{day.day} {day:%b}"
