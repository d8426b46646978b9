"""What a decision that names no model means: an early probe, or a refusal that says why."""

from collections.abc import Iterator

from msgspec import structs

from waypost.shared.contracts import Facts
from waypost.shared.decision.engine import Decision, exclusion
from waypost.shared.decision.explain import explain
from waypost.shared.errors import (
    BudgetError,
    ForbiddenError,
    InvalidRequestError,
    RefusalError,
    UpstreamError,
)
from waypost.validator.dialects.adapter import InboundRequest
from waypost.validator.manifest.active import ActiveManifest, Target
from waypost.validator.upstream.breaker import Witness

__all__ = ["require_served", "woken"]

# What the request itself, the providers or the account are the reason for. All else is a matter
# of what this caller may use.
_REFUSALS: dict[str, type[RefusalError]] = {
    "request_excludes": InvalidRequestError,
    "unknown_model": InvalidRequestError,
    "unknown_provider": InvalidRequestError,
    "endpoint_unsupported": InvalidRequestError,
    "capability_missing": InvalidRequestError,
    "context_too_small": InvalidRequestError,
    "output_too_small": InvalidRequestError,
    "unpriced": InvalidRequestError,
    "untranslatable": InvalidRequestError,
    "unaffordable": BudgetError,
}


def require_served(
    active: ActiveManifest,
    facts: Facts,
    decision: Decision,
    untranslatable: InvalidRequestError | None = None,
    *,
    inbound: InboundRequest,
    account: str | None,
    monotonic: float,
) -> None:
    """Return if ``decision`` names a model.

    Args:
        inbound: what for, and by whose means.
        untranslatable: what is told where that is why no model may.

    Raises:
        RefusalError: no model may serve the request; its code is the engine's reason.
    """
    if decision.model is None:
        if decision.reason == "untranslatable" and untranslatable is not None:
            raise untranslatable
        sentence = explain(active.compiled, facts, decision).sentence
        if decision.reason == "out_of_service":
            wait_s = _wait_s(active, facts, inbound, account, monotonic)
            raise UpstreamError(sentence, code=decision.reason, retry_after_s=wait_s)
        refusal = _REFUSALS.get(decision.reason, ForbiddenError)
        raise refusal(sentence, code=decision.reason)


def woken(
    active: ActiveManifest,
    facts: Facts,
    inbound: InboundRequest,
    *,
    account: str | None,
    monotonic: float,
) -> Facts | None:
    """Return ``facts`` with models that are to be probed early, as all that may serve this rest.

    Or a provider that was away for an hour would stay away for some minutes more to those who have
    no other. ``None``: none is.
    """
    who = Witness.of(account, inbound.body)
    awake = {
        target.model.id
        for target in _at_rest(active, facts)
        if target.wake(monotonic, who, inbound)
    }
    if not awake:
        return None
    out = tuple(name for name in facts.measured.out_of_service if name not in awake)
    return structs.replace(facts, measured=structs.replace(facts.measured, out_of_service=out))


def _wait_s(
    active: ActiveManifest,
    facts: Facts,
    inbound: InboundRequest,
    account: str | None,
    monotonic: float,
) -> int | None:
    """Return when the first of the models at rest may serve this; ``None`` if none ever will."""
    who = Witness.of(account, inbound.body)
    rests = [target.rests_s(monotonic, who, inbound) for target in _at_rest(active, facts)]
    return 1 + int(min(rests)) if rests else None


def _at_rest(active: ActiveManifest, facts: Facts) -> Iterator[Target]:
    """Give the targets that might serve this, did they not rest."""
    for name in facts.measured.out_of_service:
        target, why = active.targets.get(name), exclusion(active.compiled, name, facts)
        if target is not None and why is not None and why.code == "out_of_service":
            yield target
