"""How long an answer may be and is likely to be, and what it costs at most and probably.

Pure. A bound is never too low, as it is what is reserved; an estimate only orders models.
"""

from msgspec import UNSET

from waypost.shared.contracts import Facts, Measured, Model, Policy
from waypost.shared.money import KEPT_1H, Usage, bill, output_ceiling, upper_bound

__all__ = [
    "affordable_output",
    "context_need",
    "cost_bound_nusd",
    "cost_estimate_nusd",
    "expected_output",
    "output_bound",
    "price_needs",
]


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


def cost_bound_nusd(model: Model, facts: Facts) -> int:
    """Return the most this request can cost on ``model``; what is reserved."""
    return upper_bound(
        model.price,
        input_tokens=facts.measured.max_input_tokens,
        output_tokens=output_bound(model, facts) * facts.measured.choices,
        needs=price_needs(facts.measured),
    )


def affordable_output(model: Model, facts: Facts, *, budget_nusd: int) -> int:
    """Return how many tokens per answer ``budget_nusd`` surely pays for; 0 if not one."""
    measured = facts.measured
    needs = price_needs(measured)
    most = measured.max_input_tokens
    fixed = upper_bound(model.price, input_tokens=most, output_tokens=0, needs=needs)
    left = budget_nusd - fixed
    dearest = max(output_ceiling(price, needs) for price in model.price.up_to(most))
    per_mtok = dearest * measured.choices
    if left <= 0:
        return 0
    bound = output_bound(model, facts)
    return bound if per_mtok == 0 else min(bound, (left - 1) * 1_000_000 // per_mtok)


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
