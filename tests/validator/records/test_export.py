"""Decision records in files that other programs read."""

import asyncio
import csv
from pathlib import Path
from typing import Any

import pytest
import typer
from pyarrow import parquet
from typer.testing import CliRunner

from support.recorded import a_record, fill
from waypost.shared.contracts import Proposal
from waypost.shared.records import encode_record
from waypost.validator.commands import decisions_cli
from waypost.validator.records import SqliteRecordStore

RECORDS = [
    a_record(0),
    a_record(1, model='=HYPERLINK("http://evil.example","x")', route="\t=1+1", tenant="+1"),
    a_record(2, cost_nusd=2**70, reason="\x1b[2J<script>\u202e", proposal=Proposal(model="@x")),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    async def keep() -> None:
        store = SqliteRecordStore.open(tmp_path / "records.sqlite")
        await fill(store, *RECORDS)
        await store.close()

    asyncio.run(keep())
    return tmp_path / "records.sqlite"


def _export(path: Path, name: str, *options: str) -> Any:  # noqa: ANN401 - click's result
    app = typer.Typer()
    decisions_cli.register(app)
    command = ["decisions", "export", str(path.with_name(name)), "--db", str(path), *options]
    return CliRunner().invoke(app, command)


def test_json_lines_hold_each_record_as_it_was_written(path: Path) -> None:
    assert "3 decisions written" in _export(path, "all.jsonl").stdout
    lines = path.with_name("all.jsonl").read_bytes().splitlines()
    assert lines == list(map(encode_record, RECORDS))


def test_no_cell_of_a_csv_is_a_formula_or_moves_a_terminal(path: Path) -> None:
    assert _export(path, "all.csv").exit_code == 0
    text = path.with_name("all.csv").read_text()
    with path.with_name("all.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [record.id for record in RECORDS]
    assert rows[1]["model"] == '\'=HYPERLINK("http://evil.example","x")'
    assert rows[1]["route"] == "'�=1+1"
    assert rows[1]["tenant"] == "'+1"
    for harm in ("\x1b", "\u202e", "\t"):
        assert harm not in text


def test_parquet_holds_a_table_and_the_whole_record(path: Path) -> None:
    assert _export(path, "all.parquet").exit_code == 0
    table = parquet.read_table(path.with_name("all.parquet"))
    assert table.column("cost_nusd").to_pylist() == [66_150, 66_150, 2**63 - 1]
    assert table.column("record").to_pylist() == [
        encode_record(record).decode() for record in RECORDS
    ]


def test_only_what_is_asked_for_is_exported_and_nothing_overwritten(path: Path) -> None:
    assert "1 decision written" in _export(path, "some.csv", "--tenant", "+1").stdout
    assert "exists" in _export(path, "some.csv").stderr
    assert _export(path, "some.xls").exit_code == 2
