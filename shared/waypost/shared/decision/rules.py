"""Which row of the decision table applies. Pure: no clock, no I/O, no randomness.

A condition is defined once, in ``holds``. For the hot path the table is tabulated: each field
maps a value, or a range of values, to the set of rows that it leaves standing, as the bits of
an integer (bit *i* is row *i*). One lookup and one ``&`` per field then match any number of
rows, and the lowest bit is the first match.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from hashlib import sha256
from operator import attrgetter
from typing import cast

from waypost.shared.contracts import (
    ClockBetween,
    Condition,
    Facts,
    NumberBetween,
    OneOf,
    Route,
    Share,
    TextHas,
    YesNo,
)

__all__ = [
    "COHORT_BITS",
    "DECLARED_FIELDS",
    "OPTIONAL_FIELDS",
    "RuleTable",
    "cohort",
    "describe",
    "field_of",
    "fulfils",
    "holds",
    "place",
    "value_of",
]

# Fields that the client vouches for. They may steer preference, never enforce.
DECLARED_FIELDS = frozenset({"interactive", "tags", "task"})

# Fields that cost time or a library to measure, so that not everyone can.
OPTIONAL_FIELDS = frozenset({"complexity", "language", "patterns", "semantic"})

Value = int | str | bool | tuple[str, ...] | None
Reader = Callable[[Facts], Value]

SHARES = 10_000
COHORT_BITS = 20

_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

_READ: dict[str, Reader] = {
    "complexity": attrgetter("measured.complexity"),
    "endpoint": attrgetter("measured.endpoint"),
    "input_bytes": attrgetter("measured.input_bytes"),
    "input_tokens": attrgetter("measured.input_tokens"),
    "interactive": attrgetter("declared.interactive"),
    "keywords": attrgetter("measured.keywords"),
    "language": attrgetter("measured.language"),
    "messages": attrgetter("measured.messages"),
    "needs": attrgetter("measured.needs"),
    "patterns": attrgetter("measured.patterns"),
    "region": attrgetter("signed.region"),
    "semantic": attrgetter("measured.semantic"),
    "tags": attrgetter("declared.tags"),
    "task": attrgetter("declared.task"),
    "tenant": attrgetter("signed.tenant"),
    "tier": attrgetter("signed.tier"),
}


def cohort(iss: str, sub: str) -> int:
    """Return the short hash of a caller that shares are drawn by: 20 bits of SHA-256."""
    digest = sha256(f"{iss} {sub}".encode()).digest()
    return int.from_bytes(digest[:4]) >> (32 - COHORT_BITS)


def _clock(condition: ClockBetween) -> Reader:
    offsets = condition.zone.offsets if condition.zone is not None else ((0, 0),)
    starts = [start for start, _ in offsets]

    def local(facts: Facts) -> int:
        return facts.now + offsets[max(0, bisect_right(starts, facts.now) - 1)][1]

    if condition.field == "hour":
        return lambda facts: local(facts) // 3_600 % 24
    # The epoch was a Thursday; Monday is 0.
    return lambda facts: (local(facts) // 86_400 + 3) % 7


def place(salt: str, of_cohort: int) -> int:
    """Return where a cohort stands among the shares drawn under ``salt``: 0 to 9,999."""
    digest = sha256(f"{salt} {of_cohort}".encode()).digest()
    return int.from_bytes(digest[:8]) % SHARES


def field_of(condition: Condition) -> str:
    """Return the name of the fact that ``condition`` looks at."""
    match condition:
        case ClockBetween(field=field, zone=zone):
            return f"{field}_utc" if zone is None else f"{field} in {zone.name}"
        case Share(salt=salt):
            return f"share '{salt}'"
        case _:
            return condition.field


def _reader(condition: Condition) -> Reader:
    match condition:
        case ClockBetween():
            return _clock(condition)
        case Share(salt=salt):
            return lambda facts: place(salt, facts.signed.cohort)
        case _:
            return _READ[condition.field]


def value_of(condition: Condition, facts: Facts) -> Value:
    """Return the fact that ``condition`` looks at."""
    return _reader(condition)(facts)


def fulfils(condition: Condition, value: Value) -> bool:
    """Return whether ``value``, of the condition's own field, fulfils it."""
    match condition:
        case NumberBetween(at_least=low, below=high):
            number = cast("int", value)
            return (low is None or number >= low) and (high is None or number < high)
        case ClockBetween(start=start, end=end):
            now = cast("int", value)
            return start <= now < end if start < end else now >= start or now < end
        case Share(at_least=low, below=high):
            return low <= cast("int", value) < high
        case OneOf(values=values):
            return value in values
        case YesNo(value=wanted):
            return value is wanted
        case TextHas():
            found = set(cast("tuple[str, ...]", value))
            return (
                (not condition.any_of or not found.isdisjoint(condition.any_of))
                and found.issuperset(condition.all_of)
                and found.isdisjoint(condition.none_of)
            )


def holds(condition: Condition, facts: Facts) -> bool:
    """Return whether ``condition`` is true of ``facts``."""
    return fulfils(condition, value_of(condition, facts))


