"""How everything fares: routes compared, budgets, providers, and the manifest with its keys."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from waypost.shared.contracts import Model, Policy, SpendLimit
from waypost.shared.decision.rules import describe
from waypost.shared.errors import InvalidRequestError
from waypost.shared.records import DecisionRecord
from waypost.shared.trust import NOTICE_S
from waypost.validator.config.budgets import Budgets
from waypost.validator.console.charts import Chart, lines
from waypost.validator.console.pages import (
    WINDOWS,
    Window,
    alone_in,
    page,
    services_of,
    window_of,
)
from waypost.validator.console.words import decimal_ms, duration
from waypost.validator.ledger import Balance, Scope, scope_of
from waypost.validator.records import RecordFilter, RecordStats, StatsRow
from waypost.validator.records.savings import Alone
from waypost.validator.services import Services

__all__ = ["budgets", "manifest", "providers", "routes"]

MAX_ACCOUNTS = 200
RECENT = 500
# How providers fare is told of so much time, each part of it looked into alike: of the newest
# decisions alone an outage cannot be seen, as nothing is sent to what rests.
HEALTH_S = 300
HEALTH_PARTS = 10
OF_EACH_PART = 100
FEW_FAIL = 0.05  # of attempts; what providers do on an ordinary day
NO_LIMIT_NUSD = 2**53 - 1


# ── routes ─────────────────────────────────────────────────────────────────────────────────────


class Compared(NamedTuple):
    """One route's share of a window. Money in nano-dollars."""

    name: str | None
    requests: int
    cost_nusd: int
    saved_nusd: int
    overridden: int
    refused: int
    failed: int
    repeated: int
    good: int
    bad: int
    times: StatsRow

    @property
    def each_nusd(self) -> int:
        """What one request cost."""
        return self.cost_nusd // self.requests if self.requests else 0


async def routes(request: Request) -> Response:
    """Routes beside each other: traffic, cost, savings, times, overrides, quality."""
    services = services_of(request)
    window = window_of(request)
    filters = RecordFilter(since_ms=window.starts_ms(services.clock()).start)
    alone, sums, times, steps = await asyncio.gather(
        alone_in(services, window),
        services.store.stats(filters, by=("route", "verdict", "model"), times=()),
        services.store.stats(filters, by=("route",), times=("ttft",)),
        services.store.stats(filters, by=(), step_ms=window.step_ms, times=("ttft",)),
    )
    names = {row.route for row in sums.rows}
    compared = [_compared(name, sums, times, alone) for name in names]
    trusted = services.manifests.trusted
    known = {} if trusted is None else {route.name: route for route in trusted.policy.routes}
    return await page(
        request,
        "routes.html",
        compared=sorted(compared, key=lambda one: -one.requests),
        total=sum(one.requests for one in compared),
        dearest=max((one.each_nusd for one in compared), default=0),
        known=known,
        against=alone.name,
        describe=describe,
        chart=_times(window, steps, services.clock()),
        window=window,
        link="?window={}".format,
        windows=WINDOWS.values(),
    )


def _compared(name: str | None, sums: RecordStats, times: RecordStats, alone: Alone) -> Compared:
    rows = [row for row in sums.rows if row.route == name]
    return Compared(
        name=name,
        requests=sum(row.requests for row in rows),
        cost_nusd=sum(row.cost_nusd for row in rows),
        saved_nusd=alone.saved_nusd(rows),
        overridden=sum(row.requests for row in rows if row.verdict == "overridden"),
        refused=sum(row.refused for row in rows),
        failed=sum(row.failed for row in rows),
        repeated=sum(row.repeated for row in rows),
        good=sum(row.good for row in rows),
        bad=sum(row.bad for row in rows),
        times=next((row for row in times.rows if row.route == name), StatsRow()),
    )


def _times(window: Window, steps: RecordStats, now: float) -> Chart:
    starts = window.starts_ms(now)
    p50: list[float | None] = [None] * len(starts)
    p95 = list(p50)
    for row in steps.rows:
        if row.at_ms is not None and row.at_ms in starts:
            place = starts.index(row.at_ms)
            p50[place], p95[place] = row.ttft_p50_ms, row.ttft_p95_ms
    labels = [window.label(at_ms) for at_ms in starts]
    return lines(labels, {"p50": p50, "p95": p95}, say=_axis)


def _axis(ms: float) -> str:
    return decimal_ms(ms) if ms else "0"


# ── budgets ────────────────────────────────────────────────────────────────────────────────────


class Spender(NamedTuple):
    """Something that spends, and its windows.

    Attributes:
        kind: ``account``, ``tenant``, ``tier``, ``provider``, ``model``, ``overall``.
        is_limited: whether ``validator.yaml`` limits it; a token may, all the same.
    """

    kind: str
    name: str
    is_limited: bool
    balances: tuple[Balance, ...]


