"""Disks that become full: a real one, and one that takes so many bytes and no more."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["Disk", "a_small_disk"]


@contextmanager
def a_small_disk(folder: Path, *, kib: int) -> Iterator[Path]:
    """Mount a file system of this size, until the block ends."""
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("only root may mount a small disk")
    folder.mkdir()
    options = f"size={kib}k,nr_inodes=64"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True
    )
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


class Disk:
    """Takes what ``write_all`` writes while there is room; then a part of it, and ENOSPC.

    Attributes:
        room: bytes that it still takes.
        is_broken: it does not cut files either, as a disk that went away.
    """

    def __init__(self) -> None:
        self.room = 10**9
        self.is_broken = False

    def write(self, handle: int, data: bytes) -> int:
        """As ``os.write``."""
        taken = min(len(data), max(self.room, 0))
        self.room -= taken
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return _write(handle, data[:taken])

    def ftruncate(self, handle: int, size: int) -> None:
        """As ``os.ftruncate``."""
        if self.is_broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.room += os.fstat(handle).st_size - size
        _ftruncate(handle, size)


_write, _ftruncate = os.write, os.ftruncate
