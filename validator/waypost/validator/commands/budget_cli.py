"""``waypost budget``: what is spent and left, more room by an entry, the journal, and the bill.

Reads the ledger that ``validator.yaml`` names, also while validators use it. Stores are imported
by the command that needs them, so that ``waypost --help`` is quick.
"""

import asyncio
import csv
import getpass
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Annotated, TypeVar, get_args
from uuid import UUID

import typer

from waypost.cli.output import console, fail, print_json, printable, table
from waypost.shared.contracts import SpendLimit, Window
from waypost.shared.money import NUSD_PER_USD, format_usd

if TYPE_CHECKING:
    from waypost.validator.config.budgets import Budgets
    from waypost.validator.ledger import Balance, Ledger, Scope
    from waypost.validator.ledger.base import Entry

__all__ = ["register"]

T = TypeVar("T")

WINDOWS: tuple[Window, ...] = tuple(one for one in get_args(Window) if one != "request")
UNSURE = ("unconfirmed", "expired")
KINDS = ("account", "user", "tenant", "tier", "provider", "model")
DAY_S = 86_400


def _window(text: str) -> str:
    if text not in WINDOWS:
        raise typer.BadParameter(f"say one of {', '.join(WINDOWS)}")
    return text


def _kind(text: str) -> str:
    if text not in KINDS:
        raise typer.BadParameter(f"say one of {', '.join(KINDS)}")
    return text


def _scope_name(text: str) -> str:
    kind, colon, _ = text.partition(":")
    if text == "global" or (colon and kind in KINDS):
        return text
    if colon:
        raise typer.BadParameter(f"say global, or one of {', '.join(KINDS)} before the colon")
    return f"account:{text}"


ScopeName = Annotated[
    str, typer.Argument(parser=_scope_name, metavar="SCOPE", help="As acme, tier:pro or global.")
]
OfWindow = Annotated[str, typer.Option("--window", parser=_window, metavar="|".join(WINDOWS))]
Config = Annotated[Path, typer.Option("--config", help="Names the ledger.")]
JSON = Annotated[bool, typer.Option("--json", help="Write JSON, for scripts.")]
Days = Annotated[int, typer.Option("--days", min=1, max=62, help="So many days back.")]
Why = Annotated[str, typer.Option("--why", help="Kept with the entry.")]
DEFAULT_CONFIG = Path("validator.yaml")


def register(app: typer.Typer) -> None:
    """Add ``waypost budget`` to ``app``."""
    budget = typer.Typer(help="What is spent, reserved and left.", no_args_is_help=True)
    budget.command("show")(_show)
    budget.command("top")(_top)
    budget.command("grant")(_grant)
    budget.command("reset")(_reset)
    budget.command("export")(_export)
    budget.command("reconcile")(_reconcile)
    budget.command("unconfirmed")(_unconfirmed)
    budget.command("correct")(_correct)
    budget.command("rebuild")(_rebuild)
    app.add_typer(budget, name="budget")


def _show(scope: ScopeName, config: Config = DEFAULT_CONFIG, as_json: JSON = False) -> None:
    """Show what one scope has spent, reserved and left in each window."""

    async def ask(ledger: "Ledger", budgets: "Budgets") -> "tuple[Balance, ...]":
        return await ledger.balances((_with_all_windows(budgets, scope),), now=int(time.time()))

    balances = _with_ledger(config, ask)
    if as_json:
        print_json(balances)
        return
    from waypost.validator.ledger.base import MAX_NUSD

    rows: list[tuple[str, ...]] = []
    for balance in balances:
        is_limited = balance.limit_nusd - balance.granted_nusd < MAX_NUSD
        left = max(0, balance.limit_nusd - balance.spent_nusd - balance.reserved_nusd)
        rows.append(
            (
                balance.window,
                format_usd(balance.limit_nusd) if is_limited else "-",
                format_usd(balance.spent_nusd),
                format_usd(balance.reserved_nusd),
                format_usd(left) if is_limited else "-",
                format_usd(balance.debt_nusd),
                format_usd(balance.granted_nusd),
            )
        )
    console.print(table(("window", "limit", "spent", "reserved", "left", "debt", "granted"), rows))


def _with_all_windows(budgets: "Budgets", name: str) -> "Scope":
    """Return the scope with the configured limits, and the largest number where there is none."""
    from waypost.validator.ledger import scope_of
    from waypost.validator.ledger.base import MAX_NUSD

    limited = {limit.window: limit for limit in budgets.scope(name).limits}
    return scope_of(
        name,
        (limited.get(window, SpendLimit(window=window, limit_nusd=MAX_NUSD)) for window in WINDOWS),
    )