async def budgets(request: Request) -> Response:
    """Accounts and whatever else is limited: spent and reserved, and what may be spent."""
    services = services_of(request)
    wanted = request.query_params.get("account", "").strip()[:128]
    if not wanted.isprintable():
        raise InvalidRequestError("An account has printable characters.", code="invalid_query")
    config = services.config.budgets
    recent = await services.store.list(RecordFilter(), limit=RECENT)
    seen = {record.account for record in recent if record.account is not None}
    names = [wanted] if wanted else sorted({*config.accounts, *seen})
    spenders = [await _account(services, name) for name in names[:MAX_ACCOUNTS]]
    if not wanted:
        spenders += [await _spender(services, scope) for scope in _limited(config)[:MAX_ACCOUNTS]]
    return await page(
        request,
        "budgets.html",
        spenders=sorted(spenders, key=_used, reverse=True),
        more=max(0, len(names) - MAX_ACCOUNTS),
        wanted=wanted,
        recent=RECENT,
        no_limit=NO_LIMIT_NUSD,
    )


def _used(spender: Spender) -> float:
    """Return the share of its tightest window that is spent or reserved."""
    shares = [
        (one.spent_nusd + one.reserved_nusd) / one.limit_nusd if one.limit_nusd else 1.0
        for one in spender.balances
        if one.limit_nusd != NO_LIMIT_NUSD
    ]
    return max(shares, default=0.0)


_NO_LIMITS = (
    SpendLimit(window="day", limit_nusd=NO_LIMIT_NUSD),
    SpendLimit(window="month", limit_nusd=NO_LIMIT_NUSD),
    SpendLimit(window="total", limit_nusd=NO_LIMIT_NUSD),
)


async def _account(services: Services, name: str) -> Spender:
    limited = services.config.budgets.account(name)
    if limited.limits:
        return await _spender(services, limited)
    spender = await _spender(services, services.config.budgets.account(name, _NO_LIMITS))
    return spender._replace(is_limited=False)


async def _spender(services: Services, scope: Scope) -> Spender:
    balances = await services.ledger.balances((scope,), now=int(services.clock()))
    kind, _, name = scope.name.partition(":")
    windows = tuple(balance for balance in balances if balance.window != "request")
    return Spender("overall" if kind == "global" else kind, name, True, windows)


def _limited(config: Budgets) -> list[Scope]:
    """Return what is limited beside accounts. Users are not: records know their pseudonyms only."""
    kinds = {
        "tenant": config.tenants,
        "tier": config.tiers,
        "provider": config.providers,
        "model": config.models,
    }
    rules = [("global", config.overall)] + [
        (f"{kind}:{name}", of) for kind, named in kinds.items() for name, of in named.items()
    ]
    scopes = [scope_of(name, (limit for rule in of for limit in rule.limits)) for name, of in rules]
    return [scope for scope in scopes if scope.limits]


# ── providers ──────────────────────────────────────────────────────────────────────────────────


class Health(NamedTuple):
    """One model at its provider.

    Attributes:
        state: of its breaker: ``closed``, ``open``, ``half-open``; ``unserved`` without a provider.
        narrow_rests: for how many accounts, or single bodies of theirs, it rests here.
        attempts, failed: of late, over all validators that share the records.
        decisions, away: how many were looked at, and at how many of them it was out of service.
    """

    model: Model
    state: str
    rests_s: float
    narrow_rests: int
    attempts: int
    failed: int
    decisions: int
    away: int
    outcomes: dict[str, int]
    row: StatsRow | None


class Served(NamedTuple):
    """One provider as this process sees it."""

    name: str
    host: str
    is_simulated: bool
    in_flight: int
    models: list[Health]


async def providers(request: Request) -> Response:
    """Providers: breakers, failures of late, times."""
    services = services_of(request)
    window = WINDOWS["1h"]
    filters = RecordFilter(since_ms=window.starts_ms(services.clock()).start)
    recent, stats = await asyncio.gather(
        _of_late(services), services.store.stats(filters, by=("model",), times=("ttft",))
    )
    trusted = services.manifests.trusted
    models = () if trusted is None else trusted.policy.models
    served = [
        Served(
            name,
            config.base_url.partition("://")[2].partition("/")[0],
            config.simulated,
            services.upstreams[name].limiter.in_flight,
            [_health(services, m, recent, stats) for m in models if m.provider == name],
        )
        for name, config in services.config.providers.items()
    ]
    unserved = [m.id for m in models if m.provider not in services.config.providers]
    return await page(
        request,
        "providers.html",
        served=served,
        troubles=_troubles(served, unserved),
        has_traffic=bool(recent),
        minutes=HEALTH_S // 60,
        of_each_part=OF_EACH_PART,
        part_s=HEALTH_S // HEALTH_PARTS,
    )


async def _of_late(services: Services) -> list[DecisionRecord]:
    """Return decisions from all over the last minutes, of all validators that share the records."""
    step_ms, now_ms = HEALTH_S * 1_000 // HEALTH_PARTS, int(services.clock() * 1_000)
    starts = range(now_ms - HEALTH_S * 1_000, now_ms, step_ms)
    parts = await asyncio.gather(
        *(
            services.store.list(
                RecordFilter(since_ms=start, until_ms=start + step_ms), limit=OF_EACH_PART
            )
            for start in starts
        )
    )
    return [record for part in parts for record in part]


