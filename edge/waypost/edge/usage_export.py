"""Reads what providers and gateways export of usage: one CSV, many spellings of its columns.

Nothing but models, times and counts is looked at; a column with prompts is not read. A row is one
request or a sum of many: ``requests`` says which.
"""

import csv
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

from msgspec import Struct

from waypost.shared.errors import WaypostError

__all__ = ["COLUMNS", "UsageError", "Used", "read_usage"]

MAX_ROWS = 2_000_000
MAX_CELL_CHARS = 200
MOST = 10**15

# What each figure is called: OpenAI's usage export and API, Anthropic's, LiteLLM's spend logs,
# and plain words. Of several in one file the first in this order counts.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "model": ("model", "model_version", "model_id", "model_name", "snapshot_id"),
    "time": (
        "start_time", "start_time_iso", "starttime", "usage_date_utc", "timestamp", "date",
        "created_at", "time",
    ),
    "requests": ("num_model_requests", "n_requests", "requests", "api_requests"),
    "input": (
        "input_tokens", "prompt_tokens", "n_context_tokens_total", "usage_input_tokens",
        "usage_input_tokens_no_cache", "uncached_input_tokens",
    ),
    "cached": (
        "input_cached_tokens", "cached_tokens", "n_cached_context_tokens_total",
        "usage_input_tokens_cache_read", "cache_read_input_tokens",
    ),
    "output": (
        "output_tokens", "completion_tokens", "n_generated_tokens_total", "usage_output_tokens",
    ),
    "cost": ("spend", "cost", "cost_usd", "amount_usd", "total_cost"),
}  # fmt: skip

# Where these are the input's names, cached tokens are counted beside it and not within.
_APART = frozenset({"usage_input_tokens_no_cache", "uncached_input_tokens"})


class UsageError(WaypostError):
    """The file is no usage export; the message says which columns are missing or what is wrong."""

    code = "usage_invalid"


class Used(Struct, frozen=True, kw_only=True):
    """One row: what one model was used for.

    Attributes:
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


def read_usage(path: Path) -> Iterator[Used]:
    """Give the rows of the export at ``path``; rows without a model or tokens are passed over.

    Raises:
        UsageError: it cannot be read, lacks a column, or a figure is none; with the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
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
        raise UsageError(f"{path.name} is not CSV in UTF-8: {exc}") from None


def _names(header: list[str]) -> dict[str, tuple[int, str]]:
    """Return where each figure stands, and under which name."""
    found = {name.strip().lower().replace(" ", "_"): place for place, name in enumerate(header)}
    names = {
        figure: next((found[name], name) for name in spellings if name in found)
        for figure, spellings in COLUMNS.items()
        if any(name in found for name in spellings)
    }
    missing = [figure for figure in ("model", "input", "output") if figure not in names]
    if missing:
        wanted = "; ".join(f"{figure}: {' or '.join(COLUMNS[figure])}" for figure in missing)
        raise UsageError(f"the first line names no column for {wanted}")
    return names


def _used(row: list[str], names: Mapping[str, tuple[int, str]], *, line: int) -> Used | None:
    def cell(figure: str) -> str:
        place = names.get(figure, (len(row), ""))[0]
        return row[place].strip()[:MAX_CELL_CHARS] if place < len(row) else ""

    model = cell("model")
    taken = _count(cell("input"), line)
    cached = _count(cell("cached"), line)
    output = _count(cell("output"), line)
    if not model or not (taken or cached or output):
        return None
    if names["input"][1] in _APART:
        taken += cached
    return Used(
        model=model,
        at=_time(cell("time")),
        requests=max(1, _count(cell("requests"), line)),
        input_tokens=taken,
        cached_tokens=min(cached, taken),
        output_tokens=output,
        cost_usd=_money(cell("cost"), line),
    )


def _count(text: str, line: int) -> int:
    amount = _number(text, line)
    return 0 if amount is None else int(amount)


def _money(text: str, line: int) -> Decimal | None:
    return _number(text.lstrip("$"), line)


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