def _top(
    by: Annotated[str, typer.Option("--by", parser=_kind, metavar="|".join(KINDS))] = "account",
    window: OfWindow = "month",
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 20,
    config: Config = DEFAULT_CONFIG,
    as_json: JSON = False,
) -> None:
    """Show who has spent most in the current window.

    What has no budget of its own is added up from the journal, as far as that is kept.
    """
    from waypost.validator.ledger.reports import Spent, spent_of_entries, spent_of_sums

    async def ask(ledger: "Ledger", budgets: "Budgets") -> list[Spent]:
        now = int(time.time())
        name: Window = next(one for one in WINDOWS if one == window)
        found = spent_of_sums([one async for one in ledger.sums(name, now=now)], by)
        if found:
            return found
        since = budgets.calendar.starts(now)[WINDOWS.index(name)]
        entries = [one async for one in ledger.journal(since=since, until=now + 1)]
        return spent_of_entries(entries, by)

    spent = _with_ledger(config, ask)[:limit]
    if as_json:
        print_json(spent)
        return
    rows = [(s.scope, format_usd(s.spent_nusd), format_usd(s.reserved_nusd)) for s in spent]
    console.print(table((by, "spent", "reserved"), rows))


def _grant(
    scope: ScopeName,
    usd: Annotated[float, typer.Option("--usd", help="How much more may be spent.")],
    window: OfWindow = "month",
    why: Why = "",
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Let a scope spend more in the current window. The entry is kept."""
    if not 0 < usd <= 9_000_000:
        raise typer.BadParameter("grant between 0 and 9,000,000 dollars", param_hint="--usd")
    _enter(scope, window, round(usd * NUSD_PER_USD), why, config)


def _reset(
    scope: ScopeName,
    window: OfWindow = "month",
    why: Why = "",
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Let a scope spend its whole limit again in the current window.

    It is granted what it has spent; nothing that was spent leaves the books.
    """
    _enter(scope, window, None, why, config)


def _enter(scope: str, window: str, amount_nusd: int | None, why: str, config: Path) -> None:
    from waypost.validator.ledger import Grant

    grant = Grant(
        id=token_hex(16),
        scope=scope,
        window=next(one for one in WINDOWS if one == window),
        at=int(time.time()),
        amount_nusd=amount_nusd,
        by=getpass.getuser(),
        why=why,
    )
    amount = _with_ledger(config, lambda ledger, _: ledger.grant(grant))
    _say(f"{scope} may spend {format_usd(amount)} more this {window}; entry {grant.id}.")


def _export(days: Days = 31, config: Config = DEFAULT_CONFIG) -> None:
    """Write the journal as CSV: one line per hold and what became of it."""
    from waypost.validator.ledger.reports import JOURNAL_COLUMNS, journal_row

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(JOURNAL_COLUMNS)

    async def ask(ledger: "Ledger", _: "Budgets") -> None:
        now = int(time.time())
        async for entry in ledger.journal(since=now - days * DAY_S, until=now + 1):
            writer.writerow(journal_row(entry))

    _with_ledger(config, ask)


def _reconcile(
    usage: Annotated[Path, typer.Argument(help="The provider's usage export, CSV or JSON.")],
    provider: Annotated[str, typer.Option("--provider", help="By its name in the policy.")],
    day: Annotated[str, typer.Option("--day-column")] = "date",
    model: Annotated[str, typer.Option("--model-column")] = "model",
    cost: Annotated[str, typer.Option("--cost-column", help="In dollars.")] = "cost_usd",
    same: Annotated[
        list[str] | None, typer.Option("--model", metavar="OURS=THEIRS", help="Names that differ.")
    ] = None,
    tolerance_usd: Annotated[float, typer.Option(min=0, help="Per day and model.")] = 0.01,
    days: Days = 31,
    config: Config = DEFAULT_CONFIG,
    as_json: JSON = False,
) -> None:
    """Compare a provider's own count with the accounting, by day (UTC) and model.

    Exits with 1 if any differs by more than the tolerance.
    """
    from waypost.validator.ledger.reports import compare, read_usage

    try:
        theirs = read_usage(usage.read_text("utf-8"), day=day, model=model, cost=cost)
    except (OSError, UnicodeDecodeError) as exc:
        fail(f"{usage} cannot be read: {exc}")
    names = dict(pair.split("=", 1) for pair in same or () if "=" in pair)
    if len(names) < len(same or ()):
        raise typer.BadParameter("say OURS=THEIRS, each once", param_hint="--model")

    async def ask(ledger: "Ledger", _: "Budgets") -> "list[Entry]":
        now = int(time.time())
        return [one async for one in ledger.journal(since=now - days * DAY_S, until=now + 1)]

    found = compare(_with_ledger(config, ask), theirs, provider=provider, names=names)
    wrong = [one for one in found if abs(one.nusd) > tolerance_usd * NUSD_PER_USD]
    if as_json:
        print_json({"rows": found, "differ": len(wrong)})
    else:
        rows = [
            (
                one.day,
                one.model,
                format_usd(one.ours_nusd),
                format_usd(one.theirs_nusd),
                format_usd(one.nusd),
            )
            for one in found
        ]
        console.print(table(("day", "model", "books", provider, "difference"), rows))
        _say(f"{len(wrong)} of {len(found)} differ by more than {tolerance_usd:g} dollars.")
    raise SystemExit(1 if wrong else 0)


def _unconfirmed(days: Days = 31, config: Config = DEFAULT_CONFIG, as_json: JSON = False) -> None:
    """List what was charged without a provider's word: it never answered, or told no usage."""
    from waypost.validator.ledger.reports import journal_row

    async def ask(ledger: "Ledger", _: "Budgets") -> "list[Entry]":
        now = int(time.time())
        entries = ledger.journal(since=now - days * DAY_S, until=now + 1)
        return [entry async for entry in entries if entry.state in UNSURE]

    entries = _with_ledger(config, ask)
    if as_json:
        print_json(entries)
        return
    rows: list[tuple[str, ...]] = []
    for entry in entries:
        hold_id, at, state, _, cost, account, *_, provider, model = journal_row(entry)
        # Two lines each: an id that a narrow terminal cuts cannot be corrected.
        whose = f"{account}\n{model} at {provider}"
        rows.append((f"{hold_id}\n{at}, {state}", whose, format_usd(int(str(cost)))))
    console.print(table(("hold", "account", "charged"), rows))


def _correct(
    hold: Annotated[str, typer.Argument(help="As `waypost budget unconfirmed` lists it.")],
    usd: Annotated[float, typer.Option("--usd", min=0, max=9_000_000, help="What it did cost.")],
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Replace an unconfirmed charge by what the provider billed; each only once."""

    async def ask(ledger: "Ledger", _: "Budgets") -> "tuple[Entry, int]":
        at = _made_at(hold)
        entries = ledger.journal(since=at - 1, until=at + 2)
        entry = next((one for one in [e async for e in entries] if one.id == hold), None)
        if entry is None:
            fail(f"the books have no hold {hold}")
        if entry.state not in UNSURE:
            fail(f"hold {hold} is {entry.state}; only {' and '.join(UNSURE)} ones are corrected")
        cost = round(usd * NUSD_PER_USD)
        await ledger.settle(hold, cost)
        return entry, cost

    entry, cost = _with_ledger(config, ask)
    _say(f"{hold} cost {format_usd(cost)}, not {format_usd(entry.cost_nusd)}.")


def _rebuild(
    days: Days = 31,
    apply: Annotated[bool, typer.Option("--apply", help="Enter what is missing.")] = False,
    config: Config = DEFAULT_CONFIG,
    as_json: JSON = False,
) -> None:
    """Compare what was spent with the decision records; enter what the books have forgotten.

    A file that is damaged or gone counts as empty; with --apply it is moved aside, and a new one
    put in its place. Stop the validators before that.
    """
    from waypost.validator.commands.budget_rebuild import rebuilt

    rows = rebuilt(config, days=days, applies=apply)
    if as_json:
        print_json({"accounts": rows, "applied": apply})
        return
    shown = [
        (
            one.account,
            str(one.requests),
            format_usd(one.recorded_nusd),
            format_usd(one.missing_nusd),
        )
        for one in rows
    ]
    console.print(table(("account", "requests", "recorded", "not in the books"), shown))
    missing = format_usd(sum(one.missing_nusd for one in rows))
    _say(f"{missing} entered again." if apply else f"{missing} would be entered again by --apply.")


def _made_at(hold: str) -> int:
    """Return when the request's id was made, in Unix seconds; a hold's begins with it."""
    try:
        return (UUID(hold[:36]).int >> 80) // 1_000  # UUIDv7 begins with Unix milliseconds
    except ValueError:
        fail(f"{hold} is no hold of a request")


def _with_ledger(config_path: Path, ask: "Callable[[Ledger, Budgets], Awaitable[T]]") -> T:
    from waypost.validator.config import load_config
    from waypost.validator.startup.ledger_store import open_ledger

    config = load_config(config_path)
    of_ledger = config.ledger.model_copy(update={"leased": False})
    if of_ledger.store == "sqlite" and not of_ledger.path.is_file():
        fail(f"{of_ledger.path} does not exist; a validator makes it when it serves")

    async def answer() -> T:
        ledger = open_ledger(of_ledger, config.budgets, os.environ)
        try:
            return await ask(ledger, config.budgets)
        finally:
            await ledger.close()

    return asyncio.run(answer())


def _say(text: str) -> None:
    console.print(printable(text), highlight=False, markup=False, soft_wrap=True)
