"""Which model serves the request: the shared engine's word, or a refusal that says why."""

from waypost.shared.contracts import Facts, Proposal
from waypost.shared.engine import CompiledPolicy, Decision
from waypost.shared.engine import decide as engine_decide
from waypost.shared.errors import (
    BudgetError,
    ForbiddenError,
    InvalidRequestError,
    RefusalError,
    UpstreamError,
)
from waypost.shared.explain import explain

__all__ = ["decide"]

# What the request itself, the providers or the account are the reason for. All else is a matter
# of what this caller may use.
_REFUSALS: dict[str, type[RefusalError]] = {
    "endpoint_unsupported": InvalidRequestError,
    "capability_missing": InvalidRequestError,
    "context_too_small": InvalidRequestError,
    "untranslatable": InvalidRequestError,
    "out_of_service": UpstreamError,
    "unaffordable": BudgetError,
}


def decide(
    compiled: CompiledPolicy,
    facts: Facts,
    proposal: Proposal | None,
    untranslatable: InvalidRequestError | None = None,
) -> Decision:
    """Return which model serves the request; never a refusal.

    Args:
        untranslatable: what is told where that is why no model may.

    Raises:
        RefusalError: no model may; its code is the engine's reason.
    """
    decision = engine_decide(compiled, facts, proposal)
    if decision.model is None:
        if decision.reason == "untranslatable" and untranslatable is not None:
            raise untranslatable
        refusal = _REFUSALS.get(decision.reason, ForbiddenError)
        raise refusal(explain(compiled, facts, decision).sentence, code=decision.reason)
    return decision
