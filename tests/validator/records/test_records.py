"""What a store of decision records keeps, and the queue before it."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from support.ledgers import until
from support.recorded import DIGEST, POLICY, Fickle, a_record, fill
from support.worlds import NOW
from waypost.shared.contracts import Proposal
from waypost.shared.errors import StoreError
from waypost.shared.records import DecisionRecord, encode_record
from waypost.validator.records import RecordFilter, RecordSink, SqliteRecordStore
from waypost.validator.records.repeats import Repeats
from waypost.validator.records.spill import Spill

pytestmark = pytest.mark.anyio

DAY_S = 86_400
ALL = RecordFilter()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.sqlite"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteRecordStore]:
    made = SqliteRecordStore.open(path)
    yield made
    await made.close()


def _ids(records: tuple[DecisionRecord, ...]) -> list[int]:
    return [int(record.id[-12:]) for record in records]


# ── the store ──────────────────────────────────────────────────────────────────────────────────


async def test_a_record_comes_back_as_it_was(store: SqliteRecordStore) -> None:
    odd = a_record(1, detail="\x1b[2J\x00 \u202e ünï 🙂 <script>'; DROP TABLE records;--")
    await fill(store, a_record(0), odd)
    assert await store.get(a_record(0).id) == a_record(0)
    assert await store.get(odd.id) == odd
    assert await store.get("ghost") is None


async def test_a_record_is_written_once_and_never_changed(store: SqliteRecordStore) -> None:
    await fill(store, a_record(0))
    await fill(store, a_record(1), a_record(0, reason="changed"), a_record(2))
    assert await store.get(a_record(0).id) == a_record(0)
    assert _ids(await store.list(ALL, limit=9)) == [2, 1, 0]


async def test_pages_go_back_in_time_without_gap_or_repeat(store: SqliteRecordStore) -> None:
    # Two of one millisecond, and written out of order, as by several processes.
    records = [a_record(n, at_ms=(NOW + n // 2) * 1_000) for n in range(7)]
    await fill(store, *records[3:])
    await fill(store, *records[:3])
    seen: list[int] = []
    before: str | None = None
    while page := await store.list(ALL, limit=3, before=before):
        seen += _ids(page)
        before = page[-1].id
    assert seen == [6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (RecordFilter(verdict="refused"), [1]),
        (RecordFilter(model="large"), [2]),
        (RecordFilter(tenant="south"), [2]),
        (RecordFilter(account="zed"), [3]),
        (RecordFilter(tier="pro"), [3]),
        (RecordFilter(route="hard"), [3]),
        (RecordFilter(since_ms=(NOW + 1) * 1_000, until_ms=(NOW + 3) * 1_000), [2, 1]),
        (RecordFilter(tenant="south", verdict="refused"), []),
        (RecordFilter(tenant="' OR 1=1 --"), []),
    ],
)
async def test_filters_hold_together(
    store: SqliteRecordStore, filters: RecordFilter, found: list[int]
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


async def test_stats_add_up_cost_savings_and_ranks(store: SqliteRecordStore) -> None:
    await fill(
        store,
        *(
            a_record(n, cost_nusd=10, baseline_cost_nusd=25, ttft_ms=n + 1.0, duration_ms=2.0 * n)
            for n in range(100)
        ),
        # Dearer than without routing, and one whose alternative is unknown.
        a_record(100, route="hard", model="large", cost_nusd=50, baseline_cost_nusd=30),
        a_record(101, route="hard", model="large", cost_nusd=7, baseline_cost_nusd=None),
        a_record(102, verdict="refused", route=None, model=None, ttft_ms=None, cost_nusd=0,
                 baseline_cost_nusd=None, duration_ms=1.0),
    )  # fmt: skip
    stats = await store.stats(ALL)
    assert stats.dropped == 0
    first = stats.rows[0]
    assert (first.route, first.model, first.verdict) == ("short-chat", "small", "accepted")
    assert (first.requests, first.cost_nusd, first.saved_nusd) == (100, 1_000, 1_500)
    assert (first.input_tokens, first.output_tokens) == (4_100, 10_000)
    assert [first.ttft_p50_ms, first.ttft_p95_ms, first.ttft_p99_ms] == pytest.approx(
        [50, 95, 99], rel=0.02
    )
    assert [first.duration_p50_ms, first.duration_p95_ms, first.duration_p99_ms] == pytest.approx(
        [98, 188, 196], rel=0.02
    )
    assert (stats.rows[1].cost_nusd, stats.rows[1].saved_nusd) == (57, -20)
    refused = stats.rows[2]
    assert (refused.model, refused.ttft_p50_ms) == (None, None)
    assert refused.duration_p95_ms == pytest.approx(1, rel=0.02)


async def test_an_absurd_bill_is_recorded_as_it_is(store: SqliteRecordStore) -> None:
    absurd = a_record(1, cost_nusd=2**70)
    await fill(store, a_record(0), absurd)
    assert await store.get(absurd.id) == absurd
    assert (await store.stats(ALL)).rows[0].requests == 2


async def test_what_was_dropped_is_told_with_the_totals_of_that_time(path: Path) -> None:
    clock = [float(NOW)]
    store = SqliteRecordStore.open(path, clock=lambda: clock[0])
    await fill(store, a_record(0), dropped=3)
    clock[0] += DAY_S
    await fill(store, dropped=2)
    assert (await store.stats(ALL)).dropped == 5
    assert (await store.stats(RecordFilter(since_ms=(NOW + 9) * 1_000))).dropped == 2
    await store.close()


async def test_the_manifest_is_kept_once_beside_its_records(store: SqliteRecordStore) -> None:
    await store.put_policy(DIGEST, POLICY)
    await store.put_policy(DIGEST, b"another")
    assert await store.get_policy(DIGEST) == POLICY
    assert await store.get_policy("0" * 64) is None


async def test_records_past_their_time_are_deleted_as_new_ones_come(path: Path) -> None:
    store = SqliteRecordStore.open(path, retain_days=7, clock=lambda: NOW + 8 * DAY_S + 7_200.0)
    await fill(
        store,
        *(a_record(n) for n in range(2_500)),
        a_record(9_999_999, at_ms=(NOW + 8 * DAY_S) * 1_000),
    )
    await fill(store, a_record(9_999_998, at_ms=(NOW + 2 * DAY_S) * 1_000))
    assert _ids(await store.list(ALL, limit=9)) == [9_999_999, 9_999_998]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM bodies").fetchone() == (2,)
    await store.close()


async def test_a_command_reads_while_a_validator_writes(
    store: SqliteRecordStore, path: Path
) -> None:
    other = SqliteRecordStore.open(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert await other.list(ALL, limit=1) == ()
        writer.execute("ROLLBACK")
    await other.close()


async def test_a_store_that_cannot_be_opened_read_or_written_says_so(
    path: Path, store: SqliteRecordStore
) -> None:
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="closed") as caught:
        await fill(store, a_record(0))
    assert caught.value.code == "records_unavailable"
    path.with_suffix(".txt").write_text("no database " * 1_000)
    with pytest.raises(StoreError, match="cannot be opened: file is not a database"):
        SqliteRecordStore.open(path.with_suffix(".txt"))
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE bodies")
    with pytest.raises(StoreError, match="cannot be read"):
        await store.get("a")


async def test_a_damaged_record_is_named_as_such(store: SqliteRecordStore, path: Path) -> None:
    await fill(store, a_record(0))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE bodies SET body = '{}'")
    with pytest.raises(StoreError, match="damaged"):
        await store.get(a_record(0).id)


# ── the queue ──────────────────────────────────────────────────────────────────────────────────


async def test_a_record_can_be_read_from_the_moment_it_is_put(store: SqliteRecordStore) -> None:
    sink = RecordSink(store)
    sink.put(a_record(0))
    assert await sink.get(a_record(0).id) == a_record(0)
    await until(lambda: not sink.waiting, pause_s=0.01)
    assert await sink.get(a_record(0).id) == await store.get(a_record(0).id) == a_record(0)
    await sink.close()


async def test_closing_writes_what_waits(store: SqliteRecordStore) -> None:
    sink = RecordSink(store)
    for number in range(5_000):
        sink.put(a_record(number))
    await sink.close()
    assert sink.dropped == 0
    assert (await store.stats(ALL)).rows[0].requests == 5_000


async def test_what_does_not_fit_is_dropped_counted_and_told(store: SqliteRecordStore) -> None:
    sink = RecordSink(store, max_bytes=5_000)
    for number in range(20):
        sink.put(a_record(number))
    assert 0 < sink.waiting < 20
    kept = sink.waiting
    await until(lambda: not sink.waiting, pause_s=0.01)
    sink.put(a_record(99))
    await sink.close()
    stats = await store.stats(ALL)
    assert stats.rows[0].requests == kept + 1
    assert stats.dropped == sink.dropped == 20 - kept


@pytest.mark.parametrize(
    "poisoned",
    [
        a_record(1, detail="\udcff"),
        a_record(1, reason="x" * 10_000_000),
        a_record(1, steps_ms={"step": object()}),
    ],
    ids=["surrogate", "10 MB", "not data"],
)
async def test_a_poisoned_record_is_dropped_alone(
    store: SqliteRecordStore, poisoned: DecisionRecord
) -> None:
    sink = RecordSink(store)
    for record in (a_record(0), poisoned, a_record(2)):
        sink.put(record)
    await sink.close()
    assert _ids(await store.list(ALL, limit=9)) == [2, 0]
    assert (await store.stats(ALL)).dropped == 1


async def test_records_wait_while_the_store_is_locked_and_are_written_after(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("waypost.validator.records.sqlite.BUSY_S", 0.01)
    store = SqliteRecordStore.open(path)
    sink = RecordSink(store)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        sink.put(a_record(0))
        await until(lambda: "decision records wait" in caplog.text, pause_s=0.01)
        sink.put(a_record(1))
        other.execute("ROLLBACK")
    await until(lambda: not sink.waiting, pause_s=0.01)
    assert _ids(await store.list(ALL, limit=9)) == [1, 0]
    await sink.close()
    await store.close()


async def test_closing_does_not_wait_for_a_store_that_stays_away(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("waypost.validator.records.sqlite.BUSY_S", 0.01)
    store = SqliteRecordStore.open(path)
    sink = RecordSink(store)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        sink.put(a_record(0))
        async with asyncio.timeout(20):
            await sink.close()
        other.execute("ROLLBACK")
    assert sink.dropped == 1
    sink.put(a_record(1))
    assert sink.dropped == 2
    await store.close()


async def test_a_record_that_a_caller_made_too_large_keeps_what_was_done(
    store: SqliteRecordStore,
) -> None:
    sink = RecordSink(store)
    swollen = a_record(1, proposal=Proposal(model="m" * 10_000_000))
    sink.put(swollen)
    await sink.close()
    (kept,) = await store.list(ALL, limit=9)
    assert (kept.id, kept.cost_nusd, kept.proposal) == (swollen.id, swollen.cost_nusd, None)
    assert sink.dropped == 0


# ── the spill ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def fickle(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fickle]:
    monkeypatch.setattr("waypost.validator.records.sink.LAST_RETRY_S", 0.01)
    made = Fickle.open(path)
    yield made
    await made.close()


async def test_a_minute_without_the_store_loses_nothing_that_fits_the_spill(
    fickle: Fickle, tmp_path: Path
) -> None:
    # Sixty seconds at 200 a second, pushed through as fast as the queue takes them.
    spill = Spill(tmp_path / "spill", max_bytes=2**30)
    sink = RecordSink(fickle, spill=spill, max_bytes=4 * 2**20)
    fickle.is_down = True
    for start in range(0, 12_000, 1_000):
        for number in range(start, start + 1_000):
            sink.put(a_record(number))
        await until(lambda: not sink.waiting, pause_s=0.005)
    assert sink.spilled_bytes > 12_000_000
    fickle.is_down = False
    sink.put(a_record(12_000))
    await until(lambda: not sink.spilled_bytes, pause_s=0.01)
    assert sink.dropped == 0
    assert (await fickle.stats(ALL)).rows[0].requests == 12_001
    await sink.close()
    assert list((tmp_path / "spill").iterdir()) == []


async def test_what_the_spill_does_not_hold_is_counted(fickle: Fickle, tmp_path: Path) -> None:
    spill = Spill(tmp_path / "spill", max_bytes=20_000)
    sink = RecordSink(fickle, spill=spill, max_bytes=20_000)
    fickle.is_down = True
    for number in range(100):
        sink.put(a_record(number))
        await asyncio.sleep(0.001)
    assert sink.dropped > 0
    fickle.is_down = False
    await until(lambda: not sink.spilled_bytes and not sink.waiting, pause_s=0.01)
    await sink.close()
    stats = await fickle.stats(ALL)
    assert stats.rows[0].requests + stats.dropped == 100


async def test_the_next_process_writes_what_a_dead_one_left(fickle: Fickle, tmp_path: Path) -> None:
    folder = tmp_path / "spill"
    dead = Spill(folder, max_bytes=2**20)
    dead.add([encode_record(a_record(number)) for number in range(3)])
    living = Spill(folder, max_bytes=2**20)
    assert living.waiting_bytes == 0  # its process lives
    dead.close()
    with next(folder.iterdir()).open("ab") as file:
        file.write(encode_record(a_record(3))[:99])  # it died while it wrote
    sink = RecordSink(fickle, spill=Spill(folder, max_bytes=2**20))
    sink.resume()
    await until(lambda: not sink.spilled_bytes, pause_s=0.01)
    await sink.close()
    assert _ids(await fickle.list(ALL, limit=9)) == [2, 1, 0]


async def test_closing_leaves_on_the_disk_what_the_store_does_not_take(
    fickle: Fickle, tmp_path: Path
) -> None:
    sink = RecordSink(fickle, spill=Spill(tmp_path / "spill", max_bytes=2**20))
    fickle.is_down = True
    sink.put(a_record(0))
    await sink.close()
    assert sink.dropped == 0
    left = Spill(tmp_path / "spill", max_bytes=2**20)
    assert left.waiting_bytes > 0
    left.close()


# ── asking again ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("subject", "body", "after_s", "is_repeat"),
    [("a", b"x", 5, True), ("a", b"y", 5, False), ("b", b"x", 5, False), ("a", b"x", 120, False)],
)
def test_the_same_again_within_two_minutes_is_a_repeat(
    subject: str, body: bytes, after_s: int, is_repeat: bool
) -> None:
    repeats = Repeats()
    assert repeats.note("a", b"x", "1", now=NOW) is None
    assert repeats.note(subject, body, "2", now=NOW + after_s) == ("1" if is_repeat else None)
