"""Decision records in one SQLite file, apart from the ledger's so that neither waits.

Two tables: ``records`` has narrow rows, which filters and totals read, and ``bodies`` the
records themselves. Many rows go into one statement: for each statement the writing thread gives
up and regains Python's global lock, and 20,000 records a second, inserted row by row, halve the
speed of an event loop on the same core; a hundred at a time take a fifth of it.

Methods run in threads; each read has a connection of its own.
"""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

import msgspec
from msgspec import structs

from waypost.shared.errors import StoreError
from waypost.shared.records import DecisionRecord, decode_record
from waypost.validator.records.base import Encoded, RecordFilter, RecordStats, summarise
from waypost.validator.sqlite_file import create

__all__ = ["SqliteRecordStore"]

Rows = list[tuple[Any, ...]]

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE records (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    at_ms INTEGER NOT NULL,
    verdict TEXT NOT NULL,
    reason TEXT NOT NULL,
    account TEXT,
    tenant TEXT,
    tier TEXT,
    route TEXT,
    model TEXT,
    cost_nusd INTEGER NOT NULL,
    baseline_cost_nusd INTEGER,
    ttft_ms REAL,
    duration_ms REAL NOT NULL
);
CREATE INDEX records_by_time ON records (at_ms);
CREATE INDEX records_by_model ON records (model, at_ms);
CREATE INDEX records_by_tenant ON records (tenant, at_ms);
CREATE INDEX records_by_verdict ON records (verdict, at_ms);
CREATE TABLE bodies (seq INTEGER PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE policies (digest TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE gaps (at_ms INTEGER NOT NULL, dropped INTEGER NOT NULL);
"""

# The columns that a record lends its row, under the same names.
COLUMNS = (
    "id",
    "at_ms",
    "verdict",
    "reason",
    "account",
    "tenant",
    "tier",
    "route",
    "model",
    "cost_nusd",
    "baseline_cost_nusd",
    "ttft_ms",
    "duration_ms",
)
# As ``Sample`` has them.
_SAMPLE = "route, model, verdict, cost_nusd, baseline_cost_nusd, ttft_ms, duration_ms"
ROWS_PER_STATEMENT = 100

BUSY_S = 5.0  # another process writes its batch, or the command line reads
PRUNE_EVERY_S = 60.0
PRUNE_BATCH = 2_000
MAX_INTEGER = 2**63 - 1
DAY_MS = 86_400_000


class SqliteRecordStore:
    """A ``RecordStore`` in one file, which several processes may share."""

    def __init__(self, path: Path, *, retain_days: int | None, clock: Callable[[], float]) -> None:
        self._path = path
        self._retain_days = retain_days
        self._clock = clock
        self._prune_at = 0.0
        self._writing = threading.Lock()
        self._writer: sqlite3.Connection | None = _connect(path)

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        retain_days: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Return the store in the file at ``path``, which is made if it is not there.

        Args:
            retain_days: records older than this are deleted, little by little, as new ones are
                written; ``None`` keeps all.

        Raises:
            StoreError: ``records_unavailable``, the file cannot be opened or is something else.
        """
        path = Path(path)
        try:
            create(path, schema=SCHEMA, version=SCHEMA_VERSION)
            return cls(path, retain_days=retain_days, clock=clock)
        except (sqlite3.Error, OSError) as exc:
            raise _unavailable("opened", path, exc) from exc

    async def append(self, records: Sequence[Encoded], *, dropped: int = 0) -> None:
        """See ``RecordStore.append``."""
        await asyncio.to_thread(self._write, lambda db: self._append(db, records, dropped))

    async def get(self, record_id: str) -> DecisionRecord | None:
        """See ``RecordStore.get``."""
        found = await self._read(
            "SELECT body FROM records JOIN bodies USING (seq) WHERE id = ?", [record_id]
        )
        return self._decode(found[0][0]) if found else None

    async def list(
        self, filters: RecordFilter, *, limit: int, before: str | None = None
    ) -> tuple[DecisionRecord, ...]:
        """See ``RecordStore.list``."""
        where, values = _conditions(filters)
        if before is not None:
            where += " AND (at_ms, id) < (SELECT at_ms, id FROM records WHERE id = ?)"
            values.append(before)
        found = await self._read(
            f"SELECT body FROM records JOIN bodies USING (seq) WHERE {where}"  # noqa: S608
            " ORDER BY at_ms DESC, id DESC LIMIT ?",
            [*values, limit],
        )
        return tuple(self._decode(body) for (body,) in found)

    async def stats(self, filters: RecordFilter) -> RecordStats:
        """See ``RecordStore.stats``."""
        where, values = _conditions(filters)
        samples = await self._read(f"SELECT {_SAMPLE} FROM records WHERE {where}", values)  # noqa: S608
        since_ms = 0 if filters.since_ms is None else filters.since_ms
        until_ms = 2**62 if filters.until_ms is None else filters.until_ms
        lost = await self._read(
            "SELECT coalesce(sum(dropped), 0) FROM gaps WHERE at_ms >= ? AND at_ms < ?",
            [since_ms, until_ms],
        )
        return RecordStats(rows=await asyncio.to_thread(summarise, samples), dropped=lost[0][0])

    async def put_policy(self, digest: str, policy: bytes) -> None:
        """See ``RecordStore.put_policy``."""
        sql = "INSERT OR IGNORE INTO policies (digest, body) VALUES (?, ?)"
        await asyncio.to_thread(self._write, lambda db: db.execute(sql, (digest, policy)))

    async def get_policy(self, digest: str) -> bytes | None:
        """See ``RecordStore.get_policy``."""
        found = await self._read("SELECT body FROM policies WHERE digest = ?", [digest])
        return found[0][0] if found else None

    async def close(self) -> None:
        """See ``RecordStore.close``."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        with self._writing:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    # ── in threads ─────────────────────────────────────────────────────────────────────────

    def _write(self, change: Callable[[sqlite3.Connection], object]) -> None:
        with self._writing:
            db = self._writer
            if db is None:
                raise StoreError("the record store is closed", code="records_unavailable")
            try:
                db.execute("BEGIN IMMEDIATE")
                try:
                    change(db)
                    db.execute("COMMIT")
                except BaseException:
                    with suppress(sqlite3.Error):
                        db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as exc:
                raise _unavailable("written", self._path, exc) from exc

    def _append(self, db: sqlite3.Connection, records: Sequence[Encoded], dropped: int) -> None:
        try:
            _insert(db, records)
        except (sqlite3.IntegrityError, OverflowError):
            # Rare: a record that is here already, or a bill no SQL integer holds, since a
            # provider's usage was absurd. Looking for them each time would slow all others.
            db.execute("ROLLBACK")
            db.execute("BEGIN IMMEDIATE")
            new = {record.id: (record, body) for record, body in reversed(records)}
            _insert(
                db,
                [item for item in reversed(new.values()) if not _is_kept(db, item[0].id)],
                columns=_bounded_columns,
            )
        now = self._clock()
        if dropped:
            db.execute("INSERT INTO gaps VALUES (?, ?)", (int(now * 1_000), dropped))
        if self._retain_days is not None and now >= self._prune_at:
            oldest_ms = int(now * 1_000) - self._retain_days * DAY_MS
            if _prune(db, oldest_ms) < PRUNE_BATCH:
                self._prune_at = now + PRUNE_EVERY_S

    async def _read(self, sql: str, values: Sequence[object]) -> Rows:
        return await asyncio.to_thread(self._fetch, sql, values)

    def _fetch(self, sql: str, values: Sequence[object]) -> Rows:
        try:
            with closing(_connect(self._path)) as db:
                return db.execute(sql, values).fetchall()
        except sqlite3.Error as exc:
            raise _unavailable("read", self._path, exc) from exc

    def _decode(self, body: str) -> DecisionRecord:
        try:
            return decode_record(body)
        except msgspec.MsgspecError as exc:
            raise StoreError(
                f"a record in {self._path} is damaged: {exc}", code="records_unavailable"
            ) from exc


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA synchronous=NORMAL")
    return db


_columns = attrgetter(*COLUMNS)


def _bounded_columns(record: DecisionRecord) -> tuple[object, ...]:
    return tuple(
        min(value, MAX_INTEGER) if isinstance(value, int) else value for value in _columns(record)
    )


def _insert(
    db: sqlite3.Connection,
    records: Sequence[Encoded],
    *,
    columns: Callable[[DecisionRecord], tuple[object, ...]] = _columns,
) -> None:
    (last,) = db.execute("SELECT coalesce(max(seq), 0) FROM records").fetchone()
    for start in range(0, len(records), ROWS_PER_STATEMENT):
        chunk = records[start : start + ROWS_PER_STATEMENT]
        put_rows, put_bodies = _inserts(len(chunk))
        seqs = range(last + start + 1, last + start + 1 + len(chunk))
        db.execute(
            put_rows,
            [
                value
                for seq, (record, _) in zip(seqs, chunk, strict=True)
                for value in (seq, *columns(record))
            ],
        )
        db.execute(
            put_bodies,
            [
                value
                for seq, (_, body) in zip(seqs, chunk, strict=True)
                for value in (seq, body.decode())
            ],
        )


@lru_cache(maxsize=ROWS_PER_STATEMENT)
def _inserts(rows: int) -> tuple[str, str]:
    row = f"({', '.join('?' * (1 + len(COLUMNS)))})"
    return (
        f"INSERT INTO records (seq, {', '.join(COLUMNS)}) VALUES {', '.join([row] * rows)}",  # noqa: S608
        f"INSERT INTO bodies (seq, body) VALUES {', '.join(['(?, ?)'] * rows)}",  # noqa: S608
    )


def _is_kept(db: sqlite3.Connection, record_id: str) -> bool:
    return db.execute("SELECT 1 FROM records WHERE id = ?", (record_id,)).fetchone() is not None


def _conditions(filters: RecordFilter) -> tuple[str, list[object]]:
    """Return an SQL condition, and the values for its placeholders."""
    terms, values = ["1"], list[object]()
    for field, value in structs.asdict(filters).items():
        if value is not None:
            terms.append(_TERMS.get(field, f"{field} = ?"))
            values.append(value)
    return " AND ".join(terms), values


_TERMS = {"since_ms": "at_ms >= ?", "until_ms": "at_ms < ?"}


def _prune(db: sqlite3.Connection, oldest_ms: int) -> int:
    """Delete some of the records before ``oldest_ms``; return how many."""
    old = "SELECT seq FROM records WHERE at_ms < ? ORDER BY at_ms LIMIT ?"
    seqs = db.execute(old, (oldest_ms, PRUNE_BATCH)).fetchall()
    db.executemany("DELETE FROM bodies WHERE seq = ?", seqs)
    db.executemany("DELETE FROM records WHERE seq = ?", seqs)
    db.execute("DELETE FROM gaps WHERE at_ms < ?", (oldest_ms,))
    return len(seqs)


def _unavailable(done: str, path: Path, exc: Exception) -> StoreError:
    return StoreError(
        f"the decision records at {path} cannot be {done}: {exc}", code="records_unavailable"
    )
