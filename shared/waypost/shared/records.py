"""The decision record: what happened to one request, in a form that can be decided again.

A record names the manifest by version and digest and keeps the facts; it does not repeat what
the manifest says: exclusions and prices are derived again on reading (``waypost.shared.explain``).
It never holds prompt text, tokens or keys.
"""

from typing import Literal

from msgspec import Struct
from msgspec.json import Decoder, Encoder

from waypost.shared.contracts import Facts, Proposal
from waypost.shared.money import Usage

__all__ = [
    "Attempt",
    "AttemptOutcome",
    "DecisionRecord",
    "Verdict",
    "decode_record",
    "encode_record",
]

Verdict = Literal["accepted", "overridden", "decided", "refused"]

AttemptOutcome = Literal[
    "ok",
    "cut_short",  # the provider broke off after the first byte
    "cancelled",  # the caller hung up
    "connect_error",
    "timeout",
    "rate_limited",
    "server_error",
    "client_error",  # the provider called the request wrong
    "bad_response",
]


class Attempt(Struct, frozen=True, kw_only=True):
    """One try at one provider. ``ttft_ms`` is ``None`` when nothing arrived."""

    model: str
    provider: str
    outcome: AttemptOutcome
    http_status: int | None = None
    ttft_ms: float | None = None
    duration_ms: float = 0.0


class DecisionRecord(Struct, frozen=True, kw_only=True):
    """One request, from arrival to bill. Refusals have one too.

    Attributes:
        id: UUIDv7 text, as ``Waypost-Decision`` names it.
        at_ms: arrival, Unix milliseconds.
        subject: keyed pseudonym of the token's ``sub``; empty when no token held.
        facts: ``None`` when the request was refused before they were known.
        chosen: the model that was decided on.
        model: the model that answered, or was last tried.
        reason: stable code behind the verdict; of an error, its code.
        steps_ms: time spent per pipeline step.
        reserved_nusd: held before forwarding; ``cost_nusd`` is what was charged in the end.
        baseline_cost_nusd: what the same tokens would have cost on the dearest-rated admissible
            model, that is, without routing.
    """

    id: str
    at_ms: int
    verdict: Verdict
    reason: str
    http_status: int
    subject: str = ""
    tenant: str | None = None
    tier: str | None = None
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
    baseline_cost_nusd: int | None = None
    ttft_ms: float | None = None
    duration_ms: float = 0.0
    streamed: bool = False
    detail: str | None = None
    schema: Literal[1] = 1


_encoder = Encoder()


def encode_record(record: DecisionRecord) -> bytes:
    """Return the record as JSON."""
    return _encoder.encode(record)


decode_record = Decoder(DecisionRecord).decode
