"""Reads what providers and gateways export of usage: one CSV, many spellings of its columns.

Nothing but models, times and counts is looked at; a column with prompts is not read. A row is one
request or a sum of many: ``requests`` says which.
"""

import codecs
import csv
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import NamedTuple, TextIO

from msgspec import Struct

from waypost.shared.errors import WaypostError

__all__ = ["COLUMNS", "UsageError", "Used", "read_usage"]

MAX_ROWS = 2_000_000
MAX_CELL_CHARS = 200
MOST = 10**15
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ]00:00(?::00(?:\.0+)?)?(?:Z|\+00:00)?)?")

# What each figure is called: OpenAI's usage export and API, Anthropic's, OpenRouter's activity,
# LiteLLM's spend logs, and plain words. Of several in one file the first in this order counts; of
# tokens written to a cache, the sum.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "model": (
        "model", "model_version", "model_id", "model_name", "snapshot_id", "model_permaslug",
    ),
    "time": (
        "start_time", "start_time_iso", "starttime", "usage_date_utc", "timestamp", "date",
        "created_at", "time",
    ),
    "requests": ("num_model_requests", "n_requests", "requests", "api_requests", "request_count"),
    "input": (
        "input_tokens", "prompt_tokens", "n_context_tokens_total", "usage_input_tokens",
        "usage_input_tokens_no_cache", "uncached_input_tokens", "tokens_prompt",
    ),
    "cached": (
        "input_cached_tokens", "cached_tokens", "n_cached_context_tokens_total",
        "usage_input_tokens_cache_read", "cache_read_input_tokens", "tokens_cached",
    ),
    "written": (
        "usage_input_tokens_cache_write_5m", "usage_input_tokens_cache_write_1h",
        "cache_creation_input_tokens",
    ),
    "output": (
        "output_tokens", "completion_tokens", "n_generated_tokens_total", "usage_output_tokens",
        "tokens_completion",
    ),
    "cost": ("spend", "cost", "cost_usd", "amount_usd", "total_cost", "cost_total"),
}  # fmt: skip

# Where these are the input's names, cached tokens are counted beside it and not within. So they
# are by Anthropic, whose plain name another export may have too: its cache's names tell.
_APART = frozenset({"usage_input_tokens_no_cache", "uncached_input_tokens"})
_ANTHROPIC = frozenset({"cache_read_input_tokens", "cache_creation_input_tokens"})


class UsageError(WaypostError):
    """The file is no usage export; the message says which columns are missing or what is wrong."""

    code = "usage_invalid"


class Used(Struct, frozen=True, kw_only=True):
    """One row: what one model was used for.

    Attributes:
        requests: how many it is of; 1 where that is not told.
        is_counted: whether that is told, or the row is one request.
        input_tokens: cached ones included.
        cost_usd: as the export says; ``None`` if it does not.
    """

    model: str
    at: datetime | None
    requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_usd: Decimal | None
    is_counted: bool = True


def read_usage(path: Path) -> Iterator[Used]:
    """Give the rows of the export at ``path``; rows without a model or tokens are passed over.

    Raises:
        UsageError: it cannot be read, lacks a column, or a figure is none; with the line.
    """
    try:
        with path.open(encoding=_encoding(path), newline="") as file:
            rows = csv.reader(file, delimiter=_delimiter(file))
            names = _names(next(rows, list[str]()))
            for row in rows:
                if rows.line_num > MAX_ROWS:
                    raise UsageError(f"{path.name} has more than {MAX_ROWS:,} lines; split it")
                used = _used(row, names, line=rows.line_num)
                if used is not None:
                    yield used
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as exc:
        raise UsageError(f"{path.name} is not CSV in UTF-8 or UTF-16: {exc}") from None


def _encoding(path: Path) -> str:
    """Return how the file is written: spreadsheets put a mark before it, and some choose UTF-16."""
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # Without a mark: in the ASCII of a first line every other byte is zero.
    if start[1::2] == b"\0\0":
        return "utf-16-le"
    return "utf-16-be" if start[::2] == b"\0\0" else "utf-8-sig"


def _delimiter(file: TextIO) -> str:
    """Return what stands between cells: spreadsheets of many countries write semicolons."""
    first = file.readline()
    file.seek(0)
    return max(",;\t", key=first.count)


class Names(NamedTuple):
    """Where figures stand.

    Attributes:
        places: of each figure that has one column.
        written: columns of tokens that were written to a cache.
        is_apart: whether cached and written tokens come on top of the input.
        is_counted: whether rows tell how many requests they are of.
    """

    places: Mapping[str, int]
    written: tuple[int, ...]
    is_apart: bool
    is_counted: bool


def _names(header: list[str]) -> Names:
    found = {name.strip().lower().replace(" ", "_"): place for place, name in enumerate(header)}
    names = {
        figure: next(name for name in spellings if name in found)
        for figure, spellings in COLUMNS.items()
        if any(name in found for name in spellings)
    }
    missing = [figure for figure in ("model", "input", "output") if figure not in names]
    if missing:
        wanted = "; ".join(f"{figure}: {' or '.join(COLUMNS[figure])}" for figure in missing)
        raise UsageError(f"the first line names no column for {wanted}")
    return Names(
        places={figure: found[name] for figure, name in names.items()},
        written=tuple(found[name] for name in COLUMNS["written"] if name in found),
        is_apart=names["input"] in _APART
        or (names["input"] == "input_tokens" and not _ANTHROPIC.isdisjoint(names.values())),
        is_counted="requests" in names,
    )


def _used(row: list[str], names: Names, *, line: int) -> Used | None:
    def at(place: int) -> str:
        return row[place].strip()[:MAX_CELL_CHARS] if place < len(row) else ""

    def cell(figure: str) -> str:
        return at(names.places.get(figure, len(row)))

    model, at_time = cell("model"), cell("time")
    taken = _count(cell("input"), line)
    cached = _count(cell("cached"), line)
    output = _count(cell("output"), line)
    if names.is_apart:
        taken += cached + sum(_count(at(place), line) for place in names.written)
    if not model or not (taken or cached or output):
        return None
    return Used(
        model=model,
        at=_time(at_time),
        requests=max(1, _count(cell("requests"), line)),
        input_tokens=taken,
        cached_tokens=min(cached, taken),
        output_tokens=output,
        cost_usd=_money(cell("cost"), line),
        # What is of a day, and not of a time in it, is a day's sum.
        is_counted=names.is_counted or not _DAY.fullmatch(at_time),
    )


def _count(text: str, line: int) -> int:
    amount = _number(text, line)
    return 0 if amount is None else int(amount)


def _money(text: str, line: int) -> Decimal | None:
    text = text.strip("$€ ")
    # A comma that no group of three digits follows is a decimal point.
    whole, comma, rest = text.rpartition(",")
    if comma and "." not in rest and len(rest) != 3:
        text = f"{whole.replace('.', '').replace(',', '')}.{rest}"
    return _number(text, line)


def _number(text: str, line: int) -> Decimal | None:
    if not text or text.lower() in ("null", "none", "nan"):
        return None
    try:
        number = Decimal(text.replace(",", ""))
    except InvalidOperation:
        number = Decimal("NaN")
    if not (number.is_finite() and 0 <= number <= MOST):
        raise UsageError(f"line {line}: {text[:40]!r} is not an amount")
    return number


def _time(text: str) -> datetime | None:
    """Return an instant written as ISO 8601 or Unix seconds; ``None`` if it is neither."""
    try:
        if text.isdigit() and len(text) <= 11:
            return datetime.fromtimestamp(int(text), UTC)
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
