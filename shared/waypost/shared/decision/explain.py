"""Says why: one sentence for a person, and the trace behind it. Pure.

Everything is derived from facts, policy and decision by the engine's own functions, so that an
explanation cannot tell another story than the decision.
"""

from itertools import groupby, pairwise

from msgspec import Struct, structs

from waypost.shared.contracts import Demands, Facts
from waypost.shared.decision.compiled import CompiledPolicy
from waypost.shared.decision.costs import cost_estimate_nusd
from waypost.shared.decision.engine import Decision, Exclusion, decide, exclusion
from waypost.shared.decision.rules import describe, holds
from waypost.shared.money import format_usd
from waypost.shared.records import Attempt, AttemptOutcome, DecisionRecord, fate_of

__all__ = ["Explanation", "explain", "explain_record", "matched_rule"]

_REFUSED = {
    "facts_incomplete": "the policy's rules look at something that was not measured",
    "unknown_tier": "the token names tier {tier}, which this policy does not have",
    "unknown_data_class": "the request carries a data class that the policy does not know, and"
    " what is unknown is not sent anywhere",
    "tier_not_allowed": "no model is open to tier {tier}",
    "not_in_token": "the access token allows none of the models open to tier {tier}",
    "duty_unmet": "no provider open to tier {tier} has promised what {classes} data needs",
    "request_excludes": "no model open to this caller meets what the request's provider and models"
    " fields demand",
    "unknown_provider": "the request's provider field names a provider that this policy does not"
    " have",
    "unknown_model": "the request's models field names a model that this policy does not have",
    "endpoint_unsupported": "no model open to this caller serves {endpoint}",
    "capability_missing": "no model open to this caller can do {needs}",
    "output_too_small": "the request wants more tokens to think than any model open to this caller"
    " answers in",
    "unpriced": "no model open to this caller says what the request may cost beside its tokens",
    "context_too_small": "the prompt is too long for every model open to this caller",
    "untranslatable": "no model open to this caller has a provider that can express this request",
    "out_of_service": "every model open to this caller is out of service at the moment",
    "unaffordable": "the account cannot cover what the cheapest admissible model may cost",
    "not_in_route": "the route's own models are not open to this caller",
}

_ATTEMPTS: dict[AttemptOutcome, str] = {
    "connect_error": "could not be reached",
    "timeout": "did not answer in time",
    "rate_limited": "was rate limited",
    "server_error": "failed",
    "client_error": "rejected the request",
    "content_filter": "filtered the request",
    "context_too_long": "could not hold the prompt",
    "key_refused": "refused the validator's key",
    "foreign_state": "did not take what another provider had made",
    "model_not_found": "has no such model",
    "api_unsupported": "does not have this API",
    "deadline_exceeded": "did not answer within the caller's deadline",
    "bad_response": "answered nonsense",
    "cut_short": "broke off in the middle",
    "cancelled": "was stopped, as the caller hung up",
    "stopped": "was cut off, as the validator stopped",
    "ok": "answered",
}


class Explanation(Struct, frozen=True, kw_only=True):
    """Why a request went where it went.

    Attributes:
        sentence: for anyone.
        trace: one line per step, for those who want to check.
        exclusions: model → why it was out. Models that were admissible are absent.
    """

    sentence: str
    trace: tuple[str, ...]
    exclusions: dict[str, Exclusion]


def matched_rule(policy: CompiledPolicy, facts: Facts) -> str:
    """Return the row that matched and the values it met: ``'short' (input_tokens 41 < 100)``."""
    route = policy.policy.routes[policy.rules.first(facts)]
    met = ", ".join(describe(condition, facts) for condition in route.when)
    return f"'{route.name}' ({met or 'the default'})"


def explain(policy: CompiledPolicy, facts: Facts, decision: Decision) -> Explanation:
    """Return why ``decide`` gave ``decision`` for ``facts``."""
    exclusions = {
        model.id: why
        for model in policy.policy.models
        if (why := exclusion(policy, model.id, facts)) is not None
    }
    sentence = _sentence(policy, facts, decision)
    dear = [name for name, why in exclusions.items() if why.code == "unaffordable"]
    if dear and decision.verdict != "refused":
        sentence += f" The account's budget ruled out {', '.join(dear)}."
    return Explanation(
        sentence=sentence,
        trace=tuple(_trace(policy, facts, decision, exclusions)),
        exclusions=exclusions,
    )


