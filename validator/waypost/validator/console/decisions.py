"""Decisions: filtered and paged, one of them explained, and as CSV."""

import asyncio
import csv
import io
import re
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, cast, get_args
from urllib.parse import urlencode

import msgspec
from msgspec import structs
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from waypost.shared.contracts import Policy
from waypost.shared.decision.explain import explain_record
from waypost.shared.errors import InvalidRequestError
from waypost.shared.records import DecisionRecord, Verdict
from waypost.validator.console.charts import Chart, stacked_bars
from waypost.validator.console.flow import flow_of, steps_of
from waypost.validator.console.pages import (
    DAY,
    WINDOWS,
    Window,
    alone_in,
    page,
    services_of,
    window_of,
)
from waypost.validator.console.words import count, csv_cell, when
from waypost.validator.http.problems import SEE_OTHER
from waypost.validator.records import RecordFilter, RecordStats, StatsRow
from waypost.validator.records.savings import Alone
from waypost.validator.services import Services

__all__ = ["ID", "asked_of", "export", "listing", "one"]

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
PAGE = 50
CSV_ROWS = 10_000
CSV_PAGE = 500
MAX_NAME_CHARS = 128

ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Asked(NamedTuple):
    """What the query of a list asks for.

    Attributes:
        query: the filters as they were given, for links.
    """

    filters: RecordFilter
    window: Window
    query: dict[str, str]

    def link(self, **changes: str) -> str:
        """Return the query with ``changes``; an empty value leaves a name out."""
        wanted = {**self.query, "window": self.window.name, **changes}
        return "?" + urlencode({name: value for name, value in wanted.items() if value})

    def in_window(self, name: str) -> str:
        """Return the query for another window."""
        return self.link(window=name)


def asked_of(request: Request, now: float) -> Asked:
    """Return the filters and the window that the query names.

    Raises:
        InvalidRequestError: it makes no sense.
    """
    names = ("verdict", "route", "model", "tier", "tenant", "account")
    window = window_of(request)
    query = {
        name: value.strip()
        for name in names
        if (value := request.query_params.get(name, "")).strip()
    }
    if any(len(value) > MAX_NAME_CHARS or not value.isprintable() for value in query.values()):
        # PostgreSQL, for one, takes no NUL in text.
        raise InvalidRequestError(
            f"A filter has at most {MAX_NAME_CHARS} characters, all of them printable.",
            code="invalid_query",
        )
    if query.get("verdict", VERDICTS[0]) not in VERDICTS:
        raise InvalidRequestError(
            f"A verdict is one of {', '.join(VERDICTS)}.", code="invalid_query"
        )
    filters = RecordFilter(
        verdict=cast("Verdict | None", query.get("verdict")),
        route=query.get("route"),
        model=query.get("model"),
        tier=query.get("tier"),
        tenant=query.get("tenant"),
        account=query.get("account"),
        since_ms=window.starts_ms(now).start,
    )
    return Asked(filters, window, query)


# ── the list ───────────────────────────────────────────────────────────────────────────────────


async def listing(request: Request) -> Response:
    """The newest decisions, what they came to, and those that come."""
    services = services_of(request)
    wanted = request.query_params.get("id", "").strip().lower()
    if wanted:
        return RedirectResponse(f"/console/decisions/{wanted[:64]}", SEE_OTHER)
    asked = asked_of(request, services.clock())
    before = _cursor(request)
    verdicts, quick, alone = await _added_up(services, asked)
    narrowed = _narrowed(asked, verdicts, before_ms=None if before is None else before[1])
    cursor = None if before is None else before[0]
    records = (
        await services.store.list(narrowed, limit=PAGE + 1, before=cursor)
        if narrowed is not None
        else tuple[DecisionRecord, ...]()
    )
    last = records[PAGE - 1] if len(records) > PAGE else None
    trusted = services.manifests.trusted
    return await page(
        request,
        "decisions.html",
        asked=asked,
        link=asked.in_window,
        base=str(request.base_url).removesuffix("/console/").rstrip("/"),
        windows=WINDOWS.values(),
        verdicts=VERDICTS,
        names=_names(None if trusted is None else trusted.policy),
        records=records[:PAGE],
        older=asked.link(before=last.id, at=str(last.at_ms)) if last is not None else None,
        is_first=before is None,
        chart=_chart(asked.window, verdicts, services.clock()) if verdicts is not None else None,
        totals=_totals(verdicts, quick, alone) if verdicts is not None else None,
        dropped=0 if verdicts is None else verdicts.dropped,
    )


