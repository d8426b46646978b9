"""What the stores in SQL databases share: columns, conditions, and which hours are added up.

Totals of a whole hour are made once, when it is over, and kept when its records are deleted. A
record that comes late makes its hour's totals void until they are made anew. So ``stats`` reads
totals where it can, and single records at the edges and for the hour that runs.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import structs

from waypost.shared.records import DecisionRecord
from waypost.validator.records.base import RecordFilter
from waypost.validator.records.totals import (
    DIMENSIONS,
    SUMS,
    Dimension,
    Part,
    RecordStats,
    bucket_of,
    merged,
    rows_of,
    sums_of,
)

__all__ = [
    "ADDED_UP",
    "COLUMNS",
    "DELETED",
    "HOUR_MS",
    "SETTLED_MS",
    "VOID",
    "Row",
    "Rows",
    "Steps",
    "adding_up",
    "columns_of",
    "conditions",
    "newer_or_older",
    "raw_ranges",
    "stats",
    "void_hour",
]

T = TypeVar("T")

Row = tuple[Any, ...]
Rows = list[Row]

# Queries one after the other, each answered with its rows, and what comes of them: so that a
# database spoken to in a thread and one spoken to by coroutines are asked the same.
Steps = Generator[tuple[str, Sequence[object]], Rows, T]

HOUR_MS = 3_600_000
SETTLED_MS = 300_000  # records of an hour may come this late before it is added up

# States of an hour: its totals are void; they hold; they hold and its records are deleted.
VOID, ADDED_UP, DELETED = 0, 1, 2

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


def newer_or_older(
    filters: RecordFilter, beyond: str | None, mark: str, *, newest: bool
) -> tuple[str, list[object]]:
    """Return what follows FROM for one page of records, all but the limit's value."""
    where, values = conditions(filters, mark)
    order, sign = ("DESC", "<") if newest else ("ASC", ">")
    if beyond is not None:
        where += f" AND (at_ms, id) {sign} (SELECT at_ms, id FROM records WHERE id = {mark})"
        values.append(beyond)
    return f"WHERE {where} ORDER BY at_ms {order}, id {order} LIMIT {mark}", values


# ── which hours ────────────────────────────────────────────────────────────────────────────────


def whole_hours(filters: RecordFilter, step_ms: int | None) -> tuple[int, int]:
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


def stats(
    filters: RecordFilter,
    by: Sequence[Dimension],
    step_ms: int | None,
    mark: str,
    *,
    times: bool = True,
) -> Steps[RecordStats]:
    """Return totals; to be asked within one transaction, so that hours and records agree."""
    whole = whole_hours(filters, step_ms)
    whatever, values = conditions(structs.replace(filters, since_ms=None, until_ms=None), mark)
    within = f"{whatever} AND at_ms >= {mark} AND at_ms < {mark}"
    parts: list[Part] = []
    hours = yield "SELECT at_ms, state FROM hours ORDER BY at_ms", ()
    if whole[0] < whole[1]:
        holding = f"{within} AND at_ms IN (SELECT at_ms FROM hours WHERE state != {VOID})"
        if times:
            rows = yield _totals_query(holding, by, step_ms), [*values, *whole]
            parts += merged(_parts_of_totals(rows, by))
        else:
            rows = yield _sums_query("totals", holding, by, step_ms), [*values, *whole]
            parts += _parts_of_sums(rows, by)
    for span in raw_ranges([(at_ms, state) for at_ms, state in hours], filters, whole):
        if times:
            rows = yield _records_query(within, by, step_ms), [*values, *span]
            parts += merged(_parts_of_records(rows, by))
        else:
            rows = yield _sums_query("records", within, by, step_ms), [*values, *span]
            parts += _parts_of_sums(rows, by)
    where, values = conditions(filters, mark)
    keys = [_step(step_ms), *by]
    rows = yield (
        f"SELECT {', '.join(keys)}, CAST(sum(good) AS BIGINT), CAST(sum(1 - good) AS BIGINT)"
        f" FROM feedback WHERE {where} GROUP BY {_places(keys)}",
        values,
    )
    ratings = [(row[0], row[1:-2], row[-2], row[-1]) for row in rows]
    times_only = RecordFilter(since_ms=filters.since_ms, until_ms=filters.until_ms)
    where, values = conditions(times_only, mark)
    ((dropped,),) = yield (
        f"SELECT CAST(coalesce(sum(dropped), 0) AS BIGINT) FROM gaps WHERE {where}",
        values,
    )
    return RecordStats(
        rows=rows_of(parts, ratings, by=by, is_stepped=step_ms is not None), dropped=dropped
    )


