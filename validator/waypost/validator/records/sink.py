"""Takes decision records off the hot path and writes them in batches."""

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Literal

import msgspec
from anyio import to_thread
from msgspec import structs

from waypost.shared.errors import StoreError
from waypost.shared.records import DecisionRecord, decode_record, encode_record
from waypost.validator.records.base import Encoded, RecordStore
from waypost.validator.records.spill import Spill

__all__ = ["LOSSES", "Loss", "RecordSink"]

logger = logging.getLogger(__name__)

GATHER_S = 0.05  # a batch of what arrives in this time: of twice as many, each costs a fifth less
FIRST_RETRY_S = 0.1
LAST_RETRY_S = 1.0  # a store that is back is found in a second
MAX_BATCH = 2_000
CATCH_UP_BYTES = 2 * 2**20
MAX_RECORD_BYTES = 65_536  # ten times the largest record with every field in use
MAX_ATTEMPTS_KEPT = 16
CLOSE_PATIENCE_S = 5.0
_ID = re.compile(r"[0-9A-Za-z-]{1,64}")

Loss = Literal["unreadable", "too_large", "queue_full", "closed", "damaged"]
LOSSES: dict[Loss, str] = {
    "unreadable": "it cannot be encoded",
    "too_large": f"it has more than {MAX_RECORD_BYTES} bytes",
    "queue_full": "the queue is full",
    "closed": "the sink is closed",
    "damaged": "what was spilled is damaged",
}


