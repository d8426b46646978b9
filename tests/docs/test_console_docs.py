"""The examples of the console's and the reports' pages, run as a reader would run them."""

import asyncio
import re
import shlex
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from support.recorded import DIGEST, POLICY, a_record, fill
from waypost.edge.advice import usage_export
from waypost.edge.commands import advise_cli
from waypost.validator.commands import report_cli
from waypost.validator.config import load_config
from waypost.validator.records import SqliteRecordStore

DOCS = Path(__file__).parents[2] / "docs"
SETTINGS = {
    "audience": "waypost",
    "manifest": {"root": "root.json"},
    "providers": {"acme": {"base_url": "https://api.acme.example/v1"}},
}


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def test_the_setting_of_the_console_s_page_is_one(tmp_path: Path) -> None:
    path = tmp_path / "validator.yaml"
    path.write_text(yaml.safe_dump(SETTINGS) + blocks("console", "yaml")[0])

    assert load_config(path).console.token == "WAYPOST_CONSOLE_TOKEN"


@pytest.mark.parametrize(
    "line",
    [line for block in blocks("report", "console") for line in block.splitlines()],
)
def test_the_commands_of_the_reports_page_run(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def write() -> None:
        store = SqliteRecordStore.open(tmp_path / "state" / "records.sqlite")
        await store.put_policy(DIGEST, POLICY)
        await fill(store, a_record(at_ms=int(datetime.now(UTC).timestamp() * 1_000)))
        await store.close()

    monkeypatch.chdir(tmp_path)
    (tmp_path / "state").mkdir()
    asyncio.run(write())
    (tmp_path / "validator.yaml").write_text(yaml.safe_dump(SETTINGS))
    (tmp_path / "usage.csv").write_text(
        "model,input_tokens,output_tokens,date\ngpt-4o,80,200,2026-10-01\n"
    )
    app = typer.Typer()
    report_cli.register(app)
    advise_cli.register(app)

    result = CliRunner().invoke(app, shlex.split(line)[2:])

    assert result.exit_code == 0, result.output
    for name in re.findall(r"\S+\.(?:html|pdf)", line):
        assert (tmp_path / name).stat().st_size > 1_000


def test_the_page_names_every_column_that_is_understood() -> None:
    page = (DOCS / "report.md").read_text().lower()

    for spellings in usage_export.COLUMNS.values():
        for name in spellings:
            assert f"`{name}`" in page, name
