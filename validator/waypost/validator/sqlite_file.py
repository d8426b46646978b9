"""Makes an SQLite file that several processes share, once, however many of them try."""

import os
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

__all__ = ["create"]

PATIENCE_S = 10.0
RETRY_S = 0.002


def create(path: Path, *, schema: str, version: int) -> None:
    """Make the file with ``schema`` unless it is there; write-ahead logging either way.

    Args:
        schema: statements, each ending with a semicolon at the end of its line.
        version: of the schema, kept in the file.

    Raises:
        sqlite3.Error, OSError: it cannot be made or read, or has another version.
    """
    # Readable by its owner alone. Never opened here when it exists: closing any descriptor of
    # a file drops this process's locks on it, those of SQLite included.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    with closing(sqlite3.connect(path, timeout=PATIENCE_S, isolation_level=None)) as db:
        _use_wal(db)
        db.execute("BEGIN IMMEDIATE")
        (found,) = db.execute("PRAGMA user_version").fetchone()
        if found == 0:
            for statement in schema.split(";\n"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version={version}")
        db.execute("COMMIT")
    if found not in (0, version):
        raise sqlite3.DatabaseError(f"its layout is version {found}, this program knows {version}")


def _use_wal(db: sqlite3.Connection) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as exc:
            # SQLite's own time-out does not cover two processes that switch at once.
            if exc.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
            time.sleep(RETRY_S)
        else:
            return
