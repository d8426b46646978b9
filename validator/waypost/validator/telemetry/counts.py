"""Counts decision records as they are made, with labels that cannot grow without bound. Pure.

Everything is a list of numbers per family and labels, so that the counts of several processes
are added by adding lists. A record costs about five microseconds.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.msgpack import Decoder, Encoder

from waypost.shared.contracts import Policy
from waypost.shared.records import DecisionRecord, Fate, Feedback, Shadow, fate_of
from waypost.validator.records.sink import LOSSES, Loss

__all__ = ["ADDED_S", "TOTAL_S", "Counts", "Families", "added", "decode", "encode"]

# Upper bounds of the buckets, in seconds: of what we add, and of what the caller waits for.
ADDED_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
TOTAL_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

# Of all that are not in the manifest: what a token or a caller says is no label.
OTHER, NONE = "other", "none"
# Manifests come and go, but no family grows beyond this.
MOST_LABELS = 2_000
MEMO = 10_000

_FATES: tuple[Fate, ...] = ("answered", "abandoned", "failed", "rejected", "refused")

Labels = tuple[str, ...]
Families = dict[str, dict[Labels, list[float]]]


class _Known(Struct, frozen=True):
    routes: frozenset[str] = frozenset()
    models: Mapping[str, str] = {}
    tiers: frozenset[str] = frozenset()


class _Place(Struct):
    """Where the numbers of alike records go."""

    decisions: list[float]
    requests: list[float]
    added: list[float]
    total: list[float]
    ttft: list[float]
    labels: Labels


class Counts:
    """One process's counts since it began.

    Attributes:
        families: name → labels → numbers.
        exemplars: family, labels and bucket → trace id, seconds, instant.
    """

    def __init__(self) -> None:
        self.families: Families = {}
        self.exemplars: dict[tuple[str, Labels, int], tuple[str, float, float]] = {}
        self._known = _Known()
        self._places: dict[tuple[str | None, ...], _Place] = {}
        self._attempts: dict[Labels, list[float]] = {}
        self._steps: dict[str, list[float]] = {}

    def know(self, policies: Iterable[Policy]) -> None:
        """Take the names in ``policies`` as labels from now on; all others are ``other``."""
        given = tuple(policies)
        self._known = _Known(
            frozenset(route.name for policy in given for route in policy.routes),
            {model.id: model.provider for policy in given for model in policy.models},
            frozenset(tier for policy in given for tier in policy.tiers),
        )
        self._places.clear()
        self._attempts.clear()

    def record(self, record: DecisionRecord) -> None:
        """Count ``record``."""
        key = (record.route, record.model, record.tier, record.verdict, record.reason)
        place = self._places.get(key) or self._new_place(key, record)
        place.decisions[0] += 1
        usage, numbers = record.usage, place.requests
        numbers[0] += 1
        numbers[1 + _FATES.index(fate_of(record))] += 1
        numbers[6] += record.repeats is not None
        numbers[7] += record.cost_nusd
        baseline = record.baseline_cost_nusd
        numbers[8] += record.cost_nusd if baseline is None else baseline
        numbers[12] += record.unconfirmed_nusd
        if usage is not None:
            numbers[9] += usage.input_tokens
            numbers[10] += usage.cached_tokens
            numbers[11] += usage.output_tokens
        forward_ms = record.steps_ms.get("forward", 0.0)
        added_ms = sum(record.steps_ms.values()) - forward_ms
        self._observe(place.added, ADDED_S, added_ms / 1_000)
        bucket = self._observe(place.total, TOTAL_S, record.duration_ms / 1_000)
        if record.trace_id is not None:
            self.exemplars["total", place.labels, bucket] = (
                record.trace_id,
                record.duration_ms / 1_000,
                record.at_ms / 1_000,
            )
        if record.ttft_ms is not None:
            self._observe(place.ttft, TOTAL_S, record.ttft_ms / 1_000)
        for attempt in record.attempts:
            said = (attempt.model, attempt.kind, attempt.outcome)
            (self._attempts.get(said) or self._new_attempts(said))[0] += 1
        for step, ms in record.steps_ms.items():
            spent = self._steps.get(step)
            if spent is None:
                spent = self._steps[step] = self._numbers("steps", (step,), 2)
            spent[0] += 1
            spent[1] += ms / 1_000

    def shadow(self, shadow: Shadow) -> None:
        """Count a request that was to be sent in the shadow, and what that cost."""
        attempt = shadow.attempt
        outcome = attempt.outcome if attempt is not None else shadow.not_sent or OTHER
        labels = (_label(shadow.model, self._known.models), outcome)
        numbers = self._numbers("shadows", labels, 2)
        numbers[0] += 1
        if attempt is not None:
            numbers[1] += shadow.cost_nusd or 0

    def lost(self, records: Mapping[Loss, int]) -> None:
        """Note how many records this process has lost in all, by why."""
        for why in LOSSES:  # those of which there is none, too: an alert needs a first 0
            self._numbers("lost", (why,), 1)[0] = records.get(why, 0)

    def expired(self, holds: int) -> None:
        """Count holds that nobody settled and that were charged in full."""
        self._numbers("expired", (), 1)[0] += holds

    def trial(self, digest: str, arm: str, more: Sequence[float]) -> None:
        """Add to what one arm of a trial has come to; workers judge by the sum of all."""
        numbers = self._numbers("trial", (digest, arm), len(more))
        for place, value in enumerate(more):
            numbers[place] += value

    def feedback(self, record: DecisionRecord, feedback: Feedback) -> None:
        """Count what a caller thought of an answer."""
        route, model = self._names(record)[:2]
        self._numbers("feedback", (route, model, feedback.rating), 1)[0] += 1

    def _new_place(self, key: tuple[str | None, ...], record: DecisionRecord) -> _Place:
        if len(self._places) >= MEMO:
            self._places.clear()
        route, model, provider, tier = self._names(record)
        pair = (route, model)
        place = self._places[key] = _Place(
            self._numbers("decisions", (record.verdict, record.reason), 1),
            self._numbers("requests", (route, model, provider, tier, record.verdict), 13),
            self._numbers("added", pair, len(ADDED_S) + 2),
            self._numbers("total", pair, len(TOTAL_S) + 2),
            self._numbers("ttft", pair, len(TOTAL_S) + 2),
            pair,
        )
        return place

    def _new_attempts(self, said: tuple[str, str, str]) -> list[float]:
        if len(self._attempts) >= MEMO:
            self._attempts.clear()
        model, kind, outcome = said
        known = self._known.models
        labels = (_label(model, known), known.get(model, OTHER), kind, outcome)
        numbers = self._attempts[said] = self._numbers("attempts", labels, 1)
        return numbers

    def _names(self, record: DecisionRecord) -> tuple[str, str, str, str]:
        known = self._known
        return (
            _label(record.route, known.routes),
            _label(record.model, known.models),
            NONE if record.model is None else known.models.get(record.model, OTHER),
            _label(record.tier, known.tiers),
        )

    def _numbers(self, family: str, labels: Labels, size: int) -> list[float]:
        members = self.families.setdefault(family, {})
        numbers = members.get(labels)
        if numbers is None:
            if len(members) >= MOST_LABELS:
                labels = (OTHER,) * len(labels)
            numbers = members.setdefault(labels, [0.0] * size)
        return numbers

    @staticmethod
    def _observe(numbers: list[float], bounds: tuple[float, ...], seconds: float) -> int:
        bucket = bisect_left(bounds, seconds)
        numbers[bucket] += 1
        numbers[-1] += seconds
        return bucket


def _label(name: str | None, known: Iterable[str]) -> str:
    if name is None:
        return NONE
    return name if name in known else OTHER


def added(all_families: Iterable[Families]) -> Families:
    """Return the sums of the counts of several processes."""
    result: Families = {}
    for families in all_families:
        for family, members in families.items():
            sums = result.setdefault(family, {})
            for labels, numbers in members.items():
                before = sums.get(labels)
                sums[labels] = (
                    list(numbers)
                    if before is None
                    else [a + b for a, b in zip(before, numbers, strict=True)]
                )
    return result


_encoder = Encoder()
_decoder = Decoder(dict[str, list[tuple[Labels, list[float]]]])


def encode(families: Families) -> bytes:
    """Return the counts for another process."""
    return _encoder.encode({name: list(members.items()) for name, members in families.items()})


def decode(data: bytes) -> Families:
    """Return what ``encode`` was given; raises msgspec.MsgspecError for anything else."""
    return {name: dict(members) for name, members in _decoder.decode(data).items()}
