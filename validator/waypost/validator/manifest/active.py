"""What is served now, and to whom: a manifest made ready, its models, a caller.

``ActiveManifest`` is everything that depends on the manifest alone, computed when one takes over
and swapped by one assignment; a request works with the ``ActiveManifest`` it started with.
"""

from collections.abc import Mapping
from hashlib import sha256

import msgspec
from msgspec import Struct

from waypost.shared.contracts import Claims, Facts, Model, Proposal, Signed
from waypost.shared.decision.compiled import CompiledPolicy
from waypost.shared.errors import PolicyError
from waypost.shared.money import Price
from waypost.shared.trust import Trusted
from waypost.validator.access.tokens import TokenVerifier
from waypost.validator.config.budgets import Budgets
from waypost.validator.dialects.adapter import Adapter, InboundRequest, Passthrough
from waypost.validator.ledger import Scope
from waypost.validator.upstream.breaker import ANYONE, Breaker, Witness
from waypost.validator.upstream.key_pool import LONGEST_WAIT_S
from waypost.validator.upstream.provider import Upstream

__all__ = ["ActiveManifest", "Principal", "Speaking", "Target"]

MOST_NAMED = 12  # models, in a sentence
MOST_PRINCIPALS = 10_000


class Principal(Struct, frozen=True):
    """Who asks, as the token says it, made ready for what follows.

    Attributes:
        account: who pays.
        scopes: what its requests count for, whatever serves them; the account first.
        may_spend: whether there is a limit, or the operator said that none is needed.
    """

    claims: Claims
    subject: str
    signed: Signed
    account: str
    scopes: tuple[Scope, ...]
    may_spend: bool


class Target(Struct, frozen=True):
    """A model and the provider that serves it.

    Attributes:
        scopes: what requests count for that it serves.
    """

    model: Model
    upstream: Upstream
    breaker: Breaker
    scopes: tuple[Scope, ...]

    def refuses(
        self, now: float, who: Witness = ANYONE, inbound: InboundRequest | None = None
    ) -> bool:
        """Whether it can be sent nothing now, nor after a wait that a request can afford."""
        if self.breaker.refuses(now, who):
            return True
        if inbound is not None and self.is_silent(inbound, now):
            return True
        until = self.upstream.keys.rests_until(self.model.name, now)
        return until is not None and until > now + LONGEST_WAIT_S

    def is_silent(self, inbound: InboundRequest, now: float) -> bool:
        """Whether its provider said of late that it has no such API, and has no other for this."""
        upstream = self.upstream
        return bool(upstream.unspoken) and (
            inbound.endpoint in upstream.adapters
            and upstream.adapter(inbound, self.model.name, now) is None
        )

    def rests_s(
        self, now: float, who: Witness = ANYONE, inbound: InboundRequest | None = None
    ) -> float:
        """Return how long it can still be sent nothing, as far as is known; 0 if it can."""
        until = self.upstream.keys.rests_until(self.model.name, now)
        silent_s = (
            0.0 if inbound is None else self.upstream.unspoken_s(inbound, self.model.name, now)
        )
        return max(self.breaker.rests_s(now, who), 0.0 if until is None else until - now, silent_s)

    def wake(self, now: float, who: Witness, inbound: InboundRequest) -> bool:
        """Return whether it may be tried early, as nothing else can serve ``inbound``."""
        self.upstream.wake(inbound, self.model.name, now)
        self.breaker.wake(now, who)
        return not self.refuses(now, who, inbound)


class Speaking(Struct, frozen=True):
    """How the models of a manifest can be asked by one API.

    Attributes:
        unsupported: the models that cannot, whatever is asked.
        translated: what may have no words for a request → the models it is for.
    """

    unsupported: tuple[str, ...]
    translated: tuple[tuple[Adapter, tuple[str, ...]], ...]


