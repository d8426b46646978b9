"""How long a choice and a decision take, and what compiling a policy costs."""

import statistics
import time
from collections.abc import Callable

from msgspec import structs

from waypost.client.testing import static_waypost
from waypost.edge.training.utterances import compile_utterances
from waypost.shared.contracts import (
    ClockBetween,
    Condition,
    Declared,
    Facts,
    Measured,
    Model,
    NumberBetween,
    OneOf,
    Policy,
    Proposal,
    Route,
    Share,
    Signed,
    TextHas,
    YesNo,
    Zone,
)
from waypost.shared.decision.compiled import compile_policy
from waypost.shared.decision.engine import decide
from waypost.shared.money import Price

MONDAY = 1_764_000_000
BERLIN = Zone("Europe/Berlin", ((0, 3_600), (MONDAY + 10**7, 7_200), (MONDAY + 2 * 10**7, 3_600)))


def a_large_policy(rules: int, models: int) -> Policy:
    """Every kind of condition in turn; each rule prefers up to five models, the default all."""

    def model(i: int) -> Model:
        return Model(
            id=f"m{i}",
            provider=f"p{i % 5}",
            name=f"n{i}",
            price=Price(
                input_nusd_per_mtok=10**8 * (i + 1), output_nusd_per_mtok=3 * 10**8 * (i + 1)
            ),
            tiers=("free", "pro") if i % 3 else ("pro",),
            context_tokens=8_000 * (1 + i % 9),
            max_output_tokens=4_096,
            quality=i % 100,
            promises=("no_training",) if i % 2 else ("hipaa_baa", "no_training"),
            capabilities=("json", "tools"),
        )

    def when(i: int) -> tuple[Condition, ...]:
        kinds: tuple[tuple[Condition, ...], ...] = (
            (NumberBetween("input_tokens", below=10 + i), OneOf("tier", ("pro",))),
            (TextHas("keywords", any_of=(f"keyword{i}",)),),
            (OneOf("task", (f"task{i}",)), YesNo("interactive", True)),
            (TextHas("tags", any_of=(f"tag{i}",)), ClockBetween("hour", i % 24, (i + 5) % 24)),
        )
        return kinds[i % len(kinds)]

    names = [f"m{i}" for i in range(models)]
    routes = [
        Route(name=f"r{i}", models=tuple(names[i % models :][:5]), when=when(i))
        for i in range(rules - 1)
    ]
    return Policy(
        channel="prod",
        version=1,
        issued_at=MONDAY,
        tiers=("free", "pro"),
        models=tuple(map(model, range(models))),
        routes=(*routes, Route(name="default", models=tuple(names), optimize="latency")),
        data_classes={"phi": ("hipaa_baa",), "pii": ("no_training",)},
        last_resort=(names[-1],),
    )


def a_demanding_policy() -> Policy:
    """One rule for each thing that a rule can look at, the prompt's meaning by words included."""
    examples = {
        name: [
            f"{word} {name} {number}" for number, word in enumerate(("my", "the", "a", "no", "one"))
        ]
        for name in ("invoice", "parcel")
    }
    kinds: tuple[Condition, ...] = (
        NumberBetween("input_tokens", at_least=10**6),
        NumberBetween("input_bytes", at_least=10**7),
        NumberBetween("messages", at_least=900),
        NumberBetween("complexity", at_least=990),
        ClockBetween("hour", 2, 3, BERLIN),
        ClockBetween("weekday", 5, 6),
        Share("new", 0, 10),
        OneOf("tenant", ("acme",)),
        OneOf("region", ("eu",)),
        OneOf("endpoint", ("embeddings",)),
        OneOf("language", ("ja",)),
        OneOf("semantic", tuple(examples)),
        OneOf("task", ("classify",)),
        YesNo("interactive", False),
        TextHas("keywords", any_of=("refund", "step by step")),
        TextHas("patterns", any_of=(r"INV-\d{4}",)),
        TextHas("needs", any_of=("vision",)),
        TextHas("tags", any_of=("beta",)),
    )
    large = a_large_policy(2, 20)
    names = tuple(model.id for model in large.models[:5])
    rows = [Route(name=f"r{i}", models=names, when=(kind,)) for i, kind in enumerate(kinds)]
    return structs.replace(
        large,
        routes=(*rows, large.routes[-1]),
        semantic=compile_utterances(examples, seed=0),
    )


def many_facts(count: int) -> list[Facts]:
    """Requests that differ in hour and length and carry a duty and a need."""
    return [
        Facts(
            now=MONDAY + i * 977,
            signed=Signed(tier="free", data_classes=("pii",)),
            measured=Measured(
                input_tokens=20 + i * 7, max_input_tokens=400 + i * 30, needs=("tools",)
            ),
            declared=Declared(task="write", tags=("mobile",)),
        )
        for i in range(count)
    ]


def median_us(call: Callable[[int], object], count: int) -> float:
    """Return the median time of ``call(i)`` for i below ``count``, in microseconds."""
    took: list[int] = []
    for i in range(count):
        start = time.perf_counter_ns()
        call(i)
        took.append(time.perf_counter_ns() - start)
    return statistics.median(took) / 1_000


def rows() -> list[tuple[str, str, str]]:
    """Return (what, measured, aim)."""
    result: list[tuple[str, str, str]] = []
    facts = many_facts(200)
    questions = [f"What is the capital of country {i}?" for i in range(200)]
    wish = Proposal(model="m4")
    for rules, models, aim in ((10, 20, 15), (100, 200, 60)):
        policy = a_large_policy(rules, models)
        start = time.perf_counter()
        compiled = compile_policy(policy)
        compile_ms = (time.perf_counter() - start) * 1e3
        us = median_us(lambda i, c=compiled: decide(c, facts[i % 200], wish), 20_000)  # type: ignore[misc]
        what = f"{rules} rules × {models} models"
        result.append((f"decide(), {what}", f"{us:.1f} µs", f"≤ {aim} µs"))
        with static_waypost(policy, tier="free") as wp:
            us = median_us(lambda i, w=wp: w.choose(questions[i % 200]), 20_000)  # type: ignore[misc]
        result.append((f"choose(), {what}", f"{us:.1f} µs", f"≤ {aim} µs"))
        result.append((f"compile_policy(), {what}", f"{compile_ms:.2f} ms", ""))
    with static_waypost(a_demanding_policy(), tier="free") as wp:
        us = median_us(lambda i, w=wp: w.choose(questions[i % 200]), 5_000)  # type: ignore[misc]
    result.append(("choose(), 18 rules, each on something else", f"{us:.1f} µs", ""))
    start = time.perf_counter()
    compile_policy(a_large_policy(1_000, 200))
    compile_s = time.perf_counter() - start
    result.append(("compile_policy(), 1000 rules × 200 models", f"{compile_s:.2f} s", "≤ 1 s"))
    return result
