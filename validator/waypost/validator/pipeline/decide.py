"""What a decision that names no model means to the caller: a refusal that says why."""

from waypost.shared.contracts import Facts
from waypost.shared.engine import Decision, exclusion
from waypost.shared.errors import (
    BudgetError,
    ForbiddenError,
    InvalidRequestError,
    RefusalError,
    UpstreamError,
)
from waypost.shared.explain import explain
from waypost.validator.serving import Serving

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
    "unaffordable": BudgetError,
}


def require_served(
    serving: Serving,
    facts: Facts,
    decision: Decision,
    untranslatable: InvalidRequestError | None = None,
    *,
    monotonic: float,
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
        sentence = explain(serving.compiled, facts, decision).sentence
        if decision.reason == "out_of_service":
            wait_s = _wait_s(serving, facts, monotonic)
            raise UpstreamError(sentence, code=decision.reason, retry_after_s=wait_s)
        refusal = _REFUSALS.get(decision.reason, ForbiddenError)
        raise refusal(sentence, code=decision.reason)


def _wait_s(serving: Serving, facts: Facts, monotonic: float) -> int | None:
    """Return when the first of the models at rest may serve this; ``None`` if none ever will."""
    rests: list[float] = []
    for name in facts.measured.out_of_service:
        target, why = serving.targets.get(name), exclusion(serving.compiled, name, facts)
        if target is not None and why is not None and why.code == "out_of_service":
            rests.append(target.rests_s(monotonic))
    return 1 + int(min(rests)) if rests else None
