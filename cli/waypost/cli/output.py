"""How commands speak: tables for people, JSON for scripts, errors in one line."""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import msgspec
from rich.console import Console, ConsoleRenderable
from rich.markup import escape
from rich.table import Table

from waypost.shared.errors import WaypostError

__all__ = ["console", "fail", "print_json", "printable", "table"]

console = Console()
_err = Console(stderr=True)


def print_json(value: Any) -> None:  # noqa: ANN401 - whatever msgspec can encode
    """Write ``value`` as indented JSON, for a script to read."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    # JSON may hold 8-bit escapes as they are; a script reads them just as well escaped.
    sys.stdout.write(_ODD.sub(_escaped, text) + "\n")


def printable(text: str) -> str:
    """Return ``text`` without what could move a cursor, colour a terminal or turn words round."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "�" for c in text)


_ODD = re.compile(r"[^\n\x20-\x7e]")


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    return character if character.isprintable() else json.dumps(character)[1:-1]


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
    lines = ("" if cell is None else str(cell)).split("\n")
    return escape("\n".join(map(printable, lines)))


def fail(error: WaypostError | str, *, exit_code: int = 1) -> NoReturn:
    """Say what is wrong on standard error and leave with ``exit_code``."""
    said = f"{error.code}: {error.message}" if isinstance(error, WaypostError) else error
    # In one line, however long: a path that was broken in two is not found again.
    _err.print(f"waypost: {said}", style="red", markup=False, soft_wrap=True)
    raise SystemExit(exit_code)
