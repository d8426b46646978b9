"""Totals of decision records: quick on very many, and the same however they are come by."""

import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.recorded import a_record, fill
from support.worlds import NOW
from waypost.shared.records import Attempt, DecisionRecord, Feedback, encode_record
from waypost.validator.records import DIMENSIONS, RecordFilter, SqliteRecordStore
from waypost.validator.records.sql import ADDED_UP, DAY_MS, DELETED, HOUR_MS, VOID, pieces
from waypost.validator.records.totals import bucket_of, moves_of, rank_ms

pytestmark = pytest.mark.anyio

ALL = RecordFilter()
HOUR_S = 3_600
DAY_S = 86_400


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[SqliteRecordStore]:
    made = SqliteRecordStore.open(
        tmp_path / "records.sqlite", retain_days=7, totals_days=30, clock=clock
    )
    yield made
    await made.close()


def _hourly(count: int, *, every_s: int = 600) -> list[DecisionRecord]:
    models = ("small", "large")
    return [
        a_record(
            number,
            at_ms=(NOW + number * every_s) * 1_000,
            model=models[number % 2],
            ttft_ms=None if number % 5 == 0 else 50.0 + number,
            duration_ms=100.0 + number,
            cost_nusd=number,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(
    "filters",
    [
        ALL,
        RecordFilter(model="large"),
        RecordFilter(since_ms=(NOW + 4_000) * 1_000, until_ms=(NOW + 30_123) * 1_000),
        RecordFilter(account="acme"),
        RecordFilter(since_ms=NOW * 1_000, until_ms=(NOW + 60) * 1_000),
    ],
)
@pytest.mark.parametrize("step_ms", [None, HOUR_MS, 60_000, 24 * HOUR_MS])
async def test_totals_by_the_hour_say_what_the_records_say(
    store: SqliteRecordStore, clock: Clock, filters: RecordFilter, step_ms: int | None
) -> None:
    await fill(store, *_hourly(100))
    before = await store.stats(filters, by=DIMENSIONS, step_ms=step_ms)
    clock.now += 100 * 600 + DAY_S
    await store.compact()
    assert await store.stats(filters, by=DIMENSIONS, step_ms=step_ms) == before
    assert sum(row.requests for row in before.rows) > 0


async def test_a_series_has_a_row_for_each_step(store: SqliteRecordStore) -> None:
    await fill(store, *_hourly(18))
    rows = (await store.stats(ALL, by=(), step_ms=HOUR_MS)).rows
    assert [(row.at_ms, row.requests) for row in rows] == [
        ((NOW + hour * HOUR_S) * 1_000, 6) for hour in range(3)
    ]


async def test_a_record_that_comes_late_is_in_the_totals(
    store: SqliteRecordStore, clock: Clock
) -> None:
    await fill(store, *_hourly(12))
    clock.now += DAY_S
    await store.compact()
    await fill(store, a_record(99, at_ms=(NOW + 1) * 1_000))
    for _ in range(2):
        assert sum(row.requests for row in (await store.stats(ALL)).rows) == 13
        await store.compact()


async def test_totals_outlive_the_records_and_then_go_too(
    store: SqliteRecordStore, clock: Clock
) -> None:
    await fill(store, *_hourly(12))
    clock.now += 8 * DAY_S
    await store.compact()
    assert await store.list(ALL, limit=99) == ()
    assert sum(row.requests for row in (await store.stats(ALL)).rows) == 12
    await fill(store, a_record(99, at_ms=(NOW + 1) * 1_000))
    await store.compact()
    assert sum(row.requests for row in (await store.stats(ALL)).rows) == 12
    clock.now += 30 * DAY_S
    await store.compact()
    assert (await store.stats(ALL)).rows == ()


async def test_fates_are_told_apart(store: SqliteRecordStore) -> None:
    def tried(*outcomes: str) -> tuple[Attempt, ...]:
        return tuple(Attempt(model="m", provider="p", outcome=o) for o in outcomes)  # type: ignore[arg-type]

    await fill(
        store,
        a_record(0, attempts=tried("timeout", "ok")),
        a_record(1, attempts=tried("timeout", "server_error")),
        a_record(2, attempts=tried("cancelled")),
        a_record(3, attempts=tried("client_error"), repeats=a_record(2).id),
        a_record(4, attempts=(), reason="internal_error"),
        a_record(5, attempts=(), reason="budget_exhausted"),
    )
    (row,) = (await store.stats(ALL, by=())).rows
    told = (row.requests, row.failed, row.abandoned, row.retried, row.repeated)
    assert told == (6, 2, 1, 2, 1)


async def test_feedback_is_joined_and_its_newest_word_counts(store: SqliteRecordStore) -> None:
    records = [a_record(number, route="hard" if number % 2 else "easy") for number in range(4)]
    await fill(store, *records)
    for record in records:
        await store.put_feedback(record, Feedback(rating="good", at_ms=1))
    said = Feedback(rating="bad", at_ms=2, cause="incomplete")
    await store.put_feedback(records[1], said)
    kept = await store.get(records[1].id)
    assert kept is not None
    assert kept.feedback == said
    rows = (await store.stats(ALL, by=("route",))).rows
    assert {row.route: (row.requests, row.good, row.bad) for row in rows} == {
        "easy": (2, 2, 0),
        "hard": (2, 1, 1),
    }


async def test_bodies_are_deflated_and_read_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "records.sqlite"
    refused = a_record(0, facts=None, attempts=())  # says too little to deflate others by
    records = [refused, *(a_record(number, duration_ms=number * 1.7) for number in range(1, 60))]
    for part in (records[:1], records[1:30], records[20:]):  # each by another process
        store = SqliteRecordStore.open(path)
        await fill(store, *part)
        await store.close()
    with closing(sqlite3.connect(path)) as db:
        sizes = [size for (size,) in db.execute("SELECT length(body) FROM bodies ORDER BY seq")]
    store = SqliteRecordStore.open(path)
    bodies = await store.bodies(ALL, limit=99)
    assert bodies == tuple(map(encode_record, records))
    assert await store.list(ALL, limit=99) == tuple(reversed(records))
    assert sizes[0] == len(bodies[0])
    assert max(sizes[1:]) < len(bodies[1]) / 5
    await store.close()


# ── the pure parts ─────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.floats(0.02, 3_000_000), min_size=1, max_size=50), st.integers(1, 100))
def test_a_rank_is_known_to_two_per_cent(times: list[float], percent: int) -> None:
    sketch: dict[int, int] = {}
    for ms in times:
        bucket = bucket_of(ms) or 0
        sketch[bucket] = sketch.get(bucket, 0) + 1
    exact = sorted(times)[-(-len(times) * percent // 100) - 1]
    assert rank_ms(sketch, percent) == pytest.approx(exact, rel=0.0202)


STATES = st.lists(st.tuples(st.integers(0, 71), st.sampled_from([VOID, ADDED_UP, DELETED])))


@given(
    STATES.map(lambda found: dict(sorted(found))),
    st.sets(st.sampled_from([0, DAY_MS, 2 * DAY_MS])),
    st.integers(0, 3 * DAY_MS),
    st.integers(0, 3 * DAY_MS),
    st.sampled_from([None, 60_000, HOUR_MS, DAY_MS]),
)
def test_each_moment_is_counted_once(
    states: dict[int, int], days: set[int], since: int, until: int, step_ms: int | None
) -> None:
    hours = [(place * HOUR_MS, state) for place, state in states.items()]
    filters = RecordFilter(since_ms=since, until_ms=until)
    found = pieces(hours, days, filters, step_ms)
    for hour in states:
        for moment in (hour * HOUR_MS + 1, (hour + 1) * HOUR_MS - 1):
            tables = [table for table, first, last in found if first <= moment < last]
            assert len(tables) == (since <= moment < until)
    for table, first, last in found:
        length = {"records": 1, "totals": HOUR_MS, "day_totals": DAY_MS}[table]
        assert first % length == last % length == 0
        assert table == "records" or (step_ms or length) % length == 0


_attempts = st.lists(
    st.builds(
        Attempt,
        model=st.sampled_from(["small", "large", "eu"]),
        provider=st.just("acme"),
        outcome=st.sampled_from(["ok", "cut_short", "timeout", "cancelled"]),
        cost_nusd=st.integers(0, 10**12),
    ),
    min_size=1,
    max_size=5,
).map(tuple)


@given(st.lists(st.tuples(_attempts, st.integers(0, 4)), max_size=6))
def test_each_model_is_booked_what_its_attempts_cost(
    drawn: list[tuple[tuple[Attempt, ...], int]],
) -> None:
    booked: Counter[str | None] = Counter()
    spent: Counter[str | None] = Counter()
    for attempts, told in drawn:
        cost = sum(attempt.cost_nusd for attempt in attempts)
        model = attempts[told % len(attempts)].model  # the last is not always the one told
        record = a_record(attempts=attempts, model=model, cost_nusd=cost)
        booked[record.model] += record.cost_nusd
        for other, nusd in moves_of(record):
            booked[other] += nusd
        for attempt in attempts:
            spent[attempt.model] += attempt.cost_nusd
        assert sum(nusd for _, nusd in moves_of(record)) == 0
    assert +booked == +spent
