"""Where decision records go while their store is down: files of JSON lines, one per process.

The rule: a record is in the file, flushed to the disk, before it leaves memory, and in the store
before it leaves the file. Written to the store twice it is there once, so a crash in between
loses nothing. A process that starts takes over what a dead one left. Of a line that was not
written whole nobody was told that it is kept: it is left out, and never keeps others waiting.
"""

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

__all__ = ["Spill", "write_all"]

logger = logging.getLogger(__name__)

BLOCK_BYTES = 65_536
SUFFIX, NEW = ".jsonl", ".new"


def write_all(handle: int, data: bytes) -> None:
    """Write all of ``data``; the kernel may take a part of it, as when the disk becomes full."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


class _File:
    """A file of whole lines; ``start`` to ``end`` waits. Whoever holds it has it locked."""

    __slots__ = ("_handle", "end", "path", "start")

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle = handle
        self.start = 0
        self.end = self._end_of_lines()

    def append(self, lines: bytes) -> None:
        """Add the lines, all or none; raises OSError, and then nothing more should be added."""
        try:
            os.lseek(self._handle, self.end, os.SEEK_SET)
            write_all(self._handle, lines)
            os.fsync(self._handle)
        except OSError:
            # What was written of them takes up room. If it stays, ``end`` leaves it out.
            with suppress(OSError):
                os.ftruncate(self._handle, self.end)
            raise
        self.end += len(lines)

    def next_lines(self, limit: int) -> bytes:
        """Return whole lines of ``limit`` bytes, or one that is longer; empty at the end."""
        data = b""
        while self.start + len(data) < self.end:
            size = min(limit, self.end - self.start - len(data))
            more = os.pread(self._handle, size, self.start + len(data))
            if not more:
                break  # somebody has cut the file
            data += more
            if (whole := data.rfind(b"\n") + 1) > 0:
                return data[:whole]
        return b""

    def close(self) -> None:
        os.close(self._handle)

    def _end_of_lines(self) -> int:
        end = os.fstat(self._handle).st_size
        while end:
            start = max(0, end - BLOCK_BYTES)
            found = os.pread(self._handle, end - start, start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return 0


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
        self._mine: _File | None = None
        self._read_bytes = 0
        self._files = list(_left_behind(folder))

    @property
    def waiting_bytes(self) -> int:
        """How much waits here for the store."""
        return sum(file.end - file.start for file in self._files)

    def add(self, bodies: Sequence[bytes]) -> bool:
        """Return whether the records are on the disk now; ``False`` if they do not fit.

        Raises:
            OSError: the disk does not take them; then it has none of them.
        """
        lines = b"".join([body + b"\n" for body in bodies])
        if self.waiting_bytes + len(lines) > self._max_bytes:
            return False
        if self._mine is None:
            self._mine = _new_file(self._folder)
            self._files.append(self._mine)
        try:
            self._mine.append(lines)
        except OSError:
            failed, self._mine = self._mine, None
            if failed.start == failed.end:
                self._drop(failed)
            raise
        return True

    def read(self, limit: int) -> list[bytes]:
        """Return the next records, the same until ``done``; about ``limit`` bytes of them."""
        while self._files:
            file = self._files[0]
            try:
                lines = file.next_lines(limit)
            except OSError as exc:
                # The next process tries it again; those behind it need not wait for that.
                logger.error("%s, with spilled records, cannot be read: %s", file.path.name, exc)
                self._let_go(file)
                continue
            if lines:
                self._read_bytes = len(lines)
                return lines[:-1].split(b"\n")
            self._drop(file)
        return []

    def done(self) -> None:
        """What ``read`` returned is in the store."""
        file = self._files[0]
        file.start += self._read_bytes
        self._read_bytes = 0
        if file.start >= file.end:
            self._drop(file)

    def close(self) -> None:
        """Leave what waits for whoever starts next."""
        for file in self._files:
            file.close()
        self._files, self._mine = [], None

    def _drop(self, file: _File) -> None:
        with suppress(OSError):  # if it stays, the next process writes it to the store once more
            file.path.unlink()
        self._let_go(file)

    def _let_go(self, file: _File) -> None:
        self._files.remove(file)
        file.close()
        if self._mine is file:
            self._mine = None


def _left_behind(folder: Path) -> Iterator[_File]:
    """Give the files of processes that are gone; what holds no whole line is deleted."""
    for path in sorted((*folder.glob(f"*{SUFFIX}"), *folder.glob(f"*{NEW}"))):
        try:
            handle = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            continue  # its new holder is done with it
        except OSError as exc:
            logger.error("%s, with spilled records, cannot be opened: %s", path.name, exc)
            continue
        file = None
        try:
            # Unlocked and without a name: its holder has just been done with it.
            if _lock(handle) and os.fstat(handle).st_nlink:
                file = _File(path, handle)
                if not file.end:
                    path.unlink(missing_ok=True)
        except OSError as exc:
            logger.error("%s, with spilled records, cannot be read: %s", path.name, exc)
        if file is not None and file.end:
            yield file
        else:
            os.close(handle)


def _new_file(folder: Path) -> _File:
    """Return an empty file that is locked before others may look into it."""
    folder.mkdir(parents=True, exist_ok=True)  # somebody may have tidied up
    handle, name = tempfile.mkstemp(dir=folder, suffix=NEW)  # mode 0600
    try:
        _lock(handle)
        path = Path(name).with_suffix(SUFFIX)
        os.rename(name, path)
    except OSError:
        os.close(handle)
        raise
    return _File(path, handle)


def _lock(handle: int) -> bool:
    try:
        flock(handle, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    return True
