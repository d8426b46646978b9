"""Which of a provider's credentials a request is sent with. Pure: the caller brings the clock.

The rule: in turn, and none that is at rest. A key that hit a limit (429) rests for the model it
hit it with, for as long as the provider says; one that was refused (401, 403) rests too, but is
tried again when there is no other, so that a provider's hiccup cannot lock us out.
"""

from email.utils import parsedate_to_datetime

__all__ = ["LONGEST_WAIT_S", "KeyPool", "retry_after_s"]

LIMITED_S = 1.0  # a 429 without Retry-After; doubles with each in a row
LONGEST_REST_S = 60.0  # whatever the provider says
REFUSED_S = 60.0

# A request that has nowhere else to go waits so long for a limit to pass.
LONGEST_WAIT_S = 5.0


class _Rest:
    """Why and until when one key rests for one model."""

    __slots__ = ("is_refused", "row", "until")

    def __init__(self) -> None:
        self.until = 0.0
        self.row = 0
        self.is_refused = False


class KeyPool:
    """The credentials of one provider, by their places, for one event loop.

    Attributes:
        count: how many there are.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._next = 0
        self._resting: dict[tuple[int, str], _Rest] = {}

    @property
    def is_any_resting(self) -> bool:
        """Whether any key may be at rest."""
        return bool(self._resting)

    def take(self, model: str, now: float) -> int | None:
        """Return the place of the key to use for ``model``; ``None`` while all rest."""
        count = self.count
        first = self._next
        self._next = (first + 1) % count
        if not self._resting:
            return first
        refused: tuple[float, int] | None = None
        for place in ((first + step) % count for step in range(count)):
            rest = self._resting.get((place, model))
            if rest is None or rest.until <= now:
                return place
            if rest.is_refused:
                refused = min(refused or (rest.until, place), (rest.until, place))
        return None if refused is None else refused[1]

    def rests_until(self, model: str, now: float) -> float | None:
        """Return when the first key is ready for ``model`` again; ``None`` if one is now."""
        if not self._resting:
            return None
        rests = [self._resting.get((place, model)) for place in range(self.count)]
        if any(rest is None or rest.until <= now or rest.is_refused for rest in rests):
            return None
        return min(rest.until for rest in rests if rest is not None)

    def answered(self, place: int, model: str) -> None:
        """The provider took this key."""
        if self._resting:
            self._resting.pop((place, model), None)

    def limited(self, place: int, model: str, now: float, *, retry_after_s: float | None) -> None:
        """The provider limits this key's rate; a rest is never made shorter by a later word."""
        rest = self._resting.setdefault((place, model), _Rest())
        rest.row += 1
        wait_s = retry_after_s if retry_after_s is not None else LIMITED_S * 2 ** (rest.row - 1)
        rest.until = max(rest.until, now + min(wait_s, LONGEST_REST_S))
        rest.is_refused = False

    def refused(self, place: int, model: str, now: float) -> None:
        """The provider does not take this key."""
        rest = self._resting.setdefault((place, model), _Rest())
        rest.until = max(rest.until, now + REFUSED_S)
        rest.is_refused = True


def retry_after_s(header: str, *, now: float) -> float | None:
    """Return how long a ``Retry-After`` asks to wait; ``None`` if it cannot be read.

    Args:
        now: Unix seconds.

    Source: RFC 9110 §10.2.3, seconds or an HTTP date.
    """
    text = header.strip()
    if not text:
        return None
    if text.isascii() and text.isdigit() and len(text) <= 9:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return None
