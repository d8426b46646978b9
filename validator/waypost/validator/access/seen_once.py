"""Remembers what counts once, proofs of possession and one-time tokens, and what is over.

Shared by the worker processes of one machine through one SQLite file, which holds hashes alone.
It fails closed: what cannot be remembered is not let in.
"""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Protocol, Self

from anyio import to_thread

from waypost.shared.errors import StoreError
from waypost.validator.sqlite_file import create

__all__ = ["SeenOnce", "SqliteSeen"]

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE seen (mark BLOB PRIMARY KEY, until INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX by_end ON seen (until);
"""
_ADD = "INSERT OR IGNORE INTO seen VALUES (?, ?)"
_END = "INSERT INTO seen VALUES (?, ?) ON CONFLICT DO UPDATE SET until = max(until, excluded.until)"
_ENDED = "SELECT until FROM seen WHERE mark = ?"
_DROP = "DELETE FROM seen WHERE mark IN (SELECT mark FROM seen WHERE until <= ? LIMIT 500)"

MAX_MARKS = 2_000_000  # about 120 MB on disk, and 16,000 proofs a second
PATIENCE_S = 2.0
RETRY_S = 0.002


class SeenOnce(Protocol):
    """What was seen, until it need not be known any more."""

    async def is_first(self, mark: bytes, *, until: int) -> bool:
        """Return whether ``mark`` was never seen before; from now on it was.

        Args:
            until: Unix seconds until which that must be known.

        Raises:
            StoreError: nobody can tell.
        """
        ...

    async def end(self, mark: bytes, *, until: int) -> None:
        """Remember that what ``mark`` names is over, as far as it would have lasted to ``until``.

        Raises:
            StoreError: it cannot be remembered.
        """
        ...

    async def ended_until(self, mark: bytes) -> int:
        """Return the latest ``until`` that ``end`` was told for ``mark``; 0 if it never was.

        Raises:
            StoreError: nobody can tell.
        """
        ...

    async def sweep(self, *, now: int) -> None:
        """Forget what ended before ``now``."""
        ...

    async def close(self) -> None:
        """Close it."""
        ...


class SqliteSeen:
    """``SeenOnce`` in one file. Use one instance per process, from one event loop."""

    def __init__(self, path: Path, db: sqlite3.Connection, *, max_marks: int) -> None:
        self._path = path
        self._db = db
        self._max_marks = max_marks
        self._is_full = False

    @classmethod
    def open(cls, path: Path, *, max_marks: int = MAX_MARKS) -> Self:
        """Open the file, made if it is not there; raises StoreError."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            create(path, schema=SCHEMA, version=SCHEMA_VERSION)
            db = sqlite3.connect(path, timeout=PATIENCE_S, isolation_level=None)
            db.execute("PRAGMA synchronous=NORMAL")
            # A checkpoint waits for the disk, so it is left to the sweep's thread.
            db.execute("PRAGMA wal_autocheckpoint=0")
            # From here on no patience: waiting for another process would stop the event loop.
            db.execute("PRAGMA busy_timeout=0")
        except (sqlite3.Error, OSError) as exc:
            raise _unavailable(f"{path} cannot be used to remember proofs: {exc}") from exc
        return cls(path, db, max_marks=max_marks)

    async def is_first(self, mark: bytes, *, until: int) -> bool:
        """See ``SeenOnce``. One insert; microseconds, unless another process is writing."""
        if self._is_full:
            raise _unavailable(f"{self._path} is full: more proofs than can be remembered")
        return (await self._execute(_ADD, (mark, until))).rowcount == 1

    async def end(self, mark: bytes, *, until: int) -> None:
        """See ``SeenOnce``."""
        await self._execute(_END, (mark, until))

    async def ended_until(self, mark: bytes) -> int:
        """See ``SeenOnce``."""
        found = (await self._execute(_ENDED, (mark,))).fetchone()
        return 0 if found is None else int(found[0])

    async def _execute(self, sql: str, values: tuple[bytes | int, ...]) -> sqlite3.Cursor:
        for _ in range(int(PATIENCE_S / RETRY_S)):
            try:
                return self._db.execute(sql, values)
            except sqlite3.Error as exc:
                # The low byte is the code, what is above says more of it.
                if getattr(exc, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY:
                    raise _unavailable(f"{self._path} cannot be used: {exc}") from exc
            await asyncio.sleep(RETRY_S)
        raise _unavailable(f"{self._path} has been locked for {PATIENCE_S:g} s")

    async def sweep(self, *, now: int) -> None:
        """See ``SeenOnce``; in a thread, in steps, so that nobody waits for it long."""
        self._is_full = await to_thread.run_sync(self._swept, now) >= self._max_marks

    def _swept(self, now: int) -> int:
        try:
            with closing(
                sqlite3.connect(self._path, timeout=PATIENCE_S, isolation_level=None)
            ) as db:
                while db.execute(_DROP, (now,)).rowcount > 0:
                    pass
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")
                (count,) = db.execute("SELECT count(*) FROM seen").fetchone()
        except sqlite3.Error as exc:
            raise _unavailable(f"{self._path} cannot be swept: {exc}") from exc
        return int(count)

    async def close(self) -> None:
        """Close the connection."""
        self._db.close()


def _unavailable(message: str) -> StoreError:
    return StoreError(message, code="replay_unavailable")
