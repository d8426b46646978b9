"""When a target is given a rest. Pure: the caller brings the clock and the randomness.

The rule: closed → open, by failures in a row or by a rolling rate of failures or slow answers →
half-open when it has cooled off, and then one probe at a time → closed by a success, open for
longer by a failure. What another validator says of a target is a doubt: one request finds out,
others had better go elsewhere meanwhile, and nobody is turned away for it. A limit that a
provider sets (429) says nothing here: it has its own remedy
(``waypost.validator.resilience.keys``).
"""

from collections.abc import Callable

from msgspec import Struct

__all__ = ["Breaker", "BreakerRules"]

JITTER = 0.2  # so that validators do not probe in step
BUCKETS = 10  # of a window; the oldest tenth is forgotten at a time


class BreakerRules(Struct, frozen=True, kw_only=True):
    """When a breaker opens, and for how long. Rates are of the calls within ``window_s``.

    Attributes:
        failures: in a row; as Envoy's and Finagle's defaults have it.
        min_calls: fewer in the window say nothing about rates.
        slow_after_s: an answer that begins later than this counts as slow.
    """

    failures: int = 5
    window_s: float = 30.0
    min_calls: int = 20
    failed_percent: int = 50
    slow_percent: int = 80
    slow_after_s: float = 30.0
    first_rest_s: float = 5.0
    last_rest_s: float = 300.0


class _Window:
    """Calls of late, and how many of them failed or were slow."""

    __slots__ = ("_at", "_buckets", "_width_s", "calls", "failed", "slow")

    def __init__(self, width_s: float) -> None:
        self._width_s = width_s / BUCKETS
        self.clear()

    def clear(self) -> None:
        self._at = 0
        self._buckets = [[0, 0, 0] for _ in range(BUCKETS)]
        self.calls = self.failed = self.slow = 0

    def add(self, now: float, *, failed: bool, slow: bool) -> None:
        at = int(now / self._width_s)
        if at != self._at:
            self._turn(at)
        bucket = self._buckets[at % BUCKETS]
        bucket[0] += 1
        bucket[1] += failed
        bucket[2] += slow
        self.calls += 1
        self.failed += failed
        self.slow += slow

    def _turn(self, at: int) -> None:
        for passed in range(max(self._at + 1, at - BUCKETS + 1), at + 1):
            bucket = self._buckets[passed % BUCKETS]
            self.calls -= bucket[0]
            self.failed -= bucket[1]
            self.slow -= bucket[2]
            bucket[:] = (0, 0, 0)
        self._at = max(at, self._at)


class Breaker:
    """One target's breaker, for one event loop. Instants are monotonic seconds."""

    __slots__ = (
        "_doubted_until",
        "_open",
        "_open_until",
        "_probing",
        "_rest_s",
        "_rested_from",
        "_row",
        "_tell",
        "_window",
        "rules",
    )

    def __init__(
        self,
        rules: BreakerRules | None = None,
        *,
        opened: "set[Breaker] | None" = None,
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        """Args:
        opened: holds this breaker for as long as it is not closed.
        tell: called when it opens, for others to hear of.
        """
        self.rules = rules or BreakerRules()
        self._tell = tell
        self._open: set[Breaker] = set() if opened is None else opened
        self._window = _Window(self.rules.window_s)
        self._close()

    def _close(self) -> None:
        self._row = 0
        self._rest_s = self.rules.first_rest_s
        self._open_until: float | None = None
        self._rested_from = 0.0
        self._doubted_until = 0.0
        self._probing = False
        self._window.clear()
        self._open.discard(self)

    @property
    def is_closed(self) -> bool:
        """Whether nothing is known against the target."""
        return self._open_until is None

    def refuses(self, now: float) -> bool:
        """Whether a request that came now would be turned away."""
        return self._open_until is not None and (self._probing or now < self._open_until)

    def rests_s(self, now: float) -> float:
        """Return how long it still rests; 0 when it is closed, or waits for a probe."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - now)

    def admit(self, now: float) -> bool:
        """Return whether to send a request now; each that is sent ends in one of the below."""
        if self._open_until is None:
            self._probing = self.is_doubted(now)
            return True
        if self._probing or now < self._open_until:
            return False
        self._probing = True
        return True

    def began(self, *, after_s: float) -> None:
        """The target begins to answer: who waits for a probe need not wait for its last word."""
        if self._probing and after_s <= self.rules.slow_after_s:
            if self._open_until is not None:
                self._close()
            self._doubted_until, self._probing = 0.0, False

    def succeeded(self, now: float, *, after_s: float, luck: float = 0.0) -> None:
        """The target answered; ``after_s`` is when the answer began."""
        slow = after_s > self.rules.slow_after_s
        if self._open_until is not None:
            # A probe that crawls is no recovery.
            if self._probing and slow:
                self.failed(now, luck=luck)
            else:
                self._close()
            return
        self._row = 0
        self._doubted_until, self._probing = 0.0, False
        self._window.add(now, failed=False, slow=slow)
        if slow and self._exceeds(self._window.slow, self.rules.slow_percent):
            self._rest(now, luck)

    def failed(self, now: float, *, luck: float) -> None:
        """The target did not answer, or not as a provider should.

        Args:
            luck: 0 to 1, lengthens the rest by up to a fifth.
        """
        if self.is_doubted(now):
            self._rest(now, luck)
        elif self._probing and self._open_until is not None:
            self._rest_s = min(self._rest_s * 2, self.rules.last_rest_s)
            self._rest(now, luck)
        elif self._open_until is None:  # else it was sent before that, and tells nothing new
            self._row += 1
            self._window.add(now, failed=True, slow=False)
            if self._row >= self.rules.failures or self._exceeds(
                self._window.failed, self.rules.failed_percent
            ):
                self._rest(now, luck)

    def wake(self, now: float) -> bool:
        """Return whether it may be probed, however long its rest, as nothing else can serve."""
        if self._open_until is None or self._probing:
            return False
        self._open_until = min(self._open_until, self._rested_from + self.rules.first_rest_s)
        return now >= self._open_until

    def doubt(self, now: float) -> None:
        """The target was given a rest elsewhere: the next failure opens, any answer clears it.

        What nobody finds out about is forgotten after a window.
        """
        if self._open_until is None:
            self._doubted_until = now + self.rules.window_s

    def is_doubted(self, now: float) -> bool:
        """Whether another validator has said so of late, and nobody here knows better yet."""
        return now < self._doubted_until

    def is_being_tested(self, now: float) -> bool:
        """Whether it is doubted and a request is finding out; others had better go elsewhere."""
        return self._probing and self.is_doubted(now)

    def abandoned(self) -> None:
        """The request ended before it could tell, as when the caller hung up."""
        self._probing = False

    def _exceeds(self, count: int, percent: int) -> bool:
        calls = self._window.calls
        return calls >= self.rules.min_calls and count * 100 >= calls * percent

    def _rest(self, now: float, luck: float) -> None:
        self._doubted_until, self._probing = 0.0, False
        self._rested_from = now
        self._open_until = now + self._rest_s * (1 + JITTER * luck)
        self._open.add(self)
        self._tell()
