"""Tells when a caller asks the same again: the answer before was no good, or never came.

Remembers a keyed hash of each request for two minutes, in this process alone.
"""

__all__ = ["Repeats"]

MEMORY_S = 120
MAX_REMEMBERED = 20_000


class Repeats:
    """The requests of the last two minutes."""

    __slots__ = ("_newer", "_older", "_since")

    def __init__(self) -> None:
        # Two generations: the older one is forgotten as a whole, so that nothing is searched.
        self._newer: dict[int, tuple[str, int]] = {}
        self._older: dict[int, tuple[str, int]] = {}
        self._since = 0

    def note(self, subject: str, body: bytes, decision_id: str, *, now: int) -> str | None:
        """Return the id of the caller's last request with this body, if that was just now."""
        if now - self._since >= MEMORY_S or len(self._newer) >= MAX_REMEMBERED:
            self._older, self._newer, self._since = self._newer, {}, now
        # SipHash under this process's own random key: a caller cannot aim for another's value.
        key = hash((subject, body))
        before = self._newer.get(key) or self._older.get(key)
        self._newer[key] = (decision_id, now)
        return before[0] if before is not None and now - before[1] < MEMORY_S else None
