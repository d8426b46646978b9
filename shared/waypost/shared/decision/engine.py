"""Which models may serve a request, and in which order to try them.

Pure: no clock, no I/O, no randomness. Client, validator, ``explain`` and the tests all run this
one function, so that they cannot disagree by accident.

1. *Admissible set*: tier ∧ token's models ∧ duties ∧ the request's own demands ∧ API ∧
   capabilities ∧ context ∧ priced ∧ translatable ∧ in service ∧ affordable.
2. *Route*: the first row of the decision table that matches.
3. *Order*: the row's candidates by its objective, then its fallback, then the last resort; unless
   the request asks for another order. What a conversation has in a model's cache is priced so.
4. *Verdict*: a proposal inside the set is accepted; one outside is overridden by the best
   admissible model, as is one by the rules of a manifest that is long over; an empty set is a
   refusal. The set is policy, the pick is performance.

What can be is worked out once per manifest, in ``compiled``.

``exclusion`` says the same one model at a time, written for reading rather than speed; the
tests hold the two against each other.
"""

from typing import Literal, get_args

from msgspec import UNSET, Struct

from waypost.shared.contracts import Facts, Proposal, Route
from waypost.shared.decision import demands
from waypost.shared.decision.compiled import CompiledPolicy
from waypost.shared.decision.costs import (
    context_need,
    cost_bound_nusd,
    is_priced,
    least_output,
    output_bound,
)
from waypost.shared.records import Verdict

__all__ = [
    "REFUSAL_CODES",
    "Decision",
    "Exclusion",
    "ExclusionCode",
    "decide",
    "exclusion",
    "larger_models",
]

ExclusionCode = Literal[
    "unknown_model",
    "tier_not_allowed",
    "not_in_token",
    "duty_unmet",
    "request_excludes",
    "endpoint_unsupported",
    "capability_missing",
    "context_too_small",
    "output_too_small",
    "unpriced",
    "untranslatable",
    "out_of_service",
    "unaffordable",
    "not_in_route",
]

# What keeps a model out for a while; of several the one that is looked at last.
_PASSING: tuple[ExclusionCode, ...] = ("unaffordable", "out_of_service")

# With which ``decide`` refuses. Any other reason of a refusal is not the policy's.
REFUSAL_CODES: frozenset[str] = frozenset(
    {
        *get_args(ExclusionCode),
        "facts_incomplete",
        "unknown_data_class",
        "unknown_provider",
        "unknown_tier",
    }
)

# A client that refreshes as it should lags by one publication, or two in quick succession.
MAX_VERSIONS_BEHIND = 2


class Decision(Struct, frozen=True, kw_only=True):
    """What is to happen with a request.

    Attributes:
        reason: ``proposal_admissible`` or ``no_proposal``; of an override, why the proposed
            model is out, or ``proposal_stale``; of a refusal, ``facts_incomplete``,
            ``unknown_tier``, ``unknown_data_class``, ``unknown_provider``, or what emptied the
            set.
        model: ``None`` when refused.
        route: name of the row that matched; ``None`` when refused before that.
        candidates: the row's admissible models, best first; a client may pick any of them.
        chain: what to try, ``model`` first; each of them is admissible.
        proposed: what the client wanted.
    """

    verdict: Verdict
    reason: str
    model: str | None = None
    route: str | None = None
    candidates: tuple[str, ...] = ()
    chain: tuple[str, ...] = ()
    proposed: str | None = None


class Exclusion(Struct, frozen=True):
    """Why one model is out: a code, and a clause a person understands."""

    code: ExclusionCode
    detail: str


def decide(policy: CompiledPolicy, facts: Facts, proposal: Proposal | None = None) -> Decision:
    """Return which model serves the request, what to fall back to, and why.

    Deterministic: the same policy, hints, facts and proposal give the same decision anywhere.
    """
    proposed = None if proposal is None else proposal.model
    mask, emptied = policy.admissible(facts)
    if emptied:
        return Decision(verdict="refused", reason=emptied, proposed=proposed)
    row = policy.rules.first(facts)
    route = policy.policy.routes[row]
    if route.enforce:
        mask &= policy.by_row[row]
        if not mask:
            closed = _why_closed(policy, route, facts)
            return Decision(verdict="refused", reason=closed, route=route.name, proposed=proposed)
    candidates, chain = policy.plan(mask, row, facts)
    wanted = facts.measured.demands
    tries = None if wanted is None or wanted.may_fall_back else 1
    if proposal is None:
        return Decision(
            verdict="decided",
            reason="no_proposal",
            model=chain[0],
            route=route.name,
            candidates=candidates,
            chain=chain[:tries],
        )
    proposed = proposal.model
    is_stale = _is_stale(policy, proposal)
    open_to_client = 0 if is_stale else mask
    if proposal.otherwise is not None and policy.bits.get(proposal.otherwise, 0) & open_to_client:
        chain = _led_by(proposal.otherwise, chain)
    if policy.bits.get(proposed, 0) & open_to_client or proposed == chain[0]:
        chain = _led_by(proposed, chain)
        return Decision(
            verdict="accepted",
            reason="proposal_admissible",
            model=proposed,
            route=route.name,
            candidates=candidates,
            chain=chain[:tries],
            proposed=proposed,
        )
    return Decision(
        verdict="overridden",
        reason="proposal_stale" if is_stale else _why_out(policy, proposed, facts),
        model=chain[0],
        route=route.name,
        candidates=candidates,
        chain=chain[:tries],
        proposed=proposed,
    )


