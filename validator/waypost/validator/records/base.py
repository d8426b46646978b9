"""What a store of decision records promises, whatever it is made of. Pure.

A record is written once and never changed. It names its manifest by digest; the manifest is
kept once beside the records, so that each of them can be decided again.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from msgspec import Struct

from waypost.shared.records import DecisionRecord, Verdict

__all__ = [
    "Encoded",
    "RecordFilter",
    "RecordStats",
    "RecordStore",
    "Sample",
    "StatsRow",
    "summarise",
]


# A record and its JSON, since whoever hands it over has counted its bytes already.
Encoded = tuple[DecisionRecord, bytes]


class RecordFilter(Struct, frozen=True, kw_only=True):
    """Which records are meant; what is ``None`` does not bind. ``since_ms ≤ at_ms < until_ms``."""

    verdict: Verdict | None = None
    route: str | None = None
    model: str | None = None
    account: str | None = None
    tenant: str | None = None
    tier: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None


class StatsRow(Struct, frozen=True, kw_only=True):
    """Requests of one route, model and verdict.

    Attributes:
        saved_nusd: how much less they cost than without routing; negative if they cost more.
            Requests whose alternative is unknown count as nothing saved.
        ttft_p50_ms: nearest rank, of the requests that had a first token; ``None`` without any.
    """

    route: str | None
    model: str | None
    verdict: Verdict
    requests: int
    cost_nusd: int
    saved_nusd: int
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    duration_p50_ms: float
    duration_p95_ms: float


class RecordStats(Struct, frozen=True, kw_only=True):
    """Totals, most requests first.

    Attributes:
        dropped: records lost in the same time because the store could not take them. Where it
            is not 0, the totals are too low.
    """

    rows: tuple[StatsRow, ...]
    dropped: int = 0


class RecordStore(Protocol):
    """Keeps decision records. Every method may raise StoreError (``records_unavailable``)."""

    async def append(self, records: Sequence[Encoded], *, dropped: int = 0) -> None:
        """Write records, all or none. An id that is there already stays as it is.

        Args:
            dropped: how many records were lost since the last call; kept for ``stats``.
        """
        ...

    async def get(self, record_id: str) -> DecisionRecord | None:
        """Return the record, if it is kept."""
        ...

    async def list(
        self, filters: RecordFilter, *, limit: int, before: str | None = None
    ) -> tuple[DecisionRecord, ...]:
        """Return the newest records first.

        Args:
            before: id of the last record of the page before.
        """
        ...

    async def stats(self, filters: RecordFilter) -> RecordStats:
        """Return totals per route, model and verdict."""
        ...

    async def put_policy(self, digest: str, policy: bytes) -> None:
        """Keep a manifest as it was signed; one that is known is not written again."""
        ...

    async def get_policy(self, digest: str) -> bytes | None:
        """Return the manifest with this digest, as signed."""
        ...

    async def close(self) -> None:
        """Let go of the store. May be called twice."""
        ...


# route, model, verdict, cost, cost without routing, time to first token, duration
Sample = tuple[str | None, str | None, Verdict, int, int | None, float | None, float]


def summarise(samples: Iterable[Sample]) -> tuple[StatsRow, ...]:
    """Return one row per route, model and verdict, most requests first."""
    groups: dict[tuple[str | None, str | None, Verdict], list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample[:3], []).append(sample)
    rows = [_row(group) for group in groups.values()]
    return tuple(sorted(rows, key=lambda row: -row.requests))


def _row(group: Sequence[Sample]) -> StatsRow:
    route, model, verdict = group[0][:3]
    ttfts = sorted(sample[5] for sample in group if sample[5] is not None)
    durations = sorted(sample[6] for sample in group)
    return StatsRow(
        route=route,
        model=model,
        verdict=verdict,
        requests=len(group),
        cost_nusd=sum(sample[3] for sample in group),
        saved_nusd=sum(sample[4] - sample[3] for sample in group if sample[4] is not None),
        ttft_p50_ms=_nearest_rank(ttfts, 50) if ttfts else None,
        ttft_p95_ms=_nearest_rank(ttfts, 95) if ttfts else None,
        duration_p50_ms=_nearest_rank(durations, 50),
        duration_p95_ms=_nearest_rank(durations, 95),
    )


def _nearest_rank(ordered: Sequence[float], percent: int) -> float:
    return ordered[-(-len(ordered) * percent // 100) - 1]
