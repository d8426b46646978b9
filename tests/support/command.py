"""The ``waypost`` command inside this process: quicker than a new one for each line."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from waypost.cli import main


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass
class Command:
    """Runs ``waypost`` in ``folder``; use as the fixture's value."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    columns: int = 200  # tables as wide as they like

    def __call__(self, *arguments: str) -> Done:
        self.capsys.readouterr()
        code = 0
        with self.monkeypatch.context() as patch:
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["waypost", *arguments])
            patch.setenv("COLUMNS", str(self.columns))
            try:
                main()
            except SystemExit as exc:
                code = exc.code if isinstance(exc.code, int) else 1 if exc.code else 0
        out, err = self.capsys.readouterr()
        return Done(code, out, err)

    def good(self, *arguments: str) -> str:
        """Run a command that must end well; return what it wrote."""
        done = self(*arguments)
        assert (done.code, done.err) == (0, ""), (arguments, done)
        return done.out

    def refusal(self, *arguments: str) -> str:
        """Run a command that must be refused in words; return them."""
        done = self(*arguments)
        assert done.code in (1, 2), (arguments, done)
        assert "Traceback" not in done.err
        return done.err
