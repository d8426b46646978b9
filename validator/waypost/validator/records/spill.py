"""Where decision records go while their store is down: files of JSON lines, one per process.

The rule: a record is in the file, flushed to the disk, before it leaves memory, and in the store
before it leaves the file. Written to the store twice it is there once, so a crash in between
loses nothing. A process that starts takes over what a dead one left.
"""

import fcntl
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

__all__ = ["Spill"]


class Spill:
    """One process's share of the folder. For one thread at a time."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        """Take over what nobody holds in ``folder``, which is made if it is not there.

        Args:
            max_bytes: of the whole; what does not fit is not taken.

        Raises:
            OSError: the folder cannot be used.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._max_bytes = max_bytes
        self._mine: IO[bytes] | None = None
        self._files: list[IO[bytes]] = []
        for path in sorted(folder.glob("*.jsonl")):
            file = path.open("rb")
            if _lock(file):
                self._files.append(file)
            else:
                file.close()  # its process lives
        self.waiting_bytes = sum(os.fstat(file.fileno()).st_size for file in self._files)

    def add(self, bodies: Sequence[bytes]) -> bool:
        """Return whether the records are on the disk now; ``False`` if they do not fit.

        Raises:
            OSError: the disk does not take them.
        """
        lines = b"".join([body + b"\n" for body in bodies])
        if self.waiting_bytes + len(lines) > self._max_bytes:
            return False
        if self._mine is None:
            handle, path = tempfile.mkstemp(dir=self._folder, suffix=".jsonl")  # mode 0600
            self._mine = os.fdopen(handle, "wb")
            reader = open(path, "rb")  # noqa: SIM115 - kept, and closed in `close` or `_drop`
            _lock(reader)
            self._files.append(reader)
        self._mine.write(lines)
        self._mine.flush()
        os.fsync(self._mine.fileno())
        self.waiting_bytes += len(lines)
        return True

    def read(self, limit: int) -> list[bytes]:
        """Return the next records, the same until ``done``. A half-written line is left out."""
        while self._files:
            file = self._files[0]
            start = file.tell()
            lines = file.readlines(limit)
            self._after = file.tell()
            file.seek(start)
            if lines:
                return [line[:-1] for line in lines if line.endswith(b"\n")]
            self._drop(file)
        return []

    def done(self) -> None:
        """What ``read`` returned is in the store."""
        file = self._files[0]
        self.waiting_bytes -= self._after - file.tell()
        file.seek(self._after)
        if self._after >= os.fstat(file.fileno()).st_size:
            self._drop(file)

    def close(self) -> None:
        """Leave what waits for whoever starts next."""
        for file in (*self._files, self._mine):
            if file is not None:
                file.close()
        self._files, self._mine = [], None

    def _drop(self, file: IO[bytes]) -> None:
        os.unlink(file.name)
        self._files.remove(file)
        file.close()
        if self._mine is not None and not self._files:
            self._mine.close()
            self._mine = None


def _lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
