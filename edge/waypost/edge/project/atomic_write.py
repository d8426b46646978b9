"""Writes files so that nobody sees half of one, and one writer at a time."""

import fcntl
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from waypost.shared.errors import StoreError

__all__ = ["locked", "write_file"]


def write_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace ``path`` whole: a reader, or a crash, sees the old bytes or the new.

    Raises:
        StoreError: the disk refused.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        with open(handle, "wb") as file:
            os.fchmod(handle, mode)
            file.write(data)
            file.flush()
            os.fsync(handle)
        os.replace(temporary, path)
    except OSError as exc:
        if temporary:
            with suppress(OSError):
                os.unlink(temporary)
        raise StoreError(f"cannot write {path}: {exc.strerror}") from exc


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Wait for, then hold, the lock at ``path``; raises StoreError if it cannot be made."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        raise StoreError(f"cannot lock {path}: {exc.strerror}") from exc
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
