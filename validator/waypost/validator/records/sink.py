"""Takes decision records off the hot path and writes them in batches."""

import asyncio
import logging
from itertools import islice

import msgspec

from waypost.shared.errors import StoreError
from waypost.shared.records import DecisionRecord, encode_record
from waypost.validator.records.base import Encoded, RecordStore

__all__ = ["RecordSink"]

logger = logging.getLogger(__name__)

GATHER_S = 0.02  # a batch of what arrives in this time; then the store writes it
FIRST_RETRY_S = 0.1
LAST_RETRY_S = 5.0
MAX_BATCH = 2_000
MAX_RECORD_BYTES = 65_536  # ten times the largest record with every field in use
CLOSE_PATIENCE_S = 5.0


class RecordSink:
    """A bounded queue before a store. ``put`` costs a few microseconds and never fails.

    What does not fit is dropped and counted; the store is told the count, so that totals made
    from it can say that they are too low.

    Attributes:
        dropped: records lost since the start.
    """

    def __init__(self, store: RecordStore, *, max_bytes: int = 64 * 2**20) -> None:
        """Args:
        max_bytes: of encoded records that wait; about 50,000 of them.
        """
        self._store = store
        self._max_bytes = max_bytes
        self._waiting: dict[str, Encoded] = {}
        self._waiting_bytes = 0
        self._writer: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._untold = 0
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """How many records are not written yet."""
        return len(self._waiting)

    def put(self, record: DecisionRecord) -> None:
        """Take a record. Never blocks, never raises; call it from the event loop."""
        try:
            encoded = encode_record(record)
        except (msgspec.MsgspecError, UnicodeEncodeError, OverflowError, TypeError, ValueError):
            self._drop("it cannot be encoded")
            return
        if len(encoded) > MAX_RECORD_BYTES:
            self._drop(f"it has more than {MAX_RECORD_BYTES} bytes")
        elif self._waiting_bytes + len(encoded) > self._max_bytes:
            self._drop("the queue is full")
        elif self._closing.is_set():
            self._drop("the sink is closed")
        elif record.id not in self._waiting:
            self._waiting[record.id] = (record, encoded)
            self._waiting_bytes += len(encoded)
            if self._writer is None:
                self._writer = asyncio.get_running_loop().create_task(self._write())

    async def get(self, record_id: str) -> DecisionRecord | None:
        """Return the record, whether it is written already or still waits."""
        waiting = self._waiting.get(record_id)
        return waiting[0] if waiting is not None else await self._store.get(record_id)

    async def close(self) -> None:
        """Write what waits, for as long as five seconds. The store stays open."""
        self._closing.set()
        if self._writer is not None:
            await asyncio.wait((self._writer,), timeout=CLOSE_PATIENCE_S)
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.wait((self._writer,))
        if self._waiting:
            logger.error("%d decision records could not be written", len(self._waiting))
            self.dropped += len(self._waiting)
            self._waiting = {}

    def _drop(self, why: str) -> None:
        if self._untold == 0:
            # Once per gap: a full queue must not fill the log as well.
            logger.error("a decision record is dropped: %s", why)
        self._untold += 1
        self.dropped += 1

    async def _write(self) -> None:
        failures = 0
        try:
            while self._waiting:
                await self._pause(
                    GATHER_S if not failures else min(FIRST_RETRY_S * 2**failures, LAST_RETRY_S)
                )
                ids = list(islice(self._waiting, MAX_BATCH))
                batch = [self._waiting[record_id] for record_id in ids]
                told = self._untold
                try:
                    await self._store.append(batch, dropped=told)
                except StoreError as exc:
                    failures += 1
                    if failures == 1:
                        logger.error("decision records wait: %s", exc)
                    if self._closing.is_set():
                        return
                    continue
                if failures:
                    logger.info("decision records are written again")
                failures = 0
                self._untold -= told
                for record_id in ids:
                    del self._waiting[record_id]
                self._waiting_bytes -= sum(len(encoded) for _, encoded in batch)
        finally:
            self._writer = None

    async def _pause(self, duration_s: float) -> None:
        """Wait, but not once the sink is closing."""
        if not self._closing.is_set():
            try:
                async with asyncio.timeout(duration_s):
                    await self._closing.wait()
            except TimeoutError:
                return
