"""The ``waypost`` command: finds the commands of the parts that are installed.

Each part registers its commands through the entry-point group ``waypost.commands``. They import
what they need when they run, so one whose extra is missing says so. Exit codes: 0 good, 1 a
finding, 2 usage.
"""

import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points, version
from typing import Annotated

import typer

from waypost.cli.output import fail
from waypost.shared.errors import WaypostError

__all__ = ["main"]

GROUP = "waypost.commands"


def _say_version(is_asked: bool) -> None:
    if is_asked:
        sys.stdout.write(f"waypost {version('waypost')}\n")
        raise typer.Exit


@cache
def _command() -> Callable[[], object]:
    """Return all commands as one; finding and reading them takes longer than most of them do."""
    app = typer.Typer(
        name="waypost",
        help="Signed routing for LLM traffic.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_waypost)
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        entry.load()(app)
    return typer.main.get_command(app)


def _waypost(
    _: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_say_version,
            help="Say which version this is.",
        ),
    ] = False,
) -> None:
    """Signed routing for LLM traffic."""


def main() -> None:
    """Run the command line."""
    try:
        _command()()
    except WaypostError as exc:
        fail(exc)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.startswith("waypost"):
            raise
        fail(
            f"this command needs an extra, as waypost[edge], waypost[validator] or waypost[all]:"
            f" there is no module '{exc.name}'",
            exit_code=2,
        )
