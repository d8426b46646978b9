"""What a validator is like now, for a scrape: manifest, breakers, budgets, its own queues."""

from contextlib import suppress

from waypost.shared.errors import StoreError
from waypost.shared.money import NUSD_PER_USD
from waypost.validator.services import Services
from waypost.validator.telemetry.exposition import Gauge

__all__ = ["gauges"]

MOST_ACCOUNTS = 200
CLOSED, OPEN = 0.0, 1.0


async def gauges(services: Services, *, shows_budgets: bool) -> list[Gauge]:
    """Return all gauges.

    Args:
        shows_budgets: whether whoever asks may know who has how much left.
    """
    result = [
        *_manifest(services), _breakers(services), *_records(services), *_candidate(services),
        _certificates(services), _risks(services),
    ]  # fmt: skip
    if shows_budgets:
        result.append(await _budgets(services))
    return result


def _manifest(services: Services) -> list[Gauge]:
    now, newest, trusted = services.clock(), services.keeper.current, services.trusted
    told = [
        (
            "waypost_manifest_refused",
            "1 while the newest manifest cannot be served here.",
            float(services.refused is not None),
        )
    ]
    if trusted is not None:
        policy = trusted.policy
        told += [
            ("waypost_manifest_version", "Version being served.", float(policy.version)),
            ("waypost_manifest_age_seconds", "Since it was published.", now - policy.issued_at),
            (
                "waypost_models_unserved",
                "Models of it whose provider is not configured here.",
                float(len(services.unserved)),
            ),
        ]
    expires = {} if newest is None else newest.expires
    return [
        *(Gauge(name, text, (), [((), value)]) for name, text, value in told),
        Gauge(
            "waypost_manifest_expires_in_seconds",
            "Until the signature of a role lapses.",
            ("role",),
            [((role,), at - now) for role, at in expires.items()],
        ),
    ]


def _candidate(services: Services) -> list[Gauge]:
    candidate = services.candidate
    if candidate is None or candidate.active is None:
        return []
    told = (
        ("waypost_candidate_version", "Version on trial.", float(candidate.active.version)),
        (
            "waypost_canary_rolled_back",
            "1 once the canary has been.",
            float(candidate.rolled_back is not None),
        ),
    )
    return [Gauge(name, text, (), [((), value)]) for name, text, value in told]


def _breakers(services: Services) -> Gauge:
    targets = services.targets()
    return Gauge(
        "waypost_breaker_open",
        "1 while a model is given a rest by this process.",
        ("model", "provider"),
        [
            ((name, target.model.provider), CLOSED if target.breaker.is_closed else OPEN)
            for name, target in targets.items()
        ],
    )


def _records(services: Services) -> list[Gauge]:
    sink = services.records
    told = (
        ("waypost_records_waiting", "Decision records in memory.", sink.waiting),
        ("waypost_records_spilled_bytes", "On the disk, for the store.", sink.spilled_bytes),
        ("waypost_records_spill_full", "1 while the spill takes nothing.", bool(sink.spill_fault)),
    )  # fmt: skip
    return [Gauge(name, text, (), [((), float(value))]) for name, text, value in told]


def _certificates(services: Services) -> Gauge:
    now = services.clock()
    return Gauge(
        "waypost_provider_certificate_expires_in_seconds",
        "Of providers that this process has connected to by TLS.",
        ("provider",),
        [
            ((name,), upstream.certificate_expires_at - now)
            for name, upstream in services.upstreams.items()
            if upstream.certificate_expires_at is not None
        ],
    )


def _risks(services: Services) -> Gauge:
    return Gauge(
        "waypost_ledger_at_risk",
        "1 for each way in which the ledger's store may forget what was spent.",
        ("risk",),
        [((risk,), 1.0) for risk in sorted(services.ledger.risks)],
    )


async def _budgets(services: Services) -> Gauge:
    values: list[tuple[tuple[str, ...], float]] = []
    now = int(services.clock())
    budgets = services.config.budgets
    scopes = [budgets.account(account) for account in [*budgets.accounts][:MOST_ACCOUNTS]]
    with suppress(StoreError):  # /readyz says so; a scrape should not fail with the ledger
        for balance in await services.ledger.balances(scopes, now=now):
            left = balance.limit_nusd - balance.spent_nusd - balance.reserved_nusd
            account = balance.scope.partition(":")[2]
            values.append(((account, balance.window), left / NUSD_PER_USD))
    return Gauge(
        "waypost_budget_left_usd",
        "Of the accounts that validator.yaml lists.",
        ("account", "window"),
        values,
    )