def _best_out_of_service(policy: CompiledPolicy, facts: Facts, decision: Decision) -> str | None:
    """Return the model that would have been chosen, were it in service; ``None`` if it was."""
    if decision.verdict == "accepted" or not facts.measured.out_of_service:
        return None
    measured = structs.replace(facts.measured, out_of_service=())
    best = decide(policy, structs.replace(facts, measured=measured), None).model
    is_told = best in (decision.model, decision.proposed)
    return None if is_told or best not in facts.measured.out_of_service else best


def _sentence(policy: CompiledPolicy, facts: Facts, decision: Decision) -> str:
    if decision.verdict == "refused":
        return f"Refused: {_refusal(facts, decision.reason)}."
    rule = f"rule {matched_rule(policy, facts)}"
    best = _best_out_of_service(policy, facts, decision)
    away = "" if best is None else f" {best}, which it prefers, was out of service."
    match decision.verdict:
        case "accepted":
            return f"The client chose {decision.model}, which the policy allows; {rule} matched."
        case "overridden":
            return (
                f"The client asked for {decision.proposed}, but"
                f" {_why_overridden(policy, facts, decision)};"
                f" {rule} matched, so {decision.model} was used instead.{away}"
            )
        case _ if best is not None:
            return (
                f"The client left the choice open; {rule} matched and prefers {best}, which was"
                f" out of service, so {decision.model} was used instead."
            )
        case _:
            return f"The client left the choice open; {rule} matched and prefers {decision.model}."


def _why_overridden(policy: CompiledPolicy, facts: Facts, decision: Decision) -> str:
    if decision.reason == "proposal_stale":
        return "by the rules of a manifest that is long over"
    why = exclusion(policy, decision.proposed or "", facts)
    return why.detail if why is not None else "the policy does not allow it"


def _refusal(facts: Facts, reason: str) -> str:
    classes = sorted(
        {
            *facts.signed.data_classes,
            *facts.measured.data_classes,
            *facts.declared.data_classes,
        }
    )
    template = _REFUSED.get(reason)
    if template is None:
        return reason.replace("_", " ")
    return template.format(
        tier=facts.signed.tier,
        classes=" and ".join(classes),
        endpoint=facts.measured.endpoint,
        needs=" and ".join(facts.measured.needs),
    )


def _trace(
    policy: CompiledPolicy,
    facts: Facts,
    decision: Decision,
    exclusions: dict[str, Exclusion],
) -> list[str]:
    signed, measured, declared = facts.signed, facts.measured, facts.declared
    lines = [
        f"manifest: v{policy.policy.version} of channel {policy.policy.channel}",
        "token says: "
        + _named(tier=signed.tier, tenant=signed.tenant, region=signed.region)
        + _listed("data", signed.data_classes)
        + _listed("models", signed.models or ()),
        f"measured: {measured.endpoint}, about {measured.input_tokens} tokens in"
        + _listed("needs", measured.needs)
        + _listed("keywords", measured.keywords)
        + _listed("data", measured.data_classes),
        f"client says: {'interactive' if declared.interactive else 'background'}"
        + (f", task {declared.task}" if declared.task else "")
        + _listed("tags", declared.tags)
        + _listed("data", declared.data_classes),
    ]
    if measured.demands is not None:
        lines.append(f"request demands: {_demanded(measured.demands)}")
    session = declared.session
    if session is not None:
        lines.append(
            f"client says: {session.model} has {session.cached_tokens} tokens of the prompt cached"
        )
    if decision.proposed is not None:
        lines.append(f"client proposed: {decision.proposed}")
    for model in policy.policy.models:
        why = exclusions.get(model.id)
        if why is not None:
            lines.append(f"{model.id}: out, {why.detail} [{why.code}]")
        else:
            estimate = format_usd(cost_estimate_nusd(policy.policy, model, facts))
            wait = policy.ttft_ms[model.id]
            lines.append(
                f"{model.id}: admissible, about {estimate}, first token in about {wait} ms,"
                f" quality {model.quality}"
            )
    missing = policy.missing(facts)
    if missing:
        lines.append(f"not measured: {', '.join(missing)}, so no rule can be chosen")
    for route in () if missing else policy.policy.routes:
        missed = [describe(c) for c in route.when if not holds(c, facts)]
        if missed:
            lines.append(f"rule '{route.name}': no, needs {' and '.join(missed)}")
            continue
        lines.append(f"rule {matched_rule(policy, facts)}: yes, optimised for {route.optimize}")
        break
    if decision.chain:
        lines.append(f"order to try: {', '.join(decision.chain)}")
    lines.append(f"verdict: {decision.verdict} [{decision.reason}]")
    return lines


