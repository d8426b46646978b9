"""Decision records as JSON lines, a file per day and process, for whatever collects files.

Made to be shipped, not searched: reading looks through the files, newest first.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import structs

from waypost.shared.errors import StoreError
from waypost.shared.records import DecisionRecord, Feedback, decode_record
from waypost.validator.records.base import BY_DEFAULT, Encoded, RecordFilter
from waypost.validator.records.spill import write_all
from waypost.validator.records.totals import (
    TIMES,
    Dimension,
    Move,
    Part,
    RecordStats,
    Time,
    bucket_of,
    moves_of,
    rows_of,
    sums_of,
)
from waypost.validator.whole_files import replace_file

__all__ = ["JsonlRecordStore"]

logger = logging.getLogger(__name__)

DAY_MS = 86_400_000

T = TypeVar("T", bound=msgspec.Struct)


class JsonlRecordStore:
    """A ``RecordStore`` in a folder. What a file already holds is never changed.

    So a line that a full disk or a crash cut off stays, for whoever ships the file may have read
    it; what comes next begins a new line, and what is no whole object is left out when it is read.
    """

    def __init__(
        self,
        folder: Path,
        *,
        retain_days: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Args:
        folder: made if it is not there.
        retain_days: files of earlier days are deleted as new ones begin; ``None`` keeps all.
        """
        self._folder = folder
        self._retain_days = retain_days
        self._clock = clock
        # Of a batch that the disk took in part: it is handed over again, and would fill the disk.
        self._written: set[bytes] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "policies").mkdir(exist_ok=True)
        except OSError as exc:
            raise _unavailable("opened", exc) from exc

    async def append(self, records: Sequence[Encoded], *, dropped: int = 0) -> None:
        """See ``RecordStore.append``; but a record that is handed over twice is there twice."""
        lines = [body for _, body in records]
        if dropped:
            lines.append(_encode({"dropped": dropped, "at_ms": int(self._clock() * 1_000)}))
        if lines:
            await asyncio.to_thread(self._write, lines)

    async def get(self, record_id: str) -> DecisionRecord | None:
        """See ``RecordStore.get``."""
        return await asyncio.to_thread(self._get, record_id)

    async def list(
        self, filters: RecordFilter, *, limit: int, before: str | None = None
    ) -> tuple[DecisionRecord, ...]:
        """See ``RecordStore.list``."""
        found = await asyncio.to_thread(self._sorted, filters)
        start = 0
        if before is not None:
            start = next((n + 1 for n, (one, _) in enumerate(found) if one.id == before), 0)
        return tuple(record for record, _ in found[start : start + limit])

    async def bodies(
        self, filters: RecordFilter, *, limit: int, after: str | None = None
    ) -> tuple[bytes, ...]:
        """See ``RecordStore.bodies``."""
        found = (await asyncio.to_thread(self._sorted, filters))[::-1]
        start = 0
        if after is not None:
            start = next((n + 1 for n, (one, _) in enumerate(found) if one.id == after), 0)
        return tuple(body for _, body in found[start : start + limit])

    async def stats(
        self,
        filters: RecordFilter,
        *,
        by: Sequence[Dimension] = BY_DEFAULT,
        step_ms: int | None = None,
        times: Sequence[Time] = TIMES,
    ) -> RecordStats:
        """See ``RecordStore.stats``; totals reach as far back as the files."""
        return await asyncio.to_thread(self._stats, filters, by, step_ms)

    async def put_feedback(self, record: DecisionRecord, feedback: Feedback) -> None:
        """See ``RecordStore.put_feedback``."""
        line = _encode({"feedback_on": record.id, "feedback": feedback})
        await asyncio.to_thread(self._write, [line])

    async def put_policy(self, digest: str, policy: bytes) -> None:
        """See ``RecordStore.put_policy``."""
        await asyncio.to_thread(self._put_policy, digest, policy)

    async def get_policy(self, digest: str) -> bytes | None:
        """See ``RecordStore.get_policy``."""
        path = self._folder / "policies" / digest
        if not digest.isalnum():
            return None
        return path.read_bytes() if await asyncio.to_thread(path.is_file) else None

    async def close(self) -> None:
        """See ``RecordStore.close``."""

    # ── in threads ─────────────────────────────────────────────────────────────────────────

    def _write(self, lines: Sequence[bytes]) -> None:
        now = self._clock()
        path = self._folder / f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d}.{os.getpid()}.jsonl"
        is_new = not path.exists()
        try:
            self._append(path, [line for line in lines if line not in self._written])
            if is_new and self._retain_days is not None:
                oldest = datetime.fromtimestamp(now - self._retain_days * 86_400, UTC)
                for old in self._folder.glob("*.jsonl"):
                    if old.name < f"{oldest:%Y-%m-%d}":
                        old.unlink(missing_ok=True)
        except OSError as exc:
            raise _unavailable("written", exc) from exc

    def _append(self, path: Path, lines: Sequence[bytes]) -> None:
        """Add whole lines; containers that share a folder may have the same process id."""
        data = b"".join([line + b"\n" for line in lines])
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            flock(handle, LOCK_EX)
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                logger.warning("%s ends in half a line, which is left out", path.name)
                write_all(handle, b"\n")
                size += 1
            try:
                write_all(handle, data)
            except OSError:
                taken = os.fstat(handle).st_size - size
                self._written.update(lines[: data[:taken].count(b"\n")])
                raise
            self._written.clear()
        finally:
            os.close(handle)

    def _put_policy(self, digest: str, policy: bytes) -> None:
        try:
            path = self._folder / "policies" / digest
            if not path.exists():
                replace_file(path, policy)
        except OSError as exc:
            raise _unavailable("written", exc) from exc

    def _lines(self) -> Iterator[bytes]:
        try:
            for path in sorted(self._folder.glob("*.jsonl"), reverse=True):
                yield from reversed(path.read_bytes().splitlines())
        except OSError as exc:
            raise _unavailable("read", exc) from exc

    def _kept(self) -> Iterator[tuple[DecisionRecord, bytes]]:
        for line in self._lines():
            if b'"feedback_on"' not in line[:20] and not line.startswith(b'{"dropped"'):
                try:
                    yield decode_record(line), line
                except msgspec.MsgspecError:
                    continue  # half a line, of a process that died

    def _said(self) -> dict[str, Feedback]:
        """Return the newest feedback on each decision."""
        said: dict[str, Feedback] = {}
        for told in self._told(_Said, b'{"feedback_on"'):
            said.setdefault(told.feedback_on, told.feedback)
        return said

    def _told(self, kind: type[T], start: bytes) -> Iterator[T]:
        for line in self._lines():
            if line.startswith(start):
                with suppress(msgspec.MsgspecError):  # half a line
                    yield msgspec.json.decode(line, type=kind)

    def _get(self, record_id: str) -> DecisionRecord | None:
        for record, _ in self._kept():
            if record.id == record_id:
                said = self._said().get(record_id)
                return structs.replace(record, feedback=said) if said else record
        return None

    def _sorted(self, filters: RecordFilter) -> Sequence[tuple[DecisionRecord, bytes]]:
        found = {one.id: (one, body) for one, body in self._kept() if _meets(one, filters)}
        return sorted(found.values(), key=_age, reverse=True)

    def _stats(
        self, filters: RecordFilter, by: Sequence[Dimension], step_ms: int | None
    ) -> RecordStats:
        parts: list[Part] = []
        ratings: list[tuple[int, tuple[str | None, ...], int, int]] = []
        said = self._said()
        for record, _ in self._sorted(filters):
            at_ms = 0 if step_ms is None else record.at_ms // step_ms * step_ms
            key = tuple(getattr(record, name) for name in by)
            ttft, duration = bucket_of(record.ttft_ms), bucket_of(record.duration_ms)
            parts.append(
                (
                    at_ms,
                    key,
                    1,
                    sums_of(record),
                    {} if ttft is None else {ttft: 1},
                    {} if duration is None else {duration: 1},
                )
            )
            if record.id in said:
                good = int(said[record.id].rating == "good")
                ratings.append((at_ms, key, good, 1 - good))
        dropped = sum(
            told.dropped
            for told in self._told(_Dropped, b'{"dropped"')
            if _is_within(told.at_ms, filters)
        )
        moves = self._moves(filters, by, step_ms)
        rows = rows_of(parts, ratings, moves, by=by, is_stepped=step_ms is not None)
        return RecordStats(rows=rows, dropped=dropped)

    def _moves(
        self, filters: RecordFilter, by: Sequence[Dimension], step_ms: int | None
    ) -> Sequence[Move]:
        """Return what is booked on a model that is not its record's, and taken off that."""
        return [
            (
                0 if step_ms is None else record.at_ms // step_ms * step_ms,
                tuple(model if name == "model" else getattr(record, name) for name in by),
                nusd,
            )
            for record, _ in self._sorted(structs.replace(filters, model=None))
            for model, nusd in moves_of(record)
            if filters.model in (None, model)
        ]


def _age(item: tuple[DecisionRecord, bytes]) -> tuple[int, str]:
    return item[0].at_ms, item[0].id


class _Said(msgspec.Struct):
    feedback_on: str
    feedback: Feedback


class _Dropped(msgspec.Struct):
    dropped: int
    at_ms: int


def _meets(record: DecisionRecord, filters: RecordFilter) -> bool:
    wanted: dict[str, Any] = structs.asdict(filters)
    return _is_within(record.at_ms, filters) and all(
        getattr(record, name) == value
        for name, value in wanted.items()
        if value is not None and name not in ("since_ms", "until_ms")
    )


def _is_within(at_ms: int, filters: RecordFilter) -> bool:
    return (filters.since_ms is None or at_ms >= filters.since_ms) and (
        filters.until_ms is None or at_ms < filters.until_ms
    )


_encode = msgspec.json.Encoder().encode


def _unavailable(done: str, exc: Exception) -> StoreError:
    return StoreError(f"the decision records cannot be {done}: {exc}", code="records_unavailable")
