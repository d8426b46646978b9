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

__all__ = ["Book", "Track", "two_choices"]

TAU_S = 10.0  # Finagle's and tower's decay: a spike is down to a third after ten seconds
RISE = 0.5  # of the way up at one slow answer; more flees from noise (bench/latency_world)
# Waits that are so many times the expected count whole: chance gives one in 25,000 of them
# (lognormal, sigma 0.35), and by halves a slow provider is back among the near within seconds.
GROSS = 4.0
FLOOR = 0.5  # of the expected wait: one lucky answer must not draw everything
FAILURE_MS = 5_000.0  # linkerd2-proxy's load-biaser; without it fast failures win
MAX_FAILURE_MS = 300_000.0
FORGET_S = 6  # times tau: by then 0.25 % of a deviation is left

PACE_TAU_S, PACE_STEP = 60.0, 0.3  # the pace of a model changes with its load, not by request
PACE_BOUNDS = (0.25, 16.0)  # of the expected, as the engine bounds hints

FAR_MS = 100.0  # to a model in another region, before anything was seen: half way round the world
WAY_PRIOR, WAY_MEMORY = 2.0, 16.0  # samples that the prior weighs; that are remembered
WAY_BOUNDS_MS = (-200.0, 500.0)  # what lies outside is the model's doing, not the network's
WAY_STEP_MS = 10  # coarse, as each value makes the chooser compute its fields anew

EJECTED = float("inf")
EJECT_S, EJECT_MAX_S = 30.0, 300.0  # Envoy's base_ejection_time and max_ejection_time
PROBE_S = 10.0  # how long one request has to show that an ejected one is back
JITTER = 0.1

# Of two waits the longer is drawn this power less often. Sharper follows the hints so closely
# that clients herd, blunter wastes the best: bench/latency_world has the figures.
SHARPNESS = 10.0


class Track:
    """What is known of one model or endpoint."""

    __slots__ = (
        "active",
        "at_s",
        "ejected_until_s",
        "ejections",
        "failures",
        "ms",
        "pace",
        "paced_s",
    )

    def __init__(self) -> None:
        self.ms = 0.0
        self.at_s = float("-inf")  # of the last sample: before any, nothing deviates
        self.pace = 1.0  # time per token, in what the manifest expects
        self.paced_s = float("-inf")
        self.active: set[object] = set()  # a set, as adding to it is atomic and counting is not
        self.failures = 0
        self.ejections = 0
        self.ejected_until_s = 0.0

    def wait_ms(self, expected_ms: float, now_s: float, tau_s: float = TAU_S) -> float:
        """Return the wait to expect now, given what the manifest expects."""
        ms = expected_ms + (self.ms - expected_ms) * exp((self.at_s - now_s) / tau_s)
        return max(ms, expected_ms * FLOOR)

    def pace_now(self, now_s: float) -> float:
        """Return how much longer a token takes than the manifest expects."""
        return 1.0 + (self.pace - 1.0) * exp((self.paced_s - now_s) / PACE_TAU_S)


class _Way:
    """How far one region is, in what it adds to the waits of its models."""

    __slots__ = ("ms", "samples")

    def __init__(self) -> None:
        self.ms = 0.0
        self.samples = 0.0


