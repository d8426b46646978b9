"""The policy in docs/examples holds, and every command says of it what the page shows."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import time_machine

from support.command import Command

DOCS = Path(__file__).parents[2] / "docs"
MONDAY_NOON = "2026-01-05T12:00:00Z"


def shown() -> list[tuple[str, str]]:
    """Return the commands of the policy's pages, each with what it is shown to say."""
    pages = "".join(page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("policy*.md")))
    blocks = re.findall(r"^```console\n\$ waypost ([^\n]*)\n(.*?)^```", pages, re.S | re.M)
    return [(command, said) for command, said in blocks]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """The ``waypost`` command in a copy of the examples."""
    folder = tmp_path / "examples"
    shutil.copytree(DOCS / "examples", folder)
    return Command(folder, monkeypatch, capsys)


@pytest.mark.parametrize(("line", "said"), shown(), ids=[line for line, _ in shown()])
def test_each_command_says_of_the_example_what_the_page_shows(
    line: str, said: str, command: Command
) -> None:
    with time_machine.travel(MONDAY_NOON, tick=False):
        done = command(*shlex.split(line))

    assert "Traceback" not in done.err
    # That two policies differ is exit 1, as with diff.
    assert done.code == (1 if " diff " in line else 0)
    if " train " in line:
        # Figures depend on the machine, and on its numerical library.
        assert _without_figures(done.out) == _without_figures(said)
    else:
        assert _bare(done.out) == _bare(said)


def test_every_command_but_the_calibration_is_shown() -> None:
    names = {line.split()[1] for line, _ in shown()}

    assert names == {"check", "test", "prove", "explain", "diff", "prices", "simulate", "train"}


def test_the_example_reaches_all_its_rules_and_warns_of_nothing(command: Command) -> None:
    command.good("policy", "check", "--strict")
    command.good("policy", "test", "--strict")


def _bare(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _without_figures(text: str) -> list[str]:
    return [re.sub(r"[\d.,%│┃ ━─]+", " ", line).strip() for line in _bare(text)]
