"""The decision record: what happened to one request, in a form that can be decided again.

A record names the manifest by version and digest and keeps the facts; it does not repeat what
the manifest says: exclusions and prices are derived again on reading
(``waypost.shared.decision.explain``). It never holds tokens or keys, and prompt text only where the
operator switched that on.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.json import Decoder, Encoder

from waypost.shared.contracts import Facts, Proposal
from waypost.shared.money import Usage

__all__ = [
    "Attempt",
    "AttemptKind",
    "AttemptOutcome",
    "DecisionRecord",
    "Fate",
    "Feedback",
    "NotSent",
    "Shadow",
    "Verdict",
    "decode_record",
    "encode_record",
    "fate_of",
]

Verdict = Literal["accepted", "overridden", "decided", "refused"]

AttemptOutcome = Literal[
    "ok",
    "cut_short",  # the provider broke off after the first byte
    "cancelled",  # the caller hung up
    "stopped",  # the validator itself ended
    "connect_error",
    "timeout",
    "rate_limited",
    "server_error",
    "client_error",  # the provider called the request wrong
    "content_filter",  # or would not answer it
    "context_too_long",  # or could not hold it
    "key_refused",  # our own credential, or the account behind it
    "foreign_state",  # an item in it was made by another provider or account
    "model_not_found",  # the provider has no such model, or not for us
    "api_unsupported",  # or not this API
    "deadline_exceeded",  # the caller's
    "bad_response",
]

# Why a try was made: the outcome of the one before says the cause.
AttemptKind = Literal[
    "first",
    "retry",  # the same target again
    "fallback",  # the next of the chain
    "hedge",  # beside one that is late
    "escalation",  # the answer before was not sure enough
    "sample",  # to see whether answers agree
]


class Attempt(Struct, frozen=True, kw_only=True):
    """One try at one provider. ``ttft_ms`` is ``None`` when nothing arrived.

    Attributes:
        detail: what was wrong with the provider's certificate; ``None`` for all else.
        started_ms: after the request's arrival.
        confidence: 0 to 1, where a cascade judged the answer; ``None`` where nobody did.
        cost_nusd: what was charged for it; those of all attempts add up to the record's.
        told_nusd: what the usage that the provider told would cost, where that is more than was
            held for it and so is not believed.
        span_id: of the trace that the provider was told of.
    """

    model: str
    provider: str
    outcome: AttemptOutcome
    kind: AttemptKind = "first"
    detail: str | None = None
    http_status: int | None = None
    ttft_ms: float | None = None
    duration_ms: float = 0.0
    started_ms: float = 0.0
    confidence: float | None = None
    cost_nusd: int = 0
    span_id: str | None = None
    told_nusd: int | None = None


class Feedback(Struct, frozen=True, kw_only=True):
    """What a caller thought of an answer. The newest word counts.

    Attributes:
        at_ms: when it was said, Unix milliseconds.
        cause: the caller's own short code, as ``incomplete``; never free text.
    """

    rating: Literal["good", "bad"]
    at_ms: int = 0
    cause: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}\Z")] | None = None


# Why a request that was drawn for it was not sent to the candidate's choice as well.
NotSent = Literal[
    "not_admissible",  # the policy in force would not let this request go there
    "acts",  # it brings tools or leaves state at the provider: sent twice, it acts twice
    "busy",  # enough are under way, or the provider has no room to spare
    "over_budget",
    "error",
]


class Shadow(Struct, frozen=True, kw_only=True):
    """What a candidate policy would have done with the request; nobody was served by it.

    Attributes:
        cost_nusd: of the tokens that the request took, at the price of ``model``; where it was
            sent there as well, what that cost.
        attempt: how that went; the answer was thrown away. ``None`` if it was not sent.
        usage: what it took there, as the provider told it.
        not_sent: why it was not, though it was drawn for it.
    """

    manifest_version: int
    manifest_digest: str
    verdict: Verdict
    reason: str
    model: str | None = None
    route: str | None = None
    cost_nusd: int | None = None
    attempt: Attempt | None = None
    usage: Usage | None = None
    not_sent: NotSent | None = None


class DecisionRecord(Struct, frozen=True, kw_only=True):
    """One request, from arrival to bill. Refusals have one too.

    Attributes:
        id: UUIDv7 text, as ``Waypost-Decision`` names it.
        at_ms: arrival, Unix milliseconds.
        subject: keyed pseudonym of the token's ``sub``; empty when no token held.
        issuer: of the token; ``None`` when none held, or in a record of an earlier version.
        facts: ``None`` when the request was refused before they were known.
        chosen: the model that was decided on.
        model: the model that answered, or was last tried.
        reason: stable code behind the verdict; of an error, its code.
        steps_ms: time spent per pipeline step; ``forward`` is all attempts, and what lies between.
        reserved_nusd: held before forwarding; ``cost_nusd`` is what was charged in the end.
        unconfirmed_nusd: the part of it that no provider's usage confirmed, an upper bound.
        baseline_cost_nusd: what the same tokens would have cost on the best-rated admissible
            model, that is, without routing.
        hints_digest: of the hints that the order came from; ``None`` without any.
        decision_digest: of the engine's decision; what a replay has to come to, to the byte.
        is_downgraded: whether the account's means changed the decision afterwards.
        repeats: id of the same caller's same request shortly before: the answer did not do.
        prompt: where switched on, and then with what detectors find blotted out.
        trace_id, span_id, parent_span_id: of the request's trace (W3C), where there is one.
        feedback: the caller's; kept apart from the record, and joined when it is read.
    """

    id: str
    at_ms: int
    verdict: Verdict
    reason: str
    http_status: int
    subject: str = ""
    tenant: str | None = None
    tier: str | None = None
    issuer: str | None = None
    account: str | None = None
    manifest_version: int | None = None
    manifest_digest: str | None = None
    facts: Facts | None = None
    proposal: Proposal | None = None
    route: str | None = None
    chosen: str | None = None
    model: str | None = None
    attempts: tuple[Attempt, ...] = ()
    steps_ms: dict[str, float] = {}
    usage: Usage | None = None
    reserved_nusd: int = 0
    cost_nusd: int = 0
    unconfirmed_nusd: int = 0
    baseline_cost_nusd: int | None = None
    ttft_ms: float | None = None
    duration_ms: float = 0.0
    streamed: bool = False
    detail: str | None = None
    hints_digest: str | None = None
    decision_digest: str | None = None
    is_downgraded: bool = False
    repeats: str | None = None
    is_canary: bool = False
    shadow: Shadow | None = None
    prompt: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    parent_span_id: str | None = None
    feedback: Feedback | None = None
    schema: Literal[1, 2] = 2


# What became of a request: ``failed`` is the providers' or our own doing, ``rejected`` and
# ``refused`` the caller's or the policy's.
Fate = Literal["answered", "abandoned", "failed", "rejected", "refused"]

_REJECTIONS = frozenset({"client_error", "content_filter", "context_too_long", "foreign_state"})
_OUR_FAULTS = frozenset({"internal_error", "ledger_unavailable", "out_of_service", "stopping"})


def fate_of(record: DecisionRecord) -> Fate:
    """Return what became of the request."""
    attempts = record.attempts
    if attempts and attempts[-1].outcome == "ok":  # most; it is asked for each record thrice
        return "answered"
    outcomes = {attempt.outcome for attempt in attempts}
    if "ok" in outcomes:
        return "answered"
    if outcomes & _REJECTIONS:
        return "rejected"
    if "cancelled" in outcomes:
        return "abandoned"
    return "failed" if outcomes or record.reason in _OUR_FAULTS else "refused"


_encoder = Encoder()


def encode_record(record: DecisionRecord) -> bytes:
    """Return the record as JSON."""
    return _encoder.encode(record)


decode_record = Decoder(DecisionRecord).decode