def _cursor(request: Request) -> tuple[str, int] | None:
    """Return id and time of the last decision of the page before."""
    before, at = request.query_params.get("before"), request.query_params.get("at", "")
    if before is None:
        return None
    if not (ID.fullmatch(before) and re.fullmatch(r"[0-9]{1,15}", at)):
        raise InvalidRequestError("This is not a link of ours to a page.", code="invalid_query")
    return before, int(at)


async def _added_up(
    services: Services, asked: Asked
) -> tuple[RecordStats | None, RecordStats, Alone]:
    """Return requests by verdict, model and step, times, and what savings are told against.

    Totals know no accounts: for one, what is longer than a day is not added up, as that would
    take as long as its records are many.
    """
    filters = asked.filters
    if filters.account is not None and asked.window.span_ms > DAY.span_ms:
        return None, RecordStats(rows=()), Alone()
    sums, times, alone = await asyncio.gather(
        services.store.stats(
            filters, by=("verdict", "model"), step_ms=asked.window.step_ms, times=()
        ),
        services.store.stats(filters, by=(), times=("ttft",)),
        alone_in(services, asked.window),
    )
    return sums, times, alone


def _narrowed(
    asked: Asked, stats: RecordStats | None, *, before_ms: int | None
) -> RecordFilter | None:
    """Return the filter, beginning with the latest step that a whole page surely reaches back to.

    ``None`` if no record passes it. Without this, a filter that few records pass would have every
    other record of the window looked at.
    """
    if stats is None:
        return asked.filters
    by_step: dict[int, int] = {}
    for row in stats.rows:
        by_step[row.at_ms or 0] = by_step.get(row.at_ms or 0, 0) + row.requests
    if not by_step:
        return None
    found = 0
    for at_ms in sorted(by_step, reverse=True):
        # Of the step that the page begins in, nobody knows how much lies before.
        if before_ms is None or at_ms + asked.window.step_ms <= before_ms:
            found += by_step[at_ms]
            if found > PAGE:
                return structs.replace(asked.filters, since_ms=at_ms)
    return structs.replace(asked.filters, since_ms=min(by_step))


def _names(policy: Policy | None) -> dict[str, Sequence[str]]:
    """Return what may be chosen from, per filter."""
    if policy is None:
        return {"route": (), "model": (), "tier": ()}
    return {
        "route": [route.name for route in policy.routes],
        "model": [model.id for model in policy.models],
        "tier": policy.tiers,
    }


class Totals(NamedTuple):
    """A window in seven figures. Money in nano-dollars.

    Attributes:
        against: what ``saved_nusd`` is told against.
        best_saved_nusd: against the best-rated model that each request was allowed, where
            ``saved_nusd`` is not that already.
    """

    requests: int = 0
    cost_nusd: int = 0
    saved_nusd: int = 0
    against: str = ""
    best_saved_nusd: int | None = None
    overridden: int = 0
    refused: int = 0
    failed: int = 0
    ttft_p50_ms: float | None = None
    ttft_p95_ms: float | None = None


def _totals(verdicts: RecordStats, times: RecordStats, alone: Alone) -> Totals:
    rows = verdicts.rows
    timed = next(iter(times.rows), StatsRow())
    return Totals(
        requests=sum(row.requests for row in rows),
        cost_nusd=sum(row.cost_nusd for row in rows),
        saved_nusd=alone.saved_nusd(rows),
        against=alone.name,
        best_saved_nusd=None if alone.model is None else Alone().saved_nusd(rows),
        overridden=sum(row.requests for row in rows if row.verdict == "overridden"),
        refused=sum(row.refused for row in rows),
        failed=sum(row.failed for row in rows),
        ttft_p50_ms=timed.ttft_p50_ms,
        ttft_p95_ms=timed.ttft_p95_ms,
    )


