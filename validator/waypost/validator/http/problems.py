"""How a refusal looks on the wire. HTTP status codes live here and nowhere else.

In the envelope of the API that was asked, so that its SDKs raise the right class. OpenAI's:
``{"error": {"message", "type", "code", "param"}}``. Anthropic's: ``{"type": "error", "error":
{"type", "message", "details": {"error_code", "param"}}, "request_id"}``. The code is stable; the
sentence says what to do. A body never holds a traceback, prompt text or a secret.
"""

from datetime import UTC, datetime

import msgspec

from waypost.cli.http_guard import FAULT_STATUS
from waypost.shared.errors import (
    BudgetError,
    ForbiddenError,
    InvalidRequestError,
    PolicyError,
    RateError,
    RefusalError,
    StoreError,
    TokenError,
    TrustError,
    UpstreamError,
    WaypostError,
)
from waypost.shared.records import AttemptOutcome
from waypost.validator.http.provider_errors import Complaint

__all__ = [
    "CALLER_GONE",
    "INTERNAL",
    "OK",
    "SEE_OTHER",
    "UNAVAILABLE",
    "Problem",
    "deadline_exceeded",
    "describe",
    "outcome_of",
    "rejected",
    "reset_text",
    "stopping",
]

OK = 200
SEE_OTHER = 303
UNAVAILABLE = 503
# Nobody is there to see it: for the record alone, as nginx writes it in its logs.
CALLER_GONE = 499

# By code where the class alone does not say it.
_STATUS_BY_CODE = {
    **FAULT_STATUS,
    "body_too_large": 413,
    "body_timeout": 408,
    "content_type_unsupported": 415,
    "content_encoding_unsupported": 415,
    "decision_not_found": 404,
    "nothing_to_judge": 409,
    "model_not_found": 404,
    "not_found": 404,
    "too_many_logins": 429,
    "console_busy": 503,
    "manifest_missing": 503,
    "manifest_expired": 503,
    "manifest_refused": 503,
    "providers_missing": 409,
    "out_of_service": 503,
    "upstream_timeout": 504,
    "upstream_rate_limited": 503,
    "upstream_saturated": 503,
    "deadline_exceeded": 504,
    "caller_gone": CALLER_GONE,
    "idempotency_in_progress": 409,
    "idempotency_done": 409,
    "idempotency_key_reused": 422,
}

_BY_CLASS: tuple[tuple[type[WaypostError], int, str], ...] = (
    (InvalidRequestError, 400, "invalid_request_error"),
    (TokenError, 401, "authentication_error"),
    (ForbiddenError, 403, "permission_error"),
    (BudgetError, 402, "insufficient_quota"),
    (RateError, 429, "rate_limit_error"),
    (UpstreamError, 502, "server_error"),
    (StoreError, 503, "server_error"),
    (TrustError, 400, "invalid_request_error"),
    (PolicyError, 400, "invalid_request_error"),
    (RefusalError, 503, "server_error"),
)

INTERNAL = RefusalError(
    "Something went wrong inside the validator; it is in its log under this request's id.",
    code="internal_error",
)


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A refusal, ready to send."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


# Anthropic's types of errors, by status.
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    """An error in no particular envelope."""

    message: str
    kind: str
    code: str
    param: str | None = None


def _envelope(told: _Told, status: int, endpoint: str, request_id: str | None) -> bytes:
    if endpoint == "messages":
        kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else told.kind)
        details = {"error_code": told.code, "param": told.param}
        anthropics = {"type": kind, "message": told.message, "details": details}
        return msgspec.json.encode({"type": "error", "error": anthropics, "request_id": request_id})
    openais = {"message": told.message, "type": told.kind, "code": told.code, "param": told.param}
    return msgspec.json.encode({"error": openais})


def rejected(endpoint: str, request_id: str, complaint: Complaint | None = None) -> bytes:
    """Return what is told of a rejection whose words are no error of the caller's API.

    Args:
        complaint: what the provider said; ``None`` if it said nothing.
    """
    told = _Told(
        message="The provider rejected the request and did not say why.",
        kind="invalid_request_error",
        code="upstream_rejected",
    )
    if complaint is not None:
        told = msgspec.structs.replace(
            told,
            message=complaint.message,
            code=complaint.code or told.code,
            param=complaint.param,
        )
    return _envelope(told, 400, endpoint, request_id)


