"""``waypost decisions replay``, ``export``, ``compare``, ``hints``: many records at once."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from waypost.cli.output import console, fail, print_json, table
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
    from waypost.shared.decision.compiled import CompiledPolicy
    from waypost.shared.records import DecisionRecord
    from waypost.validator.records import RecordFilter, RecordStore
    from waypost.validator.records.compare import Arm, Difference

__all__ = ["register"]

PAGE = 2_000
NEWEST = 50_000  # of each side; more would narrow the intervals by little
OBSERVED_S = 600  # by default


def register(decisions: typer.Typer) -> None:
    """Add the commands to ``waypost decisions``."""
    decisions.command("replay")(_replay)
    decisions.command("export")(_export)
    decisions.command("compare")(_compare)
    decisions.command("hints")(_hints)


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
    from waypost.shared.decision.replay import replay
    from waypost.shared.records import decode_record
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


# ── compare ────────────────────────────────────────────────────────────────────────────────────


def _compare(
    a: Annotated[str | None, typer.Argument(metavar="ROUTE_A")] = None,
    b: Annotated[str | None, typer.Argument(metavar="ROUTE_B")] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="The policy in force with the one on trial.")
    ] = False,
    model: OfModel = None,
    tenant: OfTenant = None,
    since: Since = None,
    db: Database = None,
    config: Config = Path("validator.yaml"),
    as_json: JSON = False,
) -> None:
    """Say whether one route is surely better than another: quality, cost and time.

    Different routes get different requests, so a difference is no proof that one would do better
    with the other's. With --shadow the same requests are compared: what served them, and what the
    policy on trial would have done.
    """
    from waypost.validator.records.compare import arm_of, compare

    if shadow and a is None:
        _compare_shadow(filter_of(model=model, tenant=tenant, since_ms=since), db, config, as_json)
        return
    if a is None or b is None or shadow:
        raise typer.BadParameter("name two routes, or none and --shadow")

    async def both(store: "RecordStore") -> "tuple[Arm, Arm]":
        arms: list[Arm] = []
        for route in (a, b):
            wanted = filter_of(route=route, model=model, tenant=tenant, since_ms=since)
            rated = (await store.stats(wanted, by=())).rows
            good, bad = (rated[0].good, rated[0].bad) if rated else (0, 0)
            arms.append(arm_of(await _newest(store, wanted), good=good, bad=bad))
        return arms[0], arms[1]

    arm_a, arm_b = read(db, config, both)
    for route, arm in ((a, arm_a), (b, arm_b)):
        if not arm.requests:
            fail(f"no decisions of route {route} are recorded")
    found = compare(arm_a, arm_b)
    if as_json:
        print_json({"a": arm_a.requests, "b": arm_b.requests, "differences": found})
        return
    _show(f"of {arm_a.requests:,} and {arm_b.requests:,}", a, b, found)


def _compare_shadow(wanted: "RecordFilter", db: Path | None, config: Path, as_json: bool) -> None:
    from waypost.validator.records.compare import shadowed

    sums = shadowed(read(db, config, lambda store: _newest(store, wanted)))
    if as_json:
        told = {name: getattr(sums, name) for name in _SHADOWED}
        print_json({**told, "sent": sums.sent.requests, "differences": sums.differences})
        return
    if not sums.requests:
        fail("no decisions in a shadow are recorded")
    cost, trial_cost = (
        _told("cost_nusd", nusd) for nusd in (sums.cost_nusd, sums.candidate_cost_nusd)
    )
    say(
        f"Of {sums.requests:,} requests the policy on trial would have sent {sums.differing:,}"
        f" elsewhere, {sums.refused:,} of them nowhere. They cost {cost}; with it, {trial_cost}."
    )
    if sums.sent.requests:
        _show(f"of {sums.sent.requests:,} sent along", "in force", "on trial", sums.differences)


_SHADOWED = ("requests", "differing", "refused", "cost_nusd", "candidate_cost_nusd")


def _show(what: str, a: str, b: str, found: "Sequence[Difference]") -> None:
    rows = [
        (
            one.measure,
            _told(one.measure, one.a),
            _told(one.measure, one.b),
            "-"
            if one.low is None
            else f"{_told(one.measure, one.low)} … {_told(one.measure, one.high)}",
            {"a": a, "b": b, None: "not shown"}[one.better] if one.low is not None else "too few",
        )
        for one in found
    ]
    console.print(table((what, a, b, "b - a, 95 %", "better"), rows))


async def _newest(store: "RecordStore", filters: "RecordFilter") -> "list[DecisionRecord]":
    """Return the newest records, as many as are worth comparing."""
    found: list[DecisionRecord] = []
    before: str | None = None
    while len(found) < NEWEST:
        page = await store.list(filters, limit=PAGE, before=before)
        found += page
        if len(page) < PAGE:
            break
        before = page[-1].id
    return found


def _told(measure: str, value: float | None) -> str:
    if value is None:
        return "-"
    if measure == "cost_nusd":
        return f"${value / 1_000_000_000:.3g}"
    return f"{value:,.0f} ms" if measure.endswith("_ms") else f"{value:.1%}"


# ── hints ──────────────────────────────────────────────────────────────────────────────────────


def _hints(
    since: Since = None, db: Database = None, config: Config = Path("validator.yaml")
) -> None:
    """Write what was seen of each model as JSON for `waypost hints publish`: health and speed.

    Of the last ten minutes, unless --since says otherwise; of all validators that share the store.
    """
    from waypost.validator.records.observed import hints_of

    since_ms = int((time.time() - OBSERVED_S) * 1_000) if since is None else since
    wanted = filter_of(since_ms=since_ms)
    print_json(hints_of(read(db, config, lambda store: store.list(wanted, limit=NEWEST))))
