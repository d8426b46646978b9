"""When something that failed is given a rest, and how it comes back. Pure.

The rule: closed → open, by failures in a row or by a rolling rate of failures or slow answers →
half-open when it has cooled off, and then one probe at a time → closed by a success, open for
longer by a failure. One account's failures, or one body's, open nothing that is kept for more.
"""

from msgspec import Struct

from waypost.validator.upstream.witnesses import Witness, Witnesses

__all__ = ["ANYONE", "BreakerRules", "Circuit"]

JITTER = 0.2  # so that validators do not probe in step
BUCKETS = 10  # of a window; the oldest tenth is forgotten at a time
ANYONE = Witness()


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


class Circuit:
    """What is given a rest together: all requests, or those of one account. Monotonic seconds.

    Attributes:
        row: failures since the last success.
        is_probing: whether a request is finding out.
        open_until: until when it rests; ``None``: it is closed.
    """

    __slots__ = (
        "_failed",
        "_probe_failed_for",
        "_rest_s",
        "_rested_from",
        "_slow",
        "_window",
        "is_probing",
        "open_until",
        "row",
        "rules",
    )

    def __init__(self, rules: BreakerRules) -> None:
        self.rules = rules
        self._window = _Window(rules.window_s)
        self._failed, self._slow = Witnesses(), Witnesses()
        self.close()

    def close(self) -> None:
        """Know nothing against it any more."""
        self.row = 0
        self._rest_s = self.rules.first_rest_s
        self.open_until: float | None = None
        self._rested_from = 0.0
        self._probe_failed_for: str | None = None
        self.is_probing = False
        self._window.clear()
        self._failed.clear()
        self._slow.clear()

    @property
    def is_closed(self) -> bool:
        """Whether it is not at rest, nor on trial after one."""
        return self.open_until is None

    def accounts(self) -> frozenset[str]:
        """Return the fingerprints of whom it failed for; empty if it could have been anybody."""
        failed, slow = self._failed.accounts(), self._slow.accounts()
        return failed | slow

    @property
    def is_blank(self) -> bool:
        """Whether nothing of late speaks against it."""
        window = self._window
        return self.open_until is None and not (self.row or window.failed or window.slow)

    def refuses(self, now: float, account: str | None = None) -> bool:
        """Whether a request of ``account`` that came now would be turned away."""
        return self.open_until is not None and (
            self.is_probing or now < self._due(self.open_until, account)
        )

    def rests_s(self, now: float, account: str | None = None) -> float:
        """Return how long it still rests; 0 when it is closed, or waits for a probe."""
        until = self.open_until
        return 0.0 if until is None else max(0.0, self._due(until, account) - now)

    def _due(self, until: float, account: str | None) -> float:
        # Whoever failed as the last probe gives way to others for a while: with requests of its
        # own that fail by themselves it could keep everybody else out.
        gives_way = account is not None and account == self._probe_failed_for
        return until + self._rest_s if gives_way else until

    def is_over(self, now: float) -> bool:
        """Whether its rest was over so long ago that nobody will miss it."""
        until = self.open_until
        return until is not None and now > until + self.rules.last_rest_s

    def begins_probe(self) -> None:
        """Note that the request which is sent now finds out for others."""
        if self.open_until is not None:
            self.is_probing = True

    def began(self) -> None:
        """It begins to answer: who waits for a probe need not wait for its last word."""
        if self.is_probing:
            if self.open_until is not None:
                self.close()
            self.is_probing = False

    def answered(self, now: float) -> None:
        """Note an answer that was not slow, of a circuit that is closed: nearly all there are."""
        self.row = 0
        self.is_probing = False
        self._window.add(now, failed=False, slow=False)

    def succeeded(
        self, now: float, *, is_slow: bool, witness: Witness = ANYONE, rng: float = 0.0
    ) -> bool:
        """Note an answer; return whether that opens it, as most of them are slow."""
        if self.open_until is not None:
            # A probe that crawls is no recovery.
            if self.is_probing and is_slow:
                return self.failed(now, witness=witness, rng=rng)
            self.close()
            return False
        if not is_slow:
            self.answered(now)
            return False
        self.row = 0
        self.is_probing = False
        self._window.add(now, failed=False, slow=True)
        self._slow.add(now, witness)
        if not self._exceeds(now, self._window.slow, self.rules.slow_percent, self._slow):
            return False
        self.rest(now, rng)
        return True

    def failed(self, now: float, *, witness: Witness = ANYONE, rng: float) -> bool:
        """Note a failure; return whether that opens it.

        Args:
            rng: 0 to 1, lengthens the rest by up to a fifth.
        """
        if self.open_until is not None:
            if not self.is_probing:
                return False  # it was sent before that, and tells nothing new
            if witness.account is None or witness.account != self._probe_failed_for:
                self._rest_s = min(self._rest_s * 2, self.rules.last_rest_s)
            self._probe_failed_for = witness.account
            self.rest(now, rng)
            return True
        self.row += 1
        self._window.add(now, failed=True, slow=False)
        self._failed.add(now, witness)
        in_a_row = self.row >= self.rules.failures and self._failed.others_of_last(self.row) > 0
        if in_a_row or self._exceeds(
            now, self._window.failed, self.rules.failed_percent, self._failed
        ):
            self.rest(now, rng)
            return True
        return False

    def _exceeds(self, now: float, bad: int, percent: int, witnesses: Witnesses) -> bool:
        """Whether so many went wrong even without whoever met it most often."""
        calls = self._window.calls
        if calls < self.rules.min_calls or bad * 100 < calls * percent:
            return False
        others = bad * witnesses.others_since(now - self.rules.window_s)
        return others > 0 and others * 100 >= (calls - bad + others) * percent

    def wake(self, now: float) -> bool:
        """Return whether it may be probed, however long its rest, as nothing else can serve."""
        if self.open_until is None or self.is_probing:
            return False
        self._probe_failed_for = None
        self.open_until = min(self.open_until, self._rested_from + self.rules.first_rest_s)
        return now >= self.open_until

    def rest(self, now: float, rng: float) -> None:
        """Give it a rest from now on."""
        self.is_probing = False
        self._rested_from = now
        self.open_until = now + self._rest_s * (1 + JITTER * rng)
