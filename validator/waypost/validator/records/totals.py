"""Adds decision records up: counts, money, and times as sketches that can be merged. Pure.

A sketch counts times per bucket of a logarithmic scale, so that ranks of any number of records
are known to 2 % and the sketches of two hours add up to that of both.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, log
from typing import Any, Literal, get_args

from msgspec import Struct

from waypost.shared.records import DecisionRecord, Verdict, fate_of

__all__ = [
    "DIMENSIONS",
    "SUMS",
    "TIMES",
    "Dimension",
    "Move",
    "Part",
    "RecordStats",
    "Sketch",
    "StatsRow",
    "Time",
    "bucket_of",
    "merged",
    "moves_of",
    "rank_ms",
    "rows_of",
    "sums_of",
]

Dimension = Literal["route", "model", "verdict", "reason", "tier", "tenant"]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)

Time = Literal["ttft", "duration"]
TIMES: tuple[Time, ...] = get_args(Time)

# What is added up of each record, in the order of ``sums_of`` and of the stores' columns.
SUMS = (
    "failed",
    "abandoned",
    "retried",
    "repeated",
    "cost_nusd",
    "saved_nusd",
    "input_tokens",
    "output_tokens",
)

_COST, _SAVED = SUMS.index("cost_nusd"), SUMS.index("saved_nusd")

GROWTH = 1.04  # of one bucket over the one before: its middle is within 2 % of all in it
FIRST_MS = 0.01
LAST_BUCKET = 500  # 55 minutes
_LOG_GROWTH = log(GROWTH)

# bucket → how many
Sketch = Mapping[int, int]

# start of the step, values of the dimensions, requests, sums, times to first token, durations
Part = tuple[int, tuple[str | None, ...], int, Sequence[int], Sketch, Sketch]


def bucket_of(ms: float | None) -> int | None:
    """Return the bucket that a time falls into."""
    if ms is None:
        return None
    return 0 if ms <= FIRST_MS else min(ceil(log(ms / FIRST_MS) / _LOG_GROWTH), LAST_BUCKET)


def rank_ms(sketch: Sketch, percent: int) -> float | None:
    """Return the time at this rank, in milliseconds, to 2 %; ``None`` of nothing."""
    total = sum(sketch.values())
    left = -(-total * percent // 100)
    for bucket in sorted(sketch):
        left -= sketch[bucket]
        if left <= 0:
            return float(f"{FIRST_MS * GROWTH**bucket * 2 / (1 + GROWTH):.4g}")
    return None


def sums_of(record: DecisionRecord) -> tuple[int, ...]:
    """Return the record's part of each of ``SUMS``."""
    fate = fate_of(record)
    usage, baseline = record.usage, record.baseline_cost_nusd
    return (
        int(fate == "failed"),
        int(fate == "abandoned"),
        int(len(record.attempts) > 1),
        int(record.repeats is not None),
        record.cost_nusd,
        0 if baseline is None else baseline - record.cost_nusd,
        0 if usage is None else usage.input_tokens,
        0 if usage is None else usage.output_tokens,
    )


def moves_of(record: DecisionRecord) -> tuple[tuple[str, int], ...]:
    """Return what other models' attempts cost, by model, and the same taken off the record's own.

    A record is of one model. What a hedge's loser, a failed attempt or a step of a cascade cost
    belongs to the model that it was of. All of it adds up to 0.
    """
    model, attempts = record.model, record.attempts
    if model is None or len(attempts) < 2:
        return ()
    moved: dict[str, int] = {}
    for attempt in attempts:
        if attempt.cost_nusd and attempt.model != model:
            moved[attempt.model] = moved.get(attempt.model, 0) + attempt.cost_nusd
    return (*moved.items(), (model, -sum(moved.values()))) if moved else ()


