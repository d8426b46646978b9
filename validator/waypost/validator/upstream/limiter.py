"""How many requests a provider gets at once. Pure.

The rule: as many as the operator allows, while it answers without queueing. When answers begin
much later than usual, fewer, in proportion (Little's law: what waits grows with what is under
way). If fewer under way do not make it quicker, it is not our queue: then it is slow by itself,
that is what is usual from now on, and nobody need be turned away. Where answers begin is told
by their first bytes, so streams teach at once, however long they last.

Language models differ in speed by orders of magnitude, and so do answers in one piece from
streams, so each kind of request is compared with its like alone. Of many answers the median
counts: times to the first token have long tails.
"""

from collections import deque
from collections.abc import Hashable

__all__ = ["Limiter"]

LOWEST = 8.0
# How much slower than usual an answer begins where there is no queue, and where there surely is
# one; between them nobody can tell, as prompts and hours of the day differ.
EASE, LATE = 1.25, 2.0
WINDOW = 20  # answers of a kind that are judged together, and for so many times as long as one
SPAN = 2.0  # takes: of a crowd that is sent at once the quickest come first
MOST_KEPT = 256  # of one window, evenly spread
LATE_WINDOWS = 2  # one after the other; one alone is chance
MOST_LEFT, LEAST_LEFT = 0.9, 0.5  # of what is under way, after late windows
GROWTH, SLOW_GROWTH = 1.25, 1.1  # of the limit, after a window at ease, and one between
MORE = 4.0  # is added to it as well
QUICKER, SLOWER = 0.5, 0.05  # how much of a change becomes usual with each window at ease
HELPED = 0.75  # half as many under way make it so much quicker if they were a queue
RECENT = 128  # whose slowest twentieth is late,
ENOUGH = 20  # once there are so many
DROPPED = 0.9  # what is left of the limit after a time-out or a provider's own limit


class _Window:
    """Some answers of one kind: how long each took, and how many were under way beside it."""

    __slots__ = ("_began_at", "_count", "_kept", "_stride", "_sum_s")

    def __init__(self, now: float) -> None:
        self._began_at = now
        self._kept: list[tuple[float, int]] = []
        self._count, self._stride = 0, 1
        self._sum_s = 0.0

    def add(self, took_s: float, beside: int, now: float, *, usual_s: float) -> bool:
        """Return whether it can be judged now."""
        self._sum_s += took_s
        if self._count % self._stride == 0:
            self._kept.append((took_s, beside))
            if len(self._kept) > MOST_KEPT:
                self._kept, self._stride = self._kept[::2], self._stride * 2
        self._count += 1
        span_s = SPAN * (usual_s or self._sum_s / self._count)
        return self._count >= WINDOW and now - self._began_at >= span_s

    def median(self) -> tuple[float, int]:
        """Return the answer that half of them were quicker than."""
        return sorted(self._kept)[len(self._kept) // 2]


class _Usual:
    """How long answers of one kind take to begin.

    Attributes:
        base_s: what is usual; 0 until it is known.
        late: how many windows were late, one after the other.
        queue: how many were under way when answers became late, and how late; ``None`` at ease.
        before: the limit at that time.
    """

    __slots__ = ("_recent", "_window", "base_s", "before", "late", "queue")

    def __init__(self, now: float) -> None:
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._window = _Window(now)
        self.base_s = 0.0
        self.late = 0
        self.queue: tuple[int, float] | None = None
        self.before = 0.0

    def add(self, took_s: float, beside: int, now: float) -> _Window | None:
        """Return the window that this answer completes."""
        self._recent.append(took_s)
        window = self._window
        if not window.add(took_s, beside, now, usual_s=self.base_s):
            return None
        self._window = _Window(now)
        return window

    def is_slow_by_itself(self, median_s: float, beside: int) -> bool:
        """Whether there is a slowness that fewer requests do not end."""
        if beside <= LOWEST:
            return median_s > self.base_s * LATE
        if self.queue is None or median_s <= self.base_s * EASE or beside > self.queue[0] / 2:
            return False
        if median_s > self.queue[1] * HELPED:
            return True
        self.queue = (beside, median_s)
        return False

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
        most: never more than this at once, and so many to begin with.
        """
        self._most = self._limit = float(most)
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

    def answered(self, kind: Hashable, took_s: float, *, beside: int, now: float) -> None:
        """Learn that an answer of this ``kind`` began after ``took_s``, as soon as it does.

        Args:
            beside: how many were under way when its request was sent; it waited for those.
            now: seconds of any clock.
        """
        usual = self._usual.get(kind)
        if usual is None:
            usual = self._usual[kind] = _Usual(now - took_s)
        window = usual.add(took_s, beside, now)
        if window is not None:
            self._judge(usual, *window.median())

    def _judge(self, usual: _Usual, median_s: float, beside: int) -> None:
        if not usual.base_s:
            usual.base_s = median_s
        if usual.is_slow_by_itself(median_s, beside):
            usual.base_s, usual.queue = median_s, None
            self._set(max(self._limit, usual.before))
        usual.late = usual.late + 1 if median_s > usual.base_s * LATE else 0
        if usual.late >= LATE_WINDOWS:
            if usual.queue is None:
                usual.queue, usual.before = (beside, median_s), self._limit
            left = min(MOST_LEFT, max(LEAST_LEFT, LATE * usual.base_s / median_s))
            self._set(min(self._limit, beside * left))
        elif median_s <= usual.base_s * EASE:
            share = QUICKER if median_s < usual.base_s else SLOWER
            usual.base_s += (median_s - usual.base_s) * share
            usual.queue = None
            self._set(self._limit * GROWTH + MORE)
        elif not usual.late:
            self._set(self._limit * SLOW_GROWTH + MORE)

    def late_s(self, kind: Hashable) -> float | None:
        """Return when an answer of this ``kind`` is late; ``None`` while nobody can tell."""
        usual = self._usual.get(kind)
        return None if usual is None else usual.late_s()

    def dropped(self) -> None:
        """Learn that the provider had too much to do: a time-out, or a limit of its own."""
        self._set(self._limit * DROPPED)

    def _set(self, limit: float) -> None:
        self._limit = max(min(LOWEST, self._most), min(self._most, limit))
