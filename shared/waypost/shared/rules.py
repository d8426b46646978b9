"""Which row of the decision table applies. Pure: no clock, no I/O, no randomness.

A condition is defined once, in ``holds``. For the hot path the table is tabulated: each field
maps a value, or a range of values, to the set of rows that it leaves standing, as the bits of
an integer (bit *i* is row *i*). One lookup and one ``&`` per field then match any number of
rows, and the lowest bit is the first match.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import cast

from waypost.shared.contracts import (
    Condition,
    Facts,
    HourBetween,
    NumberBetween,
    OneOf,
    Route,
    TextHas,
    YesNo,
)

__all__ = ["DECLARED_FIELDS", "RuleTable", "describe", "field_of", "fulfils", "holds", "value_of"]

# Fields that the client vouches for. They may steer preference, never enforce.
DECLARED_FIELDS = frozenset({"interactive", "tags", "task"})

Value = int | str | bool | tuple[str, ...] | None

_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

_READ: dict[str, Callable[[Facts], Value]] = {
    "endpoint": attrgetter("measured.endpoint"),
    "hour_utc": lambda facts: facts.now // 3_600 % 24,
    "input_tokens": attrgetter("measured.input_tokens"),
    "interactive": attrgetter("declared.interactive"),
    "keywords": attrgetter("measured.keywords"),
    "messages": attrgetter("measured.messages"),
    "region": attrgetter("signed.region"),
    "tags": attrgetter("declared.tags"),
    "task": attrgetter("declared.task"),
    "tenant": attrgetter("signed.tenant"),
    "tier": attrgetter("signed.tier"),
    # The epoch was a Thursday; Monday is 0.
    "weekday": lambda facts: (facts.now // 86_400 + 3) % 7,
}


def field_of(condition: Condition) -> str:
    """Return the name of the fact that ``condition`` looks at."""
    return "hour_utc" if isinstance(condition, HourBetween) else condition.field


def value_of(field: str, facts: Facts) -> Value:
    """Return the fact named ``field``."""
    return _READ[field](facts)


def fulfils(condition: Condition, value: Value) -> bool:
    """Return whether ``value``, of the condition's own field, fulfils it."""
    match condition:
        case NumberBetween(at_least=low, below=high):
            number = cast("int", value)
            return (low is None or number >= low) and (high is None or number < high)
        case HourBetween(start=start, end=end):
            hour = cast("int", value)
            return start <= hour < end if start < end else hour >= start or hour < end
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
    return fulfils(condition, value_of(field_of(condition), facts))


def describe(condition: Condition, facts: Facts | None = None) -> str:
    """Return the condition as a person says it, with the fact it met if ``facts`` are given."""
    field = field_of(condition)
    value = None if facts is None else value_of(field, facts)
    subject = (
        field if value is None or isinstance(value, tuple | str | bool) else f"{field} {value}"
    )
    match condition:
        case NumberBetween(at_least=low, below=high):
            if field == "weekday":
                days = _WEEKDAYS[low or 0 : high if high is not None else 7]
                return f"weekday in {', '.join(days)}"
            if low is None:
                return f"{subject} < {high}"
            return f"{subject} ≥ {low}" if high is None else f"{low} ≤ {subject} < {high}"
        case HourBetween(start=start, end=end):
            return f"{subject} in {start:02d}-{end:02d}"
        case OneOf(values=values):
            if value is not None:
                return f"{field} = {value}"
            return (
                f"{field} = {values[0]}" if len(values) == 1 else f"{field} in {', '.join(values)}"
            )
        case YesNo(value=wanted):
            return field if wanted else f"not {field}"
        case TextHas(any_of=any_of, all_of=all_of, none_of=none_of):
            found = (
                any_of
                if facts is None
                else [w for w in any_of if w in cast("tuple[str, ...]", value)]
            )
            parts = [f"{field} has {', '.join(map(repr, found))}"] if any_of else []
            parts += [f"{field} has all of {', '.join(map(repr, all_of))}"] if all_of else []
            parts += [f"{field} has none of {', '.join(map(repr, none_of))}"] if none_of else []
            return " and ".join(parts)


class _Cells:
    """A field whose values fall into ranges: numbers, and the hour."""

    def __init__(
        self, read: Callable[[Facts], Value], cuts: Sequence[int], masks: Sequence[int]
    ) -> None:
        self._read = read
        self._cuts = list(cuts)
        self._masks = list(masks)

    def __call__(self, facts: Facts) -> int:
        return self._masks[bisect_right(self._cuts, cast("int", self._read(facts)))]


class _Words:
    """A field whose value is a set of words."""

    def __init__(self, read: Callable[[Facts], Value], rows: dict[int, list[TextHas]]) -> None:
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
    """The compiled decision table. ``first`` is total: the last row has no condition."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._all = (1 << len(routes)) - 1
        self._exact: list[tuple[Callable[[Facts], Value], dict[Value, int], int]] = []
        self._other: list[Callable[[Facts], int]] = []
        by_field: dict[str, dict[int, list[Condition]]] = {}
        for row, route in enumerate(routes):
            for condition in route.when:
                by_field.setdefault(field_of(condition), {}).setdefault(row, []).append(condition)
        for field, rows in sorted(by_field.items()):
            self._tabulate(_READ[field], rows)

    def _tabulate(self, read: Callable[[Facts], Value], rows: dict[int, list[Condition]]) -> None:
        free = self._all & ~sum(1 << row for row in rows)
        conditions = [condition for some in rows.values() for condition in some]

        def mask(value: Value) -> int:
            return free | sum(
                1 << row
                for row, some in rows.items()
                if all(fulfils(condition, value) for condition in some)
            )

        match conditions[0]:
            case NumberBetween() | HourBetween():
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
    if isinstance(condition, HourBetween):
        return (condition.start, condition.end)
    if isinstance(condition, NumberBetween):
        return tuple(cut for cut in (condition.at_least, condition.below) if cut is not None)
    return ()
