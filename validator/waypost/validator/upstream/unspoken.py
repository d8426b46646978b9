"""Which APIs a provider has said that it does not have. Pure: the caller brings the clock.

The rule: a 404 or 405 on an API is about the API, not about the model. It is remembered for the
provider, and forgotten after a while, as providers learn. Of an API that has answered here before
it is not believed: then something else was not found.
"""

__all__ = ["Unspoken"]

FIRST_S = 60.0  # a gateway that is being set up answers 404 as well
LAST_S = 3_600.0
WAKES_S = 5.0  # where nothing else could serve a request


class _Silence:
    """Since when, for how long, and until when an API is not asked for."""

    __slots__ = ("for_s", "since", "until")

    def __init__(self, now: float, for_s: float) -> None:
        self.since, self.for_s, self.until = now, for_s, now + for_s


class Unspoken:
    """What one provider does not have, by the path that is asked; for one event loop."""

    __slots__ = ("_silent", "_spoken")

    def __init__(self) -> None:
        self._spoken: set[str] = set()
        self._silent: dict[str, _Silence] = {}

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._silent)

    def spoke(self, path: str) -> None:
        """Note that the provider answered there."""
        if path not in self._spoken:
            self._spoken.add(path)
            self._silent.pop(path, None)

    def has_spoken(self, path: str) -> bool:
        """Whether the provider has ever answered there."""
        return path in self._spoken

    def refused(self, path: str, now: float) -> None:
        """Note that the provider says that there is no such thing."""
        before = self._silent.get(path)
        for_s = FIRST_S if before is None else min(before.for_s * 2, LAST_S)
        if before is None or now >= before.until:
            self._silent[path] = _Silence(now, for_s)

    def is_silent(self, path: str, now: float) -> bool:
        """Whether it need not be asked."""
        return self.rests_s(path, now) > 0

    def rests_s(self, path: str, now: float) -> float:
        """Return how long it is not asked for; 0 if it is."""
        silence = self._silent.get(path)
        return 0.0 if silence is None else max(0.0, silence.until - now)

    def wake(self, path: str, now: float) -> None:
        """Have it asked for again soon, as nothing else can serve."""
        silence = self._silent.get(path)
        if silence is not None:
            silence.until = min(silence.until, silence.since + WAKES_S)
