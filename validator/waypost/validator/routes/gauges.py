"""What a validator is like now, for a scrape: manifest, breakers, budgets, its own queues."""

from collections.abc import Mapping
from contextlib import suppress

from waypost.shared.errors import StoreError
from waypost.shared.money import NUSD_PER_USD
from waypost.validator.config.budgets import Budgets
from waypost.validator.ledger import Ledger
from waypost.validator.manifest.active import Target
from waypost.validator.manifest.canary import Candidate
from waypost.validator.manifest.refresh import ManifestService
from waypost.validator.records import RecordSink
from waypost.validator.services import Services
from waypost.validator.telemetry.exposition import Gauge
from waypost.validator.upstream.provider import Upstream

__all__ = ["gauges"]

MOST_ACCOUNTS = 200
CLOSED, OPEN = 0.0, 1.0


async def gauges(services: Services, *, shows_budgets: bool) -> list[Gauge]:
    """Return all gauges.

    Args:
        shows_budgets: whether whoever asks may know who has how much left.
    """
    now = services.clock()
    result = [
        *_manifest(services.manifests, now),
        _breakers(services.manifests.targets()),
        *_records(services.records),
        *_candidate(services.manifests.candidate),
        _certificates(services.upstreams, now),
        _risks(services.ledger),
    ]
    if shows_budgets:
        result.append(await _budgets(services.ledger, services.config.budgets, int(now)))
    return result


def _manifest(manifests: ManifestService, now: float) -> list[Gauge]:
    newest, trusted = manifests.keeper.current, manifests.trusted
    told = [
        (
            "waypost_manifest_refused",
            "1 while the newest manifest cannot be served here.",
            float(manifests.refused is not None),
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
                float(len(manifests.unserved)),
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


def _candidate(candidate: Candidate | None) -> list[Gauge]:
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


def _breakers(targets: Mapping[str, Target]) -> Gauge:
    return Gauge(
        "waypost_breaker_open",
        "1 while a model is given a rest by this process.",
        ("model", "provider"),
        [
            ((name, target.model.provider), CLOSED if target.breaker.is_closed else OPEN)
            for name, target in targets.items()
        ],
    )


def _records(sink: RecordSink) -> list[Gauge]:
    told = (
        ("waypost_records_waiting", "Decision records in memory.", sink.waiting),
        ("waypost_records_spilled_bytes", "On the disk, for the store.", sink.spilled_bytes),
        ("waypost_records_spill_full", "1 while the spill takes nothing.", bool(sink.spill_fault)),
    )  # fmt: skip
    return [Gauge(name, text, (), [((), float(value))]) for name, text, value in told]


def _certificates(upstreams: Mapping[str, Upstream], now: float) -> Gauge:
    return Gauge(
        "waypost_provider_certificate_expires_in_seconds",
        "Of providers that this process has connected to by TLS.",
        ("provider",),
        [
            ((name,), upstream.certificate_expires_at - now)
            for name, upstream in upstreams.items()
            if upstream.certificate_expires_at is not None
        ],
    )


def _risks(ledger: Ledger) -> Gauge:
    return Gauge(
        "waypost_ledger_at_risk",
        "1 for each way in which the ledger's store may forget what was spent.",
        ("risk",),
        [((risk,), 1.0) for risk in sorted(ledger.risks)],
    )


async def _budgets(ledger: Ledger, budgets: Budgets, now: int) -> Gauge:
    values: list[tuple[tuple[str, ...], float]] = []
    scopes = [budgets.account(account) for account in [*budgets.accounts][:MOST_ACCOUNTS]]
    with suppress(StoreError):  # /readyz says so; a scrape should not fail with the ledger
        for balance in await ledger.balances(scopes, now=now):
            left = balance.limit_nusd - balance.spent_nusd - balance.reserved_nusd
            account = balance.scope.partition(":")[2]
            values.append(((account, balance.window), left / NUSD_PER_USD))
    return Gauge(
        "waypost_budget_left_usd",
        "Of the accounts that validator.yaml lists.",
        ("account", "window"),
        values,
    )
