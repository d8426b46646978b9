"""``waypost report``: a week or a month, for whoever pays, on the terminal, as HTML or as PDF."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from waypost.cli.output import console, fail, print_json, table
from waypost.validator.commands.decisions_options import (
    JSON,
    Config,
    Database,
    filter_of,
    read,
    say,
)

if TYPE_CHECKING:
    from waypost.validator.records import RecordFilter, RecordStats, RecordStore
    from waypost.validator.records.savings import Alone
    from waypost.validator.report.facts import Gathered, Report

__all__ = ["register"]

DAY_MS = 86_400_000
NEWEST = 20  # decisions among which one with a manifest is looked for


def _date(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise typer.BadParameter("say a date, as 2026-01-31") from None


def register(app: typer.Typer) -> None:
    """Add ``waypost report`` to ``app``."""
    app.command("report")(_report)


def _report(
    week: Annotated[bool, typer.Option("--week", help="Seven days; the default.")] = False,
    month: Annotated[bool, typer.Option("--month", help="Thirty days.")] = False,
    until: Annotated[
        datetime | None,
        typer.Option(parser=_date, metavar="DATE", help="Its last day, in UTC; today if left out."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Tell savings against this model; else report.against of the settings, or the"
            " best-rated in regular use.",
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write it as HTML to this file.")] = None,
    pdf: Annotated[Path | None, typer.Option(help="Write it as PDF to this file.")] = None,
    db: Database = None,
    config: Config = Path("validator.yaml"),
    as_json: JSON = False,
) -> None:
    """Say in plain English what was spent, saved, overridden and refused."""
    from waypost.validator.report.facts import report_of

    if week and month:
        fail("choose one of --week and --month", exit_code=2)
    days = 30 if month else 7
    last = until or datetime.fromtimestamp(time.time(), UTC)
    start = datetime(last.year, last.month, last.day, tzinfo=UTC) - timedelta(days=days - 1)
    start_ms = int(start.timestamp()) * 1_000
    named = against or _configured(db, config)
    gathered = read(db, config, lambda store: _gather(store, start_ms, days, named))
    report = report_of(
        gathered,
        title=f"{'Thirty days' if month else 'A week'} of language models",
        period=_period(start, days),
        is_simulated=_is_simulated(db, config),
    )
    if html is not None:
        from waypost.validator.report.html import as_html

        _write(html, as_html(report).encode())
    if pdf is not None:
        _write(pdf, _as_pdf(report))
    if as_json:
        print_json(report)
    elif html is None and pdf is None:
        _show(report)


async def _gather(
    store: "RecordStore", start_ms: int, days: int, against: str | None
) -> "Gathered":
    from waypost.validator.report.facts import Gathered

    end_ms = start_ms + days * DAY_MS
    wanted = filter_of(since_ms=start_ms, until_ms=end_ms)
    earlier = filter_of(since_ms=start_ms - days * DAY_MS, until_ms=start_ms)
    models = await store.stats(wanted, by=("model",), times=())
    return Gathered(
        alone=await _alone(store, wanted, models, against),
        before=await store.stats(earlier, by=("model",), times=()),
        models=models,
        routes=await store.stats(wanted, by=("route", "model"), times=()),
        reasons=await store.stats(wanted, by=("verdict", "reason"), times=()),
        days=await store.stats(wanted, by=("model",), step_ms=DAY_MS, times=()),
        starts_ms=range(start_ms, end_ms, DAY_MS),
    )


async def _alone(
    store: "RecordStore", wanted: "RecordFilter", models: "RecordStats", against: str | None
) -> "Alone":
    """Return what to compare with, at the prices of the manifest that was last decided by."""
    from waypost.validator.records.policies import policy_of
    from waypost.validator.records.savings import Alone, alone_of, writes

    for record in await store.list(wanted, limit=NEWEST):
        compiled = await policy_of(store, record)
        if compiled is None:
            continue
        known = [model.id for model in compiled.policy.models if writes(model)]
        if against is not None and against not in known:
            fail(
                f"the manifest has no model {against} that writes; it has {', '.join(known)}",
                exit_code=2,
            )
        return alone_of(compiled.policy, models.rows, against)
    if against is not None:
        fail("no decision of that time has its manifest kept, so no prices are known")
    return Alone()


def _configured(db: Path | None, config: Path) -> str | None:
    """Return the model that the settings name; a file of records alone has none."""
    from waypost.validator.config import load_config

    return None if db is not None else load_config(config).report.against


def _period(start: datetime, days: int) -> str:
    end = start + timedelta(days=days - 1)
    first = f"{start.day} {start:%B}" + (f" {start.year}" if start.year != end.year else "")
    return f"{first} to {end.day} {end:%B %Y}, UTC"


def _is_simulated(db: Path | None, config: Path) -> bool:
    from waypost.validator.config import load_config

    if db is not None:
        return False  # a file of records does not say
    return all(one.simulated for one in load_config(config).providers.values())


def _as_pdf(report: "Report") -> bytes:
    try:
        from waypost.validator.report.pdf import as_pdf
    except ModuleNotFoundError as exc:
        if exc.name != "fpdf":
            raise
        fail("PDF needs the extra: pip install 'waypost[report]'; or write --html and print it")
    return as_pdf(report)


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as exc:
        fail(f"{path} cannot be written: {exc.strerror}")
    say(f"wrote {path}")


def _show(report: "Report") -> None:
    console.print(report.title, style="bold", markup=False)
    say(report.period)
    say("")
    say(report.headline)
    for sentence in report.sentences:
        say(f"· {sentence}")
    for one in report.tables:
        say("")
        shown = table(one.columns, one.rows, title=one.title)
        for column in shown.columns[1:]:
            column.justify = "right"
        console.print(shown)
    say("")
    console.print(report.footnote, style="dim", markup=False, highlight=False)
