"""``waypost decisions replay`` and ``export``: what is done with many records at once."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from waypost.cli.output import fail, print_json
from waypost.validator.decisions_options import (
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
    from waypost.shared.engine import CompiledPolicy
    from waypost.shared.records import DecisionRecord
    from waypost.validator.records import RecordFilter, RecordStore

__all__ = ["register"]

PAGE = 2_000


def register(decisions: typer.Typer) -> None:
    """Add the commands to ``waypost decisions``."""
    decisions.command("replay")(_replay)
    decisions.command("export")(_export)


async def _pages(store: "RecordStore", filters: "RecordFilter") -> AsyncGenerator[Sequence[bytes]]:
    """Give all records, oldest first, as they were written."""
    from waypost.shared.records import decode_record

    after: str | None = None
    while page := await store.bodies(filters, limit=PAGE, after=after):
        yield page
        after = decode_record(page[-1]).id


# ── replay ─────────────────────────────────────────────────────────────────────────────────────


def _replay(
    decision: RecordId = None,
    since: Since = None,
    db: Database = None,
    config: Config = Path("validator.yaml"),
    as_json: JSON = False,
) -> None:
    """Decide again, by the manifest that was in force; all records, unless one is named.

    A record that comes out differently is a finding: it, its manifest or the engine is not what
    it was.
    """
    counts, differing = read(db, config, lambda store: _replayed(store, decision, since))
    if as_json:
        print_json({**counts, "differing": differing})
    else:
        say(
            f"{counts['same']:,} decided again to the byte;"
            f" {counts['different']:,} came out differently;"
            f" {counts['undecided']:,} were refused before anything was decided;"
            f" {counts['manifest_missing']:,} lack their manifest."
        )
        for record_id in differing[:20]:
            say(f"differs: {record_id}")
    if differing:
        raise SystemExit(1)


async def _replayed(
    store: "RecordStore", decision: str | None, since_ms: int | None
) -> tuple[dict[str, int], list[str]]:
    from waypost.shared.records import decode_record
    from waypost.shared.replay import replay
    from waypost.validator.records.policies import policy_of

    policies: dict[tuple[str | None, str | None], CompiledPolicy | None] = {}
    counts: dict[str, int] = {"same": 0, "different": 0, "undecided": 0, "manifest_missing": 0}
    differing: list[str] = []

    async def judge(record: "DecisionRecord") -> str:
        if record.facts is None or record.decision_digest is None:
            return "undecided"
        key = (record.manifest_digest, record.hints_digest)
        if key not in policies:
            policies[key] = await policy_of(store, record)
        policy = policies[key]
        if policy is None:
            return "manifest_missing"
        return "same" if replay(policy, record.facts, record).is_same else "different"

    async def count(record: "DecisionRecord") -> None:
        outcome = await judge(record)
        counts[outcome] += 1
        if outcome == "different":
            differing.append(record.id)

    if decision is not None:
        await count(await find(store, decision))
        return counts, differing
    async for page in _pages(store, filter_of(since_ms=since_ms)):
        for body in page:
            await count(decode_record(body))
    return counts, differing


# ── export ─────────────────────────────────────────────────────────────────────────────────────


def _export(
    path: Annotated[Path, typer.Argument(help="A new file: .csv, .jsonl or .parquet.")],
    verdict: OfVerdict = None,
    model: OfModel = None,
    tenant: OfTenant = None,
    since: Since = None,
    db: Database = None,
    config: Config = Path("validator.yaml"),
) -> None:
    """Write decisions to a file that other programs read, oldest first."""
    from waypost.shared.records import decode_record
    from waypost.validator.records.export import FORMATS, write

    form = FORMATS.get(path.suffix)
    if form is None:
        raise typer.BadParameter(f"name a file that ends in {', '.join(FORMATS)}")
    if path.exists():
        fail(f"{path} exists; name a new file")
    wanted = filter_of(verdict=verdict, model=model, tenant=tenant, since_ms=since)

    async def export(store: "RecordStore") -> int:
        loop = asyncio.get_running_loop()

        def each() -> Iterator[Sequence[bytes]]:
            after: str | None = None
            while True:
                asking = store.bodies(wanted, limit=PAGE, after=after)
                page = asyncio.run_coroutine_threadsafe(asking, loop).result()
                if not page:
                    return
                yield page
                after = decode_record(page[-1]).id

        return await asyncio.to_thread(write, each(), path, form)

    count = read(db, config, export)
    say(f"{count:,} {'decision' if count == 1 else 'decisions'} written to {path}")
