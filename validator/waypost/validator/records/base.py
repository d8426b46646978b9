"""What a store of decision records promises, whatever it is made of. Pure.

A record is written once and never changed. It names its manifest by digest; the manifest is
kept once beside the records, so that each of them can be decided again. Feedback comes later and
is kept apart.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from msgspec import Struct

from waypost.shared.records import DecisionRecord, Feedback, Verdict, decode_record
from waypost.validator.records.totals import TIMES, Dimension, RecordStats, Time

__all__ = ["BY_DEFAULT", "Encoded", "RecordFilter", "RecordStore", "records_between"]


PAGE = 500

# A record and its JSON, since whoever hands it over has counted its bytes already.
Encoded = tuple[DecisionRecord, bytes]

BY_DEFAULT: tuple[Dimension, ...] = ("route", "model", "verdict")


class RecordFilter(Struct, frozen=True, kw_only=True):
    """Which records are meant; what is ``None`` does not bind. ``since_ms ≤ at_ms < until_ms``."""

    verdict: Verdict | None = None
    reason: str | None = None
    route: str | None = None
    model: str | None = None
    account: str | None = None
    tenant: str | None = None
    tier: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None


class RecordStore(Protocol):
    """Keeps decision records. Every method may raise StoreError (``records_unavailable``)."""

    async def append(self, records: Sequence[Encoded], *, dropped: int = 0) -> None:
        """Write records, all or none. An id that is there already stays as it is.

        Args:
            dropped: how many records were lost since the last call; kept for ``stats``.
        """
        ...

    async def get(self, record_id: str) -> DecisionRecord | None:
        """Return the record, if it is kept, with its feedback."""
        ...

    async def list(
        self, filters: RecordFilter, *, limit: int, before: str | None = None
    ) -> tuple[DecisionRecord, ...]:
        """Return the newest records first, without feedback.

        Args:
            before: id of the last record of the page before.
        """
        ...

    async def bodies(
        self, filters: RecordFilter, *, limit: int, after: str | None = None
    ) -> tuple[bytes, ...]:
        """Return records as they were written, byte for byte, oldest first.

        Args:
            after: id of the last record of the page before.
        """
        ...

    async def stats(
        self,
        filters: RecordFilter,
        *,
        by: Sequence[Dimension] = BY_DEFAULT,
        step_ms: int | None = None,
        times: Sequence[Time] = TIMES,
    ) -> RecordStats:
        """Return totals of the records that agree in ``by``.

        Totals reach further back than records: they are kept when those are deleted, but not
        by account.

        Args:
            step_ms: also apart by steps of time of this length, counted from 1970.
            times: which of them rows have to tell. Without any, a month takes a fifth of the time.
        """
        ...

    async def put_feedback(self, record: DecisionRecord, feedback: Feedback) -> None:
        """Keep what the caller thought of it, instead of what they said before."""
        ...

    async def put_policy(self, digest: str, policy: bytes) -> None:
        """Keep a manifest, or its hints, as signed; one that is known is not written again."""
        ...

    async def get_policy(self, digest: str) -> bytes | None:
        """Return the manifest, or the hints, with this digest, as signed."""
        ...

    async def close(self) -> None:
        """Let go of the store. May be called twice."""
        ...


async def records_between(
    store: RecordStore, since: int, until: int
) -> AsyncIterator[DecisionRecord]:
    """Give the records from ``since`` to before ``until``, Unix seconds, oldest first."""
    filters = RecordFilter(since_ms=since * 1_000, until_ms=until * 1_000)
    last: str | None = None
    while bodies := await store.bodies(filters, limit=PAGE, after=last):
        for body in bodies:
            record = decode_record(body)
            yield record
            last = record.id
