"""The ledger in one SQLite file, for any number of worker processes of one machine.

Group commit on the event loop: all operations that one turn of the loop asks for share one
``BEGIN IMMEDIATE … COMMIT``, a few microseconds each, instead of a thread hop and a transaction
each (docs/adr/0006 has the figures). Nothing here waits on the loop: the write lock is tried
and, if another process holds it, tried again by a timer; checkpoints, the only thing that
waits for the disk, run in a thread with its own connection.
"""

import asyncio
import logging
import random
import sqlite3
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from waypost.shared.contracts import SpendLimit
from waypost.shared.errors import StoreError
from waypost.validator.ledger.base import (
    CALENDAR,
    Balance,
    Hold,
    Shortfall,
    lowest,
    month_start,
    resets_at,
    window_starts,
)
from waypost.validator.ledger.books import Books, HoldRow, WindowRow
from waypost.validator.ledger.upkeep import PATIENCE_S, Upkeep
from waypost.validator.sqlite_file import create

__all__ = ["Durability", "SqliteLedger"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

# ``normal`` survives kill -9 whole; a power cut may lose the last moments, never consistency.
# ``full`` waits for the disk before a hold counts, in a thread: each operation takes longer.
Durability = Literal["normal", "full"]

SCHEMA_VERSION = 1
# WITHOUT ROWID: one b-tree per table to write. Ids that grow with time (UUIDv7) append to it.
SCHEMA = """
CREATE TABLE holds (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    amount_nusd INTEGER NOT NULL CHECK (amount_nusd >= 0),
    at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    state TEXT NOT NULL, -- a CHECK of its five values would cost 1.6 µs per operation
    cost_nusd INTEGER NOT NULL CHECK (cost_nusd >= 0)
) WITHOUT ROWID;
CREATE INDEX open_holds ON holds (expires_at) WHERE state = 'held';
CREATE TABLE windows (
    account TEXT NOT NULL,
    window TEXT NOT NULL CHECK (window IN ('hour', 'day', 'month', 'total')),
    start INTEGER NOT NULL,
    spent_nusd INTEGER NOT NULL CHECK (spent_nusd >= 0),
    debt_nusd INTEGER NOT NULL CHECK (debt_nusd >= 0),
    reserved_nusd INTEGER NOT NULL CHECK (reserved_nusd >= 0),
    -- The part of spent and debt whose holds are not kept any more.
    archived_nusd INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (account, start, window)
) WITHOUT ROWID;
CREATE TABLE upkeep (id INTEGER PRIMARY KEY CHECK (id = 1), checkpoints INTEGER NOT NULL);
INSERT INTO upkeep VALUES (1, 0);
"""

_HOLD = "SELECT id, account, amount_nusd, at, expires_at, state, cost_nusd FROM holds WHERE id = ?"
_WINDOW = (
    "SELECT spent_nusd, debt_nusd, reserved_nusd FROM windows"
    " WHERE account = ? AND window = ? AND start = ?"
)
_WINDOWS = (
    "SELECT account, window, start, spent_nusd, debt_nusd, reserved_nusd FROM windows"
    " WHERE account = ? AND start IN (?, ?, ?, ?)"
)
_EXPIRED = "SELECT id FROM holds WHERE state = 'held' AND expires_at <= ? LIMIT ?"
_OPEN = "INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?, ?)"
_CLOSE = "UPDATE holds SET state = ?, cost_nusd = ? WHERE id = ?"
_PUT_WINDOW = (
    "INSERT INTO windows (account, window, start, spent_nusd, debt_nusd, reserved_nusd)"
    " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET spent_nusd = excluded.spent_nusd,"
    " debt_nusd = excluded.debt_nusd, reserved_nusd = excluded.reserved_nusd"
)
MAX_BATCH = 256  # keeps one turn of the loop below about 3 ms
SWEEP_BATCH = 200
FIRST_RETRY_S = 0.001  # what event loops' timers can resolve
LAST_RETRY_S = 0.01


class _Op:
    """One operation in the queue.

    ``must`` ones are carried out even when their caller has gone: the money is spent.
    """

    __slots__ = ("deadline", "future", "must", "run", "undo")

    def __init__(
        self,
        run: Callable[[Books], Any],
        future: asyncio.Future[Any],
        deadline: float,
        *,
        must: bool,
        undo: str | None,
    ) -> None:
        self.run = run
        self.future = future
        self.deadline = deadline
        self.must = must
        self.undo = undo


class SqliteLedger:
    """A ``Ledger`` in one file. Use one instance per process, from one event loop."""

    def __init__(
        self,
        path: Path,
        *,
        durability: Durability,
        patience_s: float,
        keep_months: int,
    ) -> None:
        self._path = path
        self._patience_s = patience_s
        self._keep_months = keep_months
        self._queue: list[_Op] = []
        self._busy = False  # a flush is scheduled or under way
        self._failures = 0
        self._closed = False
        self._drained: asyncio.Future[None] | None = None
        self._db = _connect(path, durability)
        self._reader = _connect(path, durability)
        self._books = Books(_SqliteRows(self._db))
        self._data_version = -1
        self._thread = ThreadPoolExecutor(1, "ledger") if durability == "full" else None
        # FULL or NORMAL makes no difference to what upkeep writes.
        self._upkeep = Upkeep(partial(_connect, path, "normal", timeout_s=PATIENCE_S))
        self._upkeep.start()

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        durability: Durability = "normal",
        patience_s: float = 2.0,
        keep_months: int = 1,
    ) -> Self:
        """Return the ledger in the file at ``path``, which is made if it is not there.

        Args:
            patience_s: how long a call tries to get the write lock.
            keep_months: whole months of closed holds to keep besides the current one. Totals
                are kept for ever.

        Raises:
            StoreError: ``ledger_unavailable``, the file cannot be opened or is not a ledger.
        """
        path = Path(path)
        try:
            create(path, schema=SCHEMA, version=SCHEMA_VERSION)
            return cls(
                path,
                durability=durability,
                patience_s=patience_s,
                keep_months=keep_months,
            )
        except (sqlite3.Error, OSError) as exc:
            raise StoreError(
                f"cannot open the ledger at {path}: {exc}", code="ledger_unavailable"
            ) from exc

    async def reserve(self, hold: Hold) -> Shortfall | None:
        """See ``Ledger.reserve``."""
        # Checked here, so that no operation of a batch can fail for its input.
        if hold.amount_nusd < 0 or not (hold.id.isascii() and hold.account.isascii()):
            raise ValueError(f"not a hold: {hold!r}")
        window_starts(hold.now)
        future = self._submit(lambda books: books.reserve(hold), undo=hold.id)
        try:
            return await future
        except asyncio.CancelledError:
            # Cancelled between the commit and this task's turn.
            if not future.cancelled() and future.exception() is None:
                self._undo(hold.id, future.result())
            raise

    async def settle(self, hold_id: str, cost_nusd: int) -> None:
        """See ``Ledger.settle``."""
        if cost_nusd < 0 or not hold_id.isascii():
            raise ValueError(f"not a settlement: {hold_id!r}, {cost_nusd}")
        await self._submit(lambda books: books.settle(hold_id, cost_nusd), must=True)

    async def release(self, hold_id: str) -> None:
        """See ``Ledger.release``."""
        await self._submit(lambda books: books.release(hold_id), must=True)

    async def balances(
        self, account: str, limits: tuple[SpendLimit, ...], *, now: int
    ) -> tuple[Balance, ...]:
        """See ``Ledger.balances``. Reads do not wait for writers."""
        starts = dict(zip(CALENDAR, window_starts(now), strict=True))
        return tuple(
            self._balance(account, limit, starts.get(limit.window), now) for limit in lowest(limits)
        )

    async def sweep(self, *, now: int) -> int:
        """See ``Ledger.sweep``. Also lets the upkeep thread drop old closed holds."""
        self._upkeep.prune_before(month_start(now, months_back=self._keep_months))
        swept = 0
        while True:
            count = await self._submit(lambda books: books.sweep(now, at_most=SWEEP_BATCH))
            swept += count
            if count < SWEEP_BATCH:
                return swept

    async def close(self) -> None:
        """See ``Ledger.close``. What cannot be written is charged in full when it expires."""
        if self._closed:
            return
        self._closed = True
        if self._busy:
            self._drained = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._drained,), timeout=self._patience_s)
        if self._queue:
            logger.error("%d ledger operations could not be written", len(self._queue))
            self._fail(self._queue, StoreError("the ledger is closed", code="ledger_unavailable"))
            self._queue = []
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._upkeep.stop()
        if self._thread is not None:
            self._thread.shutdown()
        self._reader.close()
        self._db.close()

    # ── the queue ──────────────────────────────────────────────────────────────────────────

    def _submit(
        self, run: Callable[[Books], T], *, must: bool = False, undo: str | None = None
    ) -> asyncio.Future[T]:
        if self._closed:
            raise StoreError("the ledger is closed", code="ledger_unavailable")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        deadline = loop.time() + self._patience_s
        self._queue.append(_Op(run, future, deadline, must=must, undo=undo))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._flush, loop)
        return future

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._upkeep.wants_lock:
            loop.call_later(FIRST_RETRY_S, self._flush, loop)
            return
        # A caller that has gone needs no hold any more.
        queue = [op for op in self._queue if op.must or not op.future.done()]
        batch, self._queue = queue[:MAX_BATCH], queue[MAX_BATCH:]
        if not batch:
            self._rest()
            return
        if self._thread is not None:
            running = loop.run_in_executor(self._thread, self._transact, batch)
            running.add_done_callback(lambda done: self._finish(loop, batch, done))
            return
        done: Future[list[Any]] = Future()
        try:
            done.set_result(self._transact(batch))
        except sqlite3.Error as exc:
            done.set_exception(exc)
        self._finish(loop, batch, done)

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[_Op],
        done: "Future[list[Any]] | asyncio.Future[list[Any]]",
    ) -> None:
        error = done.exception()
        if error is None:
            self._failures = 0
            for op, result in zip(batch, done.result(), strict=True):
                self._deliver(op, result)
        else:
            self._keep(loop, batch, error)
        if not self._queue:
            self._rest()
        elif self._failures == 0:
            loop.call_soon(self._flush, loop)
        else:
            longest = min(FIRST_RETRY_S * 2**self._failures, LAST_RETRY_S)
            loop.call_later(random.uniform(FIRST_RETRY_S, longest), self._flush, loop)

    def _rest(self) -> None:
        self._busy = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _deliver(self, op: _Op, result: object) -> None:
        if op.future.done():
            self._undo(op.undo, result)
        elif isinstance(result, StoreError):
            op.future.set_exception(result)
        else:
            op.future.set_result(result)

    def _undo(self, hold_id: str | None, result: object) -> None:
        """Release what was held for a caller that went away while it was being held."""
        if hold_id is not None and result is None and not self._closed:
            self._submit(lambda books: books.release(hold_id), must=True)
            # First in the queue: what waits there may need this money.
            self._queue.insert(0, self._queue.pop())

    def _keep(
        self, loop: asyncio.AbstractEventLoop, batch: list[_Op], error: BaseException
    ) -> None:
        """Put a batch back that could not be written; tell those who waited long enough."""
        self._failures += 1
        late = [op for op in batch if op.deadline <= loop.time()]
        self._fail(
            late,
            StoreError(f"the budget ledger does not answer: {error}", code="ledger_unavailable"),
        )
        # A settlement stays in the queue although its caller was told: it will be written.
        self._queue = [op for op in batch if op.must or not op.future.done()] + self._queue

    def _fail(self, ops: Iterable[_Op], error: StoreError) -> None:
        for op in ops:
            if not op.future.done():
                op.future.set_exception(error)
                # Whoever stopped listening, as a settlement in a finaliser may, has no
                # "exception was never retrieved" to fear: the error is in the log.
                op.future.exception()

    # ── one transaction ────────────────────────────────────────────────────────────────────

    def _transact(self, batch: list[_Op]) -> list[Any]:
        try:
            return self._attempt(batch, trusts_new_ids=True)
        except sqlite3.IntegrityError:
            # Rare: an id that is taken. Looking each one up would cost all others 2 µs.
            return self._attempt(batch, trusts_new_ids=False)

    def _attempt(self, batch: list[_Op], *, trusts_new_ids: bool) -> list[Any]:
        db, books = self._db, self._books
        db.execute("BEGIN IMMEDIATE")
        try:
            (data_version,) = db.execute("PRAGMA data_version").fetchone()
            if data_version != self._data_version:
                books.forget()
                self._data_version = data_version
            books.trusts_new_ids = trusts_new_ids
            results = [_outcome(op, books) for op in batch]
            if books.opened:
                db.executemany(_OPEN, map(_hold_values, books.opened))
            if books.closed:
                db.executemany(_CLOSE, map(_closing_values, books.closed.values()))
            if books.touched:
                db.executemany(_PUT_WINDOW, map(_window_values, books.touched))
            db.execute("COMMIT")
        except BaseException:
            books.forget()
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
        self._upkeep.rows_written += len(books.opened) + len(books.closed) + len(books.touched)
        books.written()
        return results

    # ── reading ────────────────────────────────────────────────────────────────────────────

    def _balance(self, account: str, limit: SpendLimit, start: int | None, now: int) -> Balance:
        try:
            row = self._reader.execute(_WINDOW, (account, limit.window, start)).fetchone()
        except sqlite3.Error as exc:
            raise StoreError(
                f"the budget ledger cannot be read: {exc}", code="ledger_unavailable"
            ) from exc
        spent, debt, reserved = row or (0, 0, 0)
        return Balance(
            window=limit.window,
            limit_nusd=limit.limit_nusd,
            spent_nusd=spent + debt,
            reserved_nusd=reserved,
            debt_nusd=debt,
            resets_at=resets_at(limit.window, now),
        )


