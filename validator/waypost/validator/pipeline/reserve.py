"""What the request may cost: held in the ledger before anything is sent.

The hold is an upper bound. The prompt has no more tokens than bytes, and the answer is bounded
by what is sent upstream as the provider's own limit, whether the caller asked for one or not.
"""

from msgspec import Struct, structs

from waypost.shared.contracts import Facts, Model, Proposal
from waypost.shared.engine import (
    Decision,
    affordable_output,
    cost_bound_nusd,
    decide,
    output_bound,
)
from waypost.shared.errors import BudgetError
from waypost.shared.money import format_usd, upper_bound
from waypost.shared.replay import DOWNGRADE, downgraded
from waypost.validator.desk import Caller, Desk, Target
from waypost.validator.ledger import Hold, Shortfall
from waypost.validator.pipeline.call import Call, Considered
from waypost.validator.problems import reset_text

__all__ = ["Booking", "Plan", "bound_nusd", "preview", "reserve"]

# Cutting an answer shorter than this to fit a budget would sell a stump as an answer.
MIN_ANSWER_TOKENS = 64

# Others may take what was available before we do; then what is left by now is tried.
HOLD_TRIES = 3

# How long after the provider's own time-out a hold waits for its bill; then it is charged.
LEASE_MARGIN_S = 60


class Booking:
    """The money held for one request, for one provider at a time.

    Attributes:
        is_exposed: whether a provider may have been given something to charge for.
        hold_id: ``None`` when nothing is held.
        amount_nusd: how much is.
        output_tokens: bound of one answer that the amount covers; sent upstream.
    """

    __slots__ = (
        "_call",
        "_facts",
        "_holds",
        "_ledger",
        "_limits",
        "_name",
        "amount_nusd",
        "hold_id",
        "is_exposed",
        "output_tokens",
    )

    def __init__(self, desk: Desk, call: Call, considered: Considered, *, part: str = "") -> None:
        """Args:
        part: tells the holds of one request apart, where it asks several providers at once.
        """
        self._ledger = desk.ledger
        self._name = call.id + part
        self._call = call
        self._facts = considered.facts
        self._limits = considered.caller.limits
        self._holds = 0
        self.is_exposed = False
        self.hold_id: str | None = None
        self.amount_nusd = 0
        self.output_tokens = 0

    async def hold(self, target: Target, *, output_tokens: int) -> Shortfall | None:
        """Hold what ``target`` may cost; return ``None`` when it is held.

        A hold that is large enough already stays; one that is not is given back first, so that
        a request never holds twice what it can cost.
        """
        call, limits = self._call, self._limits
        amount = bound_nusd(target.model, self._facts, output_tokens=output_tokens)
        if self.hold_id is None or amount > self.amount_nusd:
            await self.release()
            hold_id = self._name if not self._holds else f"{self._name}.{self._holds}"
            self._holds += 1
            lease_s = LEASE_MARGIN_S + 2 * int(target.upstream.timeout_s)
            shortfall = await self._ledger.reserve(
                Hold(
                    id=hold_id,
                    account=limits.account,
                    amount_nusd=amount,
                    limits=limits.limits,
                    now=call.now,
                    expires_at=call.now + lease_s,
                )
            )
            if shortfall is not None:
                return shortfall
            self.hold_id, self.amount_nusd = hold_id, amount
        self.output_tokens = output_tokens
        return None

    async def cover(self, target: Target) -> bool:
        """Hold what ``target`` may cost, its answer cut to what the account can pay if need be."""
        tokens = output_bound(target.model, self._facts)
        shortfall = await self.hold(target, output_tokens=tokens)
        if shortfall is None:
            return True
        tokens = _worthwhile(target.model, self._facts, shortfall.available_nusd)
        return bool(tokens) and await self.hold(target, output_tokens=tokens) is None

    async def settle(self, cost_nusd: int) -> None:
        """Charge this much, and give back the rest of what is held."""
        if self.hold_id is not None:
            hold_id, self.hold_id = self.hold_id, None
            await self._ledger.settle(hold_id, cost_nusd)

    async def release(self) -> None:
        """Give back what is held; nobody will charge for it."""
        if self.hold_id is not None:
            hold_id, self.hold_id, self.amount_nusd = self.hold_id, None, 0
            await self._ledger.release(hold_id)


def bound_nusd(model: Model, facts: Facts, *, output_tokens: int) -> int:
    """Return the most that answers of at most ``output_tokens`` each can cost."""
    return upper_bound(
        model.price,
        input_tokens=facts.measured.max_input_tokens,
        output_tokens=output_tokens * facts.measured.choices,
        needs=facts.measured.needs,
    )


def _worthwhile(model: Model, facts: Facts, budget_nusd: int) -> int:
    """Return how long an answer ``budget_nusd`` pays for; 0 if that is not worth having."""
    tokens = affordable_output(model, facts, budget_nusd=budget_nusd)
    return tokens if tokens >= min(MIN_ANSWER_TOKENS, output_bound(model, facts)) else 0


