"""Decision records in PostgreSQL, for several machines: a partition for each day.

Retention drops whole partitions, which costs nothing, and all upkeep is done by whichever
validator gets its lock. Bodies are kept as bytes, so that they come back as they were signed.
"""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Self, TypeVar

import msgspec
import psycopg
from msgspec import structs
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from waypost.shared.errors import StoreError
from waypost.shared.records import DecisionRecord, Feedback, decode_record
from waypost.validator.records.base import BY_DEFAULT, Encoded, RecordFilter
from waypost.validator.records.sql import (
    ADDED_UP_TABLES,
    BOOKED,
    COLUMNS,
    DAY_MS,
    DELETED,
    SETTLED_MS,
    VOID,
    Rows,
    Steps,
    adding_up,
    booked_of,
    columns_of,
    newer_or_older,
    stats,
    voiding,
)
from waypost.validator.records.totals import (
    DIMENSIONS,
    SUMS,
    TIMES,
    Dimension,
    RecordStats,
    Time,
)

__all__ = ["PostgresRecordStore"]

T = TypeVar("T")
Connection = AsyncConnection[TupleRow]

UPKEEP_EVERY_S = 60.0
PATIENCE_S = 5.0
RECONNECT_S = 1.0  # then whoever needs a connection tries anew
POOL_SIZE = 4
# Numbers of our own among the database's advisory locks.
SCHEMA_LOCK, UPKEEP_LOCK = 0x57617901, 0x57617902

_TYPES = {name: "text" for name in ("id", "account", *DIMENSIONS)} | {
    name: "bigint" for name in ("at_ms", "nusd", *SUMS, "ttft_bucket", "duration_bucket")
}
_DIMENSIONS = ", ".join(f"{name} text" for name in DIMENSIONS)
_SUMS = ", ".join(f"{name} bigint NOT NULL" for name in SUMS)
_TOTALS = (
    f"at_ms bigint NOT NULL, {_DIMENSIONS}, requests bigint NOT NULL, {_SUMS},"
    " ttft bytea NOT NULL, duration bytea NOT NULL"
)
SCHEMA = (
    f"CREATE TABLE IF NOT EXISTS records (id text NOT NULL, at_ms bigint NOT NULL, account text,"
    f" {_DIMENSIONS}, {_SUMS}, ttft_bucket bigint, duration_bucket bigint NOT NULL,"
    " body bytea NOT NULL, PRIMARY KEY (id, at_ms)) PARTITION BY RANGE (at_ms)",
    "CREATE INDEX IF NOT EXISTS records_by_time ON records (at_ms, id)",
    "CREATE INDEX IF NOT EXISTS records_by_model ON records (model, at_ms)",
    "CREATE INDEX IF NOT EXISTS records_by_tenant ON records (tenant, at_ms)",
    "CREATE INDEX IF NOT EXISTS records_by_reason ON records (reason, at_ms)",
    "CREATE INDEX IF NOT EXISTS records_by_route ON records (route, at_ms)",
    "CREATE INDEX IF NOT EXISTS records_by_account ON records (account, at_ms)",
    "CREATE INDEX IF NOT EXISTS records_by_verdict ON records (verdict, at_ms)",
    "CREATE TABLE IF NOT EXISTS hours (at_ms bigint PRIMARY KEY, state integer NOT NULL)",
    f"CREATE TABLE IF NOT EXISTS totals ({_TOTALS})",
    "CREATE INDEX IF NOT EXISTS totals_by_time ON totals (at_ms)",
    "CREATE TABLE IF NOT EXISTS days (at_ms bigint PRIMARY KEY)",
    f"CREATE TABLE IF NOT EXISTS day_totals ({_TOTALS})",
    "CREATE INDEX IF NOT EXISTS day_totals_by_time ON day_totals (at_ms)",
    f"CREATE TABLE IF NOT EXISTS feedback (id text PRIMARY KEY, at_ms bigint NOT NULL,"
    f" account text, {_DIMENSIONS}, good integer NOT NULL, body bytea NOT NULL)",
    "CREATE INDEX IF NOT EXISTS feedback_by_time ON feedback (at_ms)",
    f"CREATE TABLE IF NOT EXISTS booked (id text NOT NULL, at_ms bigint NOT NULL, account text,"
    f" {_DIMENSIONS}, nusd bigint NOT NULL, PRIMARY KEY (id, model))",
    "CREATE INDEX IF NOT EXISTS booked_by_time ON booked (at_ms)",
    "CREATE TABLE IF NOT EXISTS policies (digest text PRIMARY KEY, body bytea NOT NULL)",
    "CREATE TABLE IF NOT EXISTS gaps (at_ms bigint NOT NULL, dropped bigint NOT NULL)",
)
_APPEND = (
    f"INSERT INTO records ({', '.join(COLUMNS)}, body) SELECT * FROM unnest("
    + ", ".join(f"%s::{_TYPES[name]}[]" for name in COLUMNS)
    + ", %s::bytea[]) ON CONFLICT DO NOTHING"
)
_BOOK = (
    "INSERT INTO booked SELECT * FROM unnest("
    + ", ".join(f"%s::{_TYPES[name]}[]" for name in BOOKED)
    + ") ON CONFLICT DO NOTHING"
)