def _demanded(demands: Demands) -> str:
    dearest = (
        demands.max_input_nusd_per_mtok,
        demands.max_output_nusd_per_mtok,
        demands.max_request_nusd,
    )
    parts = [
        _listed("models", demands.models),
        _listed("providers", demands.providers or ()),
        _listed("not", demands.not_providers),
        _listed("first", demands.provider_order),
        _listed("promises", demands.promises),
        "" if dearest == (None, None, None) else ", a max_price",
        "" if demands.sort is None else f", sorted by {demands.sort}",
        "" if demands.may_fall_back else ", no fallback",
    ]
    return "".join(parts).removeprefix(", ") or "nothing"


def _named(**values: str | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _listed(name: str, values: tuple[str, ...]) -> str:
    return f", {name} {' '.join(values)}" if values else ""


def explain_record(record: DecisionRecord, policy: CompiledPolicy | None) -> Explanation:
    """Return why a recorded request went where it went, and how its attempts fared.

    Args:
        policy: of the record's manifest; ``None`` if it is no longer kept, and then only what
            the record itself says is told.
    """
    trace: list[str] = []
    exclusions: dict[str, Exclusion] = {}
    if record.facts is None or policy is None:
        sentence = record.detail or _bare_sentence(record)
    else:
        decision = decide(policy, record.facts, record.proposal)
        if record.chosen is not None:
            # Hints may have changed the order since; what was chosen then is what is explained.
            decision = structs.replace(decision, model=record.chosen)
        explanation = explain(policy, record.facts, decision)
        trace += explanation.trace
        exclusions = explanation.exclusions
        sentence = explanation.sentence
        if record.verdict == "refused" and decision.verdict != "refused":
            # The policy allowed it; something after the decision did not.
            sentence = record.detail or _bare_sentence(record)
    # What a single attempt cost is the line that follows.
    tells_cost = len(record.attempts) > 1
    trace += [_attempt_line(one, _fared(one, record), tells_cost) for one in record.attempts]
    if record.verdict != "refused":
        sentence += _mishaps(record)
    if record.cost_nusd:
        trace.append(f"cost: {format_usd(record.cost_nusd)}")
        if record.baseline_cost_nusd is not None:
            saved = record.baseline_cost_nusd - record.cost_nusd
            trace.append(
                f"without routing: {format_usd(record.baseline_cost_nusd)},"
                f" {'saved' if saved >= 0 else 'spent'} {format_usd(abs(saved))}"
                + ("" if saved >= 0 else " more")
            )
    return Explanation(sentence=sentence, trace=tuple(trace), exclusions=exclusions)


def _mishaps(record: DecisionRecord) -> str:
    """Return what failed before the answer, as sentences to append; each run of a kind once."""
    failed = [attempt for attempt in record.attempts if attempt.outcome != "ok"]
    said = ""
    for (model, fared), run in groupby(failed, key=lambda one: (one.model, _fared(one, record))):
        count = len(list(run))
        often = "" if count == 1 else " twice" if count == 2 else f" {count} times"
        said += f" {model} {fared}{often}."
    if failed and record.model is not None and record.attempts[-1].outcome == "ok":
        again = record.model == failed[-1].model
        said += " It answered in the end." if again else f" {record.model} answered in its place."
    elif fate_of(record) == "failed":
        said += " Nobody answered."
    return said + _escalated(record)


def _escalated(record: DecisionRecord) -> str:
    for before, attempt in pairwise(record.attempts):
        if attempt.kind == "escalation" and attempt.outcome == "ok":
            return f" {before.model}'s answer was not sure enough, so {attempt.model} answered."
    return ""


def _bare_sentence(record: DecisionRecord) -> str:
    if record.verdict == "refused":
        return f"Refused: {record.reason.replace('_', ' ')}."
    return f"Sent to {record.model} ({record.verdict}, {record.reason.replace('_', ' ')})."


def _fared(attempt: Attempt, record: DecisionRecord) -> str:
    kinds = {other.kind for other in record.attempts if other.outcome == "ok"}
    if attempt.outcome == "cancelled" and kinds and (attempt.kind == "hedge" or "hedge" in kinds):
        return "was not waited for, as another was sooner"
    if attempt.detail is not None:
        return f"has a {attempt.detail}"
    return _ATTEMPTS[attempt.outcome]


def _attempt_line(attempt: Attempt, fared: str, tells_cost: bool) -> str:
    status = f" (HTTP {attempt.http_status})" if attempt.http_status is not None else ""
    first = f", first token after {attempt.ttft_ms:.0f} ms" if attempt.ttft_ms is not None else ""
    cost = f", {format_usd(attempt.cost_nusd)}" if tells_cost and attempt.cost_nusd else ""
    return (
        f"attempt: {attempt.model} at {attempt.provider} {fared}{status}"
        f"{first}, {attempt.duration_ms:.0f} ms in all{cost}"
    )
