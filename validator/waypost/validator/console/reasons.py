"""Codes in words: why a decision was what it was, for lists and for whoever pays. Pure.

The rule: people read words. Each code that a record can have is here, in a few words for a list
and, where it is an override or a refusal, as the rest of a sentence that begins with "because".
"""

import re

__all__ = ["CODES", "because", "in_short", "outcome_in_words", "step_in_words"]

# code → in a list, and after "because"
CODES: dict[str, tuple[str, str]] = {
    # what the engine decides
    "no_proposal": ("the client left it open", "the app left the choice open"),
    "proposal_admissible": ("as the client asked", "the app asked for it"),
    "budget_downgrade": (
        "the budget covers no dearer one",
        "the account's budget was enough for a cheaper model only",
    ),
    "proposal_stale": (
        "by an old manifest",
        "the app had chosen by a manifest that was long out of date",
    ),
    "unknown_model": (
        "the policy has no such model",
        "the app named a model that the policy does not have",
    ),
    "tier_not_allowed": (
        "not open to the tier",
        "the app asked for a model that the customer's plan does not include",
    ),
    "not_in_token": (
        "not in the access token",
        "the customer's access did not include the model",
    ),
    "duty_unmet": (
        "its provider lacks a promise",
        "the data may only go to providers that have promised to protect it",
    ),
    "request_excludes": (
        "the request rules it out",
        "the request itself ruled the model or its provider out",
    ),
    "endpoint_unsupported": (
        "not by this API",
        "the model cannot be called in the way the app called it",
    ),
    "capability_missing": (
        "it lacks a capability",
        "the model could not do what the request needed",
    ),
    "context_too_small": (
        "too long for it",
        "the request was too long for the model",
    ),
    "untranslatable": (
        "its provider has no words for it",
        "the model's provider has no words for something in the request",
    ),
    "output_too_small": (
        "too small for its thinking",
        "the request wanted more tokens to think than the model answers in",
    ),
    "unpriced": (
        "something without a price",
        "the request asked for something that has no price in the policy",
    ),
    "out_of_service": ("its provider is down", "the model's provider was down"),
    "unaffordable": ("beyond the budget", "the account could not have paid for it"),
    "not_in_route": (
        "the rule names others",
        "a rule keeps this kind of request to other models",
    ),
    "facts_incomplete": (
        "a fact is not known",
        "the policy looks at something that could not be measured",
    ),
    "unknown_data_class": (
        "an unknown kind of data",
        "the data was of a kind that the policy does not know",
    ),
    "unknown_provider": (
        "the policy has no such provider",
        "the request named a provider that the policy does not have",
    ),
    "unknown_tier": ("an unknown tier", "the customer's plan is not in the policy"),
    # money
    "budget_exhausted": ("the budget is used up", "the account's budget was used up"),
    "budget_undefined": ("no budget is set", "nobody had set a budget for the account"),
    "rate_limited": (
        "over a limit of its rate",
        "the account sent more than its limits on requests or tokens allow",
    ),
    "idempotency_in_progress": (
        "being served already",
        "the same request was being served already",
    ),
    "idempotency_done": ("served before", "the same request had been served before"),
    "idempotency_key_reused": (
        "its key was used before",
        "the request came with the key of another one",
    ),
    "idempotency_key_invalid": (
        "its key makes no sense",
        "the request's idempotency key was empty or too long",
    ),
    # the request
    "invalid_json": ("not JSON", "what the app sent was not JSON"),
    "invalid_body": ("a wrong field", "a field of what the app sent was wrong"),
    "invalid_request": ("a wrong request", "the app's request was wrong"),
    "invalid_query": ("a wrong query", "the query of the app's request was wrong"),
    "header_malformed": ("a wrong header", "a header of the app's request was wrong"),
    "header_repeated": ("a header came twice", "a header came twice that may come once"),
    "unbounded_input": (
        "its cost has no bound",
        "the request refers to something whose cost nothing bounds",
    ),
    "stateful_unsupported": (
        "it refers to kept state",
        "the request refers to something that a provider would have to keep",
    ),
    "parameter_unsupported": (
        "a parameter nobody promised",
        "the request demands a parameter of which nobody says who honours it",
    ),
    "body_incomplete": ("broke off", "the request broke off"),
    "body_too_large": ("too large", "the request was too large"),
    "body_timeout": ("came too slowly", "the request did not arrive in time"),
    "head_timeout": ("came too slowly", "the request did not arrive in time"),
    "head_too_large": ("its headers are too large", "the request's headers were too large"),
    "framing_too_large": ("its framing is too large", "the request's framing was too large"),
    "request_malformed": ("no proper HTTP", "the request was no proper HTTP"),
    "host_invalid": ("no proper host", "the request named no proper host"),
    "content_type_unsupported": ("not sent as JSON", "the request was not sent as JSON"),
    "content_encoding_unsupported": ("sent compressed", "the request was sent compressed"),
    "transfer_encoding_unsupported": (
        "an unknown transfer coding",
        "the request came in a transfer coding that is not understood",
    ),
    "http_version_unsupported": (
        "another HTTP version",
        "the request came in an HTTP version that is not served",
    ),
    "method_not_allowed": ("another method", "the app used a method that is not served there"),
    "not_found": ("no such path", "the app asked for something that does not exist"),
    "model_not_found": ("no such model", "the app asked about a model that does not exist"),
    "decision_not_found": (
        "no such decision",
        "the app asked about a decision that does not exist",
    ),
    "nothing_to_judge": ("nothing to judge", "the app rated a request that got no answer"),
    "scope_missing": (
        "the token is for something else",
        "the access token was for something else",
    ),
    # providers
    "upstream_unavailable": ("no provider answered", "no provider could answer"),
    "upstream_timeout": ("no provider answered in time", "no provider answered in time"),
    "upstream_rate_limited": (
        "providers limit our rate",
        "the providers allowed no more requests at the time",
    ),
    "upstream_saturated": (
        "too many under way",
        "as many requests were under way as the providers can take",
    ),
    "upstream_rejected": ("the provider refused it", "the provider rejected the request"),
    "upstream_cut_short": ("the provider broke off", "the provider broke off in the answer"),
    "deadline_exceeded": ("past its deadline", "no answer came within the request's deadline"),
    "caller_gone": ("the caller left", "the caller hung up"),
    # ourselves
    "internal_error": ("a fault of the validator", "the validator had a fault"),
    "ledger_unavailable": (
        "the ledger did not answer",
        "the store of budgets did not answer",
    ),
    "ledger_lost": (
        "the ledger forgot what was spent",
        "the store of budgets has forgotten what was spent, and waits for a person",
    ),
    "records_unavailable": (
        "the records did not answer",
        "the store of decisions did not answer",
    ),
    "replay_unavailable": (
        "one-time use was not checked",
        "the store of one-time tokens did not answer",
    ),
    "store_unavailable": ("a store did not answer", "a store did not answer"),
    "manifest_missing": ("no manifest yet", "the validator had no policy yet"),
    "manifest_expired": ("the manifest expired", "the validator's policy had expired"),
    "manifest_refused": (
        "no manifest it can serve",
        "the validator had no policy that it could serve",
    ),
    "starting": ("it was starting", "the validator was starting"),
    "stopping": ("it was stopping", "the validator was stopping"),
    "providers_missing": (
        "no provider of it here",
        "no provider of the new policy is configured",
    ),
    # the console's own
    "console_login": ("log in", "nobody had logged in"),
    "console_busy": ("too many follow it", "as many followed the console as can be served"),
    "console_needs_https": ("it needs HTTPS", "the console was opened without HTTPS"),
    "cross_origin": ("sent by another page", "the form was sent by another web page"),
    "too_many_logins": ("too many tries", "too many tried to log in"),
    "invalid_facts": ("a wrong fact", "a fact that was given was wrong"),
    # PUT /admin/bundle
    "issuers_invalid": (
        "its issuers cannot be read",
        "the new policy's issuers of tokens cannot be read",
    ),
    "signature": ("a signature is missing", "the new policy lacks a signature"),
    "expired": ("it has expired", "the new policy has expired"),
    "rollback": ("older than what is known", "the new policy is older than the one in use"),
    "older_than_seen": ("older than seen", "a newer policy than the new one has been seen"),
    "integrity": ("its parts do not agree", "the new policy's parts do not agree"),
    "too_large": ("too large", "the new policy is too large"),
    "format": ("not a manifest", "what was sent is no policy"),
    "unavailable": ("not to be had", "the new policy was not to be had"),
    "semantic": ("it makes no sense", "the new policy makes no sense"),
}

