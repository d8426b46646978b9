"""The ``waypost`` command: finds the commands of the parts that are installed.

Each part registers its commands through the entry-point group ``waypost.commands``, so that one
whose extra is missing has no broken commands. Exit codes: 0 good, 1 a finding, 2 usage.
"""

from importlib.metadata import entry_points

import typer

from waypost.cli.output import fail
from waypost.shared.errors import WaypostError

__all__ = ["main"]

GROUP = "waypost.commands"


def main() -> None:
    """Run the command line."""
    app = typer.Typer(
        name="waypost",
        help="Signed routing for LLM traffic.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    missing: list[str] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            register = entry.load()
        except ModuleNotFoundError as exc:
            if exc.name is None or exc.name.startswith("waypost"):
                raise
            missing.append(entry.name)
            continue
        register(app)
    if missing:
        app.info.epilog = "Not installed: " + ", ".join(f"waypost[{name}]" for name in missing)
    try:
        app()
    except WaypostError as exc:
        fail(exc)
