"""When windows begin and end. Pure: the time zone is an argument.

A window is named by its start, so a new window is a new row: nothing is ever reset, and a late
settlement finds the window that it was reserved in.
"""

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

from waypost.shared.contracts import Window

__all__ = ["CALENDAR", "DURATION_S", "Calendar"]

# The windows that are rows; ``request`` is a ceiling on one hold and needs none.
CALENDAR: tuple[Window, ...] = ("minute", "hour", "day", "week", "month", "total")
DURATION_S: Final[dict[Window, int]] = {
    "minute": 60,
    "hour": 3_600,
    "day": 86_400,
    "week": 604_800,
}
REMEMBERED_MINUTES = 4_096

Starts = tuple[int, int, int, int, int, int]


class Calendar:
    """Windows in one time zone: days, weeks (from Monday) and months are local, hours UTC's."""

    def __init__(self, zone: tzinfo = UTC) -> None:
        self.zone = zone
        self._starts: dict[int, Starts] = {}

    def starts(self, now: int) -> Starts:
        """Return the start of each ``CALENDAR`` window that ``now`` falls into."""
        minute = now // 60
        starts = self._starts.get(minute)
        if starts is None:
            if len(self._starts) >= REMEMBERED_MINUTES:
                self._starts.clear()
            day = self._local_day(now)
            starts = self._starts[minute] = (
                minute * 60,
                now - now % 3_600,
                _instant(day),
                _instant(day - timedelta(days=day.weekday())),
                _instant(day.replace(day=1)),
                0,
            )
        return starts

    def resets_at(self, window: Window, now: int) -> int | None:
        """Return when ``window`` ends; ``None`` where waiting does not help."""
        day = self._local_day(now)
        match window:
            case "minute" | "hour":
                return now - now % DURATION_S[window] + DURATION_S[window]
            case "day":
                return _instant(day + timedelta(days=1))
            case "week":
                return _instant(day + timedelta(days=7 - day.weekday()))
            case "month":
                return self.month_start(now, months_back=-1)
            case "request" | "total":
                return None

    def month_start(self, now: int, *, months_back: int = 0) -> int:
        """Return the first second of ``now``'s month, or of one before it."""
        day = self._local_day(now)
        year, month = divmod(day.year * 12 + day.month - 1 - months_back, 12)
        return _instant(day.replace(year=year, month=month + 1, day=1))

    def _local_day(self, now: int) -> datetime:
        local = datetime.fromtimestamp(now, self.zone)
        return local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)


def _instant(local: datetime) -> int:
    return int(local.timestamp())
