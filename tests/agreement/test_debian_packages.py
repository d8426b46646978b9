"""What the tests skip for want of a program, the end of the run says in one line that mends it."""

import re
from pathlib import Path

import pytest

from support.debian import PACKAGES, missing, need, needs, program, summary

ROOT = Path(__file__).parents[2]
# Only tests that fetch packages of npm as well need these, and Debian's npm is 300 packages.
NOT_IN_CI = {"nodejs", "npm"}


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with Python alone."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("support.debian._FOLDERS", "")


@pytest.mark.usefixtures("bare")
def test_the_run_ends_with_what_was_skipped_and_the_line_that_installs_it() -> None:
    with pytest.raises(pytest.skip.Exception) as one:
        program("nginx")
    with pytest.raises(pytest.skip.Exception) as two:
        need("dbus-run-session", "gnome-keyring-daemon")
    marked = needs("nginx").kwargs["reason"]

    told = summary([f"Skipped: {one.value}", f"Skipped: {two.value}", marked, "Skipped: no loop"])

    assert told == [
        "3 tests were skipped for want of Debian packages:"
        " dbus-daemon 1, gnome-keyring 1, nginx-light 2.",
        "This installs them: sudo apt-get install dbus-daemon gnome-keyring nginx-light",
    ]


@pytest.mark.usefixtures("bare")
def test_each_program_has_a_reason_that_the_summary_reads() -> None:
    for name, package in PACKAGES.items():
        assert summary([missing([name])])[0].endswith(f": {package} 1.")


def test_a_run_that_skipped_nothing_for_want_of_a_package_says_nothing() -> None:
    assert summary(["Skipped: only root may mount a small disk"]) == []
    assert missing([]) == ""


def test_ci_installs_all_packages() -> None:
    installed = set(re.findall(r"missing\+=\(([a-z0-9-]+)\)", (ROOT / ".ci/run").read_text()))

    assert set(PACKAGES.values()) - NOT_IN_CI <= installed


def test_no_test_looks_for_a_program_by_itself() -> None:
    """Or it would be skipped, and the end of the run would not say so."""
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]

    assert [path.name for path in files if "shutil.which" in path.read_text()] == []
