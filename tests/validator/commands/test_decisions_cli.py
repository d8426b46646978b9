"""``waypost decisions``, as a person and as a script see it."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from support.recorded import DIGEST, POLICY, a_record, fill
from support.worlds import some_facts
from waypost.shared.contracts import Proposal
from waypost.shared.records import Attempt, DecisionRecord
from waypost.validator.commands import decisions_cli
from waypost.validator.records import SqliteRecordStore

Run = Callable[..., Result]

OVERRIDDEN = a_record(
    1,
    verdict="overridden",
    reason="tier_not_allowed",
    proposal=Proposal(model="frontier"),
    tenant="south",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.sqlite"


@pytest.fixture
def run(path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "200")
    app = typer.Typer()
    decisions_cli.register(app)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["decisions", *arguments, "--db", str(path)])

    return invoke


def _keep(path: Path, *records: DecisionRecord, dropped: int = 0) -> None:
    async def keep() -> None:
        store = SqliteRecordStore.open(path)
        await store.put_policy(DIGEST, POLICY)
        await fill(store, *records, dropped=dropped)
        await store.close()

    asyncio.run(keep())


# ── list ───────────────────────────────────────────────────────────────────────────────────────


def test_list_shows_the_newest_first_and_whole_ids_to_copy(path: Path, run: Run) -> None:
    _keep(path, a_record(0), OVERRIDDEN)
    result = run("list")
    assert result.exit_code == 0
    newest, at, older, _ = [line for line in result.stdout.splitlines() if line.startswith("│")]
    for text in (OVERRIDDEN.id, "overridden", "small", "$0.000066"):
        assert text in newest
    for text in ("2025-11-24 16:00:01 UTC", "tier_not_allowed", "short-chat", "90 ms"):
        assert text in at
    assert a_record(0).id in older


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ((), [1, 0]),
        (("--verdict", "overridden"), [1]),
        (("--model", "small", "--tenant", "north"), [0]),
        (("--limit", "1"), [1]),
        (("--since", "2025-11-24T16:00:01"), [1]),
        (("--since", "2025-11-24"), [1, 0]),
        (("--since", "2026-11-24T17:00:00+01:00"), []),
    ],
)
def test_list_filters(path: Path, run: Run, options: tuple[str, ...], found: list[int]) -> None:
    _keep(path, a_record(0), OVERRIDDEN)
    records = json.loads(run("list", *options, "--json").stdout)
    assert [int(record["id"][-1]) for record in records] == found


@pytest.mark.parametrize(("ago", "found"), [("30m", 1), ("2h", 2), ("1d", 2)])
def test_since_may_be_said_as_time_ago(path: Path, run: Run, ago: str, found: int) -> None:
    now_ms = int(time.time() * 1_000)
    _keep(path, a_record(0, at_ms=now_ms - 3_600_000), a_record(1, at_ms=now_ms))
    assert len(json.loads(run("list", "--since", ago, "--json").stdout)) == found


def test_list_says_when_there_is_nothing(path: Path, run: Run) -> None:
    _keep(path)
    assert "No decisions recorded." in run("list").stdout
    assert "No such decisions recorded." in run("list", "--model", "ghost").stdout
    assert json.loads(run("list", "--json").stdout) == []


@pytest.mark.parametrize(
    "options", [("--since", "yesterday"), ("--verdict", "lucky"), ("--limit", "0")]
)
def test_a_wrong_option_is_a_usage_error(path: Path, run: Run, options: tuple[str, ...]) -> None:
    _keep(path)
    result = run("list", *options)
    assert result.exit_code == 2
    assert options[0] in result.output


# ── show, explain ──────────────────────────────────────────────────────────────────────────────


def test_show_gives_all_that_is_recorded(path: Path, run: Run) -> None:
    _keep(path, a_record(0), OVERRIDDEN)
    shown = run("show", a_record(0).id).stdout
    for part in ("1102500", DIGEST, "short-chat", '"input_tokens":41'):
        assert part in shown
    assert "│ detail" not in shown  # empty
    assert json.loads(run("show", a_record(0).id, "--json").stdout)["cost_nusd"] == 66_150


def test_explain_says_in_one_sentence_why_a_proposal_was_overridden(path: Path, run: Run) -> None:
    _keep(path, OVERRIDDEN)
    lines = run("explain", OVERRIDDEN.id).stdout.splitlines()
    assert lines[0].startswith("The client asked for frontier, but ")
    assert "rule 'short-chat' (input_tokens 41 < 100, tier = free) matched" in lines[0]
    assert "tier_not_allowed" in "\n".join(lines[1:])
    both = json.loads(run("explain", OVERRIDDEN.id, "--json").stdout)
    assert both["explanation"]["sentence"] == lines[0]
    assert both["explanation"]["exclusions"]["frontier"]["code"] == "tier_not_allowed"


def test_explain_without_an_id_takes_the_newest(path: Path, run: Run) -> None:
    _keep(path, a_record(0), OVERRIDDEN)
    assert OVERRIDDEN.id in run("explain").stdout


def test_explain_does_without_the_manifest_and_the_facts(path: Path, run: Run) -> None:
    lost = a_record(0, manifest_digest="0" * 64)
    unknown = a_record(
        1,
        verdict="refused",
        reason="token_expired",
        facts=None,
        manifest_digest=None,
        detail="Old.",
    )
    _keep(path, lost, unknown)
    assert run("explain", lost.id).exit_code == 0
    assert run("explain", unknown.id).stdout.startswith("Old.")


@pytest.mark.parametrize("command", ["show", "explain"])
def test_an_unknown_decision_is_a_finding(path: Path, run: Run, command: str) -> None:
    _keep(path)
    for options in ([command], [command, "ghost"]):
        result = run(*options)
        assert result.exit_code == 1
        assert "recorded" in result.stderr


# ── stats ──────────────────────────────────────────────────────────────────────────────────────


def test_stats_say_what_routing_saved(path: Path, run: Run) -> None:
    _keep(path, *(a_record(n) for n in range(2, 1_201)), OVERRIDDEN, dropped=4)
    shown = run("stats").stdout
    assert "1,199" in shown
    assert "1,200 requests cost $0.0793; sending each to the best" in shown.replace("\n", " ")
    assert "4 decisions could not be recorded, so the totals are too low." in shown
    assert json.loads(run("stats", "--json").stdout)["dropped"] == 4
    assert "1 request cost" in run("stats", "--tenant", "south").stdout


# ── where the records are, and what they may do to a terminal ──────────────────────────────────


def test_the_validators_settings_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "validator.yaml").write_text(
        "audience: https://llm.example\n"
        "manifest: {url: 'http://127.0.0.1:1', root: root.json, cache: cache}\n"
        "providers: {acme: {base_url: 'http://127.0.0.1:1/v1'}}\n"
        "records: {path: kept/records.sqlite}\n"
    )
    kept = tmp_path / "kept"
    kept.mkdir()
    _keep(kept / "records.sqlite", a_record(0))
    command = [sys.executable, "-c", "from waypost.cli import main; main()", "decisions", "list"]
    for where in ([], ["--validator-config", str(tmp_path / "validator.yaml")]):
        done = subprocess.run(
            [*command, *where, "--json"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout)[0]["id"] == a_record(0).id


def test_records_that_are_not_there_are_not_made(path: Path, run: Run) -> None:
    result = run("list")
    assert result.exit_code == 1
    assert "does not exist" in result.stderr
    assert not path.exists()


def test_a_record_cannot_drive_the_terminal(path: Path, run: Run) -> None:
    # Escape sequences, 8-bit ones, right-to-left overrides and rich's own markup.
    evil = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202eevil\r[red]x[/red]"
    record = a_record(
        0,
        reason=evil,
        detail=evil,
        model=evil,
        route=evil,
        facts=some_facts(signed={"tenant": evil}),
        proposal=Proposal(model=evil),
        attempts=(Attempt(model=evil, provider=evil, outcome="ok"),),
    )
    _keep(path, record)
    commands = (["list"], ["show"], ["explain"], ["stats"])
    for command in (*commands, *([*command, "--json"] for command in commands)):
        result = run(*command)
        assert result.exit_code == 0
        for harm in ("\x1b", "\x07", "\x9b", "\u202e", "\r"):
            assert harm not in result.stdout, (command, harm)
    assert "[red]x[/red]" in run("show").stdout
    assert json.loads(run("show", "--json").stdout)["detail"] == evil
