"""The money held for one request: for one provider at a time, settled once or given back."""

from contextlib import suppress
from hashlib import sha256

from msgspec import structs

from waypost.shared.contracts import Facts, Model
from waypost.shared.decision.costs import (
    affordable_output,
    cost_bound_nusd,
    least_output,
    output_bound,
)
from waypost.shared.errors import (
    InvalidRequestError,
    StoreError,
)
from waypost.validator.ledger import (
    Crossed,
    Held,
    Hold,
    IdempotencyKey,
    Refusal,
    Scope,
    Shortfall,
)
from waypost.validator.manifest.active import Principal, Target
from waypost.validator.pipeline.exchange import AdmittedRequest, Exchange
from waypost.validator.services import Services

__all__ = ["LEASE_MARGIN_S", "Reservation", "body_digest", "worthwhile"]

# Cutting an answer shorter than this to fit a budget would sell a stump as an answer.
MIN_ANSWER_TOKENS = 64

MAX_KEY_BYTES = 255

# How long after the provider's own time-out a hold waits for its bill; then it is charged, unless
# the request is still under way: then ``HoldRenewal`` renews it.
LEASE_MARGIN_S = 60


def body_digest(exchange: Exchange) -> str:
    """Return what stands for the body, at its API, beside an idempotency key."""
    digest = sha256(f"{exchange.endpoint}\n".encode())
    digest.update(exchange.body)
    return digest.hexdigest()


class Reservation:
    """The money held for one request, for one provider at a time.

    Attributes:
        hold_id: ``None`` when nothing is held.
        expires_at: when what is held ends, unless it is renewed.
        amount_nusd: how much is.
        output_tokens: bound of one answer that the amount covers; sent upstream.
        crossed: soft limits that are used up.
    """

    __slots__ = (
        "__weakref__",
        "_exchange",
        "_facts",
        "_holds",
        "_key",
        "_ledger",
        "_name",
        "_scopes",
        "_target",
        "amount_nusd",
        "crossed",
        "expires_at",
        "hold_id",
        "output_tokens",
    )

    def __init__(
        self, services: Services, exchange: Exchange, admitted: AdmittedRequest, *, part: str = ""
    ) -> None:
        """Args:
        part: tells the holds of one request apart, where it asks several providers at once.
        """
        self._ledger = services.ledger
        self._name = exchange.id + part
        self._exchange = exchange
        self._facts = admitted.facts
        scopes = admitted.principal.scopes
        # What is asked besides is no other request of this caller, nor of this key.
        self._scopes = tuple(map(_without_request_rates, scopes)) if part else scopes
        self._key = None if part else _idempotency_key(exchange, admitted.principal)
        self._holds = 0
        self._target: Target | None = None
        self.hold_id: str | None = None
        self.amount_nusd = self.expires_at = 0
        services.renewal.watch(self)
        self.output_tokens = 0
        self.crossed: tuple[Crossed, ...] = ()

    async def hold(self, target: Target, *, output_tokens: int) -> Refusal | None:
        """Hold what ``target`` may cost; return ``None`` when it is held.

        A hold for the same target that is large enough already stays; one that is not is given
        back first, so that a request never holds twice what it can cost.
        """
        exchange = self._exchange
        amount = cost_bound_nusd(target.model, self._facts, output_tokens=output_tokens)
        if self.hold_id is None or target is not self._target or amount > self.amount_nusd:
            await self.release()
            hold_id = self._name if not self._holds else f"{self._name}.{self._holds}"
            expires_at = exchange.now + LEASE_MARGIN_S + 2 * int(target.upstream.timeout_s)
            measured = self._facts.measured
            # Held anew, a request is still one request.
            is_counted = self._holds or exchange.is_counted
            scopes = map(_without_request_rates, self._scopes) if is_counted else self._scopes
            held = await self._ledger.reserve(
                Hold(
                    id=hold_id,
                    amount_nusd=amount,
                    scopes=(*scopes, *target.scopes),
                    now=exchange.now,
                    expires_at=expires_at,
                    tokens=measured.input_tokens + output_tokens * measured.choices,
                    key=self._key,
                )
            )
            if not isinstance(held, Held):
                return held
            self._holds += 1
            self.crossed = held.crossed
            self.hold_id, self.amount_nusd, self._target = hold_id, amount, target
            self.expires_at = expires_at
        self.output_tokens = output_tokens
        return None

    def covers(self, target: Target) -> bool:
        """Whether what ``target`` may cost is held by now."""
        return self.hold_id is not None and target is self._target

    async def cover(self, target: Target) -> bool:
        """Hold what ``target`` may cost, its answer cut to what the account can pay if need be."""
        tokens = output_bound(target.model, self._facts)
        refusal = await self.hold(target, output_tokens=tokens)
        if refusal is None:
            return True
        if not isinstance(refusal, Shortfall):
            return False
        tokens = worthwhile(target.model, self._facts, refusal.available_nusd)
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


def _idempotency_key(exchange: Exchange, principal: Principal) -> IdempotencyKey | None:
    key = exchange.headers.get(b"idempotency-key")
    if key is None:
        return None
    if not 1 <= len(key) <= MAX_KEY_BYTES:
        raise InvalidRequestError(
            f"An Idempotency-Key has 1 to {MAX_KEY_BYTES} bytes.",
            code="idempotency_key_invalid",
            param="idempotency-key",
        )
    # Nobody learns which keys of others exist, and the same body at another API is another.
    whose = sha256(f"{principal.subject} {principal.account} ".encode() + key)
    body = exchange.body_digest or body_digest(exchange)
    return IdempotencyKey(digest=whose.hexdigest(), body=body, request_id=exchange.id)


def worthwhile(model: Model, facts: Facts, budget_nusd: int) -> int:
    """Return how long an answer ``budget_nusd`` pays for; 0 if that is not worth having."""
    tokens = affordable_output(model, facts, budget_nusd=budget_nusd)
    # What is thought comes before the answer, and is cut from the same bound.
    least = least_output(facts) - 1 + MIN_ANSWER_TOKENS
    return tokens if tokens >= min(least, output_bound(model, facts)) else 0
