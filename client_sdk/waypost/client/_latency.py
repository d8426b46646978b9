"""How long each model or endpoint takes at the moment, as this client sees it.

Three things are learned, each blended with what the manifest expects by how much was seen:

- the *wait* for the first token, per model: a peak EWMA with time decay. A slow answer counts
  at once, a fast one by and by, and without news the estimate returns to the expected. A failure
  counts as a long wait, or what fails fast would draw traffic.
- the *pace* of the tokens after it, per model: slower to change, as answers vary in length.
- the *way* to each region, which all its models share: so a quiet client knows it soon.

Clock and randomness are arguments; nothing here does I/O. One book is used from many threads
without a lock: each change is one assignment, and an update lost in a race is one sample lost.
"""

from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from math import exp

__all__ = ["Estimate", "LatencyTracker", "two_choices"]

TAU_S = 10.0  # Finagle's and tower's decay: a spike is down to a third after ten seconds
RISE = 0.5  # of the way up at one slow answer; more flees from noise (bench/latency_world)
# Waits that are so many times the expected count whole: chance gives one in 25,000 of them
# (lognormal, sigma 0.35), and by halves a slow provider is back among the near within seconds.
GROSS = 4.0
FLOOR = 0.5  # of the expected wait: one lucky answer must not draw everything
FAILURE_MS = 5_000.0  # linkerd2-proxy's load-biaser; without it fast failures win
MAX_FAILURE_MS = 300_000.0
FORGET_S = 6  # times tau: by then 0.25 % of a deviation is left

TPOT_TAU_S, TPOT_STEP = 60.0, 0.3  # the pace of a model changes with its load, not by request
TPOT_BOUNDS = (0.25, 16.0)  # of the expected, as the engine bounds hints

FAR_MS = 100.0  # to a model in another region, before anything was seen: half way round the world
RTT_PRIOR, RTT_MEMORY = 2.0, 16.0  # samples that the prior weighs; that are remembered
RTT_BOUNDS_MS = (-200.0, 500.0)  # what lies outside is the model's doing, not the network's
RTT_STEP_MS = 10  # coarse, as each value makes the chooser compute its fields anew

EJECTED = float("inf")
EJECT_S, EJECT_MAX_S = 30.0, 300.0  # Envoy's base_ejection_time and max_ejection_time
PROBE_S = 10.0  # how long one request has to show that an ejected one is back
JITTER = 0.1

# Of two waits the longer is drawn this power less often. Sharper follows the hints so closely
# that clients herd, blunter wastes the best: bench/latency_world has the figures.
SHARPNESS = 10.0


class Estimate:
    """What is known of one model or endpoint."""

    __slots__ = (
        "active",
        "at_s",
        "ejected_until_s",
        "ejections",
        "failures",
        "ms",
        "tpot_at_s",
        "tpot_ratio",
    )

    def __init__(self) -> None:
        self.ms = 0.0
        self.at_s = float("-inf")  # of the last sample: before any, nothing deviates
        self.tpot_ratio = 1.0  # time per token, in what the manifest expects
        self.tpot_at_s = float("-inf")
        self.active: set[object] = set()  # a set, as adding to it is atomic and counting is not
        self.failures = 0
        self.ejections = 0
        self.ejected_until_s = 0.0

    def ttft_ms(self, expected_ms: float, now_s: float, tau_s: float = TAU_S) -> float:
        """Return the wait to expect now, given what the manifest expects."""
        ms = expected_ms + (self.ms - expected_ms) * exp((self.at_s - now_s) / tau_s)
        return max(ms, expected_ms * FLOOR)

    def tpot_ratio_now(self, now_s: float) -> float:
        """Return how much longer a token takes than the manifest expects."""
        return 1.0 + (self.tpot_ratio - 1.0) * exp((self.tpot_at_s - now_s) / TPOT_TAU_S)


class _Rtt:
    """How far one region is, in what it adds to the waits of its models."""

    __slots__ = ("ms", "samples")

    def __init__(self) -> None:
        self.ms = 0.0
        self.samples = 0.0


