"""How long the signatures behind a manifest still hold, and who has to do what before they end.

Pure. A role that people sign lapses because nobody thought of it; one that machines sign, because
the edge that signs it stands still. So the first are told of days ahead, the others as soon as
they were not signed anew in their time.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

__all__ = ["NOTICE_S", "URGENT_S", "Lapse", "LapseTeller", "lapses", "mend_of"]

HOUR_S, DAY_S = 3_600, 86_400

# Of the online roles an edge signs the timestamp every five minutes for six hours, hints every
# half day for one day, the snapshot every half week for one week.
NOTICE_S: Mapping[str, int] = {
    "root": 7 * DAY_S,
    "targets": 7 * DAY_S,
    "full": 7 * DAY_S,
    "snapshot": 3 * DAY_S,
    "hints": 10 * HOUR_S,
    "timestamp": 4 * HOUR_S,
}
URGENT_S: Mapping[str, int] = {
    "root": 2 * DAY_S,
    "targets": 2 * DAY_S,
    "full": 2 * DAY_S,
    "snapshot": DAY_S,
    "hints": HOUR_S,
    "timestamp": 2 * HOUR_S,
}

_MENDS = {
    "root": "sign a new root: waypost keys rotate --role root",
    "targets": "publish again: waypost publish",
    "full": "publish again: waypost publish",
}
_ONLINE = "start the edge, which signs it, or run: waypost edge resign"


@dataclass(frozen=True, slots=True)
class Lapse:
    """A role whose signature ends soon, or has ended.

    Attributes:
        left_s: until then; 0 or less: it is over.
    """

    role: str
    left_s: float

    @property
    def is_urgent(self) -> bool:
        """Whether it is time to wake somebody."""
        return self.left_s < URGENT_S.get(self.role, 2 * DAY_S)

    def __str__(self) -> str:
        """Return it as a sentence without its full stop, with what to do."""
        if self.left_s <= 0:
            return f"the signature of {self.role} has expired; {mend_of(self.role)}"
        return f"the signature of {self.role} expires in {_span(self.left_s)}; {mend_of(self.role)}"


def lapses(expires: Mapping[str, int], now: float) -> list[Lapse]:
    """Return the roles that lapse soon, the first one first.

    Args:
        expires: role → Unix seconds.
    """
    left = [Lapse(role, at - now) for role, at in expires.items()]
    soon = [lapse for lapse in left if lapse.left_s < NOTICE_S.get(lapse.role, 7 * DAY_S)]
    return sorted(soon, key=lambda lapse: lapse.left_s)


class LapseTeller:
    """Says of each lapse when there is something new to say: once a day, at the end each hour."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[str, int]] = {}

    def news(self, found: Collection[Lapse]) -> list[Lapse]:
        """Return those of ``found``, all that there are now, that were not told yet."""
        now = {lapse.role: _rough(lapse.left_s) for lapse in found}
        news = [lapse for lapse in found if self._told.get(lapse.role) != now[lapse.role]]
        self._told = now
        return news


def _rough(left_s: float) -> tuple[str, int]:
    if left_s > DAY_S:
        return "day", int(left_s // DAY_S)
    return "hour", int(left_s // HOUR_S)


def mend_of(role: str) -> str:
    """Return what to do where the signature of ``role`` has lapsed, or will."""
    return _MENDS.get(role, _ONLINE)


def _span(seconds: float) -> str:
    for unit, length_s in (("days", DAY_S), ("hours", HOUR_S), ("minutes", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds // length_s:.0f} {unit}"
    return f"{seconds:.0f} seconds"