class ActiveManifest:
    """One manifest, ready to serve.

    Attributes:
        routes: by name.
        targets: by model id. A model whose provider is not configured here is not among them.
        unserved: the models that are not.
        proposals: what naming a model in the body means.
        refuse_from: Unix seconds after which it must not be served on any more.
    """

    def __init__(
        self,
        trusted: Trusted,
        upstreams: Mapping[str, Upstream],
        *,
        budgets: Budgets,
        audience: str,
        grace_s: int,
    ) -> None:
        """Raises PolicyError.

        ``issuers_invalid``: no token could be checked with it; ``providers_missing``: it has
        models, and none of their providers is configured here.
        """
        self.trusted = trusted
        self.compiled: CompiledPolicy = trusted.compiled
        self.version = trusted.policy.version
        self.digest = trusted.policy_digest
        self.verifier = TokenVerifier(trusted.issuers, audience=audience)
        self.refuse_from = trusted.expires_at + grace_s
        self.targets = {
            model.id: Target(
                model,
                upstream,
                upstream.breaker(model),
                budgets.target(provider=model.provider, model=model.id),
            )
            for model in trusted.policy.models
            if (upstream := upstreams.get(model.provider)) is not None
        }
        self.routes = {route.name: route for route in trusted.policy.routes}
        self.unserved = tuple(
            model.id for model in trusted.policy.models if model.id not in self.targets
        )
        if self.unserved and not self.targets:
            raise PolicyError(
                f"no provider of its models is configured here: {self.lacking}; add one of them"
                " to providers in validator.yaml, or publish a policy for those that are there",
                code="providers_missing",
            )
        self.proposals = {model.id: Proposal(model=model.id) for model in trusted.policy.models}
        self.hints_bytes = None if trusted.hints is None else msgspec.json.encode(trusted.hints)
        self.hints_digest = (
            None if self.hints_bytes is None else sha256(self.hints_bytes).hexdigest()
        )
        self.header = (b"waypost-manifest", b"%d" % self.version)
        self._upstreams = upstreams
        self._principals: dict[int, Principal] = {}
        self._best: dict[int, Price] = {}
        self._speaking: dict[str, Speaking] = {}

    @property
    def lacking(self) -> str:
        """The models whose providers are not configured here, each with its provider."""
        lacking = [m for m in self.trusted.policy.models if m.id not in self.targets]
        named = [f"{model.id} (of {model.provider})" for model in lacking[:MOST_NAMED]]
        more = len(lacking) - len(named)
        return ", ".join(named) + (f" and {more} more" if more else "")

    def known(self, claims: Claims) -> Principal | None:
        """Return what was made of these verified claims before."""
        known = self._principals.get(id(claims))
        return known if known is not None and known.claims is claims else None

    def remember(self, principal: Principal) -> None:
        """Keep what was made of verified claims; for as long as the verifier keeps them."""
        if len(self._principals) >= MOST_PRINCIPALS:
            self._principals.clear()
        self._principals[id(principal.claims)] = principal

    def out_of_service(
        self, now: float, inbound: InboundRequest | None = None, *, account: str | None = None
    ) -> tuple[str, ...]:
        """Return the models that cannot be sent anything at the moment.

        Args:
            now: monotonic seconds.
            inbound: what is to be sent, and for whom; ``None``: nothing in particular.
        """
        for upstream in self._upstreams.values():
            if not upstream.is_well:
                break
        else:
            return self.unserved
        who = ANYONE
        for upstream in self._upstreams.values():
            for breaker in tuple(upstream.opened):
                breaker.tidy(now)
                if inbound is not None:
                    who = Witness.of(account, inbound.body)
        return self.unserved + tuple(
            name for name, target in self.targets.items() if target.refuses(now, who, inbound)
        )

    def speaking(self, endpoint: str) -> Speaking:
        """Return how the models can be asked by the API ``endpoint``."""
        speaking = self._speaking.get(endpoint)
        if speaking is None:
            speaking = self._speaking[endpoint] = self._learn(endpoint)
        return speaking

    def _learn(self, endpoint: str) -> Speaking:
        unsupported: list[str] = []
        translated: dict[str, tuple[Adapter, list[str]]] = {}
        for name, target in self.targets.items():
            adapter = target.upstream.adapters.get(endpoint)
            if adapter is None:
                unsupported.append(name)
            elif not isinstance(adapter, Passthrough):
                # Providers that are spoken to alike are asked alike.
                _, names = translated.setdefault(adapter.kind, (adapter, []))
                names.append(name)
        return Speaking(
            tuple(unsupported),
            tuple((adapter, tuple(names)) for adapter, names in translated.values()),
        )

    def unrouted_price(self, facts: Facts) -> Price | None:
        """Return the price of the best-rated model that could have served ``facts``.

        That is what everybody sends everything to where nothing routes.
        """
        mask, _ = self.compiled.admissible(facts)
        price = self._best.get(mask)
        if price is None and mask:
            bits = self.compiled.bits
            admissible = [model for model in self.compiled.models.values() if bits[model.id] & mask]
            best = max(admissible, key=lambda m: (m.quality, m.price.output_nusd_per_mtok, m.id))
            price = self._best[mask] = best.price
        return price