class Plan(Struct, frozen=True):
    """A decision that an account can pay for, and how long its answer may be.

    Attributes:
        facts: what was decided from, the account's means included.
    """

    decision: Decision
    facts: Facts
    output_tokens: int
    is_cut: bool = False


async def reserve(call: Call, considered: Considered, booking: Booking) -> Decision:
    """Hold the money in ``booking``; return the decision that it pays for.

    Raises:
        BudgetError: ``budget_exhausted``, with the window that is; ``budget_undefined``.
        StoreError: the ledger does not answer; then nothing is served.
    """
    _require_budget(considered.caller)
    targets = considered.serving.targets
    plan = _first_choice(considered)
    tries = 0
    while shortfall := await booking.hold(
        targets[plan.decision.chain[0]], output_tokens=plan.output_tokens
    ):
        tries += 1
        poorer = _within(considered, call.proposal, shortfall.available_nusd)
        if poorer is None or tries == HOLD_TRIES:
            raise _exhausted(considered, shortfall)
        plan = poorer
    _note(call, plan)
    call.mark("reserve")
    return plan.decision


def _note(call: Call, plan: Plan) -> None:
    """Let ``call`` tell of the plan that is carried out."""
    call.facts = plan.facts
    call.take(plan.decision)
    if plan.is_cut:
        call.detail = f"The budget cut the answer to {plan.output_tokens} tokens."


async def preview(desk: Desk, call: Call, considered: Considered) -> Plan:
    """Return what ``reserve`` would settle on now, holding nothing.

    Raises:
        BudgetError: as ``reserve`` does.
    """
    _require_budget(considered.caller)
    limits = considered.caller.limits
    balances = await desk.ledger.balances(limits.account, limits.limits, now=call.now)
    shortfalls = [
        Shortfall(
            window=balance.window,
            limit_nusd=balance.limit_nusd,
            available_nusd=max(0, balance.limit_nusd - balance.spent_nusd - balance.reserved_nusd),
            resets_at=balance.resets_at,
        )
        for balance in balances
    ]
    least = min(shortfalls, key=lambda one: one.available_nusd, default=None)
    if least is None or _bound_nusd(considered) <= least.available_nusd:
        return _first_choice(considered)
    plan = _within(considered, call.proposal, least.available_nusd)
    if plan is None:
        raise _exhausted(considered, least)
    return plan


def _require_budget(caller: Caller) -> None:
    # A limit that was forgotten, or an account's name that was mistyped, must not mean no limit.
    if not caller.may_spend:
        raise BudgetError(
            f"Account {caller.limits.account} has no limit, neither by its token nor by the"
            " validator's budgets, so nothing may be spent. Get a token with a limit, or have the"
            " operator set one.",
            code="budget_undefined",
        )


def _first_choice(considered: Considered) -> Plan:
    """Return what would be done if money were no object."""
    model = considered.serving.compiled.models[considered.decision.chain[0]]
    facts = considered.facts
    return Plan(considered.decision, facts, output_bound(model, facts))


def _bound_nusd(considered: Considered) -> int:
    model = considered.serving.compiled.models[considered.decision.chain[0]]
    return cost_bound_nusd(model, considered.facts)


def _within(considered: Considered, proposal: Proposal | None, available_nusd: int) -> Plan | None:
    """Return what ``available_nusd`` pays for: a cheaper admissible model, or a shorter answer."""
    compiled, facts, decision = considered.serving.compiled, considered.facts, considered.decision
    measured = structs.replace(facts.measured, affordable_nusd=available_nusd)
    poorer = structs.replace(facts, measured=measured)
    decided = decide(compiled, poorer, proposal)
    if decided.model is not None:
        if decided.reason in ("unaffordable", "no_proposal"):
            decided = structs.replace(decided, reason=DOWNGRADE)
        return Plan(decided, poorer, output_bound(compiled.models[decided.chain[0]], poorer))
    for name in decision.chain:
        tokens = _worthwhile(compiled.models[name], facts, available_nusd)
        if tokens:
            kept = decision if name == decision.model else downgraded(decision, name)
            return Plan(kept, facts, tokens, is_cut=True)
    return None


def _exhausted(considered: Considered, shortfall: Shortfall) -> BudgetError:
    window = {"request": "per request", "total": "in all"}.get(
        shortfall.window, f"per {shortfall.window}"
    )
    return BudgetError(
        f"Account {considered.caller.limits.account} may spend"
        f" {format_usd(shortfall.limit_nusd)} {window} and has"
        f" {format_usd(shortfall.available_nusd)} left, but this request may cost"
        f" {format_usd(_bound_nusd(considered))}. {reset_text(shortfall.resets_at)}",
        resets_at=shortfall.resets_at,
    )
