"""How long the analyses of a policy take: every request there can be, not a sample."""

import time
from collections.abc import Callable

from msgspec import structs

from bench.deciding import BERLIN, MONDAY, a_large_policy
from waypost.edge.analysis.diff import diff
from waypost.edge.analysis.findings import find_problems
from waypost.edge.analysis.prove import prove
from waypost.edge.authoring.invariants import DataHas, Invariant, MaxCost
from waypost.edge.authoring.load_policy import Authored
from waypost.shared.contracts import (
    ClockBetween,
    Condition,
    NumberBetween,
    OneOf,
    Policy,
    Route,
    Share,
    TextHas,
    YesNo,
)

# As ``a_large_policy`` has it.
FREE = tuple(f"m{i}" for i in range(200) if i % 3)

# All but "cost", which is broken, hold, so that nothing short of everything is looked at.
INVARIANTS = (
    Invariant(name="phi", data=DataHas(any_of=("phi",)), promises=("hipaa_baa",)),
    Invariant(name="cheap for free", when=(OneOf("tier", ("free",)),), models=FREE),
    Invariant(name="cost", when=(OneOf("tier", ("free",)),), max_cost=MaxCost(10**6, 4_000, 1_000)),
    Invariant(
        name="fallback",
        when=(
            OneOf("endpoint", ("chat.completions",)),
            TextHas("needs", none_of=("audio", "vision")),
            NumberBetween("input_tokens", below=7_000),
        ),
        has_fallback=True,
    ),
    Invariant(
        name="served",
        when=(
            OneOf("endpoint", ("chat.completions",)),
            TextHas("needs", none_of=("audio", "vision")),
            NumberBetween("input_tokens", below=70_000),
        ),
        never_refused=True,
    ),
)


def a_tangled_policy(rules: int, models: int) -> Policy:
    """Every kind of condition, three to a row, so that rows overlap in many ways."""

    def when(i: int) -> tuple[Condition, ...]:
        kinds: tuple[Condition, ...] = (
            NumberBetween("input_tokens", below=100 * (1 + i)),
            TextHas("keywords", any_of=(f"word{i}", f"word{i + 1}"), none_of=(f"word{i + 2}",)),
            OneOf("task", (f"task{i % 9}", f"task{(i + 1) % 9}")),
            ClockBetween("hour", i % 24, (i + 9) % 24, BERLIN if i % 2 else None),
            TextHas("tags", all_of=(f"tag{i % 7}",), none_of=(f"tag{(i + 1) % 7}",)),
            Share("roll-out", at_least=100 * i, below=100 * i + 2_500),
            NumberBetween("complexity", at_least=10 * i),
            YesNo("interactive", bool(i % 2)),
            OneOf("tier", ("pro",)),
            TextHas("needs", none_of=("tools",)),
        )
        return tuple(kinds[(i * step + step) % len(kinds)] for step in (1, 3, 7))

    policy = a_large_policy(2, models)
    names = [model.id for model in policy.models]
    routes = [
        Route(name=f"r{i}", models=tuple(names[i % models :][:5]), when=when(i))
        for i in range(rules - 1)
    ]
    return structs.replace(policy, routes=(*routes, policy.routes[-1]))


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def rows() -> list[tuple[str, str, str]]:
    """Return (what, measured, aim)."""
    result: list[tuple[str, str, str]] = []
    for rules, models in ((50, 20), (50, 200), (1_000, 20)):
        policy = a_tangled_policy(rules, models)
        what = f"{rules} rules × {models} models"
        cells = prove(policy, INVARIANTS[0]).cells
        took = seconds(lambda p=policy: [prove(p, each) for each in INVARIANTS])  # type: ignore[misc]
        aim = "≤ 10 s" if rules == 50 else ""
        result.append(
            (
                f"prove, {what}, {len(INVARIANTS)} invariants, {cells:.0e} cells",
                f"{took:.2f} s",
                aim,
            )
        )
        authored = Authored(policy, policy)
        took = seconds(lambda a=authored: find_problems(a, now=MONDAY))  # type: ignore[misc]
        result.append((f"check, {what}", f"{took:.2f} s", ""))
        if rules == 50:
            swapped = (policy.routes[1], policy.routes[0], *policy.routes[2:])
            after = structs.replace(policy, routes=swapped)
            took = seconds(lambda p=policy, a=after: diff(p, a))  # type: ignore[misc]
            result.append((f"diff, {what}, two rules swapped", f"{took:.2f} s", ""))
    return result
