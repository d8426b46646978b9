"""All requests there can be, as finitely many cells that policies cannot tell apart.

Each fact is a variable. Conditions, tiers, data classes, capabilities, APIs and context windows
cut its values into cells, and every value of a cell fulfils the same conditions; so what holds
for one value of each cell holds for all requests. Which cells fulfil a condition is asked of
the engine's own functions.

Left aside is what only takes models away: a token's list of models, what a body demands, what a
provider has no words for, an empty account and open breakers. So is what a conversation has cached,
which only reorders candidates, and so are tiers and data classes that the policy does not know,
which it always refuses.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import Any, cast

from msgspec import structs

from waypost.edge.analysis.solver import Atom, Clause, Domains, Literal
from waypost.edge.authoring.invariants import DataHas, Size
from waypost.shared.contracts import (
    CAPABILITIES,
    ENDPOINTS,
    ClockBetween,
    Condition,
    Declared,
    Facts,
    Measured,
    NumberBetween,
    OneOf,
    Policy,
    Share,
    Signed,
    TextHas,
)
from waypost.shared.decision.compiled import compile_policy
from waypost.shared.decision.costs import context_need
from waypost.shared.decision.rules import COHORT_BITS, OPTIONAL_FIELDS, SHARES, holds, place

__all__ = ["Space", "View"]

ABSENT, PRESENT = 0b01, 0b10

MOST = {"complexity": 1_000}  # the highest value of a number; of the others 2**40
USUAL = {"input_tokens": 20, "messages": 1}  # what a request has, where it makes no difference
POWERS = 21  # the largest context windows hold 2**21 tokens

DAY_S = 86_400
WEEK_S = 7 * DAY_S
COHORTS = 2**COHORT_BITS
BLOCK = 4_096

Key = str | tuple[str, str]


class Space:
    """The facts that some policies, and some conditions beside theirs, look at, in cells.

    Attributes:
        everything: the domains that leave every fact open.
        size: the variable of the request's size.
        corners: per cell of the size, the corners of the sizes in it. What is linear in input
            and output is at its most at one of them.
    """

    def __init__(
        self,
        policies: Sequence[Policy],
        *,
        conditions: Iterable[Condition] = (),
        sizes: Sequence[Size] = (),
        powers: bool = False,
    ) -> None:
        """Cut the facts.

        Args:
            sizes: what is within one of these must not share a cell with what is beyond it.
            powers: powers of two divide sizes too, as they do in the engine's comparisons.
        """
        self._variables: dict[Key, int] = {}
        self._cells: list[Sequence[object]] = []
        self._where: dict[Condition, Atom] = {}
        self._since = max(policy.issued_at for policy in policies)
        self._least_default = min(policy.default_output_tokens for policy in policies)
        looked_at: dict[str, list[Condition]] = {"tier": [], "endpoint": [], "size": []}
        written = [c for policy in policies for route in policy.routes for c in route.when]
        for condition in dict.fromkeys((*written, *conditions)):
            looked_at.setdefault(_fact(condition), []).append(condition)
        self._optional = OPTIONAL_FIELDS & looked_at.keys()
        for fact, some in looked_at.items():
            if fact == "size":
                cells = self._sizes(policies, _cuts(some), sizes, powers=powers)
                self.corners: tuple[tuple[Size, ...], ...] = tuple(cells)
                self.size = self._add("size", [corners[0] for corners in cells])
            elif isinstance(some[0] if some else None, TextHas):
                for word in dict.fromkeys(w for c in some for w in _words(cast("TextHas", c))):
                    self._add((fact, word), (False, True))
            else:
                self._add(fact, self._values(fact, some, policies))
        for name in dict.fromkeys(name for policy in policies for name in policy.data_classes):
            self._add(("data", name), (False, True))
        offered = {need for policy in policies for m in policy.models for need in m.capabilities}
        for need in sorted({*CAPABILITIES, *offered}):
            if ("needs", need) not in self._variables:
                self._add(("needs", need), (False, True))
        self.everything: tuple[int, ...] = tuple((1 << len(cells)) - 1 for cells in self._cells)

    @property
    def cells(self) -> int:
        """How many cells there are, counting every combination."""
        return prod(map(len, self._cells))

    def facts(self, domains: Domains) -> Facts:
        """Return a request within ``domains``: the most usual of those there are."""
        values: dict[str, Any] = {}
        found: dict[str, list[str]] = {}
        for key, variable in self._variables.items():
            if isinstance(key, str):
                values[key] = self._cells[variable][_lowest(domains[variable])]
            elif not domains[variable] & ABSENT:
                found.setdefault(key[0], []).append(key[1])
        return self._facts(values, found)

    def cell(self, domains: Domains, variable: int) -> int:
        """Return which cell of ``variable`` ``facts`` takes its value from."""
        return _lowest(domains[variable])

    def cell_of(self, size: Size) -> int:
        """Return the cell that ``size`` is in."""
        return self._sizes_at[self._place(size)]

    def sized(self, facts: Facts, size: Size) -> Facts:
        """Return ``facts`` of another size."""
        other = self._facts({"size": size}, {})
        return structs.replace(
            facts,
            measured=structs.replace(
                facts.measured,
                input_tokens=other.measured.input_tokens,
                max_input_tokens=other.measured.max_input_tokens,
                max_output_tokens=other.measured.max_output_tokens,
            ),
            declared=structs.replace(
                facts.declared, expected_output_tokens=other.declared.expected_output_tokens
            ),
        )

    # ── demands on the facts ───────────────────────────────────────────────────────────────────

    def fulfils(self, condition: Condition) -> tuple[Clause, ...]:
        """Return what all must hold for ``condition`` to hold."""
        if isinstance(condition, TextHas):
            return self._has(condition.field, condition)
        return (((self._atom(condition),),),)

    def fails(self, condition: Condition) -> Clause:
        """Return of what any must hold for ``condition`` not to hold."""
        if isinstance(condition, TextHas):
            return self._lacks(condition.field, condition)
        variable, cells = self._atom(condition)
        return (((variable, self.everything[variable] & ~cells),),)

    def carries(self, data: DataHas) -> tuple[Clause, ...]:
        """Return what all must hold for a request to carry such data."""
        return self._has("data", data)

    def has_word(self, field: str, word: str) -> Atom:
        """Return that ``word`` is in the set of words ``field``."""
        return self._variables[field, word], PRESENT

    def has_none(self, field: str, words: Iterable[str]) -> Literal:
        """Return that none of ``words`` is in ``field``; those nobody looks for never are."""
        keys = [(field, word) for word in words if (field, word) in self._variables]
        return tuple((self._variables[key], ABSENT) for key in dict.fromkeys(keys))

    def words(self, field: str) -> list[str]:
        """Return the words of the set ``field``."""
        return [key[1] for key in self._variables if isinstance(key, tuple) and key[0] == field]

    def is_one_of(self, fact: str, values: Iterable[object]) -> Atom:
        """Return that ``fact`` is one of ``values``."""
        variable, wanted = self._variables[fact], set(values)
        return variable, _bits(cell in wanted for cell in self._cells[variable])

    def needs_at_most(self, policy: Policy, tokens: int) -> Atom:
        """Return that a context window of so many tokens is enough by ``policy``."""
        probes = (self._facts({"size": corners[0]}, {}) for corners in self.corners)
        return self.size, _bits(context_need(policy, probe) <= tokens for probe in probes)

    def _atom(self, condition: Condition) -> Atom:
        atom = self._where.get(condition)
        if atom is None:
            fact = _fact(condition)
            variable = self._variables[fact]
            probes = (self._facts({fact: cell}, {}) for cell in self._cells[variable])
            atom = variable, _bits(holds(condition, probe) for probe in probes)
            self._where[condition] = atom
        return atom

    def _has(self, field: str, words: TextHas | DataHas) -> tuple[Clause, ...]:
        any_of: Clause = tuple((self.has_word(field, word),) for word in words.any_of)
        return (
            *((any_of,) if any_of else ()),
            *(((self.has_word(field, word),),) for word in words.all_of),
            *((self.has_none(field, (word,)),) for word in words.none_of),
        )

    def _lacks(self, field: str, words: TextHas | DataHas) -> Clause:
        return (
            *((self.has_none(field, words.any_of),) if words.any_of else ()),
            *(self.has_none(field, (word,)) for word in words.all_of),
            *((self.has_word(field, word),) for word in words.none_of),
        )

    # ── cutting ────────────────────────────────────────────────────────────────────────────────

    def _add(self, key: Key, cells: Sequence[object]) -> int:
        self._variables[key] = len(self._cells)
        self._cells.append(cells)
        return self._variables[key]

    def _values(
        self, fact: str, conditions: Sequence[Condition], policies: Sequence[Policy]
    ) -> Sequence[object]:
        """Return one value of each cell of a fact that has one value; the most usual first."""
        match fact:
            case "tier":
                return list(dict.fromkeys(tier for policy in policies for tier in policy.tiers))
            case "endpoint":
                served = (e for policy in policies for m in policy.models for e in m.endpoints)
                return list(dict.fromkeys((*ENDPOINTS, *served)))
            case "interactive":
                return (True, False)
            case "now":
                return _instants(cast("list[ClockBetween]", conditions), since=self._since)
            case "cohort":
                return _cohorts(cast("list[Share]", conditions))
            case "complexity" | "input_bytes" | "messages":
                most = MOST.get(fact, 2**40)
                cuts = [cut for cut in _cuts(conditions) if 0 < cut <= most]
                usual = USUAL.get(fact, 0)
                return [
                    usual if first <= usual < below else first
                    for first, below in pairwise((0, *cuts, most + 1))
                ]
            case _:
                named = dict.fromkeys(v for c in conditions for v in cast("OneOf", c).values)
                other = "" if fact in OPTIONAL_FIELDS else None
                return (other if other not in named else "other", *named)

    def _sizes(
        self,
        policies: Sequence[Policy],
        cuts: Iterable[int],
        sizes: Sequence[Size],
        *,
        powers: bool,
    ) -> list[tuple[Size, ...]]:
        """Return the cells of size, each as its corners.

        A cell's bounds are lines ``input = c``, ``input + output = c`` and ``output = c``, so
        its corners are where two of these cross, and whole numbers.
        """
        steps = [2**power for power in range(POWERS)] if powers else []
        cut_at = [c for c in sorted({*cuts, *steps, *(s.input + 1 for s in sizes)}) if c > 0]
        windows = [sorted({m.context_tokens for m in policy.models}) for policy in policies]
        ends = {end + more for some in windows for end in some for more in (0, 1)}
        defaults = {policy.default_output_tokens for policy in policies}
        outputs = {0, *defaults, *steps, *(step - 1 for step in steps)}
        outputs |= {size.output for size in sizes if size.output is not None}
        inputs = {0, USUAL["input_tokens"], *cut_at, *(cut - 1 for cut in cut_at)}
        inputs |= {end - output for end in ends for output in (0, *defaults)}
        inputs |= {end - (size.output or 0) for end in ends for size in sizes}

        def place_of(size: Size) -> tuple[int, ...]:
            probe = self._facts({"size": size}, {})
            needs = (
                bisect_left(some, context_need(policy, probe))
                for policy, some in zip(policies, windows, strict=True)
            )
            return (bisect_right(cut_at, size.input), *needs)

        self._place = place_of
        cells: dict[tuple[int, ...], list[Size]] = {}
        for tokens in sorted(inputs):
            if tokens < 0:
                continue
            crossed = {end - tokens for end in ends if 0 < end - tokens < max(defaults)}
            for output in (None, *sorted(outputs | crossed)):
                size = Size(tokens, output)
                cells.setdefault(place_of(size), []).append(size)
        ordered = sorted((tuple(sorted(some, key=_oddity)) for some in cells.values()), key=_first)
        self._sizes_at = {place_of(corners[0]): cell for cell, corners in enumerate(ordered)}
        return ordered

    def _facts(self, values: Mapping[str, Any], found: Mapping[str, Sequence[str]]) -> Facts:
        size = cast("Size", values.get("size", Size(USUAL["input_tokens"])))
        declared: dict[str, Any] = {}
        measured: dict[str, Any] = {}
        if size.output is not None and size.output <= self._least_default:
            measured["max_output_tokens"] = size.output
        else:
            declared["expected_output_tokens"] = size.output
        if "patterns" in self._optional:
            measured["patterns"] = ()
        for field, words in found.items():
            part = declared if field in {"data", "tags"} else measured
            part["data_classes" if field == "data" else field] = tuple(sorted(words))
        return Facts(
            now=values.get("now", self._since),
            signed=Signed(
                tier=values.get("tier", ""),
                cohort=values.get("cohort", 0),
                tenant=values.get("tenant"),
                region=values.get("region"),
            ),
            measured=Measured(
                endpoint=values.get("endpoint", ENDPOINTS[0]),
                input_bytes=values.get("input_bytes", 0),
                input_tokens=size.input,
                max_input_tokens=size.input,
                messages=values.get("messages", 1),
                complexity=values.get("complexity"),
                semantic=values.get("semantic"),
                language=values.get("language"),
                **measured,
            ),
            declared=Declared(
                interactive=values.get("interactive", True), task=values.get("task"), **declared
            ),
        )


class View:
    """One policy, said as demands on the facts of a space."""

    def __init__(self, space: Space, policy: Policy) -> None:
        self.policy = policy
        self.compiled = compile_policy(policy)
        self._applies = [
            tuple(clause for condition in route.when for clause in space.fulfils(condition))
            for route in policy.routes
        ]
        self._misses: list[Clause] = [
            tuple(literal for condition in route.when for literal in space.fails(condition))
            for route in policy.routes
        ]
        self._serves: dict[str, Literal] = {}
        self._refuses: dict[str, Clause] = {}
        known = policy.data_classes
        windows = {
            tokens: space.needs_at_most(policy, tokens)
            for tokens in {model.context_tokens for model in policy.models}
        }
        for model in policy.models:
            unmet = [
                name
                for name in space.words("data")
                if name not in known or not set(known[name]) <= set(model.promises)
            ]
            lacking = [n for n in space.words("needs") if n not in model.capabilities]
            atoms: Literal = (
                space.is_one_of("tier", model.tiers),
                space.is_one_of("endpoint", model.endpoints),
                windows[model.context_tokens],
                *space.has_none("data", unmet),
                *space.has_none("needs", lacking),
            )
            self._serves[model.id] = atoms
            self._refuses[model.id] = tuple(
                ((variable, space.everything[variable] & ~cells),) for variable, cells in atoms
            )

    def applies(self, row: int) -> tuple[Clause, ...]:
        """Return what all must hold for the conditions of ``row``."""
        return self._applies[row]

    def misses(self, row: int) -> Clause:
        """Return of what any must hold for the conditions of ``row`` to fail."""
        return self._misses[row]

    def takes(self, row: int) -> list[Clause]:
        """Return what all must hold for ``row`` to be the first that applies."""
        return [*self._applies[row], *self._misses[:row]]

    def serves(self, model: str) -> Literal:
        """Return that ``model`` is admissible, as far as no route enforces others."""
        return self._serves[model]

    def refuses(self, model: str) -> Clause:
        """Return of what any must hold for ``model`` not to be admissible."""
        return self._refuses[model]

    def within(self, row: int) -> tuple[str, ...]:
        """Return the models that may be used where ``row`` is taken."""
        route = self.policy.routes[row]
        if route.enforce:
            return tuple(dict.fromkeys((*route.models, *route.fallback)))
        return tuple(self.compiled.models)


# ── cells of single facts ──────────────────────────────────────────────────────────────────────


def _fact(condition: Condition) -> str:
    match condition:
        case ClockBetween():
            return "now"
        case Share():
            return "cohort"
        case NumberBetween(field="input_tokens"):
            return "size"
        case _:
            return condition.field


def _cuts(conditions: Iterable[Condition]) -> list[int]:
    bounds = (
        bound
        for condition in conditions
        if isinstance(condition, NumberBetween | Share)
        for bound in (condition.at_least, condition.below)
    )
    return sorted({bound for bound in bounds if bound is not None})


def _words(condition: TextHas) -> tuple[str, ...]:
    return (*condition.any_of, *condition.all_of, *condition.none_of)


def _bits(which: Iterable[bool]) -> int:
    return sum(1 << place for place, is_in in enumerate(which) if is_in)


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


def _oddity(size: Size) -> tuple[bool, bool, int, int]:
    return size.output is not None, size.input < USUAL["input_tokens"], size.input, size.output or 0


def _first(corners: tuple[Size, ...]) -> tuple[bool, bool, int, int]:
    return _oddity(corners[0])


def _instants(conditions: Sequence[ClockBetween], *, since: int) -> list[int]:
    """Return one instant of each combination of clock conditions that occurs, from ``since`` on.

    Between two changes of offset anywhere, clocks repeat every week.
    """
    zones = {zone for condition in conditions if (zone := condition.zone) is not None}
    changes = sorted({at for zone in zones for at, _ in zone.offsets if at > since})
    seen: dict[tuple[bool, ...], int] = {}
    weeks: set[tuple[int, ...]] = set()
    for start, end in zip((since, *changes), (*changes, None), strict=True):
        offsets = tuple(_offset(condition, start) for condition in conditions)
        if end is None or end - start >= WEEK_S:
            if offsets in weeks:
                continue
            weeks.add(offsets)
        last = start + WEEK_S if end is None else min(end, start + WEEK_S)
        for now in sorted({start, *_turns(conditions, offsets, start)}):
            if now < last:
                facts = Facts(now=now, signed=Signed(tier=""))
                seen.setdefault(tuple(holds(c, facts) for c in conditions), now)
    return list(seen.values())


def _offset(condition: ClockBetween, now: int) -> int:
    if condition.zone is None:
        return 0
    starts = [start for start, _ in condition.zone.offsets]
    return condition.zone.offsets[max(0, bisect_right(starts, now) - 1)][1]


def _turns(conditions: Sequence[ClockBetween], offsets: Sequence[int], start: int) -> Iterator[int]:
    """Give the instants at which a condition may turn, in the week from ``start`` on."""
    for condition, offset in zip(conditions, offsets, strict=True):
        midnight = start - (start + offset) % DAY_S
        hours = {condition.start, condition.end} if condition.field == "hour" else {0}
        for day in range(8):
            for hour in hours:
                turn = midnight + day * DAY_S + hour * 3_600
                if turn >= start:
                    yield turn


def _cohorts(conditions: Sequence[Share]) -> list[int]:
    """Return one cohort of each combination of shares that occurs.

    Where a caller stands under one salt says nothing of another, so combinations of small
    shares may be empty. All cohorts there are get looked at before one is taken to be.
    """
    by_salt: dict[str, list[Share]] = {}
    for condition in conditions:
        by_salt.setdefault(condition.salt, []).append(condition)
    cells_of: dict[str, array[int]] = {}
    combinations = 1
    for salt, shares in by_salt.items():
        cuts = [cut for cut in _cuts(shares) if 0 < cut < SHARES]
        cells_of[salt] = array("H", (bisect_right(cuts, at) for at in range(SHARES)))
        combinations *= len(cuts) + 1
    seen: dict[tuple[int, ...], int] = {}
    for block in range(COHORTS // BLOCK):
        columns = [[cells[at] for at in _places(salt, block)] for salt, cells in cells_of.items()]
        for at, combination in enumerate(zip(*columns, strict=True)):
            if combination not in seen:
                seen[combination] = block * BLOCK + at
        if len(seen) == combinations:
            break
    return sorted(seen.values())


@lru_cache(maxsize=1_024)
def _places(salt: str, block: int) -> "array[int]":
    """Return where a block of cohorts stands; kept, as hashing is most of the work."""
    return array("H", (place(salt, cohort) for cohort in range(block * BLOCK, (block + 1) * BLOCK)))