class StatsRow(Struct, frozen=True, kw_only=True):
    """Requests that have the same values of the dimensions asked for; the others are ``None``.

    Attributes:
        at_ms: start of the step of time, where steps were asked for.
        failed: got no answer by the providers' fault or ours.
        abandoned: the caller hung up before the end.
        retried: took more than one attempt.
        repeated: the caller asked the same again within two minutes, of an earlier request.
        cost_nusd: where ``model`` is told, that model's attempts; so a model may cost that
            answered no request.
        saved_nusd: how much less they cost than without routing; negative if they cost more.
            Requests whose alternative is unknown count as nothing saved.
        good, bad: feedback.
        ttft_p50_ms: nearest rank, to 2 %, of the requests that had a first token.
    """

    at_ms: int | None = None
    route: str | None = None
    model: str | None = None
    verdict: Verdict | None = None
    reason: str | None = None
    tier: str | None = None
    tenant: str | None = None
    requests: int = 0
    failed: int = 0
    abandoned: int = 0
    retried: int = 0
    repeated: int = 0
    cost_nusd: int = 0
    saved_nusd: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    good: int = 0
    bad: int = 0
    ttft_p50_ms: float | None = None
    ttft_p95_ms: float | None = None
    ttft_p99_ms: float | None = None
    duration_p50_ms: float | None = None
    duration_p95_ms: float | None = None
    duration_p99_ms: float | None = None

    @property
    def refused(self) -> int:
        """How many were refused, where ``verdict`` is told; those that failed are not."""
        return self.requests - self.failed if self.verdict == "refused" else 0


class RecordStats(Struct, frozen=True, kw_only=True):
    """Totals, most requests first; of steps in time, oldest first.

    Attributes:
        dropped: records lost in the same time because the store could not take them. Where it
            is not 0, the totals are too low.
    """

    rows: tuple[StatsRow, ...]
    dropped: int = 0


class _Sum:
    __slots__ = ("bad", "duration", "good", "requests", "sums", "ttft")

    def __init__(self) -> None:
        self.requests = 0
        self.sums = [0] * len(SUMS)
        self.ttft: dict[int, int] = {}
        self.duration: dict[int, int] = {}
        self.good = self.bad = 0

    def add(self, requests: int, sums: Sequence[int], ttft: Sketch, duration: Sketch) -> None:
        self.requests += requests
        for place, value in enumerate(sums):
            self.sums[place] += value
        for mine, theirs in ((self.ttft, ttft), (self.duration, duration)):
            for bucket, count in theirs.items():
                mine[bucket] = mine.get(bucket, 0) + count


def _summed(parts: Iterable[Part]) -> dict[tuple[int, tuple[str | None, ...]], _Sum]:
    groups: dict[tuple[int, tuple[str | None, ...]], _Sum] = {}
    for at_ms, key, requests, sums, ttft, duration in parts:
        group = groups.get((at_ms, key))
        if group is None:
            group = groups[at_ms, key] = _Sum()
        group.add(requests, sums, ttft, duration)
    return groups


def merged(parts: Iterable[Part]) -> list[Part]:
    """Return one part per step and key."""
    return [
        (at_ms, key, group.requests, group.sums, group.ttft, group.duration)
        for (at_ms, key), group in _summed(parts).items()
    ]


def _order(item: tuple[tuple[int, tuple[str | None, ...]], _Sum]) -> tuple[str, ...]:
    return tuple(value or "" for value in item[0][1])


# start of the step, values of the dimensions, good, bad
Ratings = Iterable[tuple[int, tuple[str | None, ...], int, int]]
# likewise, and the cost that is booked on this model and not on that of its record
Move = tuple[int, tuple[str | None, ...], int]


def rows_of(
    parts: Iterable[Part],
    ratings: Ratings,
    moves: Iterable[Move],
    *,
    by: Sequence[Dimension],
    is_stepped: bool,
) -> tuple[StatsRow, ...]:
    """Return the totals of ``parts`` as rows.

    Args:
        by: what the keys of ``parts`` are values of.
    """
    groups = _summed(parts)
    for at_ms, key, good, bad in ratings:
        group = groups.setdefault((at_ms, key), _Sum())
        group.good += good
        group.bad += bad
    for at_ms, key, nusd in moves:
        group = groups.setdefault((at_ms, key), _Sum())
        group.sums[_COST] += nusd
        group.sums[_SAVED] -= nusd  # what it is told against stays where it is
    rows: list[StatsRow] = []
    # By key first, so that rows of as many requests come in the same order from every store.
    for (at_ms, key), group in sorted(groups.items(), key=_order):
        fields: dict[str, Any] = {
            **dict(zip(by, key, strict=True)),
            **dict(zip(SUMS, group.sums, strict=True)),
        }
        for percent in (50, 95, 99):
            fields[f"ttft_p{percent}_ms"] = rank_ms(group.ttft, percent)
            fields[f"duration_p{percent}_ms"] = rank_ms(group.duration, percent)
        rows.append(
            StatsRow(
                at_ms=at_ms if is_stepped else None,
                requests=group.requests,
                good=group.good,
                bad=group.bad,
                **fields,
            )
        )
    return tuple(sorted(rows, key=lambda row: (row.at_ms or 0, -row.requests)))
