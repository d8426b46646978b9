"""What the stores in SQL databases share: columns, conditions, and what is added up already.

Totals of a whole hour are made once, when it is over, and kept when its records are deleted; those
of a day are made of its hours'. A record that comes late makes both void until they are made anew.
So ``stats`` reads whole days where it can, hours at their edges, and single records at the edges of
those and for the hour that runs.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence, Set
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import structs

from waypost.shared.records import DecisionRecord
from waypost.validator.records.base import RecordFilter
from waypost.validator.records.totals import (
    DIMENSIONS,
    SUMS,
    TIMES,
    Dimension,
    Move,
    Part,
    RecordStats,
    Time,
    bucket_of,
    merged,
    moves_of,
    rows_of,
    sums_of,
)

__all__ = [
    "ADDED_UP",
    "ADDED_UP_TABLES",
    "BOOKED",
    "COLUMNS",
    "DAY_MS",
    "DELETED",
    "HOUR_MS",
    "SETTLED_MS",
    "VOID",
    "Piece",
    "Row",
    "Rows",
    "Steps",
    "adding_up",
    "booked_of",
    "columns_of",
    "conditions",
    "newer_or_older",
    "pieces",
    "stats",
    "voiding",
]

T = TypeVar("T")

Row = tuple[Any, ...]
Rows = list[Row]

# Queries one after the other, each answered with its rows, and what comes of them: so that a
# database spoken to in a thread and one spoken to by coroutines are asked the same.
Steps = Generator[tuple[str, Sequence[object]], Rows, T]

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
SETTLED_MS = 300_000  # records of an hour may come this late before it is added up

ADDED_UP_TABLES = ("totals", "hours", "day_totals", "days", "feedback", "gaps", "booked")

# Where a stretch of time is read from, its start, and its end, which is not in it.
Table = Literal["records", "totals", "day_totals"]
Piece = tuple[Table, int, int]

# States of an hour: its totals are void; they hold; they hold and its records are deleted.
VOID, ADDED_UP, DELETED = 0, 1, 2

# A provider's usage, and so a bill, may be absurd; a thousand of these still add up in 64 bits.
MOST = 2**53 - 1

COLUMNS = ("id", "at_ms", "account", *DIMENSIONS, *SUMS, "ttft_bucket", "duration_bucket")
# Costs that belong to another model than their record's; most records have none.
BOOKED = ("id", "at_ms", "account", *DIMENSIONS, "nusd")
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
        *[v if -MOST <= v <= MOST else (MOST if v > 0 else -MOST) for v in sums_of(record)],
        bucket_of(record.ttft_ms),
        bucket_of(record.duration_ms),
    )


def booked_of(record: DecisionRecord) -> list[Row]:
    """Return the rows of ``booked`` that ``record`` makes, in the order of ``BOOKED``."""
    moves = moves_of(record)
    if not moves:
        return []
    place = BOOKED.index("model")
    row: Row = columns_of(record)[: len(BOOKED) - 1]
    lost = [(model, min(nusd, MOST)) for model, nusd in moves[:-1]]
    rows: Rows = [(*row[:place], model, *row[place + 1 :], nusd) for model, nusd in lost]
    return [*rows, (*row, -sum(nusd for _, nusd in lost))]


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


# ── what is read from where ────────────────────────────────────────────────────────────────────


def pieces(
    hours: Iterable[tuple[int, int]],
    days: Set[int],
    filters: RecordFilter,
    step_ms: int | None,
) -> list[Piece]:
    """Return what has to be read so that each record counts once, in order, joined where it can be.

    Args:
        hours: start and state; every hour that has records, in order.
        days: starts of those that are added up.
    """
    since = 0 if filters.since_ms is None else filters.since_ms
    until = 2**62 if filters.until_ms is None else filters.until_ms
    # Totals know no accounts, and an hour's not what lies within it.
    by_hour = filters.account is None and (step_ms or HOUR_MS) % HOUR_MS == 0
    by_day = by_hour and (step_ms or DAY_MS) % DAY_MS == 0
    found: list[Piece] = []
    for start, state in hours:
        end, day = start + HOUR_MS, start // DAY_MS * DAY_MS
        if by_day and day in days and since <= day and day + DAY_MS <= until:
            piece: Piece = ("day_totals", day, day + DAY_MS)
        elif by_hour and state != VOID and since <= start and end <= until:
            piece = ("totals", start, end)
        else:
            piece = ("records", max(start, since), min(end, until))
        if piece[1] >= piece[2]:
            continue
        # What lies between two that follow each other is empty.
        if found and found[-1][0] == piece[0]:
            piece = (piece[0], found.pop()[1], piece[2])
        found.append(piece)
    return found


# ── adding up ──────────────────────────────────────────────────────────────────────────────────


def stats(
    filters: RecordFilter,
    by: Sequence[Dimension],
    step_ms: int | None,
    mark: str,
    *,
    times: Sequence[Time] = TIMES,
) -> Steps[RecordStats]:
    """Return totals; to be asked within one transaction, so that hours and records agree."""
    whatever, values = conditions(structs.replace(filters, since_ms=None, until_ms=None), mark)
    within = f"{whatever} AND at_ms >= {mark} AND at_ms < {mark}"
    span = (
        0 if filters.since_ms is None else filters.since_ms // DAY_MS * DAY_MS,
        2**62 if filters.until_ms is None else filters.until_ms,
    )
    when = f"at_ms >= {mark} AND at_ms < {mark}"
    hours = yield f"SELECT at_ms, state FROM hours WHERE {when} ORDER BY at_ms", span
    days = yield f"SELECT at_ms FROM days WHERE {when}", span
    known = {day for (day,) in days}
    parts: list[Part] = []
    moves: list[Move] = []
    # Over all models what is moved adds up to nothing.
    is_by_model = "model" in by or filters.model is not None
    for table, start, end in pieces(((h, state) for h, state in hours), known, filters, step_ms):
        bound = [*values, start, end]
        parts += yield from _parts(table, within, bound, by, step_ms, times)
        if is_by_model:
            moves += yield from _moves(table, within, bound, by, step_ms)
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
        rows=rows_of(parts, ratings, moves, by=by, is_stepped=step_ms is not None),
        dropped=dropped,
    )


def _moves(
    table: Table, where: str, values: Sequence[object], by: Sequence[Dimension], step_ms: int | None
) -> Steps[list[Move]]:
    """Read what is booked on other models, of the requests that ``table`` tells of."""
    keys = [_step(step_ms), *by]
    if table == "records":  # of those that are deleted nothing is added up, so nothing is moved
        where += " AND EXISTS (SELECT 1 FROM records WHERE records.id = booked.id)"
    rows = yield (
        f"SELECT {', '.join(keys)}, CAST(sum(nusd) AS BIGINT) FROM booked WHERE {where}"
        f" GROUP BY {_places(keys)}",
        values,
    )
    return [(row[0], row[1:-1], row[-1]) for row in rows]


def adding_up(settled_ms: int, mark: str) -> Steps[int]:
    """Make the totals of the oldest hour that lacks them, or else day; return whether to go on."""
    found = yield (
        f"SELECT at_ms FROM hours WHERE state = {VOID} AND at_ms <= {mark} ORDER BY at_ms LIMIT 1",
        (settled_ms - HOUR_MS,),
    )
    if found:
        (hour,) = found[0]
        yield from _add_up("records", "totals", hour, HOUR_MS, mark)
        yield f"UPDATE hours SET state = {ADDED_UP} WHERE at_ms = {mark}", (hour,)
        return 1
    # No hour that is over lacks its totals now, so none of a day that is over does.
    start = f"at_ms / {DAY_MS} * {DAY_MS}"
    ((day,),) = yield (
        f"SELECT min({start}) FROM hours WHERE at_ms < {mark}"
        f" AND {start} NOT IN (SELECT at_ms FROM days)",
        (settled_ms // DAY_MS * DAY_MS,),
    )
    if day is None:
        return 0
    yield from _add_up("totals", "day_totals", day, DAY_MS, mark)
    yield f"INSERT INTO days VALUES ({mark})", (day,)
    return 1


def _add_up(source: Table, table: Table, at_ms: int, length_ms: int, mark: str) -> Steps[None]:
    within = f"at_ms >= {mark} AND at_ms < {mark}"
    span = (at_ms, at_ms + length_ms)
    parts = yield from _parts(source, within, span, DIMENSIONS, length_ms, TIMES)
    yield f"DELETE FROM {table} WHERE at_ms = {mark}", (at_ms,)
    for part in merged(parts):
        row = _total_values(part)
        yield f"INSERT INTO {table} VALUES ({', '.join([mark] * len(row))})", row


def voiding(times_ms: Iterable[int], mark: str) -> Iterator[tuple[str, tuple[int]]]:
    """Give the statements for the hours and days that have got records of these times."""
    hours = sorted({at_ms // HOUR_MS * HOUR_MS for at_ms in times_ms})
    for hour in hours:
        yield (
            (
                f"INSERT INTO hours VALUES ({mark}, {VOID})"
                f" ON CONFLICT (at_ms) DO UPDATE SET state = {VOID} WHERE hours.state = {ADDED_UP}"
            ),
            (hour,),
        )
    for day in sorted({hour // DAY_MS * DAY_MS for hour in hours}):
        yield f"DELETE FROM days WHERE at_ms = {mark}", (day,)


def _step(step_ms: int | None) -> str:
    return "0" if step_ms is None else f"(at_ms / {int(step_ms)}) * {int(step_ms)}"


def _places(names: Sequence[str]) -> str:
    return ", ".join(str(place) for place in range(1, len(names) + 1))


def _parts(
    table: Table,
    where: str,
    values: Sequence[object],
    by: Sequence[Dimension],
    step_ms: int | None,
    times: Sequence[Time],
) -> Steps[list[Part]]:
    """Read ``table``. Sums are made by the database; sketches, which it cannot merge, here."""
    if table == "records" and times:
        rows = yield _records_query(where, by, step_ms), values
        return merged(_parts_of_records(rows, by))
    rows = yield _sums_query(table, where, by, step_ms), values
    parts = list(_parts_of_sums(rows, by))
    if times:
        rows = yield _times_query(table, where, by, step_ms, times), values
        parts += merged(_parts_of_times(rows, by, times))
    return parts


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


def _times_query(
    table: Table, where: str, by: Sequence[Dimension], step_ms: int | None, times: Sequence[Time]
) -> str:
    return f"SELECT {', '.join([_step(step_ms), *by, *times])} FROM {table} WHERE {where}"


def _parts_of_times(
    rows: Iterable[Row], by: Sequence[Dimension], times: Sequence[Time]
) -> Iterator[Part]:
    end = 1 + len(by)
    places = [end + times.index(name) if name in times else None for name in TIMES]
    for row in rows:
        ttft, duration = [{} if place is None else _sketch(row[place]) for place in places]
        yield row[0], row[1:end], 0, (), ttft, duration


def _sums_query(table: Table, where: str, by: Sequence[Dimension], step_ms: int | None) -> str:
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