class Book:
    """The tracks of all models, or of all endpoints.

    Attributes:
        ways_learnt: until it moves, ``way_ms`` says the same.
    """

    def __init__(
        self,
        *,
        eject_after: int,
        draw: Callable[[], float],
        tau_s: float = TAU_S,
        gross: float = GROSS,
    ) -> None:
        """Args:
        eject_after: failures in a row that take one out of service.
        draw: a number in [0, 1), as ``random.random``.
        tau_s: time in which a deviation is down to a third.
        gross: times the expected, from which on a wait counts whole.
        """
        self._gross = gross
        self._eject_after = eject_after
        self._draw = draw
        self._tau_s = tau_s
        self._ways: dict[str, _Way] = {}
        self.ways_learnt = 0
        self.tracks: dict[str, Track] = {}

    def track(self, key: str) -> Track:
        """Return the track of ``key``, a new one if it has none."""
        return self.tracks.get(key) or self.tracks.setdefault(key, Track())

    def wait_ms(self, key: str, expected_ms: float, now_s: float) -> float:
        """Return the wait to expect of ``key`` now, given what the manifest expects."""
        track = self.tracks.get(key)
        return expected_ms if track is None else track.wait_ms(expected_ms, now_s, self._tau_s)

    def is_ejected(self, key: str, now_s: float) -> bool:
        """Whether ``key`` has failed so often that it is not to be tried now."""
        track = self.tracks.get(key)
        return track is not None and now_s < track.ejected_until_s

    def start(self, key: str, flight: object, now_s: float) -> None:
        """Count ``flight`` as under way until ``finish``."""
        track = self.track(key)
        track.active.add(flight)
        if track.failures >= self._eject_after and now_s >= track.ejected_until_s:
            # This one is the probe; the others wait for what it finds.
            track.ejected_until_s = now_s + PROBE_S

    def finish(self, key: str, flight: object) -> None:
        """Take back ``start``; harmless if repeated."""
        self.track(key).active.discard(flight)

    def succeed(self, key: str) -> None:
        """It answered: what failures it had are over."""
        track = self.tracks.get(key)
        if track is not None:
            track.failures = track.ejections = 0
            track.ejected_until_s = 0.0

    def observe(self, key: str, ms: float, *, expected_ms: float, now_s: float) -> None:
        """Learn that ``key`` made somebody wait for ``ms``."""
        track = self.track(key)
        before = track.wait_ms(expected_ms, now_s, self._tau_s)
        if ms < before:
            kept = exp((track.at_s - now_s) / self._tau_s)
            ms = before * kept + ms * (1 - kept)
        elif ms < expected_ms * self._gross:
            ms = before + (ms - before) * RISE
        track.ms, track.at_s = ms, now_s

    def observe_pace(self, key: str, ratio: float, now_s: float) -> None:
        """Learn that tokens of ``key`` took ``ratio`` of what the manifest expects."""
        track = self.track(key)
        before = track.pace_now(now_s)
        low, high = PACE_BOUNDS
        track.pace = before + (min(max(ratio, low), high) - before) * PACE_STEP
        track.paced_s = now_s

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
        track = self.track(key)
        asked_ms = min(retry_after_s * 1_000, MAX_FAILURE_MS)
        known_ms = track.wait_ms(expected_ms, now_s, self._tau_s)
        track.ms, track.at_s = max(FAILURE_MS, elapsed_ms, asked_ms, known_ms), now_s
        track.failures += 1
        if track.failures >= self._eject_after:
            track.ejections += 1
            pause_s = min(EJECT_S * track.ejections, EJECT_MAX_S)
            track.ejected_until_s = now_s + pause_s * (1 + JITTER * (2 * self._draw() - 1))

    def way_ms(self, here: str | None, there: str) -> float:
        """Return what the way to region ``there`` adds to a wait.

        Args:
            here: the caller's region, which is believed until waits tell otherwise.
        """
        prior_ms = FAR_MS if here and there not in (here, "global") else 0.0
        way = self._ways.get(there)
        if way is None:
            return prior_ms
        ms = (WAY_PRIOR * prior_ms + way.samples * way.ms) / (WAY_PRIOR + way.samples)
        return round(ms / WAY_STEP_MS) * WAY_STEP_MS

    def observe_way(self, there: str, ms: float) -> None:
        """Learn that a model in region ``there`` took ``ms`` longer than it is said to."""
        way = self._ways.setdefault(there, _Way())
        low, high = WAY_BOUNDS_MS
        way.samples = min(way.samples + 1, WAY_MEMORY)
        way.ms += (min(max(ms, low), high) - way.ms) / way.samples
        self.ways_learnt += 1

    def update(
        self,
        waits: list[float],
        places: Mapping[str, int],
        expected_ms: Sequence[float],
        answer_ms: Sequence[float],
        now_s: float,
    ) -> int:
        """Put what is known now into ``waits``; return how many are ejected.

        Args:
            waits: per place, as the manifest has it: ``expected_ms`` and ``answer_ms`` together.
            places: key → index into the lists.
            expected_ms: wait for the first token.
            answer_ms: from there to the last; queueing does not lengthen it.
        """
        ejected = 0
        for key, track in list(self.tracks.items()):  # another thread may add one
            place = places.get(key)
            if place is None:
                continue
            if now_s < track.ejected_until_s:
                waits[place] = EJECTED
                ejected += 1
                continue
            # ``wait_ms`` and ``pace_now`` written out: with two calls per model, this loop takes
            # twice as long.
            expected, answer = expected_ms[place], answer_ms[place]
            age_s = now_s - track.at_s
            if age_s < FORGET_S * TAU_S:
                ms = expected + (track.ms - expected) * exp(-age_s / TAU_S)
                if ms < expected * FLOOR:
                    ms = expected * FLOOR
            else:
                ms = expected
            age_s = now_s - track.paced_s
            if age_s < FORGET_S * PACE_TAU_S:
                answer *= 1.0 + (track.pace - 1.0) * exp(-age_s / PACE_TAU_S)
            waits[place] = ms * (len(track.active) + 1) + answer
        return ejected

    def forget(self, keys: Iterable[str]) -> None:
        """Drop the tracks of what no manifest names any more."""
        for key in list(keys):
            self.tracks.pop(key, None)


def two_choices(
    places: Sequence[int],
    waits: Sequence[float],
    shared: Sequence[float],
    kinds: Sequence[str],
    draw: Callable[[], float],
) -> tuple[int, int | None]:
    """Return the better of two places drawn at random, and the other.

    What all clients know alike only weighs the draw: if each took what is best by it, all would
    go the same way at once. What this client alone has seen decides between the two (Mitzenmacher
    2001: two choices are nearly as good as all, and do not herd).

    Args:
        places: those that are near the best.
        waits: by place, with what this client has seen.
        shared: by place, as all clients expect them.
        kinds: by place; the other is of another kind if any is, as providers fail as a whole.
    """
    if len(places) == 1:
        return places[0], None
    # In what the best takes, as the power of a number of milliseconds would be next to nothing.
    near = [waits[place] for place in places]
    best = min(near)
    weights = [(best / wait) ** SHARPNESS for wait in near]
    first = _drawn(list(accumulate(weights)), draw)
    one = places[first]
    own = kinds[one]
    others = [
        0.0 if kinds[place] == own else weight
        for place, weight in zip(places, weights, strict=True)
    ]
    sums = list(accumulate(others))
    if not sums[-1]:
        weights[first] = 0.0
        sums = list(accumulate(weights))
    other = places[_drawn(sums, draw)]
    # Of two that are as expected, the draw stands.
    swap = waits[other] * shared[one] < waits[one] * shared[other]
    return (other, one) if swap else (one, other)


def _drawn(sums: Sequence[float], draw: Callable[[], float]) -> int:
    # The first sum above it, so that a weight of nothing is never drawn.
    return bisect(sums, draw() * sums[-1])
