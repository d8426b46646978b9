"""What a ledger's file needs now and then, away from the event loop: checkpoints and pruning.

Both wait for the disk, or for long. They run in a thread with a connection of its own, and the
ledger steps back when they need the lock.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing

import msgspec

from waypost.validator.ledger.calendar import CALENDAR, Calendar

__all__ = ["PATIENCE_S", "Upkeep"]

logger = logging.getLogger(__name__)

_CLOSED_BEFORE = (
    "SELECT id, scopes, at, cost_nusd FROM holds WHERE at < ? AND state != 'held' LIMIT ?"
)
_ARCHIVE = (
    "UPDATE windows SET archived_nusd = archived_nusd + ?"
    " WHERE scope = ? AND window = ? AND start = ?"
)
_decode_scopes = msgspec.json.Decoder(list[tuple[str, int]]).decode

EVERY_S = 0.25
PATIENCE_S = 0.2  # another process's loop may be as busy
CHECKPOINT_ROWS = 2_000  # a row written is at most a few pages of 4 KB in the log
RESTART_PAGES = 16_000  # 64 MB
PRUNE_BATCH = 500


class Upkeep(threading.Thread):
    """Looks after one file, from ``start`` to ``stop``.

    Attributes:
        rows_written: by this process since the last checkpoint; the ledger counts them here.
        wants_lock: the ledger lets this thread go first. A loop that is busy writing would
            else hardly ever leave it the lock.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], calendar: Calendar) -> None:
        """Args:
        connect: opens the file, and waits for its lock for ``PATIENCE_S`` at most.
        """
        super().__init__(name="ledger-upkeep", daemon=True)
        self._connect = connect
        self._calendar = calendar
        self.rows_written = 0
        self.wants_lock = False
        self._stopping = threading.Event()
        self._cutoff = 0
        self._pruned = 0
        self._keys_before = 0

    def prune_before(self, cutoff: int, *, keys_before: int) -> None:
        """Drop closed holds made before ``cutoff`` soon, and idempotency keys."""
        self._cutoff = cutoff
        self._keys_before = keys_before

    def stop(self) -> None:
        """Return once the thread has ended."""
        self._stopping.set()
        self.join()

    def run(self) -> None:
        """Look after the file until stopped."""
        with closing(self._connect()) as db:
            while not self._stopping.wait(EVERY_S):
                try:
                    self._checkpoint(db)
                    if self._cutoff > self._pruned:
                        self._prune(db, self._cutoff)
                    if self._keys_before:
                        db.execute("DELETE FROM keys WHERE at < ?", (self._keys_before,))
                        self._keys_before = 0
                except sqlite3.Error as exc:
                    busy = exc.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                    logger.log(
                        logging.DEBUG if busy else logging.WARNING,
                        "ledger upkeep put off: %s",
                        exc,
                    )

    def _checkpoint(self, db: sqlite3.Connection) -> None:
        if self.rows_written < CHECKPOINT_ROWS:
            return
        self.rows_written = 0
        pages, copied = _wal_checkpoint(db, "PASSIVE")
        restarts = pages >= RESTART_PAGES
        if restarts:
            # PASSIVE takes no lock, but under constant writing it never catches up with the
            # log, which then only grows. RESTART locks writers out for the rest, which a
            # second PASSIVE makes small: measured 1 to 5 ms instead of 30 to 90.
            _wal_checkpoint(db, "PASSIVE")
        self.wants_lock = True
        try:
            if restarts:
                pages, copied = _wal_checkpoint(db, "RESTART")
            if copied == pages:
                # The first write after a complete checkpoint waits for the disk, as it syncs
                # the log's header (wal.c, syncHeader): better here than on the event loop.
                db.execute("UPDATE upkeep SET checkpoints = checkpoints + 1")
        finally:
            self.wants_lock = False

    def _prune(self, db: sqlite3.Connection, cutoff: int) -> None:
        while not self._stopping.is_set():
            db.execute("BEGIN IMMEDIATE")
            try:
                rows = db.execute(_CLOSED_BEFORE, (cutoff, PRUNE_BATCH)).fetchall()
                db.executemany("DELETE FROM holds WHERE id = ?", [row[:1] for row in rows])
                db.executemany(
                    _ARCHIVE,
                    [
                        (cost, scope, window, start)
                        for _, scopes, at, cost in rows
                        for scope, mask in _decode_scopes(scopes)
                        for place, (window, start) in enumerate(
                            zip(CALENDAR, self._calendar.starts(at), strict=True)
                        )
                        if mask >> place & 1
                    ],
                )
                if len(rows) < PRUNE_BATCH:
                    # A hold still open keeps its windows: it will be settled into them.
                    db.execute(
                        "DELETE FROM windows WHERE window != 'total' AND start < ?"
                        " AND reserved_nusd = 0",
                        (cutoff,),
                    )
                db.execute("COMMIT")
            except BaseException:
                db.execute("ROLLBACK")
                raise
            if len(rows) < PRUNE_BATCH:
                self._pruned = cutoff
                return


def _wal_checkpoint(db: sqlite3.Connection, mode: str) -> tuple[int, int]:
    """Return how many pages the log has, and how many of them are in the main file."""
    _, pages, copied = db.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    return pages, copied
