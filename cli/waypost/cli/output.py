"""How commands speak: tables for people, JSON for scripts, errors in one line."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import msgspec
from rich.console import Console, ConsoleRenderable
from rich.markup import escape
from rich.table import Table
from waypost.shared.errors import WaypostError

__all__ = ["console", "fail", "print_json", "table"]

console = Console()
_err = Console(stderr=True)


def print_json(value: Any) -> None:  # noqa: ANN401 - whatever msgspec can encode
    """Write ``value`` as indented JSON, for a script to read."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> Table:
    """Return a rich table; cells are text, never markup, since data may hold brackets."""
    made = Table(title=title or None, header_style="bold", title_justify="left")
    for column in columns:
        made.add_column(column)
    for row in rows:
        made.add_row(*map(_cell, row))
    return made


def _cell(cell: object) -> ConsoleRenderable | str:
    if isinstance(cell, ConsoleRenderable):
        return cell
    return escape("" if cell is None else str(cell))


def fail(error: WaypostError | str, *, exit_code: int = 1) -> NoReturn:
    """Say what is wrong on standard error and leave with ``exit_code``."""
    if isinstance(error, WaypostError):
        _err.print(f"waypost: {error.code}: {error.message}", style="red", markup=False)
    else:
        _err.print(f"waypost: {error}", style="red", markup=False)
    raise SystemExit(exit_code)
