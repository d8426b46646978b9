"""How long each model or endpoint takes at the moment, as this client sees it.

Peak EWMA with time decay: a slow answer counts at once, a fast one by and by, and without news
the estimate returns to what the manifest expects. A failure counts as a long wait, or what
fails fast would draw traffic. Clock and randomness are arguments; nothing here does I/O.

One book is used from many threads without a lock: each change is one assignment, and an update
lost in a race is one sample lost.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import exp

__all__ = ["Book", "Track", "two_choices"]

TAU_S = 10.0  # Finagle's and tower's decay: a spike is down to a third after ten seconds
FLOOR = 0.5  # of the expected wait: one lucky answer must not draw everything
FAILURE_MS = 5_000.0  # linkerd2-proxy's load-biaser; without it fast failures win
MAX_FAILURE_MS = 300_000.0
FORGET_S = 6 * TAU_S  # by then 0.25 % of a deviation is left

EJECTED = float("inf")
EJECT_S, EJECT_MAX_S = 30.0, 300.0  # Envoy's base_ejection_time and max_ejection_time
PROBE_S = 10.0  # how long one request has to show that an ejected one is back
JITTER = 0.1


class Track:
    """What is known of one model or endpoint."""

    __slots__ = ("active", "at_s", "ejected_until_s", "ejections", "failures", "ms")

    def __init__(self) -> None:
        self.ms = 0.0
        self.at_s = float("-inf")  # of the last sample: before any, nothing deviates
        self.active: set[object] = set()  # a set, as adding to it is atomic and counting is not
        self.failures = 0
        self.ejections = 0
        self.ejected_until_s = 0.0

    def wait_ms(self, expected_ms: float, now_s: float) -> float:
        """Return the wait to expect now, given what the manifest expects."""
        ms = expected_ms + (self.ms - expected_ms) * exp((self.at_s - now_s) / TAU_S)
        return max(ms, expected_ms * FLOOR)


class Book:
    """The tracks of all models, or of all endpoints."""

    def __init__(self, *, eject_after: int, draw: Callable[[], float]) -> None:
        """Args:
        eject_after: failures in a row that take one out of service.
        draw: a number in [0, 1), as ``random.random``.
        """
        self._eject_after = eject_after
        self._draw = draw
        self.tracks: dict[str, Track] = {}

    def track(self, key: str) -> Track:
        """Return the track of ``key``, a new one if it has none."""
        return self.tracks.get(key) or self.tracks.setdefault(key, Track())

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
        before = track.wait_ms(expected_ms, now_s)
        if ms < before:
            kept = exp((track.at_s - now_s) / TAU_S)
            ms = before * kept + ms * (1 - kept)
        track.ms, track.at_s = ms, now_s

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
        asked_ms = min(retry_after_s * 1_000, MAX_FAILURE_MS)
        penalty_ms = max(FAILURE_MS, elapsed_ms, asked_ms)
        self.observe(key, penalty_ms, expected_ms=expected_ms, now_s=now_s)
        track = self.track(key)
        track.failures += 1
        if track.failures >= self._eject_after:
            track.ejections += 1
            pause_s = min(EJECT_S * track.ejections, EJECT_MAX_S)
            track.ejected_until_s = now_s + pause_s * (1 + JITTER * (2 * self._draw() - 1))

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
            age_s = now_s - track.at_s
            if age_s > FORGET_S and not track.active:
                continue
            # ``wait_ms`` written out: with a call per model, this loop takes twice as long.
            expected = expected_ms[place]
            ms = expected + (track.ms - expected) * exp(-age_s / TAU_S)
            if ms < expected * FLOOR:
                ms = expected * FLOOR
            waits[place] = ms * (len(track.active) + 1) + answer_ms[place]
        return ejected

    def forget(self, keys: Iterable[str]) -> None:
        """Drop the tracks of what no manifest names any more."""
        for key in list(keys):
            self.tracks.pop(key, None)


def two_choices(places: Sequence[int], waits: Sequence[float], draw: Callable[[], float]) -> int:
    """Return the better of two places drawn at random.

    Always taking the best sends every client the same way at once; two draws spread them and
    still avoid the worst (Mitzenmacher 2001).
    """
    if len(places) == 1:
        return places[0]
    first = int(draw() * len(places))
    second = int(draw() * (len(places) - 1))
    second += second >= first
    # Of two that are equal the one that the policy puts first.
    return min(places[first], places[second], key=lambda place: (waits[place], place))