class LatencyTracker:
    """The estimates of all models, or of all endpoints.

    Attributes:
        rtts_learnt: until it moves, ``rtt_ms`` says the same.
    """

    def __init__(
        self,
        *,
        eject_after: int,
        rng: Callable[[], float],
        tau_s: float = TAU_S,
        gross: float = GROSS,
    ) -> None:
        """Args:
        eject_after: failures in a row that take one out of service.
        rng: a number in [0, 1), as ``random.random``.
        tau_s: time in which a deviation is down to a third.
        gross: times the expected, from which on a wait counts whole.
        """
        self._gross = gross
        self._eject_after = eject_after
        self._rng = rng
        self._tau_s = tau_s
        self._rtts: dict[str, _Rtt] = {}
        self.rtts_learnt = 0
        self.estimates: dict[str, Estimate] = {}

    def estimate(self, key: str) -> Estimate:
        """Return the track of ``key``, a new one if it has none."""
        return self.estimates.get(key) or self.estimates.setdefault(key, Estimate())

    def ttft_ms(self, key: str, expected_ms: float, now_s: float) -> float:
        """Return the wait to expect of ``key`` now, given what the manifest expects."""
        estimate = self.estimates.get(key)
        return (
            expected_ms if estimate is None else estimate.ttft_ms(expected_ms, now_s, self._tau_s)
        )

    def is_ejected(self, key: str, now_s: float) -> bool:
        """Whether ``key`` has failed so often that it is not to be tried now."""
        estimate = self.estimates.get(key)
        return estimate is not None and now_s < estimate.ejected_until_s

    def start(self, key: str, flight: object, now_s: float) -> None:
        """Count ``flight`` as under way until ``finish``."""
        estimate = self.estimate(key)
        estimate.active.add(flight)
        if estimate.failures >= self._eject_after and now_s >= estimate.ejected_until_s:
            # This one is the probe; the others wait for what it finds.
            estimate.ejected_until_s = now_s + PROBE_S

    def finish(self, key: str, flight: object) -> None:
        """Take back ``start``; harmless if repeated."""
        self.estimate(key).active.discard(flight)

    def succeed(self, key: str) -> None:
        """It answered: what failures it had are over."""
        estimate = self.estimates.get(key)
        if estimate is not None:
            estimate.failures = estimate.ejections = 0
            estimate.ejected_until_s = 0.0

    def observe(self, key: str, ms: float, *, expected_ms: float, now_s: float) -> None:
        """Learn that ``key`` made somebody wait for ``ms``."""
        estimate = self.estimate(key)
        before = estimate.ttft_ms(expected_ms, now_s, self._tau_s)
        if ms < before:
            kept = exp((estimate.at_s - now_s) / self._tau_s)
            ms = before * kept + ms * (1 - kept)
        elif ms < expected_ms * self._gross:
            ms = before + (ms - before) * RISE
        estimate.ms, estimate.at_s = ms, now_s

    def observe_tpot(self, key: str, ratio: float, now_s: float) -> None:
        """Learn that tokens of ``key`` took ``ratio`` of what the manifest expects."""
        estimate = self.estimate(key)
        before = estimate.tpot_ratio_now(now_s)
        low, high = TPOT_BOUNDS
        estimate.tpot_ratio = before + (min(max(ratio, low), high) - before) * TPOT_STEP
        estimate.tpot_at_s = now_s

    def fail(
        self,
        key: str,
        *,
        elapsed_ms: float,
        expected_ms: float,
        now_s: float,
        retry_after_s: float = 0.0,
    ) -> None:
        """Learn that ``key`` failed; several times in a row ejects it for a while."""
        estimate = self.estimate(key)
        asked_ms = min(retry_after_s * 1_000, MAX_FAILURE_MS)
        known_ms = estimate.ttft_ms(expected_ms, now_s, self._tau_s)
        estimate.ms, estimate.at_s = max(FAILURE_MS, elapsed_ms, asked_ms, known_ms), now_s
        estimate.failures += 1
        if estimate.failures >= self._eject_after:
            estimate.ejections += 1
            pause_s = min(EJECT_S * estimate.ejections, EJECT_MAX_S)
            estimate.ejected_until_s = now_s + pause_s * (1 + JITTER * (2 * self._rng() - 1))

    def rtt_ms(self, here: str | None, there: str) -> float:
        """Return what the way to region ``there`` adds to a wait.

        Args:
            here: the caller's region, which is believed until waits tell otherwise.
        """
        prior_ms = FAR_MS if here and there not in (here, "global") else 0.0
        rtt = self._rtts.get(there)
        if rtt is None:
            return prior_ms
        ms = (RTT_PRIOR * prior_ms + rtt.samples * rtt.ms) / (RTT_PRIOR + rtt.samples)
        return round(ms / RTT_STEP_MS) * RTT_STEP_MS

    def observe_rtt(self, there: str, ms: float) -> None:
        """Learn that a model in region ``there`` took ``ms`` longer than it is said to."""
        rtt = self._rtts.setdefault(there, _Rtt())
        low, high = RTT_BOUNDS_MS
        rtt.samples = min(rtt.samples + 1, RTT_MEMORY)
        rtt.ms += (min(max(ms, low), high) - rtt.ms) / rtt.samples
        self.rtts_learnt += 1

    def update(
        self,
        waits: list[float],
        indices: Mapping[str, int],
        expected_ms: Sequence[float],
        answer_ms: Sequence[float],
        now_s: float,
    ) -> int:
        """Put what is known now into ``waits``; return how many are ejected.

        Args:
            waits: per place, as the manifest has it: ``expected_ms`` and ``answer_ms`` together.
            indices: key → index into the lists.
            expected_ms: wait for the first token.
            answer_ms: from there to the last; queueing does not lengthen it.
        """
        ejected = 0
        for key, estimate in list(self.estimates.items()):  # another thread may add one
            index = indices.get(key)
            if index is None:
                continue
            if now_s < estimate.ejected_until_s:
                waits[index] = EJECTED
                ejected += 1
                continue
            # ``ttft_ms`` and ``tpot_ratio_now`` written out: with two calls per model, this loop
            # takes twice as long.
            expected, answer = expected_ms[index], answer_ms[index]
            age_s = now_s - estimate.at_s
            if age_s < FORGET_S * TAU_S:
                ms = expected + (estimate.ms - expected) * exp(-age_s / TAU_S)
                if ms < expected * FLOOR:
                    ms = expected * FLOOR
            else:
                ms = expected
            age_s = now_s - estimate.tpot_at_s
            if age_s < FORGET_S * TPOT_TAU_S:
                answer *= 1.0 + (estimate.tpot_ratio - 1.0) * exp(-age_s / TPOT_TAU_S)
            waits[index] = ms * (len(estimate.active) + 1) + answer
        return ejected

    def forget(self, keys: Iterable[str]) -> None:
        """Drop the estimates of what no manifest names any more."""
        for key in list(keys):
            self.estimates.pop(key, None)


