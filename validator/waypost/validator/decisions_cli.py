"""``waypost decisions``: what was decided, why, and what it came to.

Reads the records' file, also while a validator writes it. What a record holds was partly
written by callers, so nothing of it reaches the terminal but printable text. Stores and engine
are imported by the command that needs them, so that ``waypost --help`` is quick.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import typer

from waypost.cli.output import console, fail, print_json, printable, table
from waypost.shared.money import format_usd
from waypost.shared.records import DecisionRecord, Verdict

if TYPE_CHECKING:
    from waypost.shared.explain import Explanation
    from waypost.validator.records import RecordFilter, RecordStore

__all__ = ["register"]

T = TypeVar("T")

VERDICTS: tuple[str, ...] = get_args(Verdict)
_AGO = re.compile(r"(\d{1,6})([mhd])")
_SECONDS = {"m": 60, "h": 3_600, "d": 86_400}


def _verdict(text: str) -> str:
    if text not in VERDICTS:
        raise typer.BadParameter(f"say one of {', '.join(VERDICTS)}")
    return text


def _since_ms(text: str) -> int:
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return int((time.time() - int(ago[1]) * _SECONDS[ago[2]]) * 1_000)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("say 30m, 24h, 7d, or a date such as 2026-01-31") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1_000)


Database = Annotated[Path | None, typer.Option("--db", help="The records' file.")]
Config = Annotated[
    Path, typer.Option("--config", "--validator-config", help="Names the records' file.")
]
RecordId = Annotated[str | None, typer.Argument(help="Left out: the newest decision.")]
OfVerdict = Annotated[
    str | None, typer.Option("--verdict", parser=_verdict, metavar="|".join(VERDICTS))
]
OfModel = Annotated[str | None, typer.Option("--model", help="Only what this model answered.")]
OfTenant = Annotated[str | None, typer.Option("--tenant", help="Only this tenant's.")]
Since = Annotated[
    int | None,
    typer.Option("--since", parser=_since_ms, metavar="30m|24h|7d|DATE", help="Not before."),
]
JSON = Annotated[bool, typer.Option("--json", help="Write JSON, for scripts.")]


def register(app: typer.Typer) -> None:
    """Add ``waypost decisions`` to ``app``."""
    decisions = typer.Typer(help="What was decided, why, and what it cost.", no_args_is_help=True)
    decisions.command("list")(_list)
    decisions.command("show")(_show)
    decisions.command("explain")(_explain)
    decisions.command("stats")(_stats)
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
    wanted = _filter(verdict=verdict, model=model, tenant=tenant, since_ms=since)
    records = _read(db, config, lambda store: store.list(wanted, limit=limit))
    if as_json:
        print_json(records)
    elif not records:
        _say("No decisions recorded." if wanted == _filter() else "No such decisions recorded.")
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
    record = _read(db, config, lambda store: _find(store, decision))
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
    record, explanation = _read(db, config, lambda store: _explained(store, decision))
    if as_json:
        print_json({"record": record, "explanation": explanation})
        return
    _say(explanation.sentence)
    _say("")
    _say(f"decision {record.id}, {_utc(record.at_ms)} UTC")
    for step in explanation.trace:
        _say(f"  {step}")
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
    wanted = _filter(verdict=verdict, model=model, tenant=tenant, since_ms=since)
    stats = _read(db, config, lambda store: store.stats(wanted))
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
    _say(
        f"{requests:,} {'request' if requests == 1 else 'requests'} cost {format_usd(cost)};"
        " sending each to the best model that it was allowed would have cost"
        f" {format_usd(cost + saved)}."
        " Times are p50 / p95; TTFT is the time to the first token."
    )
    if stats.dropped:
        _say(f"{stats.dropped:,} decisions could not be recorded, so the totals are too low.")


# ── reading ────────────────────────────────────────────────────────────────────────────────────


def _filter(**wanted: Any) -> "RecordFilter":  # noqa: ANN401 - fields of RecordFilter
    from waypost.validator.records import RecordFilter

    return RecordFilter(**wanted)


def _read(db: Path | None, config: Path, ask: Callable[["RecordStore"], Awaitable[T]]) -> T:
    """Return what ``ask`` finds in the store that the options name."""
    from waypost.validator.config import load_config
    from waypost.validator.records import SqliteRecordStore

    path = db if db is not None else load_config(config).records.path
    if not path.is_file():
        fail(f"{path} does not exist; a validator makes it when it serves")

    async def answer() -> T:
        store = SqliteRecordStore.open(path)
        try:
            return await ask(store)
        finally:
            await store.close()

    return asyncio.run(answer())


async def _find(store: "RecordStore", record_id: str | None) -> DecisionRecord:
    if record_id is not None:
        record = await store.get(record_id)
        if record is None:
            fail(f"no decision {printable(record_id)} is recorded here")
        return record
    newest = await store.list(_filter(), limit=1)
    if not newest:
        fail("no decisions recorded")
    return newest[0]


async def _explained(
    store: "RecordStore", record_id: str | None
) -> tuple[DecisionRecord, "Explanation"]:
    from waypost.shared.contracts import decode_policy
    from waypost.shared.engine import compile_policy
    from waypost.shared.explain import explain_record

    record = await _find(store, record_id)
    digest = record.manifest_digest
    policy = None if digest is None else await store.get_policy(digest)
    compiled = None if policy is None else compile_policy(decode_policy(policy))
    return record, explain_record(record, compiled)


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


def _say(text: str) -> None:
    console.print(printable(text), highlight=False, markup=False, soft_wrap=True)