def describe(condition: Condition, facts: Facts | None = None) -> str:
    """Return the condition as a person says it, with the fact it met if ``facts`` are given."""
    field = field_of(condition)
    value = None if facts is None else value_of(condition, facts)
    subject = f"{field} {value}" if isinstance(value, int) else field
    match condition:
        case NumberBetween(at_least=low, below=high):
            if low is None:
                return f"{subject} < {high}"
            return f"{subject} ≥ {low}" if high is None else f"{low} ≤ {subject} < {high}"
        case ClockBetween(field="hour", start=start, end=end):
            return f"{subject} within {start:02d}-{end:02d}"
        case ClockBetween(start=start, end=end):
            return f"{field} within {_WEEKDAYS[start]}-{_WEEKDAYS[(end - 1) % 7]}"
        case Share(at_least=low, below=high):
            return f"{field} within {low / 100:g}-{high / 100:g}%"
        case OneOf(values=values):
            if value is not None:
                return f"{field} = {value}"
            return (
                f"{field} = {values[0]}" if len(values) == 1 else f"{field} in {', '.join(values)}"
            )
        case YesNo(value=wanted):
            return field if wanted else f"not {field}"
        case TextHas(any_of=any_of, all_of=all_of, none_of=none_of):
            met = value if isinstance(value, tuple) else any_of
            found = [word for word in any_of if word in met]
            parts = [f"{field} has {', '.join(map(repr, found))}"] if any_of else []
            parts += [f"{field} has all of {', '.join(map(repr, all_of))}"] if all_of else []
            parts += [f"{field} has none of {', '.join(map(repr, none_of))}"] if none_of else []
            return " and ".join(parts)


class _Cells:
    """A field whose values fall into ranges: numbers, and the hour."""

    def __init__(self, read: Reader, cuts: Sequence[int], masks: Sequence[int]) -> None:
        self._read = read
        self._cuts = list(cuts)
        self._masks = list(masks)

    def __call__(self, facts: Facts) -> int:
        return self._masks[bisect_right(self._cuts, cast("int", self._read(facts)))]


class _Words:
    """A field whose value is a set of words."""

    def __init__(self, read: Reader, rows: dict[int, list[TextHas]]) -> None:
        self._read = read
        self._rows = rows
        self.vocabulary: set[str] = set()
        for conditions in rows.values():
            for condition in conditions:
                self.vocabulary.update(condition.any_of, condition.all_of, condition.none_of)
        self._without = self._mask(())

    def _mask(self, value: tuple[str, ...]) -> int:
        return sum(
            1 << row
            for row, conditions in self._rows.items()
            if all(fulfils(condition, value) for condition in conditions)
        )

    def __call__(self, facts: Facts) -> int:
        value = cast("tuple[str, ...]", self._read(facts))
        # Rows depend only on words they name; most requests have none of them.
        if not value or self.vocabulary.isdisjoint(value):
            return self._without
        return self._mask(value)


class RuleTable:
    """The compiled decision table. ``first`` is total: the last row has no condition.

    Attributes:
        needs_facts: the ``OPTIONAL_FIELDS`` that its rows look at. Where one was not measured,
            nobody may guess which row applies.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self._all = (1 << len(routes)) - 1
        self._exact: list[tuple[Reader, dict[Value, int], int]] = []
        self._other: list[Callable[[Facts], int]] = []
        by_field: dict[str, dict[int, list[Condition]]] = {}
        for row, route in enumerate(routes):
            for condition in route.when:
                by_field.setdefault(field_of(condition), {}).setdefault(row, []).append(condition)
        self.needs_facts: tuple[str, ...] = tuple(sorted(OPTIONAL_FIELDS & by_field.keys()))
        for _, rows in sorted(by_field.items()):
            self._tabulate(_reader(next(iter(rows.values()))[0]), rows)

    def _tabulate(self, read: Reader, rows: dict[int, list[Condition]]) -> None:
        free = self._all & ~sum(1 << row for row in rows)
        conditions = [condition for some in rows.values() for condition in some]

        def mask(value: Value) -> int:
            return free | sum(
                1 << row
                for row, some in rows.items()
                if all(fulfils(condition, value) for condition in some)
            )

        match conditions[0]:
            case NumberBetween() | ClockBetween() | Share():
                cuts = sorted({cut for condition in conditions for cut in _cuts(condition)})
                # All values of a cell mean the same, so its first one stands for it.
                firsts = [cuts[0] - 1 if cuts else 0, *cuts]
                self._other.append(_Cells(read, cuts, [mask(first) for first in firsts]))
            case OneOf() | YesNo():
                values: set[Value] = {True, False} if isinstance(conditions[0], YesNo) else set()
                for condition in conditions:
                    if isinstance(condition, OneOf):
                        values.update(condition.values)
                self._exact.append((read, {value: mask(value) for value in values}, free))
            case TextHas():
                words = _Words(read, cast("dict[int, list[TextHas]]", rows))
                self._other.append(lambda facts: free | words(facts))

    def match(self, facts: Facts) -> int:
        """Return the rows that apply, as bits."""
        mask = self._all
        for read, masks, otherwise in self._exact:
            mask &= masks.get(read(facts), otherwise)
        for field in self._other:
            mask &= field(facts)
        return mask

    def first(self, facts: Facts) -> int:
        """Return the index of the first row that applies."""
        mask = self.match(facts)
        return (mask & -mask).bit_length() - 1


def _cuts(condition: Condition) -> tuple[int, ...]:
    if isinstance(condition, ClockBetween):
        return (condition.start, condition.end)
    if isinstance(condition, NumberBetween | Share):
        return tuple(cut for cut in (condition.at_least, condition.below) if cut is not None)
    return ()