def two_choices(
    indices: Sequence[int],
    waits: Sequence[float],
    shared: Sequence[float],
    kinds: Sequence[str],
    rng: Callable[[], float],
) -> tuple[int, int | None]:
    """Return the better of two places drawn at random, and the other.

    What all clients know alike only weighs the draw: if each took what is best by it, all would
    go the same way at once. What this client alone has seen decides between the two (Mitzenmacher
    2001: two choices are nearly as good as all, and do not herd).

    Args:
        indices: those that are near the best.
        waits: by place, with what this client has seen.
        shared: by place, as all clients expect them.
        kinds: by place; the other is of another kind if any is, as providers fail as a whole.
    """
    if len(indices) == 1:
        return indices[0], None
    # In what the best takes, as the power of a number of milliseconds would be next to nothing.
    near = [waits[index] for index in indices]
    best = min(near)
    weights = [(best / wait) ** SHARPNESS for wait in near]
    first = _drawn(list(accumulate(weights)), rng)
    one = indices[first]
    own = kinds[one]
    others = [
        0.0 if kinds[index] == own else weight
        for index, weight in zip(indices, weights, strict=True)
    ]
    sums = list(accumulate(others))
    if not sums[-1]:
        weights[first] = 0.0
        sums = list(accumulate(weights))
    other = indices[_drawn(sums, rng)]
    # Of two that are as expected, the draw stands.
    swap = waits[other] * shared[one] < waits[one] * shared[other]
    return (other, one) if swap else (one, other)


def _drawn(sums: Sequence[float], rng: Callable[[], float]) -> int:
    # The first sum above it, so that a weight of nothing is never drawn.
    return bisect(sums, rng() * sums[-1])
