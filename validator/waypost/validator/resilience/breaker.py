"""When a provider is given a rest. Pure: the caller brings the clock and the randomness.

The rule: closed → open after ``FAILURES`` in a row → half-open when it has cooled off, and then
one probe at a time → closed by a success, open for longer by a failure.
"""

__all__ = ["Breaker"]

FAILURES = 5  # in a row, as Envoy's and Finagle's defaults have it
FIRST_COOL_OFF_S = 5.0
LAST_COOL_OFF_S = 300.0
JITTER = 0.2  # so that validators do not probe in step


class Breaker:
    """One provider's breaker, for one event loop. Instants are monotonic seconds."""

    __slots__ = ("_cool_off_s", "_failures", "_open_until", "_probing")

    def __init__(self) -> None:
        self._close()

    def _close(self) -> None:
        self._failures = 0
        self._cool_off_s = FIRST_COOL_OFF_S
        self._open_until: float | None = None
        self._probing = False

    @property
    def is_closed(self) -> bool:
        """Whether nothing is known against the provider."""
        return self._open_until is None

    def refuses(self, now: float) -> bool:
        """Whether a request that came now would be turned away."""
        return self._open_until is not None and (self._probing or now < self._open_until)

    def admit(self, now: float) -> bool:
        """Return whether to send a request now; each that is sent ends in one of the below."""
        if self._open_until is None:
            return True
        if self._probing or now < self._open_until:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """The provider answered."""
        if self._failures or self._open_until is not None:
            self._close()

    def failed(self, now: float, *, luck: float) -> None:
        """The provider did not answer, or not as a provider should.

        Args:
            luck: 0 to 1, lengthens the rest by up to a fifth.
        """
        self._failures += 1
        if self._probing:
            self._probing = False
            self._cool_off_s = min(self._cool_off_s * 2, LAST_COOL_OFF_S)
        elif self._failures < FAILURES or self._open_until is not None:
            return  # too few; or sent before it opened, and so tells nothing new
        self._open_until = now + self._cool_off_s * (1 + JITTER * luck)

    def abandoned(self) -> None:
        """The request ended before it could tell, as when the caller hung up."""
        self._probing = False
