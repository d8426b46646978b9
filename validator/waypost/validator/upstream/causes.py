"""What a provider's refusal is about. Pure.

The rule: what another model or key could serve is told apart from what is wrong with the request. A
prompt too long for one window may fit another, what one provider's filter stops another's may
not, and an account without credit is nobody's mistake but ours; a malformed tool is malformed
everywhere.

Providers agree on no code. Where one has a code that we know, the code decides; its text is looked
at where the code says no more than that something is wrong. An answer that is not known is told
to the caller as it is.
"""

import re
from collections.abc import Iterable

from waypost.shared.records import AttemptOutcome
from waypost.validator.http.provider_errors import Complaint, read_complaint
from waypost.validator.upstream.known_answers import (
    FOREIGN_STATE,
    TOO_LONG,
    TROUBLES,
    KnownAnswer,
)

__all__ = ["cause_of_error", "cause_of_rejection", "cause_of_status"]

# Of errors that come without a status of HTTP's own: OpenAI's and Anthropic's, and Gemini's.
_LIMIT_CODES = frozenset({"rate_limit_exceeded", "rate_limit_error", "resource_exhausted"})
_BY_STATUS: dict[int, AttemptOutcome] = {
    401: "key_refused", 402: "key_refused", 403: "key_refused", 429: "rate_limited",
}  # fmt: skip

_FILTERED_CODES = re.compile(
    r"content_filter|content_policy|responsibleaipolicyviolation|data_inspection_failed"
)
_FILTERED = re.compile(
    r"content management policy|content filtering policy|^your chosen model requires moderation",
    re.IGNORECASE,
)
# OpenAI's codes for one field that is wrong, as ``string_above_max_length`` of an id with 41
# characters (langchain#11392, vercel/ai#8132). Whatever their text says, it is about that field.
_FIELD_CODES = re.compile(
    r"^(?:string|integer|decimal|array|object)_(?:above|below)_m|^(?:invalid|unknown|unsupported)_"
    r"(?:type|value|parameter|json_schema|function_parameters|image|url|base64)|^missing_required"
    r"|^empty_(?:string|array)"
)
# Of a model: OpenAI and Groq "The model `x` does not exist or you do not have access to it", vLLM
# without the second half, Anthropic "model: x", Ollama 'model "x" not found, try pulling it first',
# Gemini "models/x is not found for API version v1beta", Azure DeploymentNotFound; seen in
# continue#10832, vllm#3485, claude-code#5349, mattermost-plugin-agents#257. OpenRouter
# "No endpoints found that support tool use", of a model that does not do what one request asks
# for; seen in Routstr/routstr-core#554, zed#36094. Read 2026-11-28.
_MODEL_CODES = frozenset({"model_not_found", "deploymentnotfound", "model_not_available"})
_MODEL = re.compile(
    r"^model: |\bmodels?\b.{0,200}(?:not found|not exist|not available|no longer|deprecated)"
    r"|^no (?:endpoints found|allowed providers)|\bno endpoints found (?:that|for|matching)"
    r"|^(?:no such|unknown|invalid) model|^models/\S+ is not|deployment .{0,80}does not exist",
    re.IGNORECASE | re.DOTALL,
)
# Of something that the request names: OpenAI's items, files and containers (oh-my-pi#41).
_NAMED_THING = re.compile(
    r"with id|\b(?:rs|resp|msg|fc|item|file|container|cntr|vs|batch|conv|prompt|pmpt)[_-][\w-]{6}",
    re.IGNORECASE,
)


def cause_of_status(status: int, body: bytes, *, otherwise: AttemptOutcome) -> AttemptOutcome:
    """Return what a response that is no answer says.

    Args:
        otherwise: what its status alone says.
    """
    if status in (400, 413, 422):
        return cause_of_rejection(body)
    complaint = read_complaint(body)
    if status in (404, 405, 501):
        return _what_is_missing(complaint)
    if complaint is None:
        return otherwise
    if status in (401, 402, 403) and _is_filtered(complaint):
        return "content_filter"
    if status == 429:
        return _what_is_limited(complaint)
    return otherwise


def cause_of_error(body: bytes) -> AttemptOutcome:
    """Return what an error says that came with status 200, in the place of an answer.

    Streams begin before their providers have looked at the request: what is too long, over a
    limit or unpaid is then told in the first event (codex#4675, codex2api#310; sglang#12081 and
    new-api#6643 with chat completions, read 2026-11-28). What is not known is the provider's.
    """
    complaint = read_complaint(body)
    if complaint is None:
        return "server_error"
    status = complaint.status or 0
    if complaint.codes & _LIMIT_CODES:
        status = 429
    cause = cause_of_status(status or 400, body, otherwise=_BY_STATUS.get(status, "server_error"))
    is_unknown = cause == "api_unsupported" or (cause == "client_error" and not status)
    return "server_error" if is_unknown else cause


def _what_is_limited(complaint: Complaint) -> AttemptOutcome:
    """Return what a 429 is about: our account, this one request, or how many there are."""
    if _is_any(complaint, TROUBLES):
        return "key_refused"
    # No wait helps, and whoever sends the like again and again must not have the key rest.
    return "context_too_long" if _is_any(complaint, TOO_LONG) else "rate_limited"


def cause_of_rejection(body: bytes) -> AttemptOutcome:
    """Return what a rejection with this ``body`` says: too long, filtered, ours, or just wrong."""
    complaint = read_complaint(body)
    if complaint is None:
        return "client_error"
    if _is_any(complaint, TROUBLES):
        return "key_refused"
    if _is_any(complaint, FOREIGN_STATE):
        return "foreign_state"
    if _is_filtered(complaint):
        return "content_filter"
    if _is_too_long(complaint):
        return "context_too_long"
    if complaint.codes & _MODEL_CODES:
        return "model_not_found"
    return "client_error"


def _is_any(complaint: Complaint, known: Iterable[KnownAnswer]) -> bool:
    return any(
        complaint.codes & one.codes
        or (one.text is not None and one.text.search(complaint.message) is not None)
        for one in known
    )


def _is_filtered(complaint: Complaint) -> bool:
    return any(_FILTERED_CODES.search(code) for code in complaint.codes) or (
        _FILTERED.search(complaint.message) is not None
    )


def _is_too_long(complaint: Complaint) -> bool:
    if any(complaint.codes & one.codes for one in TOO_LONG):
        return True
    if any(_FIELD_CODES.search(code) for code in complaint.codes):
        return False
    return _is_any(complaint, TOO_LONG)


def _what_is_missing(complaint: Complaint | None) -> AttemptOutcome:
    """Return what a 404 or 405 is about: the model, something that was named, or the API."""
    if complaint is None:
        return "api_unsupported"
    if complaint.codes & _MODEL_CODES or complaint.param == "model":
        return "model_not_found"
    if _is_any(complaint, FOREIGN_STATE):
        return "foreign_state"
    if _NAMED_THING.search(complaint.message):
        return "client_error"
    if _MODEL.search(complaint.message):
        return "model_not_found"
    return "api_unsupported"