def _chart(window: Window, stats: RecordStats, now: float) -> Chart:
    """Return requests over time by verdict."""
    starts = window.starts_ms(now)
    series: dict[str, list[float]] = {verdict: [0.0] * len(starts) for verdict in VERDICTS}
    for row in stats.rows:
        if row.at_ms is not None and row.at_ms in starts and row.verdict is not None:
            series[row.verdict][starts.index(row.at_ms)] += row.requests
    titles = [
        f"{when(at_ms / 1_000)[:16]}: "
        + ", ".join(f"{count(int(series[v][n]))} {v}" for v in VERDICTS if series[v][n])
        for n, at_ms in enumerate(starts)
    ]
    return stacked_bars(
        [window.label(at_ms) for at_ms in starts],
        series,
        say=lambda value: count(round(value)) if value.is_integer() else "",
        titles=titles,
    )


# ── one ────────────────────────────────────────────────────────────────────────────────────────


async def one(request: Request) -> Response:
    """One decision: the sentence, the picture, where its time went, the trace, the record."""
    services = services_of(request)
    wanted = request.path_params["id"]
    record = await services.records.get(wanted) if ID.fullmatch(wanted) else None
    if record is None:
        raise InvalidRequestError(
            "No decision has this id, or it is no longer kept. It is the X-Request-ID of the"
            " response, as 0199f000-0000-7000-8000-000000000000.",
            code="decision_not_found",
        )
    policy = await services.manifests.explained(record)
    explanation = explain_record(record, policy)
    text = msgspec.json.format(msgspec.json.encode(record), indent=2).decode()
    return await page(
        request,
        "decision.html",
        record=record,
        explanation=explanation,
        wide=flow_of(record, is_tall=False),
        tall=flow_of(record, is_tall=True),
        steps=steps_of(record),
        record_json=text,
    )


# ── as CSV ─────────────────────────────────────────────────────────────────────────────────────

_COLUMNS = (
    "time_utc",
    "id",
    "verdict",
    "reason",
    "http_status",
    "tier",
    "tenant",
    "account",
    "route",
    "proposed",
    "model",
    "attempts",
    "input_tokens",
    "output_tokens",
    "cost_nusd",
    "cost_without_routing_nusd",
    "first_token_ms",
    "duration_ms",
)


def _cells(record: DecisionRecord) -> tuple[object, ...]:
    """Return one row, in the order of ``_COLUMNS``."""
    usage = record.usage
    return (
        datetime.fromtimestamp(record.at_ms / 1_000, UTC).isoformat(),
        record.id,
        record.verdict,
        record.reason,
        record.http_status,
        record.tier,
        record.tenant,
        record.account,
        record.route,
        None if record.proposal is None else record.proposal.model,
        record.model,
        len(record.attempts),
        None if usage is None else usage.input_tokens,
        None if usage is None else usage.output_tokens,
        record.cost_nusd,
        record.baseline_cost_nusd,
        record.ttft_ms,
        record.duration_ms,
    )


async def export(request: Request) -> Response:
    """The newest 10,000 decisions that the filters let pass, as CSV."""
    services = services_of(request)
    asked = asked_of(request, services.clock())

    async def rows() -> AsyncGenerator[str]:
        yield _csv(_COLUMNS)
        before: str | None = None
        for _ in range(CSV_ROWS // CSV_PAGE):
            records = await services.store.list(asked.filters, limit=CSV_PAGE, before=before)
            if not records:
                return
            yield await asyncio.to_thread(_csv_of, records)
            before = records[-1].id

    name = f"decisions-{when(services.clock())[:10]}.csv"
    return StreamingResponse(
        rows(),
        media_type="text/csv; charset=utf-8",
        headers={"content-disposition": f'attachment; filename="{name}"'},
    )


def _csv_of(records: Sequence[DecisionRecord]) -> str:
    return "".join(_csv(_cells(record)) for record in records)


def _csv(cells: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow([csv_cell(cell) for cell in cells])
    return line.getvalue()
