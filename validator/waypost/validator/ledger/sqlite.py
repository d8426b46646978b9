"""The ledger's rows in one SQLite file, for any number of worker processes of one machine.

Group commit on the event loop: all operations that one turn of the loop asks for share one
``BEGIN IMMEDIATE … COMMIT``, a few microseconds each, instead of a thread hop and a transaction
each (docs/adr/0006 has the figures). Nothing here waits on the loop: the write lock is tried
and, if another process holds it, tried again by a timer; checkpoints, the only thing that
waits for the disk, run in a thread with its own connection.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

from waypost.shared.contracts import Window
from waypost.shared.errors import StoreError
from waypost.validator.ledger.accounting import Accounting
from waypost.validator.ledger.base import Entry, WindowSum
from waypost.validator.ledger.calendar import CALENDAR, Calendar
from waypost.validator.ledger.columns import (
    check_zone,
    closing_values,
    grant_values,
    hold_values,
    key_values,
    rate_values,
    renewing_values,
    window_sum,
    window_values,
)
from waypost.validator.ledger.group_commit import GroupedLedger, UnavailableError
from waypost.validator.ledger.limits import KEEP_KEYS_S
from waypost.validator.ledger.operations import Operation
from waypost.validator.ledger.rows import HoldRow, KeyRow, RateRow, WindowRow
from waypost.validator.ledger.sqlite_damage import check_file, damaged, is_damage
from waypost.validator.ledger.upkeep import PATIENCE_S, Upkeep
from waypost.validator.sqlite_file import create

__all__ = ["Durability", "SqliteStore", "open_sqlite"]

# ``normal`` survives kill -9 whole; a power cut may lose the last moments, never consistency.
# ``full`` waits for the disk before a hold counts, in a thread: each operation takes longer.
Durability = Literal["normal", "full"]

LAST_RETRY_S = 0.01  # another process's transaction is over in milliseconds
OPEN_S = 2.0
KEEP_MONTHS = 1

SCHEMA_VERSION = 2
# WITHOUT ROWID: one b-tree per table to write. Ids that grow with time (UUIDv7) append to it.
SCHEMA = """
CREATE TABLE holds (
    id TEXT PRIMARY KEY,
    scopes TEXT NOT NULL, -- JSON: [name, counted windows as bits: minute 1, hour 2, day 4 …]
    amount_nusd INTEGER NOT NULL CHECK (amount_nusd >= 0),
    tokens INTEGER NOT NULL,
    backlogs TEXT NOT NULL,
    at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    state TEXT NOT NULL, -- a CHECK of its five values would cost 1.6 µs per operation
    cost_nusd INTEGER NOT NULL CHECK (cost_nusd >= 0)
) WITHOUT ROWID;
CREATE INDEX open_holds ON holds (expires_at) WHERE state = 'held';
CREATE TABLE windows (
    scope TEXT NOT NULL,
    window TEXT NOT NULL,
    start INTEGER NOT NULL,
    spent_nusd INTEGER NOT NULL CHECK (spent_nusd >= 0),
    debt_nusd INTEGER NOT NULL CHECK (debt_nusd >= 0),
    reserved_nusd INTEGER NOT NULL CHECK (reserved_nusd >= 0),
    granted_nusd INTEGER NOT NULL,
    -- The part of spent and debt whose holds are not kept any more.
    archived_nusd INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (scope, start, window)
) WITHOUT ROWID;
CREATE TABLE rates (
    scope TEXT NOT NULL,
    rate TEXT NOT NULL,
    free_at_us INTEGER NOT NULL,
    PRIMARY KEY (scope, rate)
) WITHOUT ROWID;
CREATE TABLE keys (
    digest TEXT PRIMARY KEY,
    body TEXT NOT NULL,
    hold_id TEXT NOT NULL,
    at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE grants (
    id TEXT PRIMARY KEY,
    scope TEXT NOT NULL,
    window TEXT NOT NULL,
    at INTEGER NOT NULL,
    amount_nusd INTEGER NOT NULL,
    by TEXT NOT NULL,
    why TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE upkeep (
    id INTEGER PRIMARY KEY CHECK (id = 1), checkpoints INTEGER NOT NULL, zone TEXT
);
INSERT INTO upkeep VALUES (1, 0, NULL);
"""

_HOLD = "SELECT * FROM holds WHERE id = ?"
_JOURNAL = "SELECT * FROM holds WHERE at >= ? AND at < ? ORDER BY id"
_WINDOW = "SELECT * FROM windows WHERE scope = ? AND window = ? AND start = ?"
_WINDOWS = "SELECT * FROM windows WHERE scope = ? AND start IN (?, ?, ?, ?, ?, ?)"
_SUMS = "SELECT * FROM windows WHERE window = ? AND start = ?"
_RATE = "SELECT scope, rate, free_at_us FROM rates WHERE scope = ? AND rate = ?"
_KEY = "SELECT digest, body, hold_id, at FROM keys WHERE digest = ?"
_GRANT = "SELECT amount_nusd FROM grants WHERE id = ?"
_EXPIRED = "SELECT id FROM holds WHERE state = 'held' AND expires_at <= ? LIMIT ?"
_OPEN = "INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_RENEW = "UPDATE holds SET expires_at = ? WHERE id = ?"
_CLOSE = "UPDATE holds SET state = ?, cost_nusd = ? WHERE id = ?"
_PUT_WINDOW = (
    "INSERT INTO windows VALUES (?, ?, ?, ?, ?, ?, ?, 0) ON CONFLICT DO UPDATE SET"
    " spent_nusd = excluded.spent_nusd, debt_nusd = excluded.debt_nusd,"
    " reserved_nusd = excluded.reserved_nusd, granted_nusd = excluded.granted_nusd"
)
_PUT_RATE = "INSERT OR REPLACE INTO rates VALUES (?, ?, ?)"
_PUT_KEY = "INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?)"
_FREE_KEY = "DELETE FROM keys WHERE digest = ?"
_PUT_GRANT = "INSERT INTO grants VALUES (?, ?, ?, ?, ?, ?, ?)"


def open_sqlite(
    path: Path | str,
    *,
    durability: Durability = "normal",
    patience_s: float = 2.0,
    keep_months: int = KEEP_MONTHS,
    calendar: Calendar | None = None,
) -> GroupedLedger:
    """Return the ledger in the file at ``path``, which is made if it is not there.

    Args:
        patience_s: how long a call tries to get the write lock.
        keep_months: whole months of closed holds to keep besides the current one. Totals are
            kept for ever.

    Raises:
        StoreError: ``ledger_unavailable``, the file cannot be opened or is not a ledger;
            ``ledger_damaged``, it is not whole; ``ledger_zone``, it counts in another time zone.
    """
    path = Path(path)
    calendar = calendar or Calendar()
    try:
        # Before anything else: whoever closes it last deletes its log.
        check_file(path, calendar, version=SCHEMA_VERSION)
        create(path, schema=SCHEMA, version=SCHEMA_VERSION)
        _claim_zone(path, str(calendar.zone))
        store = SqliteStore(path, durability, keep_months=keep_months, calendar=calendar)
    except UnicodeDecodeError as exc:
        raise damaged(path, "text in it is none") from exc
    except (sqlite3.Error, OSError) as exc:
        if isinstance(exc, sqlite3.Error) and is_damage(exc):
            raise damaged(path, str(exc)) from exc
        raise StoreError(
            f"cannot open the ledger at {path}: {exc}", code="ledger_unavailable"
        ) from exc
    return GroupedLedger(store, patience_s=patience_s)


class SqliteStore:
    """A ``Store`` in one file."""

    def __init__(
        self, path: Path, durability: Durability, *, keep_months: int, calendar: Calendar
    ) -> None:
        self.calendar = calendar
        self._keep_months = keep_months
        self._connect = partial(_connect, path, durability)
        self._db = self._connect()
        self._reader = self._connect()
        self._accounting = Accounting(_SqliteRows(self._db), calendar)
        self._data_version = -1
        self._thread = ThreadPoolExecutor(1, "ledger") if durability == "full" else None
        # FULL or NORMAL makes no difference to what upkeep writes.
        self._upkeep = Upkeep(partial(_connect, path, "normal", timeout_s=PATIENCE_S), calendar)
        self._upkeep.start()

    risks = frozenset[str]()

    @property
    def lets_others_first(self) -> bool:
        """See ``Store``."""
        return self._upkeep.wants_lock

    def transact(self, batch: Sequence[Operation]) -> list[Any] | Awaitable[list[Any]]:
        """See ``Store.transact``."""
        if self._thread is not None:
            loop = asyncio.get_running_loop()
            return loop.run_in_executor(self._thread, self._transact, batch)
        return self._transact(batch)

    def _transact(self, batch: Sequence[Operation]) -> list[Any]:
        try:
            try:
                return self._attempt(batch, trusts_new_ids=True)
            except sqlite3.IntegrityError:
                # Rare: an id that is taken. Looking each one up would cost all others 2 µs.
                return self._attempt(batch, trusts_new_ids=False)
        except sqlite3.Error as exc:
            raise UnavailableError(
                f"the budget ledger does not answer: {exc}",
                may_have_been_made=False,
                retry_within_s=LAST_RETRY_S,
            ) from exc

    def _attempt(self, batch: Sequence[Operation], *, trusts_new_ids: bool) -> list[Any]:
        db, accounting = self._db, self._accounting
        db.execute("BEGIN IMMEDIATE")
        try:
            (data_version,) = db.execute("PRAGMA data_version").fetchone()
            if data_version != self._data_version:
                accounting.forget()
                self._data_version = data_version
            accounting.trusts_new_ids = trusts_new_ids
            outcomes = [accounting.apply(operation) for operation in batch]
            self._write(accounting)
            db.execute("COMMIT")
        except BaseException:
            accounting.forget()
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
        self._upkeep.rows_written += (
            len(accounting.opened) + len(accounting.closed) + len(accounting.touched)
        )
        accounting.written()
        return outcomes

    def _write(self, accounting: Accounting) -> None:
        db = self._db
        if accounting.opened:
            db.executemany(_OPEN, map(hold_values, accounting.opened))
        if accounting.renewed:
            db.executemany(_RENEW, map(renewing_values, accounting.renewed.values()))
        if accounting.closed:
            db.executemany(_CLOSE, map(closing_values, accounting.closed.values()))
        if accounting.touched:
            db.executemany(_PUT_WINDOW, map(window_values, accounting.touched))
        if accounting.touched_rates:
            db.executemany(_PUT_RATE, map(rate_values, accounting.touched_rates))
        if accounting.keys:
            db.executemany(_PUT_KEY, map(key_values, accounting.keys.values()))
        if accounting.freed_keys:
            db.executemany(_FREE_KEY, [(digest,) for digest in accounting.freed_keys])
        if accounting.granted:
            db.executemany(_PUT_GRANT, [grant_values(*granted) for granted in accounting.granted])

    async def read(self, wanted: Sequence[tuple[str, Window, int]]) -> list[WindowSum | None]:
        """See ``Store.read``."""
        try:
            rows = [self._reader.execute(_WINDOW, one).fetchone() for one in wanted]
        except sqlite3.Error as exc:
            raise StoreError(
                f"the budget ledger cannot be read: {exc}", code="ledger_unavailable"
            ) from exc
        return [None if row is None else window_sum(row) for row in rows]

    async def sums(self, window: Window, start: int) -> AsyncIterator[WindowSum]:
        """See ``Store.sums``."""
        with closing(self._connect()) as db:
            for row in db.execute(_SUMS, (window, start)):
                yield window_sum(row)

    async def journal(self, since: int, until: int) -> AsyncIterator[Entry]:
        """See ``Store.journal``."""
        with closing(self._connect()) as db:
            for row in db.execute(_JOURNAL, (since, until)):
                yield HoldRow(*row).entry()

    async def recognise(self) -> None:
        """See ``Store.recognise``. A file or a database does not forget by itself."""

    def tidy(self, now: int) -> None:
        """See ``Store.tidy``."""
        month = self.calendar.month_start(now, months_back=self._keep_months)
        self._upkeep.prune_before(month, keys_before=now - KEEP_KEYS_S)

    async def close(self) -> None:
        """See ``Store.close``."""
        if self._thread is not None:
            self._thread.shutdown()
        self._upkeep.stop()
        self._reader.close()
        self._db.close()


class _SqliteRows:
    """Rows for ``Accounting``, read inside its transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def hold(self, hold_id: str) -> HoldRow | None:
        row = self._db.execute(_HOLD, (hold_id,)).fetchone()
        return None if row is None else HoldRow(*row)

    def windows(self, scope: str, starts: tuple[int, ...]) -> list[WindowRow]:
        six = (*starts, *starts[-1:] * (len(CALENDAR) - len(starts)))
        return [WindowRow(*row[:7]) for row in self._db.execute(_WINDOWS, (scope, *six))]

    def rate(self, scope: str, rate: str) -> RateRow | None:
        row = self._db.execute(_RATE, (scope, rate)).fetchone()
        return None if row is None else RateRow(*row)

    def key(self, digest: str) -> KeyRow | None:
        row = self._db.execute(_KEY, (digest,)).fetchone()
        return None if row is None else KeyRow(*row)

    def granted(self, grant_id: str) -> int | None:
        row = self._db.execute(_GRANT, (grant_id,)).fetchone()
        return None if row is None else row[0]

    def expired(self, now: int, *, at_most: int) -> list[str]:
        return [hold_id for (hold_id,) in self._db.execute(_EXPIRED, (now, at_most))]


def _connect(path: Path, durability: Durability, *, timeout_s: float = 0) -> sqlite3.Connection:
    # The first statement reads the file, which another process that opens or closes it may have
    # locked for a moment: that is waited for, whatever later statements wait for.
    db = sqlite3.connect(path, timeout=OPEN_S, isolation_level=None, check_same_thread=False)
    try:
        db.execute(f"PRAGMA synchronous={'FULL' if durability == 'full' else 'NORMAL'}")
        db.execute("PRAGMA wal_autocheckpoint=0")
        db.execute(f"PRAGMA busy_timeout={round(timeout_s * 1_000)}")
    except sqlite3.Error:
        db.close()
        raise
    return db


def _claim_zone(path: Path, zone: str) -> None:
    # A hold is settled into the windows it was reserved in, which it finds by the calendar.
    with closing(_connect(path, "normal", timeout_s=10)) as db:
        db.execute("UPDATE upkeep SET zone = ? WHERE zone IS NULL", (zone,))
        (found,) = db.execute("SELECT zone FROM upkeep").fetchone()
    check_zone(found, zone)
