"""``waypost policy test`` and ``simulate``: a policy tried on requests, before it is signed.

A thin shell: what takes long to import is imported by the command that needs it.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from waypost.cli.output import console, fail, print_json, table
from waypost.edge.commands.common import JSON, load_unsigned, say

if TYPE_CHECKING:
    from msgspec import Raw

    from waypost.edge.trial.cases import Coverage, Result
    from waypost.edge.trial.simulate import Simulation

__all__ = ["add_commands"]

POLICY = Path("policy.yaml")
BAR_CELLS = 24
STEP = 2_000  # records between two looks at the progress bar


def add_commands(policy: typer.Typer) -> None:
    """Add the commands to the group ``policy``."""
    policy.command("test")(_test)
    policy.command("simulate")(_simulate)


# ── test ───────────────────────────────────────────────────────────────────────────────────────


def _test(
    policy: Annotated[Path, typer.Argument(help="The policy, as written.")] = POLICY,
    cases: Annotated[
        Path | None, typer.Option(help="Default: beside the policy, as policy.test.yaml.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit XML here.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="A rule that no case reaches fails as well.")
    ] = False,
    as_json: JSON = False,
) -> None:
    """Try a policy on the requests of its test cases. Exit 1 if one is not as expected."""
    from waypost.edge.project.atomic_write import write_file
    from waypost.edge.trial.cases import load_cases, run_cases
    from waypost.edge.trial.junit import as_junit
    from waypost.shared.decision.compiled import compile_policy

    path = cases or policy.with_name(f"{policy.stem}.test.yaml")
    compiled = compile_policy(load_unsigned(policy).full)
    results, coverage = run_cases(compiled, *load_cases(path, compiled.policy))
    if junit is not None:
        write_file(junit, as_junit(results, suite=policy.name))
    if as_json:
        print_json({"results": results, "coverage": coverage})
    else:
        for line in _test_lines(path, results, coverage):
            say(line)
    unreached = strict and not all(coverage.rules.values())
    if unreached or any(result.differences for result in results):
        raise typer.Exit(1)


def _test_lines(path: Path, results: "Iterable[Result]", coverage: "Coverage") -> Iterator[str]:
    results = tuple(results)
    for result in results:
        if result.differences:
            yield f"FAIL  {result.file}:{result.line}: {result.name}"
            yield from (f"        {difference}" for difference in result.differences)
            yield f"        {result.sentence}"
    failed = sum(bool(result.differences) for result in results)
    yield f"{path}: {len(results) - failed} of {len(results)} cases as expected"
    reached = sum(bool(count) for count in coverage.rules.values())
    yield (
        f"reached: {reached} of {len(coverage.rules)} rules,"
        f" {coverage.seen} of {coverage.possible} outcomes of their conditions"
    )
    for name, count in coverage.rules.items():
        if not count:
            yield f"  no case reaches '{name}'"
            continue
        for outcome in coverage.outcomes[name]:
            if not outcome.failed:
                yield f"  '{name}': no case gets there without {outcome.condition}"


# ── simulate ───────────────────────────────────────────────────────────────────────────────────


def _simulate(
    traffic: Annotated[
        Path, typer.Argument(help="A validator's records: its SQLite file, or JSON lines.")
    ],
    policy: Annotated[Path, typer.Option(help="The policy to try, as written.")] = POLICY,
    html: Annotated[Path | None, typer.Option(help="Also write a page here.")] = None,
    as_json: JSON = False,
) -> None:
    """Decide recorded requests anew under another policy: cost, times, models, refusals."""
    import msgspec

    from waypost.edge.commands.init_project import template
    from waypost.edge.project.atomic_write import write_file
    from waypost.edge.trial.page import as_page
    from waypost.edge.trial.simulate import simulate
    from waypost.edge.trial.traffic import Traffic
    from waypost.shared.decision.compiled import compile_policy

    compiled = compile_policy(load_unsigned(policy).full)
    records = Traffic(traffic)
    started = time.perf_counter()
    try:
        made = simulate(
            compiled, _watched(records.bodies(), records.total), before=records.policies
        )
    except msgspec.MsgspecError as exc:
        fail(f"{traffic} holds what is no decision record: {exc}")
    took_s = time.perf_counter() - started
    if html is not None:
        page = as_page(
            made, template=template("simulation.html"), title=f"{traffic.name} under {policy.name}"
        )
        write_file(html, page.encode())
    if as_json:
        print_json({"simulation": made, "total": made.total})
        return
    _show(made)
    seen = made.requests + made.skipped + sum(made.incomplete.values())
    if sys.stderr.isatty():
        say(f"{seen / max(took_s, 1e-9):,.0f} records a second")


def _watched(bodies: "Iterable[bytes | str | Raw]", total: int) -> "Iterator[bytes | str | Raw]":
    """Give ``bodies``, with a bar on the terminal, if there is one, that says how far it is."""
    if not sys.stderr.isatty():
        yield from bodies
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("deciding anew", total=total)
        for count, body in enumerate(bodies, 1):
            yield body
            if count % STEP == 0:
                progress.update(task, completed=count)


def _show(made: "Simulation") -> None:
    from waypost.edge.trial.page import flow_rows, remarks, tier_rows
    from waypost.shared.money import format_usd

    total = made.total
    saved = total.cost_before_nusd - total.cost_after_nusd
    say(
        f"{made.requests:,} requests cost {format_usd(total.cost_before_nusd)} and would cost"
        f" {format_usd(total.cost_after_nusd)}: {format_usd(abs(saved))}"
        f" {'less' if saved >= 0 else 'more'}"
    )
    most = max((max(mix) for mix in made.models.values()), default=0) or 1
    rows = [
        (f"{name}\n", f"{before:,}\n{after:,}", f"{_bar(before, most)}\n{_bar(after, most)}")
        for name, (before, after) in made.models.items()
    ]
    console.print(table(("model", "requests", "before, and after"), rows))
    tiers = [
        (row[0], row[1], *(f"{a}\n{b}" for a, b in zip(row[2::2], row[3::2], strict=True)))
        for row in tier_rows(made)
    ]
    console.print(table(("tier", "requests", "cost", "first token", "refused"), tiers))
    flows = [(f"{row[0]} → {row[1]}", *row[2:]) for row in flow_rows(made, most=10)]
    if flows:
        console.print(table(("would move", "requests", "cost", "would cost"), flows))
    reasons = [(name, f"{was:,}", f"{now:,}") for name, (was, now) in made.refusals.items()]
    if reasons:
        console.print(table(("refused for", "before", "after"), reasons))
    for remark in remarks(made):
        say(f"note: {remark}")


def _bar(count: int, most: int) -> str:
    cells = round(BAR_CELLS * count / most)
    return "█" * max(cells, 1 if count else 0)
