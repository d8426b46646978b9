"""Decision records in one SQLite file, apart from the ledger's so that neither waits.

``records`` has narrow rows, which filters and totals read, and ``bodies`` the records themselves.
Many rows go into one statement: for each statement the writing thread gives up and regains
Python's global lock, and 20,000 records a second, inserted row by row, halve the speed of an event
loop on the same core; a hundred at a time take a fifth of it.

Bodies are deflated, to a tenth or so, against a dictionary of their own: that costs less than
writing them as they are and again later. Upkeep rides on writing, a little at a time: hours and
days that are over are added up, and records past their time are deleted.

Methods run in threads; each read has a connection of its own.
"""

import asyncio
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import lru_cache
from pathlib import Path
from typing import Self, TypeVar

import msgspec
from msgspec import structs

from waypost.shared.errors import StoreError
from waypost.shared.records import DecisionRecord, Feedback, decode_record
from waypost.validator.records.base import BY_DEFAULT, Encoded, RecordFilter
from waypost.validator.records.sql import (
    ADDED_UP,
    ADDED_UP_TABLES,
    BOOKED,
    COLUMNS,
    DAY_MS,
    DELETED,
    HOUR_MS,
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
from waypost.validator.sqlite_file import create

__all__ = ["SqliteRecordStore"]

SCHEMA_VERSION = 4
_DIMENSIONS = ",\n    ".join(f"{name} TEXT" for name in DIMENSIONS)
_SUMS = ",\n    ".join(f"{name} INTEGER NOT NULL" for name in SUMS)
_TOTALS = f"""
    at_ms INTEGER NOT NULL,
    {_DIMENSIONS},
    requests INTEGER NOT NULL,
    {_SUMS},
    ttft BLOB NOT NULL,
    duration BLOB NOT NULL
"""
SCHEMA = f"""
CREATE TABLE records (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    at_ms INTEGER NOT NULL,
    account TEXT,
    {_DIMENSIONS},
    {_SUMS},
    ttft_bucket INTEGER,
    duration_bucket INTEGER NOT NULL
);
CREATE INDEX records_by_time ON records (at_ms);
CREATE INDEX records_by_model ON records (model, at_ms);
CREATE INDEX records_by_tenant ON records (tenant, at_ms);
CREATE INDEX records_by_reason ON records (reason, at_ms);
CREATE INDEX records_by_route ON records (route, at_ms);
CREATE INDEX records_by_account ON records (account, at_ms);
CREATE INDEX records_by_verdict ON records (verdict, at_ms);
CREATE TABLE bodies (seq INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE hours (at_ms INTEGER PRIMARY KEY, state INTEGER NOT NULL);
CREATE TABLE totals ({_TOTALS});
CREATE INDEX totals_by_time ON totals (at_ms);
CREATE TABLE days (at_ms INTEGER PRIMARY KEY);
CREATE TABLE day_totals ({_TOTALS});
CREATE INDEX day_totals_by_time ON day_totals (at_ms);
CREATE TABLE feedback (
    id TEXT PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    account TEXT,
    {_DIMENSIONS},
    good INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX feedback_by_time ON feedback (at_ms);
CREATE TABLE policies (digest TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE gaps (at_ms INTEGER NOT NULL, dropped INTEGER NOT NULL);
CREATE TABLE packing (dictionary BLOB NOT NULL);
"""

# Of files that were made before it as well: what is in them stays as it is.
LATER = (
    f"""CREATE TABLE IF NOT EXISTS booked (
    id TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    account TEXT,
    {_DIMENSIONS},
    nusd INTEGER NOT NULL,
    PRIMARY KEY (id, model)
)""",
    "CREATE INDEX IF NOT EXISTS booked_by_time ON booked (at_ms)",
)

T = TypeVar("T")

ROWS_PER_STATEMENT = 100

BUSY_S = 5.0  # another process writes its batch, or the command line reads
UPKEEP_EVERY_S = 60.0
UPKEEP_BATCH = 2_000
MAX_DICTIONARY_BYTES = 16_384  # half of what zlib looks back


class SqliteRecordStore:
    """A ``RecordStore`` in one file, which several processes may share."""

    def __init__(
        self,
        path: Path,
        *,
        retain_days: int | None,
        totals_days: int | None,
        clock: Callable[[], float],
    ) -> None:
        self._path = path
        self._retain_days = retain_days
        self._totals_days = totals_days
        self._clock = clock
        self._upkeep_at = 0.0
        self._dictionary = b""
        self._writing = threading.Lock()
        self._writer: sqlite3.Connection | None = _connect(path)

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        retain_days: int | None = None,
        totals_days: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Return the store in the file at ``path``, which is made if it is not there.

        Args:
            retain_days: records older than this are deleted, little by little, as new ones are
                written; ``None`` keeps all.
            totals_days: likewise for the totals by the hour, and feedback.

        Raises:
            StoreError: ``records_unavailable``, the file cannot be opened or is something else.
        """
        path = Path(path)
        try:
            create(path, schema=SCHEMA, version=SCHEMA_VERSION)
            _add_later(path)
            return cls(path, retain_days=retain_days, totals_days=totals_days, clock=clock)
        except (sqlite3.Error, OSError) as exc:
            raise _unavailable("opened", path, exc) from exc

    async def append(self, records: Sequence[Encoded], *, dropped: int = 0) -> None:
        """See ``RecordStore.append``."""
        await asyncio.to_thread(self._append, records, dropped)

    async def get(self, record_id: str) -> DecisionRecord | None:
        """See ``RecordStore.get``."""
        sql = "SELECT body FROM records JOIN bodies USING (seq) WHERE id = ?"
        found = await self._read(sql, [record_id])
        if not found:
            return None
        (record,) = await self._records(found)
        said = await self._read("SELECT body FROM feedback WHERE id = ?", [record_id])
        return structs.replace(record, feedback=_decode_feedback(said[0][0])) if said else record

    async def list(
        self, filters: RecordFilter, *, limit: int, before: str | None = None
    ) -> tuple[DecisionRecord, ...]:
        """See ``RecordStore.list``."""
        return await self._records(await self._page(filters, limit, before, newest=True))

    async def bodies(
        self, filters: RecordFilter, *, limit: int, after: str | None = None
    ) -> tuple[bytes, ...]:
        """See ``RecordStore.bodies``."""
        found = await self._page(filters, limit, after, newest=False)
        return tuple([await self._unpacked(body) for (body,) in found])

    async def stats(
        self,
        filters: RecordFilter,
        *,
        by: Sequence[Dimension] = BY_DEFAULT,
        step_ms: int | None = None,
        times: Sequence[Time] = TIMES,
    ) -> RecordStats:
        """See ``RecordStore.stats``."""
        return await asyncio.to_thread(self._stats, stats(filters, by, step_ms, "?", times=times))

    async def put_feedback(self, record: DecisionRecord, feedback: Feedback) -> None:
        """See ``RecordStore.put_feedback``."""
        good, body = int(feedback.rating == "good"), msgspec.json.encode(feedback)
        row = (*columns_of(record)[: 3 + len(DIMENSIONS)], good, body)
        sql = f"INSERT OR REPLACE INTO feedback VALUES ({', '.join('?' * len(row))})"
        await asyncio.to_thread(self._write, lambda db: db.execute(sql, row))

    async def put_policy(self, digest: str, policy: bytes) -> None:
        """See ``RecordStore.put_policy``."""
        sql = "INSERT OR IGNORE INTO policies (digest, body) VALUES (?, ?)"
        await asyncio.to_thread(self._write, lambda db: db.execute(sql, (digest, policy)))

    async def get_policy(self, digest: str) -> bytes | None:
        """See ``RecordStore.get_policy``."""
        found = await self._read("SELECT body FROM policies WHERE digest = ?", [digest])
        return found[0][0] if found else None

    async def compact(self) -> None:
        """Do all upkeep that is due at once."""
        await asyncio.to_thread(self._compact)

    async def close(self) -> None:
        """See ``RecordStore.close``."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        with self._writing:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    # ── writing, in threads ────────────────────────────────────────────────────────────────

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

    def _append(self, records: Sequence[Encoded], dropped: int) -> None:
        now_ms = int(self._clock() * 1_000)

        dictionary = self._dictionary

        def change(db: sqlite3.Connection) -> None:
            nonlocal dictionary
            try:
                dictionary = _insert(db, records, self._dictionary)
            except sqlite3.IntegrityError:
                # Rare: a record that is here already. Looking for it each time would slow all.
                db.execute("ROLLBACK")
                db.execute("BEGIN IMMEDIATE")
                new = {record.id: (record, body) for record, body in reversed(records)}
                others = [one for one in reversed(new.values()) if not _is_kept(db, one[0].id)]
                dictionary = _insert(db, others, self._dictionary)
            if dropped:
                db.execute("INSERT INTO gaps VALUES (?, ?)", (now_ms, dropped))

        self._write(change)
        self._dictionary = dictionary  # not before it is kept
        if now_ms >= self._upkeep_at:
            try:
                is_done = self._upkeep(now_ms)
            except StoreError:
                is_done = True  # the records are written; the rest can wait
            if is_done:
                self._upkeep_at = now_ms + UPKEEP_EVERY_S * 1_000

    def _compact(self) -> None:
        while not self._upkeep(int(self._clock() * 1_000)):
            pass

    def _upkeep(self, now_ms: int) -> bool:
        """Do a little of each piece of upkeep; return whether nothing is left to do."""
        left = 0

        def change(db: sqlite3.Connection) -> None:
            nonlocal left
            left += _run(db, adding_up(now_ms - SETTLED_MS, "?"))
            if self._retain_days is not None:
                left += _delete_records(db, now_ms - self._retain_days * DAY_MS)
            if self._totals_days is not None:
                _delete_totals(db, now_ms - self._totals_days * DAY_MS)

        self._write(change)
        return not left

    # ── reading, in threads ────────────────────────────────────────────────────────────────

    async def _read(self, sql: str, values: Sequence[object]) -> Rows:
        return await asyncio.to_thread(self._fetch, sql, values)

    def _fetch(self, sql: str, values: Sequence[object]) -> Rows:
        try:
            with closing(_connect(self._path)) as db:
                return db.execute(sql, values).fetchall()
        except sqlite3.Error as exc:
            raise _unavailable("read", self._path, exc) from exc

    async def _page(
        self, filters: RecordFilter, limit: int, beyond: str | None, *, newest: bool
    ) -> Rows:
        rest, values = newer_or_older(filters, beyond, "?", newest=newest)
        sql = f"SELECT body FROM records JOIN bodies USING (seq) {rest}"
        return await self._read(sql, [*values, limit])

    async def _records(self, found: Rows) -> tuple[DecisionRecord, ...]:
        try:
            return tuple([decode_record(await self._unpacked(body)) for (body,) in found])
        except msgspec.MsgspecError as exc:
            raise StoreError(
                f"a record in {self._path} is damaged: {exc}", code="records_unavailable"
            ) from exc

    async def _unpacked(self, body: bytes) -> bytes:
        if body[:1] != b"x":
            return body  # JSON, which begins with a brace
        if not self._dictionary:
            ((self._dictionary,),) = await self._read("SELECT dictionary FROM packing", [])
        try:
            return zlib.decompressobj(zdict=self._dictionary).decompress(body)
        except zlib.error as exc:
            raise StoreError(
                f"a record in {self._path} is damaged: {exc}", code="records_unavailable"
            ) from exc

    def _stats(self, steps: Steps[RecordStats]) -> RecordStats:
        try:
            with closing(_connect(self._path)) as db:
                db.execute("BEGIN")
                return _run(db, steps)
        except sqlite3.Error as exc:
            raise _unavailable("read", self._path, exc) from exc


def _run(db: sqlite3.Connection, steps: Steps[T]) -> T:
    """Ask ``db`` all of ``steps``; return what comes of them."""
    try:
        sql, values = next(steps)
        while True:
            sql, values = steps.send(db.execute(sql, values).fetchall())
    except StopIteration as end:
        result: T = end.value
        return result


def _add_later(path: Path) -> None:
    with closing(_connect(path)) as db:
        if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'booked_by_time'").fetchone():
            return
        for statement in LATER:
            db.execute(statement)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA synchronous=NORMAL")
    return db


# ── writing ────────────────────────────────────────────────────────────────────────────────────


def _insert(db: sqlite3.Connection, records: Sequence[Encoded], dictionary: bytes) -> bytes:
    """Insert the records; return the dictionary that their bodies are deflated against."""
    dictionary = dictionary or _dictionary(db, records)
    (last,) = db.execute("SELECT coalesce(max(seq), 0) FROM records").fetchone()
    for start in range(0, len(records), ROWS_PER_STATEMENT):
        chunk = records[start : start + ROWS_PER_STATEMENT]
        put_rows, put_bodies = _inserts(len(chunk))
        seqs = range(last + start + 1, last + start + 1 + len(chunk))
        rows: list[object] = []
        bodies: list[object] = []
        for seq, (record, body) in zip(seqs, chunk, strict=True):
            rows += (seq, *columns_of(record))
            bodies += (seq, _deflated(body, dictionary) if dictionary else body)
        db.execute(put_rows, rows)
        db.execute(put_bodies, bodies)
    booked = [row for record, _ in records for row in booked_of(record)]
    if booked:
        db.executemany(_BOOK, booked)
    for sql, value in voiding((record.at_ms for record, _ in records), "?"):
        db.execute(sql, value)
    return dictionary


_BOOK = f"INSERT OR IGNORE INTO booked VALUES ({', '.join('?' * len(BOOKED))})"


def _dictionary(db: sqlite3.Connection, records: Sequence[Encoded]) -> bytes:
    """Return what is kept, or keep the first body that says what most say; else empty."""
    kept = db.execute("SELECT dictionary FROM packing").fetchone()
    if kept is not None:
        (found,) = kept
        return bytes(found)
    for record, body in records:
        if record.attempts and record.facts is not None and len(body) <= MAX_DICTIONARY_BYTES:
            db.execute("INSERT INTO packing VALUES (?)", (body,))
            return body
    return b""


@lru_cache(maxsize=ROWS_PER_STATEMENT)
def _inserts(rows: int) -> tuple[str, str]:
    row = f"({', '.join('?' * (1 + len(COLUMNS)))})"
    return (
        f"INSERT INTO records (seq, {', '.join(COLUMNS)}) VALUES {', '.join([row] * rows)}",
        f"INSERT INTO bodies (seq, body) VALUES {', '.join(['(?, ?)'] * rows)}",
    )


def _is_kept(db: sqlite3.Connection, record_id: str) -> bool:
    return db.execute("SELECT 1 FROM records WHERE id = ?", (record_id,)).fetchone() is not None


# ── upkeep: each does a piece, and returns how much of it may be left ──────────────────────────


def _delete_records(db: sqlite3.Connection, oldest_ms: int) -> int:
    # Whole hours, and none before it is added up, so that totals never miss what was deleted.
    oldest_ms = oldest_ms // HOUR_MS * HOUR_MS
    (void,) = db.execute("SELECT min(at_ms) FROM hours WHERE state = ?", (VOID,)).fetchone()
    oldest_ms = oldest_ms if void is None else min(oldest_ms, void)
    old = "SELECT seq FROM records WHERE at_ms < ? ORDER BY at_ms LIMIT ?"
    seqs = db.execute(old, (oldest_ms, UPKEEP_BATCH)).fetchall()
    db.executemany("DELETE FROM bodies WHERE seq = ?", seqs)
    db.executemany("DELETE FROM records WHERE seq = ?", seqs)
    if len(seqs) < UPKEEP_BATCH:
        db.execute(
            "UPDATE hours SET state = ? WHERE at_ms < ? AND state = ?",
            (DELETED, oldest_ms, ADDED_UP),
        )
        return 0
    # Its totals hold from here on, whatever comes late.
    (next_ms,) = db.execute("SELECT coalesce(min(at_ms), ?) FROM records", (oldest_ms,)).fetchone()
    db.execute("UPDATE hours SET state = ? WHERE at_ms <= ?", (DELETED, next_ms))
    return 1


def _delete_totals(db: sqlite3.Connection, oldest_ms: int) -> None:
    # Whole days, so that none is made anew of what is left of its hours.
    oldest_ms = oldest_ms // DAY_MS * DAY_MS
    for name in ADDED_UP_TABLES:
        db.execute(f"DELETE FROM {name} WHERE at_ms < ?", (oldest_ms,))


def _deflated(body: bytes, dictionary: bytes) -> bytes:
    deflating = zlib.compressobj(3, zdict=dictionary)
    return deflating.compress(body) + deflating.flush()


_decode_feedback = msgspec.json.Decoder(Feedback).decode


def _unavailable(done: str, path: Path, exc: Exception) -> StoreError:
    return StoreError(
        f"the decision records at {path} cannot be {done}: {exc}", code="records_unavailable"
    )
