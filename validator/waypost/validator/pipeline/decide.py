"""What a decision that names no model means to the caller: a refusal that says why."""

from waypost.shared.compiled import CompiledPolicy
from waypost.shared.contracts import Facts
from waypost.shared.engine import Decision
from waypost.shared.errors import (
    BudgetError,
    ForbiddenError,
    InvalidRequestError,
    RefusalError,
    UpstreamError,
)
from waypost.shared.explain import explain

__all__ = ["require_served"]

# What the request itself, the providers or the account are the reason for. All else is a matter
# of what this caller may use.
_REFUSALS: dict[str, type[RefusalError]] = {
    "request_excludes": InvalidRequestError,
    "unknown_model": InvalidRequestError,
    "unknown_provider": InvalidRequestError,
    "endpoint_unsupported": InvalidRequestError,
    "capability_missing": InvalidRequestError,
    "context_too_small": InvalidRequestError,
    "untranslatable": InvalidRequestError,
    "out_of_service": UpstreamError,
    "unaffordable": BudgetError,
}


def require_served(
    compiled: CompiledPolicy,
    facts: Facts,
    decision: Decision,
    untranslatable: InvalidRequestError | None = None,
) -> None:
    """Return if ``decision`` names a model.

    Args:
        untranslatable: what is told where that is why no model may.

    Raises:
        RefusalError: no model may serve the request; its code is the engine's reason.
    """
    if decision.model is None:
        if decision.reason == "untranslatable" and untranslatable is not None:
            raise untranslatable
        refusal = _REFUSALS.get(decision.reason, ForbiddenError)
        raise refusal(explain(compiled, facts, decision).sentence, code=decision.reason)