def _why_closed(policy: CompiledPolicy, route: Route, facts: Facts) -> ExclusionCode:
    """Return why no model of an enforced route may serve.

    What passes is told apart: a caller that is told of an outage comes back later.
    """
    out = (exclusion(policy, name, facts) for name in (*route.models, *route.fallback))
    codes = {why.code for why in out if why is not None}
    for code in _PASSING:
        if code in codes:
            return code
    return "not_in_route"


def _is_stale(policy: CompiledPolicy, proposal: Proposal) -> bool:
    """Whether the client went by rules and prices that are long over (docs/adr/0001).

    A newer manifest than ours counts, and so does a model asked for by name: no rules chose it.
    """
    return (
        proposal.route is not None
        and proposal.manifest is not None
        and proposal.manifest < policy.policy.version - MAX_VERSIONS_BEHIND
    )


def _why_out(policy: CompiledPolicy, proposed: str, facts: Facts) -> str:
    why = exclusion(policy, proposed, facts)
    return "unknown_model" if why is None else why.code


def _led_by(first: str, chain: tuple[str, ...]) -> tuple[str, ...]:
    return chain if chain[0] == first else (first, *(name for name in chain if name != first))


def larger_models(policy: CompiledPolicy, facts: Facts, *, than: str) -> tuple[str, ...]:
    """Return the models that may serve this request and hold more than ``than``, least first.

    For a prompt that turned out longer than anybody estimated. The set is that of ``decide``.
    """
    mask, _ = policy.admissible(facts)
    if mask and policy.policy.routes[row := policy.rules.first(facts)].enforce:
        mask &= policy.by_row[row]
    window = policy.models[than].context_tokens
    larger = [
        model
        for model in policy.models.values()
        if policy.bits[model.id] & mask and model.context_tokens > window
    ]
    return tuple(m.id for m in sorted(larger, key=lambda m: (m.context_tokens, m.id)))


def exclusion(policy: CompiledPolicy, name: str, facts: Facts) -> Exclusion | None:
    """Return why ``name`` may not serve this request, or ``None`` if it may."""
    signed, measured, declared = facts.signed, facts.measured, facts.declared
    model = policy.models.get(name)
    if model is None:
        return Exclusion("unknown_model", "the manifest has no such model")
    if signed.tier not in model.tiers:
        return Exclusion("tier_not_allowed", f"it is not open to tier {signed.tier}")
    if signed.models is not None and name not in signed.models:
        return Exclusion("not_in_token", "the access token does not include it")
    for vouched, classes in (
        ("token", signed.data_classes),
        ("detected", measured.data_classes),
        ("declared", declared.data_classes),
    ):
        for data_class in classes:
            missing = [
                promise
                for promise in policy.policy.data_classes.get(data_class, ("a known data class",))
                if promise not in model.promises
            ]
            if missing:
                return Exclusion(
                    "duty_unmet",
                    f"{model.provider} has not promised {' or '.join(missing)},"
                    f" which {data_class} data needs ({vouched})",
                )
    if measured.demands is not None:
        clause = demands.unmet(measured.demands, model)
        if clause:
            return Exclusion("request_excludes", clause)
    if measured.endpoint not in model.endpoints:
        return Exclusion("endpoint_unsupported", f"it does not serve {measured.endpoint}")
    missing = [need for need in measured.needs if need not in model.capabilities]
    if missing:
        return Exclusion("capability_missing", f"it cannot do {' and '.join(missing)}")
    need = context_need(policy.policy, facts)
    if model.context_tokens < need:
        return Exclusion(
            "context_too_small", f"it holds {model.context_tokens} tokens, {need} are needed"
        )
    least = least_output(facts)
    if measured.reasoning_tokens is not UNSET and output_bound(model, facts) < least:
        return Exclusion(
            "output_too_small",
            f"it answers in {model.max_output_tokens} tokens at most, and {least} are needed to"
            " think and answer",
        )
    for extra in measured.extras or ():
        if not is_priced(model, extra):
            return Exclusion(
                "unpriced", f"its price does not say what {extra.name} ({extra.at}) may cost"
            )
    if name in measured.untranslatable:
        return Exclusion("untranslatable", "its provider's API cannot express this request")
    if name in measured.out_of_service:
        return Exclusion("out_of_service", "its provider is failing at the moment")
    if measured.affordable_nusd is not None:
        bound = cost_bound_nusd(model, facts)
        if bound > measured.affordable_nusd:
            return Exclusion("unaffordable", "the account cannot cover what it may cost")
    if policy.missing(facts):
        return None  # refused as a whole, whatever the model
    route = policy.policy.routes[policy.rules.first(facts)]
    if route.enforce and name not in (*route.models, *route.fallback):
        return Exclusion("not_in_route", f"route '{route.name}' allows only its own models")
    return None
