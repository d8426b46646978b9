"""What a provider's rejection is about. Pure.

The rule: what another model could serve is told apart from what is wrong with the request. A
prompt too long for one window may fit another, and what one provider's filter stops another's
may not; a malformed tool is malformed everywhere.

Providers agree on no code, so codes and messages are looked at: those that OpenAI, Azure,
Anthropic, Google, Mistral, Groq and vLLM are known for. One that says it otherwise is told to the
caller as it is.
"""

import re

from waypost.shared.records import AttemptOutcome

__all__ = ["cause_of_rejection"]

LOOKED_AT_BYTES = 4_096

_TOO_LONG = re.compile(
    rb"context_length_exceeded|string_above_max_length|maximum context length"
    rb"|context window|context length|prompt is too long|input is too long"
    rb"|exceeds the maximum number of tokens|too large for model|request_too_large"
    rb"|exceeds? (?:the )?(?:available )?context",
    re.IGNORECASE,
)
_FILTERED = re.compile(
    rb"content_filter|content_policy_violation|ResponsibleAIPolicyViolation"
    rb"|content management policy|content filtering policy|data_inspection_failed"
    rb"|\"type\"\s*:\s*\"content_policy",
    re.IGNORECASE,
)


def cause_of_rejection(body: bytes) -> AttemptOutcome:
    """Return what a rejection with this ``body`` says: too long, filtered, or just wrong."""
    head = body[:LOOKED_AT_BYTES]
    if _FILTERED.search(head):
        return "content_filter"
    if _TOO_LONG.search(head):
        return "context_too_long"
    return "client_error"