def adding_up(settled_ms: int, mark: str) -> Steps[int]:
    """Make the totals of the oldest hour that lacks them; return whether there are more."""
    found = yield (
        f"SELECT at_ms FROM hours WHERE state = {VOID} AND at_ms <= {mark} ORDER BY at_ms LIMIT 2",
        (settled_ms - HOUR_MS,),
    )
    if not found:
        return 0
    (hour,) = found[0]
    query = _records_query(f"at_ms >= {mark} AND at_ms < {mark}", DIMENSIONS, HOUR_MS)
    rows = yield query, (hour, hour + HOUR_MS)
    yield f"DELETE FROM totals WHERE at_ms = {mark}", (hour,)
    for part in merged(_parts_of_records(rows, DIMENSIONS)):
        row = _total_values(part)
        yield f"INSERT INTO totals VALUES ({', '.join([mark] * len(row))})", row
    yield f"UPDATE hours SET state = {ADDED_UP} WHERE at_ms = {mark}", (hour,)
    return len(found) - 1


def void_hour(mark: str) -> str:
    """Return the statement for an hour that has got a record."""
    return (
        f"INSERT INTO hours VALUES ({mark}, {VOID})"
        f" ON CONFLICT (at_ms) DO UPDATE SET state = {VOID} WHERE hours.state = {ADDED_UP}"
    )


def _step(step_ms: int | None) -> str:
    return "0" if step_ms is None else f"(at_ms / {int(step_ms)}) * {int(step_ms)}"


def _places(names: Sequence[str]) -> str:
    return ", ".join(str(place) for place in range(1, len(names) + 1))


def _records_query(where: str, by: Sequence[Dimension], step_ms: int | None) -> str:
    group = [_step(step_ms), *by, "ttft_bucket", "duration_bucket"]
    sums = [f"CAST(sum({name}) AS BIGINT)" for name in SUMS]
    return (
        f"SELECT {', '.join([*group, 'count(*)', *sums])} FROM records WHERE {where}"
        f" GROUP BY {_places(group)}"
    )


def _parts_of_records(rows: Iterable[Row], by: Sequence[Dimension]) -> Iterator[Part]:
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


def _totals_query(where: str, by: Sequence[Dimension], step_ms: int | None) -> str:
    names = [_step(step_ms), *by, "requests", *SUMS, "ttft", "duration"]
    return f"SELECT {', '.join(names)} FROM totals WHERE {where}"


def _parts_of_totals(rows: Iterable[Row], by: Sequence[Dimension]) -> Iterator[Part]:
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


def _sums_query(
    table: Literal["records", "totals"],
    where: str,
    by: Sequence[Dimension],
    step_ms: int | None,
) -> str:
    """Add up in the database what needs no sketches merged."""
    group = [_step(step_ms), *by]
    requests = "count(*)" if table == "records" else "CAST(sum(requests) AS BIGINT)"
    sums = [f"CAST(sum({name}) AS BIGINT)" for name in SUMS]
    return (
        f"SELECT {', '.join([*group, requests, *sums])} FROM {table} WHERE {where}"
        f" GROUP BY {_places(group)}"
    )


def _parts_of_sums(rows: Iterable[Row], by: Sequence[Dimension]) -> Iterator[Part]:
    end = 1 + len(by)
    for row in rows:
        yield row[0], row[1:end], row[end], row[end + 1 :], {}, {}


def _total_values(part: Part) -> Row:
    at_ms, key, requests, sums, ttft, duration = part
    return (at_ms, *key, requests, *sums, _encode(ttft), _encode(duration))


_encode = msgspec.msgpack.Encoder().encode
_sketch = msgspec.msgpack.Decoder(dict[int, int]).decode
