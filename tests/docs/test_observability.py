"""The pages on watching and proving decisions: their settings hold, their commands run."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from anyio import to_thread

from support.command import Command
from support.debian import program
from support.upstream import Upstream, running_upstream
from support.validator import HELLO, running_validator
from waypost.validator.config import ValidatorConfig
from waypost.validator.telemetry.counts import Counts
from waypost.validator.telemetry.exposition import expose

pytestmark = pytest.mark.anyio

PROMETHEUS = "# prometheus.yml"
DOCS = Path(__file__).parents[2] / "docs"
SETTINGS: dict[str, Any] = {
    "audience": "waypost",
    "manifest": {"root": "root.json"},
    "providers": {"acme": {"base_url": "https://api.acme.example/v1"}},
}


def _blocks(page: str, language: str) -> list[str]:
    text = (DOCS / f"{page}.md").read_text()
    return [
        code
        for kind, code in re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M)
        if kind == language
    ]


@pytest.mark.parametrize("page", ["observability", "receipts"])
def test_every_setting_on_the_page_is_one(page: str) -> None:
    for text in _blocks(page, "yaml"):
        if text.startswith(PROMETHEUS):
            continue
        ValidatorConfig.model_validate({**SETTINGS, **yaml.safe_load(text)})


def test_prometheus_takes_the_settings_on_the_page(tmp_path: Path) -> None:
    (text,) = [text for text in _blocks("observability", "yaml") if text.startswith(PROMETHEUS)]
    path = tmp_path / "prometheus.yml"
    path.write_text(text)
    command = [program("promtool"), "check", "config", "--syntax-only", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_defaults_on_the_page_are_the_defaults() -> None:
    shown = yaml.safe_load(_blocks("observability", "yaml")[0])
    assert ValidatorConfig.model_validate({**SETTINGS, **shown}).records == (
        ValidatorConfig.model_validate(SETTINGS).records
    )


def test_the_page_names_every_metric() -> None:
    page = (DOCS / "observability.md").read_text()
    named = set(re.findall(r"waypost_[a-z_]+", _spelled_out(page)))
    text = expose({}, Counts(), (), accept="")[0].decode()
    told = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    assert told <= named


def _spelled_out(text: str) -> str:
    """Write ``a_{b,c}_d`` as ``a_b_d a_c_d``."""
    return re.sub(
        r"(\w*)\{([\w,]+)\}(\w*)",
        lambda match: " ".join(f"{match[1]}{one}{match[3]}" for one in match[2].split(",")),
        text,
    )


async def test_feedback_as_the_page_says_it_is_taken(tmp_path: Path) -> None:
    async with (
        running_upstream() as acme,
        running_validator(tmp_path, {"acme": acme, "medcloud": acme}) as validator,
    ):
        answer = await validator.chat()
        record = await validator.record(answer)
        said = {**msgspec.json.decode(_blocks("observability", "json")[0]), "decision": record.id}
        told = await validator.client.post("/v1/feedback", json=said, headers=validator.headers())
    assert told.json() == said


async def test_every_command_on_the_pages_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    proof = yaml.safe_load(_blocks("receipts", "yaml")[0])
    async with running_upstream() as acme:
        config = await _answered(tmp_path, acme, proof)
    (tmp_path / "validator.yaml").write_text(config)
    command = Command(tmp_path, monkeypatch, capsys)
    record_id, receipt = (tmp_path / "told").read_text().split()
    (tmp_path / "receipts.txt").write_text(receipt)
    shutil.copy(tmp_path / "state/log/checkpoint", tmp_path / "kept.checkpoint")
    lines = [
        line
        for page in ("observability", "receipts")
        for block in _blocks(page, "console")
        for line in re.findall(r"^\$ waypost (.*)$", block, re.M)
    ]
    assert len(lines) == 10
    for line in lines:
        words = shlex.split(re.sub(r"0199f\S+", record_id, line))
        target = words[words.index(">") + 1] if ">" in words else None
        done = await to_thread.run_sync(command, *words[: words.index(">") if target else None])
        assert done.code == 0, (line, done)
        if target is not None:
            (tmp_path / target).write_text(done.out)


async def _answered(folder: Path, acme: Upstream, proof: dict[str, Any]) -> str:
    """Have a few requests answered; return the settings that they were answered by."""
    async with running_validator(folder, {"acme": acme, "medcloud": acme}, **proof) as validator:
        answer = await validator.chat()
        await validator.record(answer)
        hard = await validator.chat(
            {**HELLO, "messages": [{"role": "user", "content": "prove it"}]}, tier="pro"
        )
        await validator.record(hard)
        told = f"{answer.headers['x-request-id']} {answer.headers['waypost-receipt']}"
        (folder / "told").write_text(told)
    return yaml.safe_dump({**SETTINGS, **proof})
