"""Whether one route, or one arm of an experiment, does better than another, and how surely. Pure.

Shares are compared by Newcombe's interval (1998, method 10, from Wilson's), means by Welch's with
the normal quantile, which for the hundreds of requests that it takes to tell anything is the
same as Student's. An interval that holds 0 shows nothing either way.
"""

from collections.abc import Iterable, Sequence
from math import sqrt
from statistics import NormalDist, fmean, variance
from typing import Literal

import msgspec
from msgspec import Struct

from waypost.shared.records import Attempt, DecisionRecord, fate_of

__all__ = [
    "Arm",
    "Difference",
    "Shadowed",
    "arm_of",
    "compare",
    "shadowed",
    "share_difference",
    "wilson",
]

CONFIDENCE = 0.95
ENOUGH = 30  # of each side, for the normal approximation of a mean

Better = Literal["a", "b"]


class Arm(Struct):
    """What is known of one side.

    Attributes:
        costs_nusd, ttfts_ms, durations_ms: of the requests that were answered.
    """

    requests: int = 0
    failed: int = 0
    abandoned: int = 0
    repeated: int = 0
    good: int = 0
    bad: int = 0
    costs_nusd: list[float] = []
    ttfts_ms: list[float] = []
    durations_ms: list[float] = []


class Difference(Struct, frozen=True, kw_only=True):
    """B against A in one respect.

    Attributes:
        a, b: the share, or the mean; ``None`` where nothing is known.
        low, high: of ``b - a``, with 95 % confidence; ``None`` where there is too little.
        better: the side that is surely better, if one is.
    """

    measure: str
    a: float | None
    b: float | None
    low: float | None = None
    high: float | None = None
    better: Better | None = None


def arm_of(records: Iterable[DecisionRecord], *, good: int = 0, bad: int = 0) -> Arm:
    """Return the sums over records, and the ratings that were given of them."""
    arm = Arm(good=good, bad=bad)
    for record in records:
        fate = fate_of(record)
        arm.requests += 1
        arm.failed += fate == "failed"
        arm.abandoned += fate == "abandoned"
        arm.repeated += record.repeats is not None
        if fate == "answered":
            arm.costs_nusd.append(record.cost_nusd)
            arm.durations_ms.append(record.duration_ms)
            if record.ttft_ms is not None:
                arm.ttfts_ms.append(record.ttft_ms)
    return arm


class Shadowed(Struct):
    """What a candidate would have done with the requests in its shadow.

    Attributes:
        differing: it would have chosen another model, or refused.
        cost_nusd, candidate_cost_nusd: of those that were charged, on either side.
        served, sent: both sides of the requests that were sent along; of each the one try that
            its policy chose first, so that a fallback on one side is no failure of the other.
    """

    requests: int = 0
    differing: int = 0
    refused: int = 0
    cost_nusd: int = 0
    candidate_cost_nusd: int = 0
    served: Arm = msgspec.field(default_factory=Arm)
    sent: Arm = msgspec.field(default_factory=Arm)

    @property
    def differences(self) -> tuple[Difference, ...]:
        """How what was sent along did against what was served; nobody rated that."""
        found = compare(self.served, self.sent)
        return tuple(one for one in found if one.measure in _OF_TRIES)


_OF_TRIES = frozenset({"failed", "cost_nusd", "ttft_ms", "duration_ms"})


def shadowed(records: Iterable[DecisionRecord], *, digest: str | None = None) -> Shadowed:
    """Return the sums over the records that have a shadow.

    Args:
        digest: of the candidate that is meant; ``None``: that of the first shadow.
    """
    sums = Shadowed()
    for record in records:
        shadow = record.shadow
        if shadow is None or shadow.manifest_digest != (digest := digest or shadow.manifest_digest):
            continue
        sums.requests += 1
        sums.differing += shadow.model != record.chosen
        sums.refused += shadow.model is None
        if shadow.cost_nusd is not None and fate_of(record) == "answered":
            sums.cost_nusd += record.cost_nusd
            sums.candidate_cost_nusd += shadow.cost_nusd
        if shadow.attempt is not None:
            first = record.attempts[0] if record.attempts else None
            _add_try(sums.served, first, record.cost_nusd)
            _add_try(sums.sent, shadow.attempt, shadow.cost_nusd or 0)
    return sums


def _add_try(arm: Arm, one: Attempt | None, cost_nusd: int) -> None:
    arm.requests += 1
    if one is None or one.outcome != "ok":
        arm.failed += 1
        return
    arm.costs_nusd.append(cost_nusd)
    arm.durations_ms.append(one.duration_ms)
    if one.ttft_ms is not None:
        arm.ttfts_ms.append(one.ttft_ms)


def wilson(count: float, total: float, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the interval for a share of which ``count`` of ``total`` were seen."""
    if not total:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = count / total
    middle = share + z * z / (2 * total)
    spread = z * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def share_difference(
    a: tuple[float, float], b: tuple[float, float], *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the interval for the share of ``b`` minus that of ``a``, each (count, total)."""
    share_a, share_b = (count / total if total else 0.0 for count, total in (a, b))
    (low_a, high_a), (low_b, high_b) = (
        wilson(count, total, confidence=confidence) for count, total in (a, b)
    )
    gap = share_b - share_a
    return (
        gap - sqrt((share_b - low_b) ** 2 + (high_a - share_a) ** 2),
        gap + sqrt((high_b - share_b) ** 2 + (share_a - low_a) ** 2),
    )


def compare(a: Arm, b: Arm) -> tuple[Difference, ...]:
    """Return how ``b`` differs from ``a``, quality first."""
    rated = (a.good + a.bad, b.good + b.bad)
    return (
        _shares("rated bad", (a.bad, rated[0]), (b.bad, rated[1])),
        _shares("asked again", (a.repeated, a.requests), (b.repeated, b.requests)),
        _shares("hung up", (a.abandoned, a.requests), (b.abandoned, b.requests)),
        _shares("failed", (a.failed, a.requests), (b.failed, b.requests)),
        _means("cost_nusd", a.costs_nusd, b.costs_nusd),
        _means("ttft_ms", a.ttfts_ms, b.ttfts_ms),
        _means("duration_ms", a.durations_ms, b.durations_ms),
    )


def _better(low: float, high: float) -> Better | None:
    """Of all that is compared, less is better."""
    return "b" if high < 0 else "a" if low > 0 else None


def _shares(measure: str, a: tuple[int, int], b: tuple[int, int]) -> Difference:
    shares = [count / total if total else None for count, total in (a, b)]
    if None in shares:
        return Difference(measure=measure, a=shares[0], b=shares[1])
    low, high = share_difference(a, b)
    return Difference(
        measure=measure, a=shares[0], b=shares[1], low=low, high=high, better=_better(low, high)
    )


def _means(measure: str, a: Sequence[float], b: Sequence[float]) -> Difference:
    means = [fmean(values) if values else None for values in (a, b)]
    if means[0] is None or means[1] is None or min(len(a), len(b)) < ENOUGH:
        return Difference(measure=measure, a=means[0], b=means[1])
    gap = means[1] - means[0]
    error = sqrt(variance(a) / len(a) + variance(b) / len(b))
    spread = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * error
    low, high = gap - spread, gap + spread
    return Difference(
        measure=measure, a=means[0], b=means[1], low=low, high=high, better=_better(low, high)
    )
