"""``waypost budget``: the books, for people and scripts."""

import csv
import json
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from uuid import UUID

import pytest
from anyio import run as run_async

from support.command import Command
from support.ledgers import USD, a_hold, limit
from support.recorded import a_record, fill
from waypost.validator.ledger import open_sqlite, scope_of
from waypost.validator.records import SqliteRecordStore

SETTINGS = """
audience: waypost
manifest: {root: root.json}
providers: {acme: {base_url: https://api.acme.example/v1}}
budgets:
  accounts: {acme: [{window: month, limit_usd: 1}]}
"""


async def spend(path: Path) -> None:
    ledger = open_sqlite(path)
    now = int(time.time())
    for account, cost in (("acme", USD), ("bee", USD // 4)):
        hold = a_hold(
            account, cost, limit("total", 9 * USD), account=account, now=now,
            also=(scope_of("provider:acme"), scope_of("model:small")),
        )  # fmt: skip
        await ledger.reserve(hold)
        await ledger.settle(account, cost)
    await ledger.close()


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    (tmp_path / "validator.yaml").write_text(SETTINGS)
    (tmp_path / "state").mkdir()
    run_async(spend, tmp_path / "state" / "ledger.sqlite")
    monkeypatch.chdir(tmp_path)
    return Command(tmp_path, monkeypatch, capsys)


def shown(command: Command, window: str = "month") -> dict[str, int]:
    balances = json.loads(command.good("budget", "show", "acme", "--json"))
    return next(balance for balance in balances if balance["window"] == window)


def test_a_balance_is_shown_with_what_is_left(command: Command) -> None:
    assert shown(command)["spent_nusd"] == shown(command)["limit_nusd"] == USD
    assert "$1.0000" in command.good("budget", "show", "account:acme")


def test_a_grant_makes_room_and_a_reset_gives_the_whole_limit_back(command: Command) -> None:
    command.good("budget", "grant", "acme", "--usd", "0.25", "--why", "a demo")
    assert shown(command)["limit_nusd"] == USD + USD // 4

    command.good("budget", "reset", "acme")

    after = shown(command)
    assert (after["limit_nusd"], after["spent_nusd"]) == (2 * USD, USD)  # and nothing is forgotten


def test_who_spent_most_comes_first_also_by_what_has_no_budget(command: Command) -> None:
    accounts = json.loads(command.good("budget", "top", "--json"))
    models = json.loads(command.good("budget", "top", "--by", "model", "--json"))

    assert [one["scope"] for one in accounts] == ["account:acme", "account:bee"]
    assert models == [{"scope": "model:small", "spent_nusd": USD + USD // 4, "reserved_nusd": 0}]


def test_the_journal_is_exported_as_csv(command: Command) -> None:
    rows = list(csv.DictReader(StringIO(command.good("budget", "export"))))

    assert [(row["account"], row["model"], int(row["cost_nusd"])) for row in rows] == [
        ("acme", "small", USD),
        ("bee", "small", USD // 4),
    ]


@pytest.mark.parametrize("is_json", [False, True])
@pytest.mark.parametrize(("cost", "code"), [("1.25", 0), ("1.30", 1)])
def test_a_provider_s_count_is_held_against_the_books(
    command: Command, cost: str, code: int, is_json: bool
) -> None:
    day = time.strftime("%Y-%m-%d", time.gmtime())
    export = command.folder / "usage"
    export.write_text(
        json.dumps({"data": [{"date": day, "model": "acme-small", "cost_usd": float(cost)}]})
        if is_json
        else f"date,model,cost_usd\n{day},acme-small,{cost}\n"
    )

    said = command(
        "budget", "reconcile", str(export), "--provider", "acme", "--model", "small=acme-small"
    )

    assert said.code == code
    assert "acme-small" in said.out


def test_an_export_that_cannot_be_read_names_its_row(command: Command) -> None:
    export = command.folder / "usage.csv"
    export.write_text("date,model,cost_usd\ntomorrow,small,1\n")

    said = command("budget", "reconcile", str(export), "--provider", "acme")

    assert said.code == 1
    assert "row 1" in said.err


LOST = str(UUID(int=int(time.time() * 1_000) << 80 | 7 << 76 | 2 << 62))


async def lose(path: Path) -> None:
    ledger = open_sqlite(path)
    now = (UUID(LOST).int >> 80) // 1_000
    await ledger.reserve(a_hold(LOST, USD, limit("total", 9 * USD), account="cee", now=now))
    await ledger.settle(LOST, USD, is_confirmed=False)
    await ledger.close()


def test_what_no_provider_confirmed_is_listed_and_corrected_once(command: Command) -> None:
    run_async(lose, command.folder / "state" / "ledger.sqlite")
    (listed,) = json.loads(command.good("budget", "unconfirmed", "--json"))
    assert (listed["id"], listed["state"], listed["cost_nusd"]) == (LOST, "unconfirmed", USD)
    narrow = replace(command, columns=80).good("budget", "unconfirmed")
    assert LOST in narrow  # whole, to be copied
    assert "cee" in narrow

    assert "no hold of a request" in command("budget", "correct", "h1", "--usd", "1").err
    nobody = f"{LOST[:-1]}1"
    assert f"no hold {nobody}" in command("budget", "correct", nobody, "--usd", "1").err

    said = command.good("budget", "correct", LOST, "--usd", "0.25")
    again = command("budget", "correct", LOST, "--usd", "0.50")

    assert said == f"{LOST} cost $0.2500, not $1.0000.\n"
    assert again.code == 1
    assert "is corrected" in again.err
    top = json.loads(command.good("budget", "top", "--window", "total", "--json"))
    assert {"scope": "account:cee", "spent_nusd": USD // 4, "reserved_nusd": 0} in top


async def record(folder: Path) -> None:
    store = SqliteRecordStore.open(folder / "state" / "records.sqlite")
    now_ms = int(time.time() * 1_000)
    await fill(store, *(a_record(n, at_ms=now_ms, cost_nusd=USD // 8) for n in range(3)))
    await store.close()


def test_books_are_compared_with_the_records_and_entered_again_when_told(command: Command) -> None:
    run_async(record, command.folder)

    said = command.good("budget", "rebuild")
    assert "$0.3750 would be entered again by --apply" in said
    assert shown(command)["spent_nusd"] == USD

    assert "$0.3750 entered again" in command.good("budget", "rebuild", "--apply")
    assert shown(command)["spent_nusd"] == USD + 3 * USD // 8
    (row,) = json.loads(command.good("budget", "rebuild", "--json"))["accounts"]
    assert (row["recorded_nusd"], row["missing_nusd"]) == (3 * USD // 8, 0)


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_damaged_file_is_moved_aside_and_a_new_one_put_in_its_place(
    command: Command, is_gone: bool
) -> None:
    run_async(record, command.folder)
    path = command.folder / "state" / "ledger.sqlite"
    if is_gone:
        path.unlink()
    else:
        path.write_bytes(b"x" * 8_192)
        assert "waypost budget rebuild" in command("budget", "show", "acme").err

    assert "$0.3750 would be" in command.good("budget", "rebuild")
    assert path.exists() is not is_gone
    command.good("budget", "rebuild", "--apply")

    assert shown(command)["spent_nusd"] == 3 * USD // 8
    aside = [*path.parent.glob("ledger.sqlite.2*")]
    assert [one.read_bytes()[:1] for one in aside] == ([] if is_gone else [b"x"])