def describe(
    error: WaypostError, endpoint: str = "chat.completions", *, request_id: str | None = None
) -> Problem:
    """Return how ``error`` is told to who asked by the API ``endpoint``."""
    status, kind = 500, "server_error"
    if error.code != INTERNAL.code:
        for error_class, class_status, class_kind in _BY_CLASS:
            if isinstance(error, error_class):
                status, kind = _STATUS_BY_CODE.get(error.code, class_status), class_kind
                break
    headers: list[tuple[bytes, bytes]] = []
    if isinstance(error, TokenError):
        headers.append((b"www-authenticate", _challenge(error.code)))
        if error.nonce is not None:
            headers.append((b"dpop-nonce", error.nonce.encode()))
    elif error.code == "scope_missing":
        headers.append((b"www-authenticate", b'Bearer error="insufficient_scope"'))
    elif isinstance(error, BudgetError):
        # SDKs retry by themselves; no retry fills an account.
        headers.append((b"x-should-retry", b"false"))
    elif error.code == "idempotency_done":
        headers.append((b"x-should-retry", b"false"))  # SDKs retry 409 by themselves
    elif isinstance(error, RateError) and error.retry_after_s is None:
        headers.append((b"x-should-retry", b"false"))
    elif isinstance(error, RateError | UpstreamError) and error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    message = error.message
    # A store's own words name files and tables of this machine.
    if isinstance(error, StoreError):
        message = "The validator cannot keep its books at the moment; try again shortly."
    param = error.param if isinstance(error, RefusalError) else None
    tale = _Told(message=message, kind=kind, code=error.code, param=param)
    return Problem(
        status=status,
        body=_envelope(tale, status, endpoint, request_id),
        headers=tuple(headers),
    )


def deadline_exceeded() -> UpstreamError:
    """Return what is told to a caller whose ``Waypost-Deadline-Ms`` has passed."""
    return UpstreamError(
        "No provider answered within the deadline that the request set; allow more time.",
        code="deadline_exceeded",
    )


def stopping() -> RefusalError:
    """Return what is told to a caller whose request outlasted the validator."""
    return RefusalError(
        "This validator is stopping and could not wait for an answer any longer; try again. What"
        " was asked of a provider by then may be charged.",
        code="stopping",
    )


def _challenge(code: str) -> bytes:
    """Return what RFC 6750 §3 and RFC 9449 §7.1 have a client told."""
    if code == "token_missing":
        return b"Bearer"  # no error attribute where no token was sent
    if code in {"dpop_nonce", "dpop_time"}:
        return b'DPoP error="use_dpop_nonce", ' + _PROOF_ALGORITHMS
    if code.startswith("dpop_"):
        return b'DPoP error="invalid_dpop_proof", ' + _PROOF_ALGORITHMS
    if code in {"token_unbound", "token_cnf"}:
        return b'DPoP error="invalid_token", ' + _PROOF_ALGORITHMS
    return b'Bearer error="invalid_token"'


_PROOF_ALGORITHMS = b'algs="EdDSA ES256"'


def reset_text(resets_at: int | None) -> str:
    """Return when a window ends, as a clause: ``It resets at 2026-11-25T00:00:00Z.``"""
    if resets_at is None:
        return "It does not reset by itself."
    return f"It resets at {datetime.fromtimestamp(resets_at, UTC):%Y-%m-%dT%H:%M:%SZ}."


# The caller's fault, as far as a provider can tell. All other 4xx are about our own key, address
# or model name, which the caller can do nothing about and should not be blamed for.
_CALLER_FAULTS = frozenset({400, 413, 422})


def outcome_of(status: int) -> AttemptOutcome:
    """Return what a provider's status means for the request."""
    if status == OK:
        return "ok"
    if status in _CALLER_FAULTS:
        return "client_error"
    if status == 429:
        return "rate_limited"
    if status in (401, 402, 403):
        return "key_refused"
    if status in (408, 504):
        return "timeout"
    return "server_error" if status >= 500 else "bad_response"