class Trouble(NamedTuple):
    """What a person should know first. ``tone`` is that of a verdict."""

    tone: str
    words: str


def _troubles(served: Sequence[Served], unserved: Sequence[str]) -> list[Trouble]:
    """Return what is wrong, worst first; nothing if all is well."""
    found: list[Trouble] = []
    every = [(one.name, health) for one in served for health in one.models]
    for name, health in every:
        if health.state == "open":
            wait = duration(health.rests_s)
            words = f"{health.model.id} at {name} is resting: nothing is sent to it for {wait}."
            found.append(Trouble("refused", words))
    for name, health in every:
        if health.state != "open" and health.away:
            words = (
                f"{health.model.id} at {name} was out of service at {health.away} of"
                f" {health.decisions} decisions of the last {HEALTH_S // 60} minutes."
            )
            found.append(Trouble("refused", words))
    for name, health in every:
        if health.state != "open" and health.failed > FEW_FAIL * health.attempts:
            words = (
                f"{health.model.id} at {name} failed {health.failed} of {health.attempts} times."
            )
            found.append(Trouble("overridden", words))
    if unserved:
        words = f"No provider is configured here for {', '.join(unserved)}: never chosen."
        found.append(Trouble("overridden", words))
    return found


def _health(
    services: Services, model: Model, recent: Sequence[DecisionRecord], stats: RecordStats
) -> Health:
    breaker = services.upstreams[model.provider].breaker(model)
    now = services.monotonic()
    state = "closed" if breaker.is_closed else "open" if breaker.rests_s(now) else "half-open"
    outcomes: dict[str, int] = {}
    for record in recent:
        for attempt in record.attempts:
            if attempt.model == model.id:
                outcomes[attempt.outcome] = outcomes.get(attempt.outcome, 0) + 1
    attempts = sum(outcomes.values())
    innocent = sum(outcomes.pop(name, 0) for name in ("ok", "cancelled", "stopped", "client_error"))
    decided = [record.facts.measured for record in recent if record.facts is not None]
    return Health(
        model=model,
        state=state,
        rests_s=breaker.rests_s(now),
        narrow_rests=breaker.narrow_rests,
        attempts=attempts,
        failed=attempts - innocent,
        decisions=len(decided),
        away=sum(model.id in measured.out_of_service for measured in decided),
        outcomes=outcomes,
        row=next((row for row in stats.rows if row.model == model.id), None),
    )


# ── the manifest ───────────────────────────────────────────────────────────────────────────────


class Role(NamedTuple):
    """One role of the signed repository.

    Attributes:
        keys: how many of them, by their kind; ``threshold`` of them must sign.
    """

    name: str
    version: int
    expires_at: float
    keys: tuple[str, ...]
    threshold: int


class _Keys(Struct):
    keyids: list[str]
    threshold: int


class _Key(Struct):
    keytype: str = ""


class _DelegatedRole(Struct):
    name: str
    keyids: list[str]
    threshold: int


class _Delegations(Struct):
    roles: list[_DelegatedRole] = []


class _Signed(Struct):
    version: int
    expires: str
    keys: dict[str, _Key] = {}
    roles: dict[str, _Keys] = {}
    delegations: _Delegations | None = None


class _Metadata(Struct):
    signed: _Signed


def _roles(metadata: dict[str, str]) -> list[Role]:
    """Return the roles of verified metadata, root first."""
    read = {
        name: msgspec.json.decode(text, type=_Metadata).signed for name, text in metadata.items()
    }
    holders = dict(read["root"].roles)
    delegations = read["targets"].delegations if "targets" in read else None
    for role in delegations.roles if delegations is not None else ():
        holders[role.name] = _Keys(role.keyids, role.threshold)
    order = ("root", "targets", "snapshot", "timestamp")
    names = sorted(read, key=lambda name: (order.index(name) if name in order else 9, name))
    return [
        Role(
            name,
            read[name].version,
            datetime.fromisoformat(read[name].expires).timestamp(),
            tuple(keyid[:12] for keyid in holders[name].keyids) if name in holders else (),
            holders[name].threshold if name in holders else 0,
        )
        for name in names
    ]


async def manifest(request: Request) -> Response:
    """The manifest in use, what proves it and until when; who may issue tokens."""
    services = services_of(request)
    now = services.clock()
    trusted = services.manifests.trusted
    policy: Policy | None = None if trusted is None else trusted.policy
    return await page(
        request,
        "manifest.html",
        trusted=trusted,
        policy=policy,
        refuse_from=None
        if trusted is None
        else trusted.expires_at + services.config.manifest.grace_s,
        is_held_back=services.manifests.keeper.is_held_back(now),
        last_error=services.manifests.keeper.last_error,
        refused=services.manifests.refused,
        lapses=services.manifests.lapses(),
        notice_s=NOTICE_S,
        url=services.config.manifest.url,
        roles=_roles(services.manifests.keeper.metadata()),
        describe=describe,
    )
