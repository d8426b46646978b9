"""What the commands about decisions share: their options, and how they come by the records."""

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import typer

from waypost.cli.output import console, fail, printable
from waypost.shared.records import DecisionRecord, Verdict

if TYPE_CHECKING:
    from waypost.validator.records import RecordFilter, RecordStore

__all__ = [
    "JSON",
    "Config",
    "Database",
    "OfModel",
    "OfTenant",
    "OfVerdict",
    "RecordId",
    "Since",
    "filter_of",
    "find",
    "read",
    "say",
]

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


# ── reading ────────────────────────────────────────────────────────────────────────────────────


def filter_of(**wanted: Any) -> "RecordFilter":  # noqa: ANN401 - fields of RecordFilter
    from waypost.validator.records import RecordFilter

    return RecordFilter(**wanted)


def read(db: Path | None, config: Path, ask: Callable[["RecordStore"], Awaitable[T]]) -> T:
    """Return what ``ask`` finds in the store that the options name."""
    from waypost.validator.config import load_config
    from waypost.validator.config.stores import RecordsConfig
    from waypost.validator.startup.record_store import open_store

    settings = RecordsConfig(path=db) if db is not None else load_config(config).records
    if settings.store != "postgres" and not settings.path.exists():
        fail(f"{settings.path} does not exist; a validator makes it when it serves")

    async def answer() -> T:
        store = await open_store(settings, os.environ)
        try:
            return await ask(store)
        finally:
            await store.close()

    return asyncio.run(answer())


async def find(store: "RecordStore", record_id: str | None) -> DecisionRecord:
    if record_id is not None:
        record = await store.get(record_id)
        if record is None:
            fail(f"no decision {printable(record_id)} is recorded here")
        return record
    newest = await store.list(filter_of(), limit=1)
    if not newest:
        fail("no decisions recorded")
    return newest[0]


def say(text: str) -> None:
    """Write a line for a person, of printable text alone."""
    console.print(printable(text), highlight=False, markup=False, soft_wrap=True)
