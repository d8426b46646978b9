"""Why the ledger holds nothing, in words for the caller."""

from waypost.shared.decision.costs import cost_bound_nusd
from waypost.shared.errors import BudgetError, InvalidRequestError, RateError, RefusalError
from waypost.shared.money import format_usd
from waypost.validator.http.problems import reset_text
from waypost.validator.ledger import Repeat, Shortfall, Throttled
from waypost.validator.pipeline.exchange import AdmittedRequest

__all__ = ["dearest_nusd", "refused", "repeated"]

DECISION_ID_CHARS = 36  # a hold's id begins with its request's


def dearest_nusd(admitted: AdmittedRequest) -> int:
    model = admitted.active.compiled.models[admitted.decision.chain[0]]
    return cost_bound_nusd(model, admitted.facts)


# Whose limits a caller may know. What the operator has left for others is none of its business.
_OWN = {
    "account": "Account {name}",
    "narrowed": "This narrowed token",
    "user": "This user",
    "tenant": "Tenant {name}",
}
_SHARED = {
    "tier": "this tier",
    "provider": "this provider",
    "model": "this model",
    "global": "all requests",
}


def refused(refusal: Shortfall | Throttled, *, least_nusd: int) -> RefusalError:
    kind, _, name = refusal.scope.partition(":")
    if isinstance(refusal, Throttled):
        return _throttled(kind, name, refusal)
    window = {"request": "per request", "total": "in all"}.get(
        refusal.window, f"per {refusal.window}"
    )
    if kind in _SHARED:
        message = f"The budget {window} for {_SHARED[kind]} is used up."
    else:
        who = _OWN.get(kind, "A request").format(name=name)
        message = (
            f"{who} may spend {format_usd(refusal.limit_nusd)} {window} and has"
            f" {format_usd(refusal.available_nusd)} left, but this request may cost"
            f" {format_usd(least_nusd)}."
        )
    return BudgetError(f"{message} {reset_text(refusal.resets_at)}", resets_at=refusal.resets_at)


def _throttled(kind: str, name: str, refusal: Throttled) -> RateError:
    rate = refusal.rate
    if kind in _SHARED:
        message = f"Too many {rate.unit} per {rate.window} for {_SHARED[kind]}."
    else:
        who = _OWN.get(kind, "A caller").format(name=name)
        message = f"{who} may use {rate.limit} {rate.unit} per {rate.window}."
    if refusal.retry_after_s is None:
        hint = "This request alone may use more; ask for a shorter answer."
    else:
        hint = f"Try again in {refusal.retry_after_s} s."
    return RateError(f"{message} {hint}", retry_after_s=refusal.retry_after_s)


def repeated(repeat: Repeat) -> InvalidRequestError:
    decision_id = repeat.hold_id[:DECISION_ID_CHARS]
    told = {
        "other_body": (
            "idempotency_key_reused",
            "This Idempotency-Key came with another request before; take a new one.",
        ),
        "in_progress": (
            "idempotency_in_progress",
            f"The request with this Idempotency-Key is still being served, as {decision_id}.",
        ),
        "done": (
            "idempotency_done",
            "The request with this Idempotency-Key has been served and charged, as"
            f" {decision_id}; see /v1/decisions/{decision_id}. Answers are not kept.",
        ),
    }
    code, message = told[repeat.state]
    return InvalidRequestError(message, code=code, param="idempotency-key")
