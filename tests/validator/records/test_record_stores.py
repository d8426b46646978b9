"""What every store of decision records promises, asked of each of them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.recorded import DIGEST, POLICY, a_record, fill
from support.worlds import NOW
from waypost.shared.errors import StoreError
from waypost.shared.records import Attempt, DecisionRecord, Feedback, encode_record
from waypost.validator.records import (
    DIMENSIONS,
    RecordFilter,
    RecordStore,
    SqliteRecordStore,
)
from waypost.validator.records.jsonl import JsonlRecordStore
from waypost.validator.records.postgres import PostgresRecordStore
from waypost.validator.records.sql import DAY_MS, HOUR_MS

pytestmark = pytest.mark.anyio

ALL = RecordFilter()
DAY_S = 86_400
ODD = "\x1b[2J\u202e ünï 🙂 <script>'; DROP TABLE records;--"


class Clock:
    now = float(NOW)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def _postgres(dsn: str, clock: Clock) -> PostgresRecordStore:
    store = await PostgresRecordStore.open(dsn, retain_days=7, totals_days=30, clock=clock)
    async with store._pool.connection() as db:
        await db.execute("TRUNCATE records, booked, hours, totals, feedback, policies, gaps")
    return store


@pytest.fixture(params=["sqlite", "postgres", "jsonl"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Clock
) -> AsyncIterator[RecordStore]:
    made: RecordStore
    if request.param == "sqlite":
        made = SqliteRecordStore.open(tmp_path / "r", retain_days=7, totals_days=30, clock=clock)
    elif request.param == "postgres":
        made = await _postgres(request.getfixturevalue("postgres_dsn"), clock)
    else:
        made = JsonlRecordStore(tmp_path / "r", retain_days=7, clock=clock)
    yield made
    await made.close()


def _ids(records: tuple[DecisionRecord, ...]) -> list[int]:
    return [int(record.id[-12:]) for record in records]


async def test_a_record_comes_back_as_it_was_to_the_byte(store: RecordStore) -> None:
    records = [a_record(0), a_record(1, detail=ODD, reason=ODD)]
    await fill(store, *records)
    assert await store.get(records[1].id) == records[1]
    assert await store.get("ghost") is None
    assert await store.bodies(ALL, limit=9) == tuple(map(encode_record, records))


async def test_what_is_written_twice_is_there_once(store: RecordStore) -> None:
    await fill(store, a_record(0))
    await fill(store, a_record(1), a_record(0))
    assert _ids(await store.list(ALL, limit=9)) == [1, 0]
    assert sum(row.requests for row in (await store.stats(ALL)).rows) == 2


async def test_pages_have_no_gap_and_no_repeat_either_way(store: RecordStore) -> None:
    records = [a_record(n, at_ms=(NOW + n // 2) * 1_000) for n in range(7)]
    await fill(store, *records[3:])
    await fill(store, *records[:3])
    newest: list[int] = []
    before: str | None = None
    while page := await store.list(ALL, limit=3, before=before):
        newest += _ids(page)
        before = page[-1].id
    oldest: list[bytes] = []
    after: str | None = None
    while bodies := await store.bodies(ALL, limit=3, after=after):
        oldest += bodies
        after = records[len(oldest) - 1].id
    assert newest == [6, 5, 4, 3, 2, 1, 0]
    assert oldest == list(map(encode_record, records))


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (RecordFilter(verdict="refused"), [1]),
        (RecordFilter(model="large", reason="proposal_allowed"), [2]),
        (RecordFilter(account="zed"), [3]),
        (RecordFilter(since_ms=(NOW + 1) * 1_000, until_ms=(NOW + 3) * 1_000), [2, 1]),
        (RecordFilter(tenant="' OR 1=1 --"), []),
    ],
)
async def test_filters_hold_together(
    store: RecordStore, filters: RecordFilter, found: list[int]
) -> None:
    await fill(
        store,
        a_record(0),
        a_record(1, verdict="refused", model=None),
        a_record(2, model="large", tenant="south"),
        a_record(3, account="zed", tier="pro", route="hard"),
    )
    assert _ids(await store.list(filters, limit=9)) == found
    assert sum(row.requests for row in (await store.stats(filters)).rows) == len(found)


def _tried(number: int, *costs: tuple[str, int], **changes: object) -> DecisionRecord:
    """Return a record of attempts that cost this, the last of which was told."""
    attempts = tuple(
        Attempt(model=model, provider="p", outcome="ok", cost_nusd=nusd) for model, nusd in costs
    )
    cost = sum(nusd for _, nusd in costs)
    fields = {"attempts": attempts, "model": costs[-1][0], "cost_nusd": cost, **changes}
    return a_record(number, **fields)


async def _booked(store: RecordStore, filters: RecordFilter = ALL) -> dict[str | None, int]:
    rows = (await store.stats(filters, by=("model",), times=())).rows
    return {row.model: row.cost_nusd for row in rows}


async def test_what_an_attempt_cost_is_booked_on_its_own_model(store: RecordStore) -> None:
    lost = _tried(1, ("large", 700), ("large", 50), ("small", 20), route="hard")
    await fill(
        store,
        a_record(0, cost_nusd=5),
        lost,
        _tried(2, ("small", 1), ("small", 2), at_ms=(NOW + 7_200) * 1_000, account="zed"),
    )
    await fill(store, lost)  # once more, as after a failure

    assert await _booked(store) == {"small": 28, "large": 750}
    assert await _booked(store, RecordFilter(model="large")) == {"large": 750}
    assert await _booked(store, RecordFilter(account="acme")) == {"small": 25, "large": 750}
    assert await _booked(store, RecordFilter(route="short-chat")) == {"small": 8}
    by_route = (await store.stats(ALL, by=("route", "model"), times=())).rows
    assert {(row.route, row.model): row.cost_nusd for row in by_route} == {
        ("short-chat", "small"): 8,
        ("hard", "small"): 20,
        ("hard", "large"): 750,
    }
    stepped = (await store.stats(ALL, by=("model",), step_ms=3_600_000)).rows
    assert sum(row.cost_nusd for row in stepped if row.model == "large") == 750
    (whole,) = (await store.stats(ALL, by=())).rows
    assert (whole.requests, whole.cost_nusd) == (3, 778)
    assert sum(row.requests for row in by_route) == 3
    # What it is told against does not depend on who is charged.
    told = (await store.stats(ALL, by=("model",), times=())).rows
    assert sum(row.saved_nusd for row in told) == whole.saved_nusd


async def test_costs_stay_booked_when_records_are_added_up_and_deleted(
    store: RecordStore, clock: Clock
) -> None:
    if isinstance(store, JsonlRecordStore):
        return  # it adds nothing up
    await fill(store, *(_tried(n, ("large", 10 + n), ("small", 1)) for n in range(20)))
    before = await _booked(store)
    for days in (1, 8):
        clock.now = NOW + days * DAY_S
        await store.compact()  # type: ignore[attr-defined]
        assert await _booked(store) == before == {"small": 20, "large": 390}
    # By account nothing is known any more, of either model.
    assert await _booked(store, RecordFilter(account="acme")) in ({}, before)
    clock.now = NOW + 40 * DAY_S
    await store.compact()  # type: ignore[attr-defined]
    assert await _booked(store) == {}


async def test_each_store_adds_up_alike(store: RecordStore, tmp_path: Path, clock: Clock) -> None:
    records = [
        a_record(
            number,
            at_ms=(NOW + number * 900) * 1_000,
            model=f"m{number % 3}",
            ttft_ms=None if number % 4 == 0 else 10.0 * number,
            duration_ms=20.0 + number,
        )
        for number in range(40)
    ]
    other = SqliteRecordStore.open(tmp_path / "other", clock=clock)
    for one in (store, other):
        await fill(one, *records, dropped=3)
        await one.put_feedback(records[5], Feedback(rating="bad", at_ms=7, cause="wrong"))
        await one.put_feedback(records[5], Feedback(rating="good", at_ms=8))
    steps = (HOUR_MS, DAY_MS)
    expected = [await other.stats(ALL, by=DIMENSIONS, step_ms=step) for step in steps]
    assert [await store.stats(ALL, by=DIMENSIONS, step_ms=step) for step in steps] == expected
    clock.now += DAY_S
    await fill(store, a_record(99, at_ms=int(clock.now) * 1_000))  # upkeep rides on writing
    until = RecordFilter(until_ms=(NOW + 40_000) * 1_000)
    for step, before in zip(steps, expected, strict=True):
        assert (await store.stats(until, by=DIMENSIONS, step_ms=step)).rows == before.rows
    kept = await store.get(records[5].id)
    assert kept is not None
    assert kept.feedback == Feedback(rating="good", at_ms=8)
    await other.close()


async def test_records_past_their_time_go_and_their_totals_stay(
    store: RecordStore, clock: Clock
) -> None:
    await fill(store, a_record(0))
    clock.now += 9 * DAY_S
    await fill(store, a_record(1, at_ms=int(clock.now) * 1_000))
    assert _ids(await store.list(ALL, limit=9)) == [1]
    has_totals = not isinstance(store, JsonlRecordStore)
    totals = sum(row.requests for row in (await store.stats(ALL)).rows)
    assert totals == (2 if has_totals else 1)


async def test_manifests_are_kept_once(store: RecordStore) -> None:
    await store.put_policy(DIGEST, POLICY)
    await store.put_policy(DIGEST, b"another")
    assert await store.get_policy(DIGEST) == POLICY
    assert await store.get_policy("0" * 64) is None
    assert await store.get_policy("../../etc/passwd") is None


async def test_a_database_that_is_away_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened") as caught:
        await PostgresRecordStore.open(f"host={tmp_path} connect_timeout=1", patience_s=0.2)
    assert caught.value.code == "records_unavailable"