class _SqliteRows:
    """Rows for ``Books``, read inside its transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def hold(self, hold_id: str) -> HoldRow | None:
        row = self._db.execute(_HOLD, (hold_id,)).fetchone()
        return None if row is None else HoldRow(*row)

    def windows(self, account: str, starts: tuple[int, ...]) -> list[WindowRow]:
        return [WindowRow(*row) for row in self._db.execute(_WINDOWS, (account, *starts))]

    def expired(self, now: int, *, at_most: int) -> list[str]:
        return [hold_id for (hold_id,) in self._db.execute(_EXPIRED, (now, at_most))]


def _connect(path: Path, durability: Durability, *, timeout_s: float = 0) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=timeout_s, isolation_level=None, check_same_thread=False)
    db.execute(f"PRAGMA synchronous={'FULL' if durability == 'full' else 'NORMAL'}")
    db.execute("PRAGMA wal_autocheckpoint=0")
    return db


def _outcome(op: _Op, books: Books) -> object:
    try:
        return op.run(books)
    except StoreError as exc:
        return exc


def _hold_values(row: HoldRow) -> tuple[object, ...]:
    return (
        row.id,
        row.account,
        row.amount_nusd,
        row.at,
        row.expires_at,
        row.state,
        row.cost_nusd,
    )


def _closing_values(row: HoldRow) -> tuple[object, ...]:
    return (row.state, row.cost_nusd, row.id)


def _window_values(row: WindowRow) -> tuple[object, ...]:
    return (
        row.account,
        row.window,
        row.start,
        row.spent_nusd,
        row.debt_nusd,
        row.reserved_nusd,
    )
