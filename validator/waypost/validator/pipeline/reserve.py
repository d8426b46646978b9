"""What the request may cost: held in the ledger before anything is sent.

The hold is an upper bound. The prompt has no more tokens than bytes, and the answer is bounded
by what is sent upstream as the provider's own limit, whether the caller asked for one or not.
"""

from contextlib import suppress
from hashlib import sha256

from msgspec import Struct, structs

from waypost.shared.contracts import Facts, Model, Proposal
from waypost.shared.decision.costs import (
    affordable_output,
    cost_bound_nusd,
    output_bound,
    price_needs,
)
from waypost.shared.decision.engine import Decision, decide
from waypost.shared.decision.replay import DOWNGRADE, downgraded
from waypost.shared.errors import (
    BudgetError,
    InvalidRequestError,
    RateError,
    RefusalError,
    StoreError,
)
from waypost.shared.money import format_usd, upper_bound
from waypost.validator.http.problems import reset_text
from waypost.validator.ledger import (
    Crossed,
    Held,
    Hold,
    IdempotencyKey,
    Refusal,
    Repeat,
    Scope,
    Shortfall,
    Throttled,
)
from waypost.validator.manifest.active import Caller, Target
from waypost.validator.pipeline.exchange import Call, Considered
from waypost.validator.services import Desk

__all__ = ["Booking", "Plan", "ask_first", "body_digest", "bound_nusd", "preview", "reserve"]

# Cutting an answer shorter than this to fit a budget would sell a stump as an answer.
MIN_ANSWER_TOKENS = 64

# Others may take what was available before we do; then what is left by now is tried.
HOLD_TRIES = 3

MAX_KEY_BYTES = 255
DECISION_ID_CHARS = 36  # a hold's id begins with its request's

# How long after the provider's own time-out a hold waits for its bill; then it is charged.
LEASE_MARGIN_S = 60


