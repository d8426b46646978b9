"""Time zones, written out as the offsets that they have."""

from datetime import UTC, datetime
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

from waypost.shared.contracts import Zone

__all__ = ["written_out", "zone_names"]

DAY_S = 86_400

# From the start of last year, so that traffic of then can be replayed, to the end of three years
# on. Whole years, so that a policy reads the same from one day to the next.
YEARS_BACK, YEARS_ON = 1, 4


@lru_cache(maxsize=1)
def zone_names() -> frozenset[str]:
    """Return the names of the time zones there are."""
    # What this machine's own zone is called says nothing to another.
    return frozenset(available_timezones() - {"localtime"})


def written_out(name: str, *, issued_at: int) -> Zone:
    """Return the zone with its offsets around ``issued_at``, in Unix seconds."""
    return _written_out(name, datetime.fromtimestamp(issued_at, UTC).year)


@lru_cache(maxsize=64)
def _written_out(name: str, year: int) -> Zone:
    info = ZoneInfo(name)

    def offset(at: int) -> int:
        local = datetime.fromtimestamp(at, UTC).astimezone(info).utcoffset()
        return 0 if local is None else int(local.total_seconds())

    first = int(datetime(year - YEARS_BACK, 1, 1, tzinfo=UTC).timestamp())
    end = int(datetime(year + YEARS_ON, 1, 1, tzinfo=UTC).timestamp())
    offsets = [(0, offset(first))]
    for day in range(first, end, DAY_S):
        if offset(day + DAY_S) == offset(day):
            continue
        before, after = day, day + DAY_S
        while after - before > 1:
            middle = (before + after) // 2
            before, after = (middle, after) if offset(middle) == offset(day) else (before, middle)
        offsets.append((after, offset(after)))
    return Zone(name, tuple(offsets))
