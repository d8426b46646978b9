"""Adds up the counts of the processes that share one port.

A scrape reaches whichever worker takes the connection. So each writes its counts to a file of
its own every second or two, and the one that is asked adds up all files. What a worker counted
that is gone stays in its file, so that no total ever goes back; starting the validator anew
begins at nought, as counters may.
"""

import os
import shutil
from pathlib import Path

import msgspec
from anyio import to_thread

from waypost.validator.records.sink import RecordSink
from waypost.validator.telemetry.counts import Counts, Families, added, decode, encode
from waypost.validator.whole_files import replace_file

__all__ = ["SharedCounts", "Workers", "forget"]


class Workers:
    """The files in one folder, this process's among them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._name = f"{os.getpid()}-{os.urandom(4).hex()}.msgpack"
        self._written = b""

    def publish(self, data: bytes) -> None:
        """Let the others see this process's counts, encoded. Raises OSError."""
        if data == self._written:
            return
        replace_file(self._folder / self._name, data)
        self._written = data

    def total(self, mine: Families) -> Families:
        """Return the counts of all, with ``mine`` as of now."""
        found = [mine]
        for path in self._folder.glob("*.msgpack"):
            if path.name != self._name:
                try:
                    found.append(decode(path.read_bytes()))
                except (OSError, msgspec.MsgspecError):
                    continue  # being replaced, or of another version
        return added(found)


class SharedCounts:
    """What this process counts, added to what the others do.

    Attributes:
        counts: this process's own.
    """

    def __init__(self, counts: Counts, workers: Workers, sink: RecordSink) -> None:
        """Args:
        sink: whose lost records are counted too.
        """
        counts.expired(0)  # a count that is not there cannot be seen to rise
        counts.expired(0)  # a count that is not there cannot be seen to rise
        self.counts = counts
        self._workers = workers
        self._sink = sink

    async def total(self) -> Families:
        """Return what all workers counted; a copy, since this process goes on counting."""
        self.counts.lost(self._sink.lost)
        mine = added([self.counts.families])
        return await to_thread.run_sync(self._workers.total, mine)

    async def publish(self) -> None:
        """Let the other workers see what this one counted. Raises OSError."""
        self.counts.lost(self._sink.lost)
        await to_thread.run_sync(self._workers.publish, encode(self.counts.families))


def forget(folder: Path) -> None:
    """Begin anew: no worker of this validator runs yet."""
    shutil.rmtree(folder, ignore_errors=True)
