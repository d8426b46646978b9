"""What the request may cost: held in the ledger before anything is sent.

The hold is an upper bound. The prompt has no more tokens than bytes, and the answer is bounded
by what is sent upstream as the provider's own limit, whether the caller asked for one or not.
"""

from msgspec import Struct, structs

from waypost.shared.contracts import Facts, Proposal
from waypost.shared.decision.costs import output_bound
from waypost.shared.decision.engine import Decision, decide
from waypost.shared.decision.replay import DOWNGRADE, downgraded
from waypost.shared.errors import BudgetError
from waypost.validator.ledger import Held, Hold, Repeat, Shortfall, Throttled
from waypost.validator.manifest.active import Principal
from waypost.validator.pipeline.budget_refusals import dearest_nusd, refused, repeated
from waypost.validator.pipeline.exchange import AdmittedRequest, Exchange
from waypost.validator.pipeline.hold import LEASE_MARGIN_S, Reservation, worthwhile
from waypost.validator.services import Services

__all__ = ["Plan", "ask_first", "preview", "reserve"]

# Others may take what was available before we do; then what is left by now is tried.
HOLD_TRIES = 3


class Plan(Struct, frozen=True):
    """A decision that an account can pay for, and how long its answer may be.

    Attributes:
        facts: what was decided from, the account's means included.
        barred: models that a limit of their own keeps from serving.
    """

    decision: Decision
    facts: Facts
    output_tokens: int
    is_cut: bool = False
    barred: frozenset[str] = frozenset()


async def reserve(
    exchange: Exchange, admitted: AdmittedRequest, reservation: Reservation
) -> Decision:
    """Hold the money in ``reservation``; return the decision that it pays for.

    Raises:
        BudgetError: ``budget_exhausted``, with the window that is; ``budget_undefined``.
        RateError: too much of late.
        InvalidRequestError: the idempotency key has been used.
        StoreError: the ledger does not answer; then nothing is served.
    """
    _require_budget(admitted.principal)
    targets = admitted.active.targets
    plan = _first_choice(admitted)
    lost_races = 0
    while refusal := await reservation.hold(
        targets[plan.decision.chain[0]], output_tokens=plan.output_tokens
    ):
        if isinstance(refusal, Repeat):
            raise repeated(refusal)
        barred = _barred(admitted, refusal, plan)
        lost_races += not barred
        other = _next_choice(admitted, exchange.proposal, refusal, barred, plan.barred)
        if other is None or lost_races == HOLD_TRIES:
            raise refused(refusal, least_nusd=dearest_nusd(admitted))
        plan = other
    _note(exchange, plan)
    exchange.crossed = reservation.crossed
    exchange.mark("reserve")
    return plan.decision


def _barred(
    admitted: AdmittedRequest, refusal: Shortfall | Throttled, plan: "Plan"
) -> frozenset[str]:
    """Return the models that the refusing scope stands for, beyond those barred already."""
    kind, _, name = refusal.scope.partition(":")
    models = admitted.active.compiled.models.values()
    barred = {m.id for m in models if name == {"provider": m.provider, "model": m.id}.get(kind)}
    return frozenset(barred - plan.barred)


def _next_choice(
    admitted: AdmittedRequest,
    proposal: Proposal | None,
    refusal: Shortfall | Throttled,
    newly_barred: frozenset[str],
    barred: frozenset[str],
) -> "Plan | None":
    """Return what may be had instead; ``None`` if nothing."""
    if newly_barred:
        # What a provider or a model may cost or take is used up, not the account's means.
        others = _without(admitted, proposal, barred | newly_barred)
        if others is not None:
            return others
    if isinstance(refusal, Throttled):
        return None
    return _within(admitted, proposal, refusal.available_nusd, barred)


def _note(exchange: Exchange, plan: Plan) -> None:
    """Let ``exchange`` tell of the plan that is carried out."""
    exchange.facts = plan.facts
    exchange.take(plan.decision)
    if plan.is_cut:
        exchange.detail = f"The budget cut the answer to {plan.output_tokens} tokens."