class RecordSink:
    """A bounded queue before a store. ``put`` costs a few microseconds and never fails.

    While the store is down, records go to the spill, and to the store when it is back. What fits
    nowhere is dropped and counted; the store is told the count, so that totals made from it can
    say that they are too low.

    Attributes:
        lost: records lost since the start, by why.
        is_store_down: the last write to the store failed.
        spill_fault: why the spill took nothing the last time; empty while it does.
    """

    def __init__(
        self,
        store: RecordStore,
        *,
        spill: Spill | None = None,
        seal: Callable[[Sequence[Encoded]], None] | None = None,
        max_bytes: int = 64 * 2**20,
    ) -> None:
        """Args:
        seal: writes records into the log that proves them, once each and before they leave
            memory; called in a thread, and may raise StoreError.
        max_bytes: of encoded records that wait in memory; about 50,000 of them.
        """
        self._store = store
        self._seal = seal
        self._sealed: set[str] = set()
        self._spill = spill
        self._max_bytes = max_bytes
        self._waiting: dict[str, Encoded] = {}
        self._unfinished: dict[str, DecisionRecord] = {}
        self._waiting_bytes = 0
        self._writer: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._untold = 0
        self.lost: Counter[Loss] = Counter()
        self.is_store_down = False
        self.spill_fault = ""

    @property
    def dropped(self) -> int:
        """How many records are lost since the start."""
        return self.lost.total()

    @property
    def waiting(self) -> int:
        """How many records wait in memory."""
        return len(self._waiting)

    @property
    def spilled_bytes(self) -> int:
        """How much waits on the disk for the store."""
        return 0 if self._spill is None else self._spill.waiting_bytes

    def resume(self) -> None:
        """Begin to write what an earlier process left on the disk."""
        if self.spilled_bytes:
            self._wake()

    def put(self, record: DecisionRecord) -> None:
        """Take a record. Never blocks, never raises; call it from the event loop."""
        if self._unfinished:
            self._unfinished.pop(record.id, None)
        try:
            encoded = encode_record(record)
            if len(encoded) > MAX_RECORD_BYTES:
                record = _shortened(record)
                encoded = encode_record(record)
        except (msgspec.MsgspecError, UnicodeEncodeError, OverflowError, TypeError, ValueError):
            self._drop("unreadable")
            return
        if len(encoded) > MAX_RECORD_BYTES:
            self._drop("too_large")
        elif self._waiting_bytes + len(encoded) > self._max_bytes:
            self._drop("queue_full")
        elif self._closing.is_set():
            self._drop("closed")
        elif record.id not in self._waiting:
            self._waiting[record.id] = (record, encoded)
            self._waiting_bytes += len(encoded)
            self._wake()

    def put_off(self, record: DecisionRecord) -> None:
        """Show a record that will be ``put`` when more is known; at the end as it is."""
        self._unfinished[record.id] = record

    async def get(self, record_id: str) -> DecisionRecord | None:
        """Return the record, whether it is written already or still waits in memory.

        ``record_id`` may be anything that a caller sent: what is no id never reaches a store,
        some of which refuse text that others take.
        """
        if not _ID.fullmatch(record_id):
            return None
        if (unfinished := self._unfinished.get(record_id)) is not None:
            return unfinished
        waiting = self._waiting.get(record_id)
        return waiting[0] if waiting is not None else await self._store.get(record_id)

    async def until_written(self) -> None:
        """Return once the store has all that was put so far.

        Raises:
            StoreError: it takes nothing now, or what was spilled is not in it yet.
        """
        so_far = set(self._waiting)
        while True:
            if self.is_store_down or self.spilled_bytes:
                raise StoreError("decision records wait", code="records_unavailable")
            if so_far.isdisjoint(self._waiting):
                return
            await asyncio.sleep(GATHER_S)

    async def close(self) -> None:
        """Write what waits, for as long as five seconds. The store stays open."""
        for record in list(self._unfinished.values()):
            self.put(record)
        self._closing.set()
        if self._writer is not None:
            await asyncio.wait((self._writer,), timeout=CLOSE_PATIENCE_S)
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.wait((self._writer,))
        if self._waiting:
            await self._spill_over()
        if self._waiting:
            logger.error("%d decision records could not be written", len(self._waiting))
            self.lost["closed"] += len(self._waiting)
            self._waiting = {}
        if self._spill is not None:
            self._spill.close()

    def _wake(self) -> None:
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    def _drop(self, why: Loss) -> None:
        if self._untold == 0:
            # Once per gap: a full queue must not fill the log as well.
            logger.error("a decision record is lost: %s", LOSSES[why])
        self._untold += 1
        self.lost[why] += 1

    async def _write(self) -> None:
        failures = 0
        try:
            while self._waiting or (self.spilled_bytes and not self._closing.is_set()):
                await self._pause(
                    GATHER_S if not failures else min(FIRST_RETRY_S * 2**failures, LAST_RETRY_S)
                )
                try:
                    await self._write_batch()
                    await self._catch_up()
                except StoreError as exc:
                    failures += 1
                    self.is_store_down = True
                    if failures == 1:
                        logger.error("decision records wait: %s", exc)
                    await self._spill_over()
                    if self._closing.is_set():
                        return
                    continue
                if failures:
                    logger.info("decision records are written again")
                failures, self.is_store_down = 0, False
        finally:
            self._writer = None

    async def _write_batch(self) -> None:
        batch = list(islice(self._waiting.values(), MAX_BATCH))
        told = self._untold
        await self._seal_new(batch)
        if batch or told:
            await self._store.append(batch, dropped=told)
        self._untold -= told
        self._forget(batch)

    async def _catch_up(self) -> None:
        """Write a piece of what was spilled; the newest records do not wait for all of it."""
        if self._spill is None or not self._spill.waiting_bytes:
            return
        lines = await to_thread.run_sync(self._spill.read, CATCH_UP_BYTES)
        batch: list[Encoded] = []
        for line in lines:
            try:
                batch.append((decode_record(line), line))
            except msgspec.MsgspecError:
                self._drop("damaged")
        await self._store.append(batch)
        if lines:
            await to_thread.run_sync(self._spill.done)
            self._note_spill("")

    async def _seal_new(self, batch: Sequence[Encoded]) -> None:
        if self._seal is None:
            return
        new = [item for item in batch if item[0].id not in self._sealed]
        if new:
            await to_thread.run_sync(self._seal, new)
            self._sealed.update(record.id for record, _ in new)

    async def _spill_over(self) -> None:
        """Move what waits in memory to the disk, as far as it fits there."""
        batch = list(self._waiting.values())
        try:
            await self._seal_new(batch)
        except StoreError:
            return  # what no log proves stays here until one does
        if self._spill is None:
            return
        for start in range(0, len(batch), MAX_BATCH):
            piece = batch[start : start + MAX_BATCH]
            try:
                is_kept = await to_thread.run_sync(self._spill.add, [body for _, body in piece])
            except OSError as exc:
                self._note_spill(f"the disk does not take them: {exc.strerror or exc}")
                return
            if not is_kept:
                self._note_spill("records.spill_mib is reached")
                return
            self._note_spill("")
            self._forget(piece)

    def _note_spill(self, fault: str) -> None:
        if fault and fault != self.spill_fault:
            logger.error(
                "decision records cannot be spilled, and are lost once %d MiB wait: %s",
                self._max_bytes // 2**20,
                fault,
            )
        self.spill_fault = fault

    def _forget(self, batch: Sequence[Encoded]) -> None:
        for record, body in batch:
            del self._waiting[record.id]
            self._sealed.discard(record.id)
            self._waiting_bytes -= len(body)

    async def _pause(self, duration_s: float) -> None:
        """Wait, but not once the sink is closing."""
        if not self._closing.is_set():
            try:
                async with asyncio.timeout(duration_s):
                    await self._closing.wait()
            except TimeoutError:
                return


def _shortened(record: DecisionRecord) -> DecisionRecord:
    """Return the record without what a caller can make long: it still says what was done."""
    return structs.replace(
        record,
        facts=None,
        proposal=None,
        prompt=None,
        attempts=record.attempts[:MAX_ATTEMPTS_KEPT],
        detail="What the caller sent made this record too large; facts and proposal are left out.",
    )
