"""How long an answer may be and is likely to be, and what it costs at most and probably.

Pure. A bound is never too low, as it is what is reserved; an estimate only orders models.
"""

from bisect import bisect_right
from collections.abc import Iterable

from msgspec import UNSET

from waypost.shared.contracts import Extra, Facts, HostedTool, Measured, Model, Policy
from waypost.shared.money import KEPT_1H, Price, Usage, bill, upper_bound
from waypost.shared.pictures import picture_tokens

__all__ = [
    "affordable_output",
    "bound_nusd",
    "calls_of",
    "context_need",
    "cost_bound_nusd",
    "cost_estimate_nusd",
    "expected_output",
    "factor_of",
    "is_priced",
    "least_output",
    "output_bound",
    "price_needs",
    "prompt_bound",
    "read_again",
]

# What a part is bounded by where its model does not say: a PDF by a hundred pages, the most that
# most providers read, each up to 3,000 tokens of text and a picture (Anthropic, "PDF support",
# 2026-11), and that within what the model can read.
PART_TOKENS = {"pdf": 100 * (3_000 + 1_600)}


def price_needs(measured: Measured) -> tuple[str, ...]:
    """Return what the prices of a request depend on."""
    if measured.keeps_cache is UNSET:
        return measured.needs
    return (*measured.needs, KEPT_1H)


def output_bound(model: Model, facts: Facts) -> int:
    """Return the most tokens one answer may have: as asked, within what the model can do."""
    asked = facts.measured.max_output_tokens
    room = max(1, min(model.max_output_tokens, model.context_tokens - facts.measured.input_tokens))
    return room if asked is None else min(asked, room)


def least_output(facts: Facts) -> int:
    """Return how many tokens an answer must have room for, so that it comes to anything.

    Providers refuse a bound that is not above the budget for thinking (claude-code#8756, 2026). A
    caller that asks for less than its own budget is left to its provider.
    """
    thinks, asked = facts.measured.reasoning_tokens, facts.measured.max_output_tokens
    if thinks is UNSET:
        return 1
    return thinks + 1 if asked is None else min(thinks + 1, asked)


def is_priced(model: Model, extra: Extra) -> bool:
    """Return whether the model says what ``extra`` may cost."""
    match extra.kind:
        case "part":
            return extra.name in PART_TOKENS or extra.name in dict(model.part_tokens or ())
        case "tool":
            return any(tool.name == extra.name for tool in model.hosted_tools or ())
        case "price":
            return any(factor.asks == extra.name for factor in model.price.factors)


def calls_of(model: Model, measured: Measured) -> tuple[tuple[HostedTool, int], ...]:
    """Return the tools of its provider that a request may call, and how often at most."""
    if measured.extras is UNSET or not model.hosted_tools:
        return ()
    limits: dict[str, int] = {}
    tools = {tool.name: tool for tool in model.hosted_tools}
    for extra in measured.extras:
        if extra.kind == "tool" and extra.name in tools:
            most = tools[extra.name].calls
            calls = most if extra.calls is None else min(most, extra.calls)
            limits[extra.name] = limits.get(extra.name, 0) + calls
    return tuple((tools[name], calls) for name, calls in limits.items())


def prompt_bound(model: Model, measured: Measured) -> int:
    """Return the most tokens that the prompt is read as."""
    beside = 0
    if measured.pictures is not UNSET:
        rule = model.pictures or None
        beside += sum(picture_tokens(rule, one) for one in measured.pictures)
    if measured.extras is not UNSET:
        bounds = {**PART_TOKENS, **dict(model.part_tokens or ())}
        beside += sum(bounds.get(one.name, 0) for one in measured.extras if one.kind == "part")
    # No prompt is longer than what the model can read.
    return measured.max_input_tokens + min(beside, model.context_tokens)


def bound_nusd(model: Model, measured: Measured, *, output_tokens: int) -> int:
    """Return the most that a request costs whose answers have ``output_tokens`` together."""
    needs = price_needs(measured)
    prompt = prompt_bound(model, measured)
    if measured.extras is UNSET:
        return upper_bound(
            model.price, input_tokens=prompt, output_tokens=output_tokens, needs=needs
        )
    tools = calls_of(model, measured)
    read = read_again(prompt, output_tokens, tools)
    tokens = upper_bound(model.price, input_tokens=read, output_tokens=output_tokens, needs=needs)
    asked = [one.name for one in measured.extras if one.kind == "price"]
    # What is cheaper may be answered at the usual price.
    percent = factor_of(model.price, asked, at_least=100)
    return -(-tokens * percent // 100) + sum(tool.call_nusd * calls for tool, calls in tools)


def factor_of(price: Price, asks: Iterable[str], *, at_least: int = 0) -> int:
    """Return by how many per cent of the usual price a request is charged that has these.

    Args:
        at_least: of each.
    """
    percents = {factor.asks: factor.percent for factor in price.factors}
    percent = 100
    for name in asks:
        percent = -(-percent * max(at_least, percents.get(name, 100)) // 100)
    return percent


def read_again(prompt: int, output_tokens: int, tools: Iterable[tuple[HostedTool, int]]) -> int:
    """Return the most input tokens of a request that calls tools of its provider.

    After each call the prompt is read once more, with the answer and the results so far.
    """
    calls = brought = 0
    for tool, count in tools:
        calls += count
        brought += tool.tokens * count
    if not calls:
        return prompt
    return (calls + 1) * prompt + calls * (output_tokens + brought)


def cost_bound_nusd(model: Model, facts: Facts, *, output_tokens: int | None = None) -> int:
    """Return the most this request can cost on ``model``; what is reserved.

    Args:
        output_tokens: bound of each answer, where it is less than ``output_bound``.
    """
    tokens = output_bound(model, facts) if output_tokens is None else output_tokens
    measured = facts.measured
    return bound_nusd(model, measured, output_tokens=tokens * measured.choices)


def affordable_output(model: Model, facts: Facts, *, budget_nusd: int) -> int:
    """Return how many tokens per answer ``budget_nusd`` surely pays for; 0 if not one."""
    bound = output_bound(model, facts)
    if cost_bound_nusd(model, facts) <= budget_nusd:
        return bound
    # Where a step of the price lies between, no formula: the bound only grows with the answer.
    fits = bisect_right(
        range(bound),
        budget_nusd,
        key=lambda tokens: cost_bound_nusd(model, facts, output_tokens=tokens),
    )
    return max(0, fits - 1)


def expected_output(policy: Policy, facts: Facts) -> int:
    """Return how long an answer is likely to be, in tokens."""
    expected = facts.declared.expected_output_tokens or policy.default_output_tokens
    asked = facts.measured.max_output_tokens
    return expected if asked is None else min(expected, asked)


def cost_estimate_nusd(policy: Policy, model: Model, facts: Facts) -> int:
    """Return what this request will probably cost on ``model``."""
    return bill(
        model.price,
        Usage(
            input_tokens=facts.measured.input_tokens,
            output_tokens=expected_output(policy, facts) * facts.measured.choices,
        ),
    )


def context_need(policy: Policy, facts: Facts) -> int:
    """Return the context window this request needs: the prompt, and room for a usual answer.

    A client's word that the answer will be short makes no room: it would let in a model that
    silence does not.
    """
    asked, usual = facts.measured.max_output_tokens, policy.default_output_tokens
    return facts.measured.input_tokens + (usual if asked is None else min(asked, usual))