async def preview(services: Services, exchange: Exchange, admitted: AdmittedRequest) -> Plan:
    """Return what ``reserve`` would settle on now, holding nothing.

    Raises:
        BudgetError: as ``reserve`` does.
    """
    _require_budget(admitted.principal)
    target = admitted.active.targets[admitted.decision.chain[0]]
    scopes = (*admitted.principal.scopes, *target.scopes)
    balances = await services.ledger.balances(scopes, now=exchange.now)
    shortfalls = [
        Shortfall(
            scope=balance.scope,
            window=balance.window,
            limit_nusd=balance.limit_nusd,
            available_nusd=max(0, balance.limit_nusd - balance.spent_nusd - balance.reserved_nusd),
            resets_at=balance.resets_at,
        )
        for balance in balances
    ]
    least = min(shortfalls, key=lambda one: one.available_nusd, default=None)
    plan = _first_choice(admitted)
    if least is None or dearest_nusd(admitted) <= least.available_nusd:
        return plan
    barred = _barred(admitted, least, plan)
    other = _next_choice(admitted, exchange.proposal, least, barred, frozenset())
    if other is None:
        raise refused(least, least_nusd=dearest_nusd(admitted))
    return other


async def ask_first(services: Services, exchange: Exchange, principal: Principal) -> None:
    """Ask budgets and rates whether this caller may have anything, before much work is done.

    It counts as a request from here on.

    Raises:
        BudgetError: ``budget_exhausted``, ``budget_undefined``.
        RateError: too much of late.
        StoreError: the ledger does not answer.
    """
    _require_budget(principal)
    hold = Hold(
        id=f"{exchange.id}~first",
        amount_nusd=1,
        scopes=principal.scopes,
        now=exchange.now,
        expires_at=exchange.now + LEASE_MARGIN_S,
        tokens=1,
    )
    held = await services.ledger.reserve(hold)
    if not isinstance(held, Held):
        assert not isinstance(held, Repeat)  # noqa: S101 - it has no key
        raise refused(held, least_nusd=hold.amount_nusd)
    await services.ledger.release(hold.id)
    exchange.is_counted = True


def _require_budget(principal: Principal) -> None:
    # A limit that was forgotten, or an account's name that was mistyped, must not mean no limit.
    if not principal.may_spend:
        raise BudgetError(
            f"Account {principal.account} has no limit, neither by its token nor by the"
            " validator's budgets, so nothing may be spent. Get a token with a limit, or have the"
            " operator set one.",
            code="budget_undefined",
        )


def _first_choice(admitted: AdmittedRequest) -> Plan:
    """Return what would be done if money were no object."""
    model = admitted.active.compiled.models[admitted.decision.chain[0]]
    facts = admitted.facts
    return Plan(admitted.decision, facts, output_bound(model, facts))


def _without(
    admitted: AdmittedRequest, proposal: Proposal | None, barred: frozenset[str]
) -> Plan | None:
    """Return what is decided when the ``barred`` models cannot serve."""
    facts = admitted.facts
    out = tuple(sorted({*facts.measured.out_of_service, *barred}))
    fewer = structs.replace(facts, measured=structs.replace(facts.measured, out_of_service=out))
    return _decided(admitted, proposal, fewer, barred)


def _within(
    admitted: AdmittedRequest,
    proposal: Proposal | None,
    available_nusd: int,
    barred: frozenset[str],
) -> Plan | None:
    """Return what ``available_nusd`` pays for: a cheaper admissible model, or a shorter answer."""
    compiled, facts, decision = admitted.active.compiled, admitted.facts, admitted.decision
    out = tuple(sorted({*facts.measured.out_of_service, *barred}))
    measured = structs.replace(facts.measured, affordable_nusd=available_nusd, out_of_service=out)
    poorer = _decided(admitted, proposal, structs.replace(facts, measured=measured), barred)
    if poorer is not None:
        return poorer
    for name in decision.chain:
        tokens = worthwhile(compiled.models[name], facts, available_nusd)
        if tokens and name not in barred:
            kept = decision if name == decision.model else downgraded(decision, name)
            return Plan(kept, facts, tokens, is_cut=True, barred=barred)
    return None


def _decided(
    admitted: AdmittedRequest, proposal: Proposal | None, facts: Facts, barred: frozenset[str]
) -> Plan | None:
    compiled = admitted.active.compiled
    decided = decide(compiled, facts, proposal)
    if decided.model is None:
        return None
    if decided.model != admitted.decision.model and decided.verdict != "accepted":
        decided = structs.replace(decided, reason=DOWNGRADE)
    tokens = output_bound(compiled.models[decided.chain[0]], facts)
    return Plan(decided, facts, tokens, barred=barred)