class PostgresRecordStore:
    """A ``RecordStore`` in a PostgreSQL database, which any number of validators share."""

    def __init__(
        self,
        pool: AsyncConnectionPool[Connection],
        *,
        retain_days: int | None,
        totals_days: int | None,
        clock: Callable[[], float],
    ) -> None:
        self._pool = pool
        self._retain_days = retain_days
        self._totals_days = totals_days
        self._clock = clock
        self._upkeep_at = 0.0
        self._days: set[int] = set()

    @classmethod
    async def open(
        cls,
        dsn: str,
        *,
        retain_days: int | None = None,
        totals_days: int | None = None,
        clock: Callable[[], float] = time.time,
        patience_s: float = PATIENCE_S,
    ) -> Self:
        """Return the store in the database that ``dsn`` names; tables are made if need be.

        Args:
            retain_days, totals_days: see ``SqliteRecordStore.open``.

        Raises:
            StoreError: ``records_unavailable``, the database cannot be used.
        """
        pool = AsyncConnectionPool[Connection](
            dsn,
            min_size=1,
            max_size=POOL_SIZE,
            open=False,
            timeout=patience_s,
            # By itself it waits twice as long after each failure: minutes, after a long outage.
            reconnect_timeout=RECONNECT_S,
        )
        store = cls(pool, retain_days=retain_days, totals_days=totals_days, clock=clock)
        try:
            await pool.open(wait=True, timeout=patience_s)
            async with store._transaction("opened") as db:
                await _lock(db, SCHEMA_LOCK)
                for statement in SCHEMA:
                    await db.execute(statement.encode())
        except (psycopg.Error, PoolTimeout) as exc:
            await pool.close()
            raise _unavailable("opened", exc) from exc
        except StoreError:
            await pool.close()
            raise
        return store

    async def append(self, records: Sequence[Encoded], *, dropped: int = 0) -> None:
        """See ``RecordStore.append``."""
        now_ms = int(self._clock() * 1_000)
        async with self._transaction("written") as db:
            await self._make_partitions(db, records)
            if records:
                columns = zip(*[columns_of(record) for record, _ in records], strict=True)
                bodies = [body for _, body in records]
                await _execute(db, _APPEND, [*map(list, columns), bodies])
            booked = [row for record, _ in records for row in booked_of(record)]
            if booked:
                await _execute(db, _BOOK, list(map(list, zip(*booked, strict=True))))
            for statement, value in voiding((record.at_ms for record, _ in records), "%s"):
                await _execute(db, statement, value)
            if dropped:
                await _execute(db, "INSERT INTO gaps VALUES (%s, %s)", [now_ms, dropped])
        if now_ms >= self._upkeep_at:
            self._upkeep_at = now_ms + UPKEEP_EVERY_S * 1_000
            await self.compact()

    async def get(self, record_id: str) -> DecisionRecord | None:
        """See ``RecordStore.get``."""
        found = await self._read("SELECT body FROM records WHERE id = %s", [record_id])
        if not found:
            return None
        record = _decode(found[0][0])
        said = await self._read("SELECT body FROM feedback WHERE id = %s", [record_id])
        return structs.replace(record, feedback=_decode_feedback(said[0][0])) if said else record

    async def list(
        self, filters: RecordFilter, *, limit: int, before: str | None = None
    ) -> tuple[DecisionRecord, ...]:
        """See ``RecordStore.list``."""
        return tuple(map(_decode, await self._page(filters, limit, before, newest=True)))

    async def bodies(
        self, filters: RecordFilter, *, limit: int, after: str | None = None
    ) -> tuple[bytes, ...]:
        """See ``RecordStore.bodies``."""
        return tuple(await self._page(filters, limit, after, newest=False))

    async def stats(
        self,
        filters: RecordFilter,
        *,
        by: Sequence[Dimension] = BY_DEFAULT,
        step_ms: int | None = None,
        times: Sequence[Time] = TIMES,
    ) -> RecordStats:
        """See ``RecordStore.stats``."""
        async with self._transaction("read") as db:
            await db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            return await _run(db, stats(filters, by, step_ms, "%s", times=times))

    async def put_feedback(self, record: DecisionRecord, feedback: Feedback) -> None:
        """See ``RecordStore.put_feedback``."""
        good, body = int(feedback.rating == "good"), msgspec.json.encode(feedback)
        row = [*columns_of(record)[: 3 + len(DIMENSIONS)], good, body]
        async with self._transaction("written") as db:
            await _execute(
                db,
                f"INSERT INTO feedback VALUES ({', '.join(['%s'] * len(row))})"
                " ON CONFLICT (id) DO UPDATE SET good = excluded.good, body = excluded.body",
                row,
            )

    async def put_policy(self, digest: str, policy: bytes) -> None:
        """See ``RecordStore.put_policy``."""
        async with self._transaction("written") as db:
            insert = "INSERT INTO policies VALUES (%s, %s) ON CONFLICT DO NOTHING"
            await _execute(db, insert, [digest, policy])

    async def get_policy(self, digest: str) -> bytes | None:
        """See ``RecordStore.get_policy``."""
        found = await self._read("SELECT body FROM policies WHERE digest = %s", [digest])
        return found[0][0] if found else None

    async def compact(self) -> None:
        """Do all upkeep that is due, unless another validator does."""
        now_ms = int(self._clock() * 1_000)
        is_done = False
        while not is_done:
            async with self._transaction("written") as db:
                ((is_ours,),) = await _execute(
                    db, "SELECT pg_try_advisory_xact_lock(%s)", [UPKEEP_LOCK]
                )
                if not is_ours:
                    return
                is_done = not await _run(db, adding_up(now_ms - SETTLED_MS, "%s"))
                if is_done:
                    await self._delete(db, now_ms)

    async def close(self) -> None:
        """See ``RecordStore.close``."""
        await self._pool.close()

    # ── within ─────────────────────────────────────────────────────────────────────────────

    @asynccontextmanager
    async def _transaction(self, doing: str) -> AsyncGenerator[Connection]:
        try:
            async with self._pool.connection() as db:
                try:
                    yield db
                except psycopg.errors.ReadOnlySqlTransaction:
                    await db.close()  # of a server that another has replaced
                    raise
        except (psycopg.Error, PoolTimeout) as exc:
            raise _unavailable(doing, exc) from exc

    async def _read(self, query: str, values: Sequence[object]) -> Rows:
        async with self._transaction("read") as db:
            return await _execute(db, query, values)

    async def _page(
        self, filters: RecordFilter, limit: int, beyond: str | None, *, newest: bool
    ) -> Sequence[bytes]:
        rest, values = newer_or_older(filters, beyond, "%s", newest=newest)
        found = await self._read(f"SELECT body FROM records {rest}", [*values, limit])
        return [body for (body,) in found]

    async def _make_partitions(self, db: Connection, records: Sequence[Encoded]) -> None:
        days = {record.at_ms // DAY_MS for record, _ in records} - self._days
        if not days:
            return
        await _lock(db, SCHEMA_LOCK)
        for day in days:
            await db.execute(
                sql.SQL(
                    "CREATE TABLE IF NOT EXISTS {} PARTITION OF records"
                    " FOR VALUES FROM ({}) TO ({})"
                    " WITH (toast_tuple_target = 256)"  # so that bodies are compressed
                ).format(sql.Identifier(_partition(day)), day * DAY_MS, (day + 1) * DAY_MS)
            )
        self._days |= days

    async def _delete(self, db: Connection, now_ms: int) -> None:
        if self._retain_days is not None:
            oldest = now_ms // DAY_MS - self._retain_days
            # No day before its hours are added up, so that totals never miss what was deleted.
            ((void,),) = await _execute(
                db, f"SELECT min(at_ms) FROM hours WHERE state = {VOID}", ()
            )
            oldest = oldest if void is None else min(oldest, void // DAY_MS)
            last = _partition(oldest)
            for (name,) in await _execute(
                db,
                "SELECT relid::regclass::text FROM pg_partition_tree('records') WHERE isleaf",
                (),
            ):
                if name.startswith("records_") and name < last:
                    await db.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(name)))
            self._days.clear()
            await _execute(
                db, f"UPDATE hours SET state = {DELETED} WHERE at_ms < %s", [oldest * DAY_MS]
            )
        if self._totals_days is not None:
            oldest_ms = (now_ms // DAY_MS - self._totals_days) * DAY_MS
            for name in ADDED_UP_TABLES:
                await _execute(db, f"DELETE FROM {name} WHERE at_ms < %s", [oldest_ms])


async def _execute(db: Connection, query: str, values: Sequence[object]) -> Rows:
    cursor = await db.execute(query.encode(), values)
    return [] if cursor.description is None else await cursor.fetchall()


async def _run(db: Connection, steps: Steps[T]) -> T:
    """Ask ``db`` all of ``steps``; return what comes of them."""
    try:
        query, values = next(steps)
        while True:
            query, values = steps.send(await _execute(db, query, values))
    except StopIteration as end:
        result: T = end.value
        return result


async def _lock(db: Connection, number: int) -> None:
    await db.execute("SELECT pg_advisory_xact_lock(%s)", [number])


def _partition(day: int) -> str:
    return f"records_{datetime.fromtimestamp(day * DAY_MS / 1_000, UTC):%Y%m%d}"


def _decode(body: bytes) -> DecisionRecord:
    try:
        return decode_record(body)
    except msgspec.MsgspecError as exc:
        raise StoreError(f"a record is damaged: {exc}", code="records_unavailable") from exc


_decode_feedback = msgspec.json.Decoder(Feedback).decode


def _unavailable(done: str, exc: Exception) -> StoreError:
    return StoreError(
        f"the decision records in PostgreSQL cannot be {done}: {exc}", code="records_unavailable"
    )
