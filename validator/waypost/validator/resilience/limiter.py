"""How many requests a provider gets at once. Pure.

The rule: as many as it answers without queueing. When answers begin later than they use to, the
limit shrinks; while they do not, it grows. After Netflix's Gradient2, with one difference:
language models differ in speed by orders of magnitude, and so do answers in one piece from
streams, so each kind of request is compared with its like alone.
"""

from collections import deque
from collections.abc import Hashable

__all__ = ["Limiter"]

# Gradient2's own, but for the limits: an answer takes seconds here, so more are under way.
INITIAL = 256.0
LOWEST = 8.0
TOLERANCE = 1.5  # so much slower than usual is no queue yet
SMOOTHING = 0.2
QUEUE = 4.0  # what the limit grows by
LONG_WINDOW = 600
RECENT = 128  # whose slowest twentieth is late,
ENOUGH = 20  # once there are so many
WARM_UP = 10  # samples that are averaged plainly
DROPPED = 0.9  # what is left of the limit after a time-out or a provider's own limit


class _Usual:
    """How long answers of one kind take to begin: an average over some hundred, and the last."""

    __slots__ = ("_count", "_mean", "_recent")

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._count = 0
        self._mean = 0.0

    def add(self, took_s: float) -> float:
        """Return the average with ``took_s`` in it."""
        self._recent.append(took_s)
        self._count += 1
        if self._count <= WARM_UP:
            self._mean += (took_s - self._mean) / self._count
        else:
            self._mean += (took_s - self._mean) * 2 / (LONG_WINDOW + 1)
            # After a bad time the average is far too high; it comes down faster than it rose.
            if self._mean > 2 * took_s:
                self._mean *= 0.95
        return self._mean

    def late_s(self) -> float | None:
        """Return after how long 95 % of the last had begun; ``None`` if there are too few."""
        if len(self._recent) < ENOUGH:
            return None
        return sorted(self._recent)[len(self._recent) * 95 // 100]


class Limiter:
    """One provider's limit, for one event loop.

    Attributes:
        in_flight: requests under way.
    """

    __slots__ = ("_limit", "_most", "_usual", "in_flight")

    def __init__(self, most: int) -> None:
        """Args:
        most: never more than this at once.
        """
        self._most = float(most)
        self._limit = min(INITIAL, self._most)
        self._usual: dict[Hashable, _Usual] = {}
        self.in_flight = 0

    @property
    def limit(self) -> int:
        """How many may be under way now."""
        return int(self._limit)

    def enter(self) -> bool:
        """Return whether one more may be sent; each that is sent leaves again."""
        if self.in_flight >= int(self._limit):
            return False
        self.in_flight += 1
        return True

    def leave(self) -> None:
        """One is over."""
        self.in_flight -= 1

    def answered(self, kind: Hashable, took_s: float) -> None:
        """Learn that an answer of this ``kind`` began after ``took_s``."""
        usual = self._usual.get(kind)
        if usual is None:
            usual = self._usual[kind] = _Usual()
        mean = usual.add(took_s)
        # Where the limit did not bind, nothing was learnt about it.
        if self.in_flight < self._limit / 2:
            return
        gradient = max(0.5, min(1.0, TOLERANCE * mean / took_s)) if took_s > 0 else 1.0
        self._move(self._limit * gradient + QUEUE)

    def late_s(self, kind: Hashable) -> float | None:
        """Return when an answer of this ``kind`` is late; ``None`` while nobody can tell."""
        usual = self._usual.get(kind)
        return None if usual is None else usual.late_s()

    def dropped(self) -> None:
        """Learn that the provider had too much to do: a time-out, or a limit of its own."""
        self._limit = max(min(LOWEST, self._most), self._limit * DROPPED)

    def _move(self, towards: float) -> None:
        limit = self._limit * (1 - SMOOTHING) + towards * SMOOTHING
        self._limit = max(min(LOWEST, self._most), min(self._most, limit))
