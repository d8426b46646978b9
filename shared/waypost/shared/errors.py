"""Every error Waypost raises on purpose, each with a stable code.

    WaypostError
    ├── TrustError            a manifest that must not be used, and why
    ├── PolicyError           a manifest that is authentic but makes no sense
    ├── StoreError            a local file that cannot be read or written
    └── RefusalError          a request that is not served
        ├── InvalidRequestError   the body or a header is wrong
        ├── TokenError            the caller is not who they must be
        ├── ForbiddenError        known caller, but tier or compliance says no
        ├── BudgetError           nothing left to spend
        ├── RateError             too many requests or tokens of late
        └── UpstreamError         no provider could answer

The rule: ``code`` is for machines and never changes meaning; ``message`` is for people, says
what was found and what was expected, and holds neither secrets nor prompt text. HTTP status
codes are the validator's business (``waypost.validator.http.problems``).
"""

from typing import Literal

__all__ = [
    "BudgetError",
    "ForbiddenError",
    "InvalidRequestError",
    "PolicyError",
    "RateError",
    "RefusalError",
    "StoreError",
    "TokenError",
    "TrustCode",
    "TrustError",
    "UpstreamError",
    "WaypostError",
]

TrustCode = Literal[
    "signature",  # too few valid signatures for the role
    "expired",  # authentic, but past its expiry
    "rollback",  # authentic, but older than one already accepted
    "older_than_seen",  # a stale CDN node: an alarm only if it lasts
    "integrity",  # bytes differ from what the signed metadata pinned
    "too_large",
    "format",
    "unavailable",
    "semantic",  # authentic bytes, but not the document that was asked for
]


class WaypostError(Exception):
    """Base of all errors raised on purpose."""

    code: str = "waypost_error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class TrustError(WaypostError):
    """A manifest was refused; the last good one stays in use.

    Attributes:
        code: one of ``TrustCode``.
        role: TUF role or target path at fault; empty when unknown.
    """

    def __init__(self, message: str, *, code: TrustCode, role: str = "") -> None:
        super().__init__(message, code=code)
        self.role = role


class PolicyError(WaypostError):
    """A policy that cannot be compiled: a dangling name, an impossible range, no default."""

    code = "policy_invalid"


class StoreError(WaypostError):
    """A local store could not be read or written."""

    code = "store_unavailable"


class RefusalError(WaypostError):
    """A request is refused; nothing was forwarded and nothing is charged.

    Attributes:
        param: the request field at fault, as OpenAI's error envelope names it.
    """

    code = "refused"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message, code=code)
        self.param = param


class InvalidRequestError(RefusalError):
    """The request cannot be served as written."""

    code = "invalid_request"


class TokenError(RefusalError):
    """The access token does not hold.

    Attributes:
        nonce: for the client's next proof of possession (RFC 9449 §9).
    """

    code = "token_invalid"

    def __init__(self, message: str, *, code: str | None = None, nonce: str | None = None) -> None:
        super().__init__(message, code=code)
        self.nonce = nonce


class ForbiddenError(RefusalError):
    """Tier or compliance rules out every model."""

    code = "forbidden"


class BudgetError(RefusalError):
    """The account cannot pay for this request.

    Attributes:
        resets_at: Unix seconds when the exhausted window ends; ``None`` for a lifetime limit.
    """

    code = "budget_exhausted"

    def __init__(
        self, message: str, *, code: str | None = None, resets_at: int | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.resets_at = resets_at


class RateError(RefusalError):
    """The caller sends too much in too short a time.

    Attributes:
        retry_after_s: ``None``: waiting does not help, this request alone is too large.
    """

    code = "rate_limited"

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UpstreamError(RefusalError):
    """No admissible provider answered.

    Attributes:
        retry_after_s: when one may; ``None`` where nobody knows.
    """

    code = "upstream_unavailable"

    def __init__(
        self, message: str, *, code: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s