# A code at the end of a step of a decision.
_MARK = re.compile(r" \[([a-z_]+)\]\Z")

# Of several that a reader need not tell apart.
_KINDS = {
    "token": ("the access token does not hold", "the access token did not hold"),
    "dpop": ("its proof does not hold", "the proof of the access token's key did not hold"),
    "upstream": ("no provider answered", "no provider could answer"),
}

_OUTCOMES = {
    "ok": "answered",
    "cut_short": "broke off",
    "cancelled": "caller left",
    "stopped": "validator stopped",
    "connect_error": "not reached",
    "timeout": "no answer in time",
    "rate_limited": "over its rate",
    "server_error": "had an error",
    "client_error": "called it wrong",
    "content_filter": "would not answer",
    "context_too_long": "request too long",
    "key_refused": "refused our key",
    "foreign_state": "another's state",
    "model_not_found": "no such model",
    "api_unsupported": "not by this API",
    "deadline_exceeded": "past the deadline",
    "bad_response": "no proper answer",
}


def _words(code: str) -> tuple[str, str] | None:
    return CODES.get(code) or _KINDS.get(code.partition("_")[0])


def in_short(code: str) -> str:
    """Return a reason's code in a few words."""
    words = _words(code)
    return code.replace("_", " ") if words is None else words[0]


def because(code: str) -> str:
    """Return a reason's code as a sentence goes on after "because"."""
    words = _words(code)
    return f"the reason was: {code.replace('_', ' ')}" if words is None else words[1]


def outcome_in_words(outcome: str) -> str:
    """Return what came of an attempt, in a few words."""
    return _OUTCOMES.get(outcome) or outcome.replace("_", " ")


def step_in_words(line: str) -> str:
    """Return a step of a decision's trace without its code.

    Of an exclusion the words stand there already; of a verdict they come instead.
    """
    found = _MARK.search(line)
    if found is None or _words(found[1]) is None:
        return line
    rest = line[: found.start()]
    return f"{rest}, {in_short(found[1])}" if rest.startswith("verdict: ") else rest
