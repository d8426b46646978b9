"""What may be spent, by whom and on what, as the ledger's scopes have it.

A limit set here holds whatever a token says: a token may only lower it.
"""

from collections.abc import Iterable
from decimal import Decimal
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator, model_validator

from waypost.cli.yamlfile import FileModel
from waypost.shared.contracts import SpendLimit, Window
from waypost.shared.money import NUSD_PER_USD
from waypost.validator.config.value_types import EnvName, Usd, wrong
from waypost.validator.ledger.base import RateLimit, Scope, scope_of
from waypost.validator.ledger.calendar import Calendar

__all__ = ["Budgets", "SpendRule"]


class SpendRule(FileModel):
    """What may be spent in each window, and from where on callers are warned.

    Attributes:
        warn_usd: nothing is refused for it.
        limit_requests, limit_tokens: in any stretch of the window's length.
    """

    window: Window
    limit_usd: Usd | None = None
    warn_usd: Usd | None = None
    limit_requests: Annotated[int, Field(ge=0, le=10**9)] | None = None
    limit_tokens: Annotated[int, Field(ge=0, le=10**12)] | None = None

    @model_validator(mode="after")
    def _limits_something(self) -> "SpendRule":
        rates = (self.limit_requests, self.limit_tokens)
        if self.limit_usd is None and self.warn_usd is None and rates == (None, None):
            raise wrong("give limit_usd, warn_usd, limit_requests or limit_tokens")
        if rates != (None, None) and self.window not in ("minute", "hour", "day", "week"):
            raise wrong("requests and tokens are limited per minute, hour, day or week")
        if self.warn_usd is not None and self.window == "request":
            raise wrong("a single request warns nobody; leave warn_usd out, or name a window")
        return self

    def _spend(self, usd: Decimal | None) -> Iterable[SpendLimit]:
        if usd is not None:
            yield SpendLimit(window=self.window, limit_nusd=int(usd * NUSD_PER_USD))

    @property
    def limits(self) -> Iterable[SpendLimit]:
        """The hard limit in nano-dollars, if there is one."""
        return self._spend(self.limit_usd)

    @property
    def warnings(self) -> Iterable[SpendLimit]:
        """The soft limit in nano-dollars, if there is one."""
        return self._spend(self.warn_usd)

    @property
    def rates(self) -> Iterable[RateLimit]:
        """The limits of requests and tokens."""
        if self.window in ("minute", "hour", "day", "week"):
            if self.limit_requests is not None:
                yield RateLimit(unit="requests", window=self.window, limit=self.limit_requests)
            if self.limit_tokens is not None:
                yield RateLimit(unit="tokens", window=self.window, limit=self.limit_tokens)


Rules = list[SpendRule]
# By name; "*" is for whoever is not listed.
RulesByName = dict[str, Rules]


class Budgets(FileModel):
    """The ledger's own limits. A token may only lower them.

    Attributes:
        default: for an account that is not listed; empty: what the token says is all.
        accounts: per account, instead of the default.
        users: by the token's subject.
        overall: for all requests together.
        unlimited: whether an account may spend that neither this nor its token limits.
        time_zone: whose days, weeks and months are counted.
        webhook: name of the environment variable with the URL that is told of soft limits.
    """

    default: Rules = []
    accounts: RulesByName = {}
    users: RulesByName = {}
    tenants: RulesByName = {}
    tiers: RulesByName = {}
    providers: RulesByName = {}
    models: RulesByName = {}
    overall: Rules = []
    unlimited: bool = False
    time_zone: str = "UTC"
    webhook: EnvName | None = None

    @field_validator("time_zone")
    @classmethod
    def _is_a_zone(cls, name: str) -> str:
        try:
            if name != "UTC":
                ZoneInfo(name)
        except (KeyError, ValueError, OSError):  # ZoneInfoNotFoundError is a KeyError
            raise wrong("should be a time zone, as in Europe/Berlin") from None
        return name

    @property
    def calendar(self) -> Calendar:
        """When the windows begin and end."""
        # A small machine may lack the database of time zones.
        return Calendar() if self.time_zone == "UTC" else Calendar(ZoneInfo(self.time_zone))

    def scope(self, name: str) -> Scope:
        """Return any scope by its name, with the limits set here; a user by the subject."""
        kind, _, who = name.partition(":")
        by_kind = {
            "user": self.users,
            "tenant": self.tenants,
            "tier": self.tiers,
            "provider": self.providers,
            "model": self.models,
        }
        if kind == "account":
            return self.account(who)
        return _scope(name, self.overall if name == "global" else _rules(by_kind[kind], who))

    def account(self, name: str, ceilings: Iterable[SpendLimit] = ()) -> Scope:
        """Return the account ``name``, also within the ``ceilings`` of its token."""
        return _scope(f"account:{name}", self.accounts.get(name, self.default), ceilings)

    def trial(self, channel: str, rules: Rules) -> tuple[Scope, ...]:
        """Return who pays for what a candidate's shadow sends. No token can name it."""
        own = _scope(f"trial:{channel}", rules)
        return (own, _scope("global", self.overall)) if self.overall else (own,)

    def principal(
        self, *, subject: str, pseudonym: str, tenant: str | None, tier: str
    ) -> tuple[Scope, ...]:
        """Return what else a caller's requests count for, whatever serves them."""
        scopes = [_scope(f"user:{pseudonym}", _rules(self.users, subject))]
        if tenant is not None:
            scopes.append(_scope(f"tenant:{tenant}", _rules(self.tenants, tenant)))
        scopes.append(_scope(f"tier:{tier}", _rules(self.tiers, tier)))
        if self.overall:
            scopes.append(_scope("global", self.overall))
        return tuple(scopes)

    def target(self, *, provider: str, model: str) -> tuple[Scope, ...]:
        """Return what a request counts for that ``model`` serves."""
        return (
            _scope(f"provider:{provider}", _rules(self.providers, provider)),
            _scope(f"model:{model}", _rules(self.models, model)),
        )


def _rules(by_name: RulesByName, name: str) -> Rules:
    rules = by_name.get(name)
    return by_name.get("*", []) if rules is None else rules


def _scope(name: str, rules: Rules, ceilings: Iterable[SpendLimit] = ()) -> Scope:
    return scope_of(
        name,
        (*ceilings, *(limit for rule in rules for limit in rule.limits)),
        warnings=(warning for rule in rules for warning in rule.warnings),
        rates=tuple(rate for rule in rules for rate in rule.rates),
    )
