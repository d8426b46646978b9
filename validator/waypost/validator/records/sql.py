"""What the stores in SQL databases share: columns, conditions, and which hours are added up.

Totals of a whole hour are made once, when it is over, and kept when its records are deleted. A
record that comes late makes its hour's totals void until they are made anew. So ``stats`` reads
totals where it can, and single records at the edges and for the hour that runs.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
from msgspec import structs

from waypost.shared.records import DecisionRecord
from waypost.validator.records.base import RecordFilter
from waypost.validator.records.totals import (
    DIMENSIONS,
    SUMS,
    Dimension,
    Part,
    bucket_of,
    sums_of,
)

__all__ = [
    "COLUMNS",
    "HOUR_MS",
    "Row",
    "columns_of",
    "conditions",
    "parts_of_records",
    "parts_of_totals",
    "raw_ranges",
    "records_query",
    "step_of",
    "total_values",
    "totals_query",
    "whole_hours",
]

Row = tuple[Any, ...]

HOUR_MS = 3_600_000
# A provider's usage, and so a bill, may be absurd; a thousand of these still add up in 64 bits.
MOST = 2**53 - 1

COLUMNS = ("id", "at_ms", "account", *DIMENSIONS, *SUMS, "ttft_bucket", "duration_bucket")
_TERMS = {"since_ms": "at_ms >= {}", "until_ms": "at_ms < {}"}


def columns_of(record: DecisionRecord) -> tuple[object, ...]:
    """Return what filters and totals need of ``record``, in the order of ``COLUMNS``."""
    return (
        record.id,
        record.at_ms,
        record.account,
        record.route,
        record.model,
        record.verdict,
        record.reason,
        record.tier,
        record.tenant,
        *[min(max(value, -MOST), MOST) for value in sums_of(record)],
        bucket_of(record.ttft_ms),
        bucket_of(record.duration_ms),
    )


def conditions(filters: RecordFilter, mark: str) -> tuple[str, list[object]]:
    """Return an SQL condition, and the values for its placeholders, which look like ``mark``."""
    terms, values = ["1=1"], list[object]()
    for field, value in structs.asdict(filters).items():
        if value is not None:
            terms.append(_TERMS.get(field, f"{field} = {{}}").format(mark))
            values.append(value)
    return " AND ".join(terms), values


# ── which hours ────────────────────────────────────────────────────────────────────────────────


def whole_hours(
    filters: RecordFilter, by: Sequence[Dimension], step_ms: int | None
) -> tuple[int, int]:
    """Return from where to before where whole hours lie that totals may answer for."""
    if filters.account is not None or (step_ms or HOUR_MS) % HOUR_MS:
        return 0, 0
    since = 0 if filters.since_ms is None else filters.since_ms
    until = 2**62 if filters.until_ms is None else filters.until_ms
    return -(-since // HOUR_MS) * HOUR_MS, until // HOUR_MS * HOUR_MS


def raw_ranges(
    hours: Iterable[tuple[int, int]], filters: RecordFilter, whole: tuple[int, int]
) -> list[tuple[int, int]]:
    """Return the times whose records have to be read one by one, joined where they touch.

    Args:
        hours: start, and whether it has totals; every hour that has records, in order.
    """
    since = 0 if filters.since_ms is None else filters.since_ms
    until = 2**62 if filters.until_ms is None else filters.until_ms
    ranges: list[tuple[int, int]] = []
    for start, is_added_up in hours:
        if is_added_up and whole[0] <= start < whole[1]:
            continue
        first, last = max(start, since), min(start + HOUR_MS, until)
        if first < last:
            if ranges and ranges[-1][1] == first:
                ranges[-1] = (ranges[-1][0], last)
            else:
                ranges.append((first, last))
    return ranges


# ── adding up ──────────────────────────────────────────────────────────────────────────────────


def step_of(step_ms: int | None, column: str) -> str:
    """Return SQL for the start of the step that ``column`` is in."""
    return "0" if step_ms is None else f"({column} / {int(step_ms)}) * {int(step_ms)}"


def records_query(where: str, by: Sequence[Dimension], step_ms: int | None) -> str:
    """Return the query for ``parts_of_records``."""
    group = [step_of(step_ms, "at_ms"), *by, "ttft_bucket", "duration_bucket"]
    sums = [f"CAST(sum({name}) AS BIGINT)" for name in SUMS]
    places = ", ".join(str(place) for place in range(1, len(group) + 1))
    return (
        f"SELECT {', '.join([*group, 'count(*)', *sums])} FROM records WHERE {where}"
        f" GROUP BY {places}"
    )


def parts_of_records(rows: Iterable[Row], by: Sequence[Dimension]) -> Iterator[Part]:
    """Give the parts that ``records_query`` found."""
    end = 1 + len(by)
    for row in rows:
        ttft, duration, requests = row[end : end + 3]
        yield (
            row[0],
            row[1:end],
            requests,
            row[end + 3 :],
            {} if ttft is None else {ttft: requests},
            {duration: requests},
        )


def totals_query(where: str, by: Sequence[Dimension], step_ms: int | None) -> str:
    """Return the query for ``parts_of_totals``."""
    names = [step_of(step_ms, "at_ms"), *by, "requests", *SUMS, "ttft", "duration"]
    return f"SELECT {', '.join(names)} FROM totals WHERE {where}"


def parts_of_totals(rows: Iterable[Row], by: Sequence[Dimension]) -> Iterator[Part]:
    """Give the parts that ``totals_query`` found."""
    end = 1 + len(by)
    for row in rows:
        yield (
            row[0],
            row[1:end],
            row[end],
            row[end + 1 : end + 1 + len(SUMS)],
            _sketch(row[-2]),
            _sketch(row[-1]),
        )


def total_values(part: Part) -> tuple[object, ...]:
    """Return ``part`` as a row: start of the hour, dimensions, requests, sums, two sketches."""
    at_ms, key, requests, sums, ttft, duration = part
    return (at_ms, *key, requests, *sums, _encode(ttft), _encode(duration))


_encode = msgspec.msgpack.Encoder().encode
_sketch = msgspec.msgpack.Decoder(dict[int, int]).decode