class Booking:
    """The money held for one request, for one provider at a time.

    Attributes:
        is_exposed: whether a provider may have been given something to charge for.
        hold_id: ``None`` when nothing is held.
        amount_nusd: how much is.
        output_tokens: bound of one answer that the amount covers; sent upstream.
        crossed: soft limits that are used up.
    """

    __slots__ = (
        "_call",
        "_facts",
        "_holds",
        "_key",
        "_ledger",
        "_name",
        "_scopes",
        "_target",
        "amount_nusd",
        "crossed",
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
        scopes = considered.caller.scopes
        # What is asked besides is no other request of this caller, nor of this key.
        self._scopes = tuple(map(_without_request_rates, scopes)) if part else scopes
        self._key = None if part else _idempotency_key(call, considered.caller)
        self._holds = 0
        self._target: Target | None = None
        self.is_exposed = False
        self.hold_id: str | None = None
        self.amount_nusd = 0
        self.output_tokens = 0
        self.crossed: tuple[Crossed, ...] = ()

    async def hold(self, target: Target, *, output_tokens: int) -> Refusal | None:
        """Hold what ``target`` may cost; return ``None`` when it is held.

        A hold for the same target that is large enough already stays; one that is not is given
        back first, so that a request never holds twice what it can cost.
        """
        call = self._call
        amount = bound_nusd(target.model, self._facts, output_tokens=output_tokens)
        if self.hold_id is None or target is not self._target or amount > self.amount_nusd:
            await self.release()
            hold_id = self._name if not self._holds else f"{self._name}.{self._holds}"
            lease_s = LEASE_MARGIN_S + 2 * int(target.upstream.timeout_s)
            measured = self._facts.measured
            # Held anew, a request is still one request.
            is_counted = self._holds or call.is_counted
            scopes = map(_without_request_rates, self._scopes) if is_counted else self._scopes
            held = await self._ledger.reserve(
                Hold(
                    id=hold_id,
                    amount_nusd=amount,
                    scopes=(*scopes, *target.scopes),
                    now=call.now,
                    expires_at=call.now + lease_s,
                    tokens=measured.input_tokens + output_tokens * measured.choices,
                    key=self._key,
                )
            )
            if not isinstance(held, Held):
                return held
            self._holds += 1
            self.crossed = held.crossed
            self.hold_id, self.amount_nusd, self._target = hold_id, amount, target
        self.output_tokens = output_tokens
        return None

    async def cover(self, target: Target) -> bool:
        """Hold what ``target`` may cost, its answer cut to what the account can pay if need be."""
        tokens = output_bound(target.model, self._facts)
        refusal = await self.hold(target, output_tokens=tokens)
        if refusal is None:
            return True
        if not isinstance(refusal, Shortfall):
            return False
        tokens = _worthwhile(target.model, self._facts, refusal.available_nusd)
        return bool(tokens) and await self.hold(target, output_tokens=tokens) is None

    async def settle(
        self, cost_nusd: int, *, tokens: int | None = None, is_confirmed: bool = True
    ) -> None:
        """Charge this much, and give back the rest of what is held.

        Args:
            is_confirmed: whether the provider said so.
        """
        if self.hold_id is not None:
            hold_id, self.hold_id = self.hold_id, None
            await self._ledger.settle(hold_id, cost_nusd, tokens=tokens, is_confirmed=is_confirmed)

    async def release(self) -> None:
        """Give back what is held; nobody will charge for it."""
        if self.hold_id is not None:
            hold_id, self.hold_id, self.amount_nusd = self.hold_id, None, 0
            await self._ledger.release(hold_id)

    async def free_key(self) -> None:
        """Let the idempotency key be used again: the request has ended without a charge.

        What is held still may become one.
        """
        if self._key is not None and self._holds and self.hold_id is None:
            with suppress(StoreError):  # then it is free after a day
                await self._ledger.free_key(self._key.digest, self._name)


def _without_request_rates(scope: Scope) -> Scope:
    if all(rate.unit != "requests" for rate in scope.rates):
        return scope
    rates = tuple(rate for rate in scope.rates if rate.unit != "requests")
    return structs.replace(scope, rates=rates)


def _idempotency_key(call: Call, caller: Caller) -> IdempotencyKey | None:
    key = call.headers.get(b"idempotency-key")
    if key is None:
        return None
    if not 1 <= len(key) <= MAX_KEY_BYTES:
        raise InvalidRequestError(
            f"An Idempotency-Key has 1 to {MAX_KEY_BYTES} bytes.",
            code="idempotency_key_invalid",
            param="idempotency-key",
        )
    # Nobody learns which keys of others exist, and the same body at another API is another.
    whose = sha256(f"{caller.subject} {caller.account} ".encode() + key)
    body = call.body_digest or body_digest(call)
    return IdempotencyKey(digest=whose.hexdigest(), body=body, request_id=call.id)


def body_digest(call: Call) -> str:
    """Return what stands for the body, at its API, beside an idempotency key."""
    digest = sha256(f"{call.endpoint}\n".encode())
    digest.update(call.body)
    return digest.hexdigest()


def bound_nusd(model: Model, facts: Facts, *, output_tokens: int) -> int:
    """Return the most that answers of at most ``output_tokens`` each can cost."""
    return upper_bound(
        model.price,
        input_tokens=facts.measured.max_input_tokens,
        output_tokens=output_tokens * facts.measured.choices,
        needs=price_needs(facts.measured),
    )


def _worthwhile(model: Model, facts: Facts, budget_nusd: int) -> int:
    """Return how long an answer ``budget_nusd`` pays for; 0 if that is not worth having."""
    tokens = affordable_output(model, facts, budget_nusd=budget_nusd)
    return tokens if tokens >= min(MIN_ANSWER_TOKENS, output_bound(model, facts)) else 0


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


async def reserve(call: Call, considered: Considered, booking: Booking) -> Decision:
    """Hold the money in ``booking``; return the decision that it pays for.

    Raises:
        BudgetError: ``budget_exhausted``, with the window that is; ``budget_undefined``.
        RateError: too much of late.
        InvalidRequestError: the idempotency key has been used.
        StoreError: the ledger does not answer; then nothing is served.
    """
    _require_budget(considered.caller)
    targets = considered.serving.targets
    plan = _first_choice(considered)
    lost_races = 0
    while refusal := await booking.hold(
        targets[plan.decision.chain[0]], output_tokens=plan.output_tokens
    ):
        if isinstance(refusal, Repeat):
            raise _repeated(refusal)
        barred = _barred(considered, refusal, plan)
        lost_races += not barred
        other = _next_choice(considered, call.proposal, refusal, barred, plan.barred)
        if other is None or lost_races == HOLD_TRIES:
            raise _refused(refusal, least_nusd=_bound_nusd(considered))
        plan = other
    _note(call, plan)
    call.crossed = booking.crossed
    call.mark("reserve")
    return plan.decision


def _barred(considered: Considered, refusal: Shortfall | Throttled, plan: "Plan") -> frozenset[str]:
    """Return the models that the refusing scope stands for, beyond those barred already."""
    kind, _, name = refusal.scope.partition(":")
    models = considered.serving.compiled.models.values()
    barred = {m.id for m in models if name == {"provider": m.provider, "model": m.id}.get(kind)}
    return frozenset(barred - plan.barred)


def _next_choice(
    considered: Considered,
    proposal: Proposal | None,
    refusal: Shortfall | Throttled,
    newly_barred: frozenset[str],
    barred: frozenset[str],
) -> "Plan | None":
    """Return what may be had instead; ``None`` if nothing."""
    if newly_barred:
        # What a provider or a model may cost or take is used up, not the account's means.
        others = _without(considered, proposal, barred | newly_barred)
        if others is not None:
            return others
    if isinstance(refusal, Throttled):
        return None
    return _within(considered, proposal, refusal.available_nusd, barred)


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
    target = considered.serving.targets[considered.decision.chain[0]]
    scopes = (*considered.caller.scopes, *target.scopes)
    balances = await desk.ledger.balances(scopes, now=call.now)
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
    plan = _first_choice(considered)
    if least is None or _bound_nusd(considered) <= least.available_nusd:
        return plan
    barred = _barred(considered, least, plan)
    other = _next_choice(considered, call.proposal, least, barred, frozenset())
    if other is None:
        raise _refused(least, least_nusd=_bound_nusd(considered))
    return other


async def ask_first(desk: Desk, call: Call, caller: Caller) -> None:
    """Ask budgets and rates whether this caller may have anything, before much work is done.

    It counts as a request from here on.

    Raises:
        BudgetError: ``budget_exhausted``, ``budget_undefined``.
        RateError: too much of late.
        StoreError: the ledger does not answer.
    """
    _require_budget(caller)
    hold = Hold(
        id=f"{call.id}~first",
        amount_nusd=1,
        scopes=caller.scopes,
        now=call.now,
        expires_at=call.now + LEASE_MARGIN_S,
        tokens=1,
    )
    held = await desk.ledger.reserve(hold)
    if not isinstance(held, Held):
        assert not isinstance(held, Repeat)  # noqa: S101 - it has no key
        raise _refused(held, least_nusd=hold.amount_nusd)
    await desk.ledger.release(hold.id)
    call.is_counted = True


def _require_budget(caller: Caller) -> None:
    # A limit that was forgotten, or an account's name that was mistyped, must not mean no limit.
    if not caller.may_spend:
        raise BudgetError(
            f"Account {caller.account} has no limit, neither by its token nor by the"
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


def _without(
    considered: Considered, proposal: Proposal | None, barred: frozenset[str]
) -> Plan | None:
    """Return what is decided when the ``barred`` models cannot serve."""
    facts = considered.facts
    out = tuple(sorted({*facts.measured.out_of_service, *barred}))
    fewer = structs.replace(facts, measured=structs.replace(facts.measured, out_of_service=out))
    return _decided(considered, proposal, fewer, barred)


def _within(
    considered: Considered, proposal: Proposal | None, available_nusd: int, barred: frozenset[str]
) -> Plan | None:
    """Return what ``available_nusd`` pays for: a cheaper admissible model, or a shorter answer."""
    compiled, facts, decision = considered.serving.compiled, considered.facts, considered.decision
    out = tuple(sorted({*facts.measured.out_of_service, *barred}))
    measured = structs.replace(facts.measured, affordable_nusd=available_nusd, out_of_service=out)
    poorer = _decided(considered, proposal, structs.replace(facts, measured=measured), barred)
    if poorer is not None:
        return poorer
    for name in decision.chain:
        tokens = _worthwhile(compiled.models[name], facts, available_nusd)
        if tokens and name not in barred:
            kept = decision if name == decision.model else downgraded(decision, name)
            return Plan(kept, facts, tokens, is_cut=True, barred=barred)
    return None


def _decided(
    considered: Considered, proposal: Proposal | None, facts: Facts, barred: frozenset[str]
) -> Plan | None:
    compiled = considered.serving.compiled
    decided = decide(compiled, facts, proposal)
    if decided.model is None:
        return None
    if decided.model != considered.decision.model and decided.verdict != "accepted":
        decided = structs.replace(decided, reason=DOWNGRADE)
    tokens = output_bound(compiled.models[decided.chain[0]], facts)
    return Plan(decided, facts, tokens, barred=barred)


# ── refusals, in words ─────────────────────────────────────────────────────────────────────────

# Whose limits a caller may know. What the operator has left for others is none of its business.
_OWN = {
    "account": "Account {name}",
    "narrowed": "This narrowed token",
    "user": "This user",
    "tenant": "Tenant {name}",
}
_SHARED = {
    "tier": "this tier",
    "provider": "this provider",
    "model": "this model",
    "global": "all requests",
}


def _refused(refusal: Shortfall | Throttled, *, least_nusd: int) -> RefusalError:
    kind, _, name = refusal.scope.partition(":")
    if isinstance(refusal, Throttled):
        return _throttled(kind, name, refusal)
    window = {"request": "per request", "total": "in all"}.get(
        refusal.window, f"per {refusal.window}"
    )
    if kind in _SHARED:
        message = f"The budget {window} for {_SHARED[kind]} is used up."
    else:
        who = _OWN.get(kind, "A request").format(name=name)
        message = (
            f"{who} may spend {format_usd(refusal.limit_nusd)} {window} and has"
            f" {format_usd(refusal.available_nusd)} left, but this request may cost"
            f" {format_usd(least_nusd)}."
        )
    return BudgetError(f"{message} {reset_text(refusal.resets_at)}", resets_at=refusal.resets_at)


def _throttled(kind: str, name: str, refusal: Throttled) -> RateError:
    rate = refusal.rate
    if kind in _SHARED:
        message = f"Too many {rate.unit} per {rate.window} for {_SHARED[kind]}."
    else:
        who = _OWN.get(kind, "A caller").format(name=name)
        message = f"{who} may use {rate.limit} {rate.unit} per {rate.window}."
    if refusal.retry_after_s is None:
        hint = "This request alone may use more; ask for a shorter answer."
    else:
        hint = f"Try again in {refusal.retry_after_s} s."
    return RateError(f"{message} {hint}", retry_after_s=refusal.retry_after_s)


def _repeated(repeat: Repeat) -> InvalidRequestError:
    decision_id = repeat.hold_id[:DECISION_ID_CHARS]
    told = {
        "other_body": (
            "idempotency_key_reused",
            "This Idempotency-Key came with another request before; take a new one.",
        ),
        "in_progress": (
            "idempotency_in_progress",
            f"The request with this Idempotency-Key is still being served, as {decision_id}.",
        ),
        "done": (
            "idempotency_done",
            "The request with this Idempotency-Key has been served and charged, as"
            f" {decision_id}; see /v1/decisions/{decision_id}. Answers are not kept.",
        ),
    }
    code, message = told[repeat.state]
    return InvalidRequestError(message, code=code, param="idempotency-key")
