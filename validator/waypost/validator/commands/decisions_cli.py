"""``waypost decisions``: what was decided, why, and what it came to.

Reads the records' file, also while a validator writes it. What a record holds was partly
written by callers, so nothing of it reaches the terminal but printable text. Stores and engine
are imported by the command that needs them, so that ``waypost --help`` is quick.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from waypost.cli.output import console, print_json, table
from waypost.shared.money import format_usd
from waypost.shared.records import DecisionRecord
from waypost.validator.commands import decisions_bulk_cli
from waypost.validator.commands.decisions_options import (
    JSON,
    Config,
    Database,
    OfModel,
    OfTenant,
    OfVerdict,
    RecordId,
    Since,
    filter_of,
    find,
    read,
    say,
)

if TYPE_CHECKING:
    from waypost.shared.decision.explain import Explanation
    from waypost.validator.records import RecordStore

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add ``waypost decisions`` to ``app``."""
    decisions = typer.Typer(help="What was decided, why, and what it cost.", no_args_is_help=True)
    decisions.command("list")(_list)
    decisions.command("show")(_show)
    decisions.command("explain")(_explain)
    decisions.command("stats")(_stats)
    decisions_bulk_cli.register(decisions)
    app.add_typer(decisions, name="decisions")


def _list(
    verdict: OfVerdict = None,
    model: OfModel = None,
    tenant: OfTenant = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 20,
    db: Database = None,
    config: Config = Path("validator.yaml"),
    as_json: JSON = False,
) -> None:
    """Show the newest decisions, newest first."""
    wanted = filter_of(verdict=verdict, model=model, tenant=tenant, since_ms=since)
    records = read(db, config, lambda store: store.list(wanted, limit=limit))
    if as_json:
        print_json(records)
    elif not records:
        say("No decisions recorded." if wanted == filter_of() else "No such decisions recorded.")
    else:
        shown = table(("decision", "verdict", "model", "cost, TTFT"), map(_lines, records))
        for column in shown.columns:
            column.overflow = "fold"
        shown.columns[0].no_wrap = True  # ids are there to be copied
        console.print(shown)


def _show(
    decision: RecordId = None,
    db: Database = None,
    config: Config = Path("validator.yaml"),
    as_json: JSON = False,
) -> None:
    """Show all that is recorded of one decision."""
    record = read(db, config, lambda store: find(store, decision))
    if as_json:
        print_json(record)
        return
    from msgspec import to_builtins

    rows = [
        (name, value if isinstance(value, str | int | float) else _compact(value))
        for name, value in to_builtins(record).items()
        if value not in (None, "", [], {})
    ]
    shown = table(("field", "value"), rows)
    shown.columns[1].overflow = "fold"
    console.print(shown)


def _explain(
    decision: RecordId = None,
    db: Database = None,
    config: Config = Path("validator.yaml"),
    as_json: JSON = False,
) -> None:
    """Say why a request went where it went: one sentence, then every step."""
    record, explanation = read(db, config, lambda store: _explained(store, decision))
    if as_json:
        print_json({"record": record, "explanation": explanation})
        return
    say(explanation.sentence)
    say("")
    say(f"decision {record.id}, {_utc(record.at_ms)} UTC")
    for step in explanation.trace:
        say(f"  {step}")
    if explanation.exclusions:
        rows = [(name, out.code, out.detail) for name, out in explanation.exclusions.items()]
        console.print(table(("model left out", "code", "why"), rows))


def _stats(
    verdict: OfVerdict = None,
    model: OfModel = None,
    tenant: OfTenant = None,
    since: Since = None,
    db: Database = None,
    config: Config = Path("validator.yaml"),
    as_json: JSON = False,
) -> None:
    """Add up requests, cost, savings and times per route, model and verdict."""
    wanted = filter_of(verdict=verdict, model=model, tenant=tenant, since_ms=since)
    stats = read(db, config, lambda store: store.stats(wanted))
    if as_json:
        print_json(stats)
        return
    shown = table(
        ("route, model", "verdict", "requests", "cost, saved", "TTFT", "duration"),
        [
            (
                f"{row.route or '-'}\n{row.model or '-'}",
                row.verdict,
                f"{row.requests:,}",
                f"{format_usd(row.cost_nusd)}\n{format_usd(row.saved_nusd)}",
                _ms(row.ttft_p50_ms, row.ttft_p95_ms),
                _ms(row.duration_p50_ms, row.duration_p95_ms),
            )
            for row in stats.rows
        ],
    )
    for column in shown.columns[2:]:
        column.justify = "right"
    console.print(shown)
    cost = sum(row.cost_nusd for row in stats.rows)
    saved = sum(row.saved_nusd for row in stats.rows)
    requests = sum(row.requests for row in stats.rows)
    say(
        f"{requests:,} {'request' if requests == 1 else 'requests'} cost {format_usd(cost)};"
        " sending each to the best model that it was allowed would have cost"
        f" {format_usd(cost + saved)}."
        " Times are p50 / p95; TTFT is the time to the first token."
    )
    if stats.dropped:
        say(f"{stats.dropped:,} decisions could not be recorded, so the totals are too low.")


async def _explained(
    store: "RecordStore", record_id: str | None
) -> tuple[DecisionRecord, "Explanation"]:
    from waypost.shared.decision.explain import explain_record
    from waypost.validator.records.policies import policy_of

    record = await find(store, record_id)
    return record, explain_record(record, await policy_of(store, record))


# ── words ──────────────────────────────────────────────────────────────────────────────────────


def _lines(record: DecisionRecord) -> tuple[str, ...]:
    """Return the cells of one decision, of two lines each: so they fit a narrow terminal."""
    return (
        f"{record.id}\n{_utc(record.at_ms)} UTC",
        f"{record.verdict}\n{record.reason}",
        f"{record.model or '-'}\n{record.route or ''}",
        f"{format_usd(record.cost_nusd)}\n{_ms(record.ttft_ms)}",
    )


def _utc(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1_000, UTC):%Y-%m-%d %H:%M:%S}"


def _ms(*durations_ms: float | None) -> str:
    texts = [f"{duration:,.0f}" for duration in durations_ms if duration is not None]
    return f"{' / '.join(texts)} ms" if texts else "-"


def _compact(value: object) -> str:
    import msgspec

    return msgspec.json.encode(value).decode()
