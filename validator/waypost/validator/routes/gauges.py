"""What a validator is like now, for a scrape: manifest, breakers, budgets, its own queues."""

from contextlib import suppress

from waypost.shared.errors import StoreError
from waypost.shared.money import NUSD_PER_USD
from waypost.validator.services import Desk
from waypost.validator.telemetry.exposition import Gauge

__all__ = ["gauges"]

MOST_ACCOUNTS = 200
CLOSED, OPEN = 0.0, 1.0


async def gauges(desk: Desk, *, shows_budgets: bool) -> list[Gauge]:
    """Return all gauges.

    Args:
        shows_budgets: whether whoever asks may know who has how much left.
    """
    result = [
        *_manifest(desk), _breakers(desk), *_records(desk), *_candidate(desk),
        _certificates(desk), _risks(desk),
    ]  # fmt: skip
    if shows_budgets:
        result.append(await _budgets(desk))
    return result


def _manifest(desk: Desk) -> list[Gauge]:
    now, newest, trusted = desk.clock(), desk.keeper.current, desk.trusted
    told = [
        (
            "waypost_manifest_refused",
            "1 while the newest manifest cannot be served here.",
            float(desk.refused is not None),
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
                float(len(desk.unserved)),
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


def _candidate(desk: Desk) -> list[Gauge]:
    candidate = desk.candidate
    if candidate is None or candidate.serving is None:
        return []
    told = (
        ("waypost_candidate_version", "Version on trial.", float(candidate.serving.version)),
        (
            "waypost_canary_rolled_back",
            "1 once the canary has been.",
            float(candidate.rolled_back is not None),
        ),
    )
    return [Gauge(name, text, (), [((), value)]) for name, text, value in told]


def _breakers(desk: Desk) -> Gauge:
    targets = desk.targets()
    return Gauge(
        "waypost_breaker_open",
        "1 while a model is given a rest by this process.",
        ("model", "provider"),
        [
            ((name, target.model.provider), CLOSED if target.breaker.is_closed else OPEN)
            for name, target in targets.items()
        ],
    )


def _records(desk: Desk) -> list[Gauge]:
    sink = desk.records
    told = (
        ("waypost_records_waiting", "Decision records in memory.", sink.waiting),
        ("waypost_records_spilled_bytes", "On the disk, for the store.", sink.spilled_bytes),
        ("waypost_records_spill_full", "1 while the spill takes nothing.", bool(sink.spill_fault)),
    )  # fmt: skip
    return [Gauge(name, text, (), [((), float(value))]) for name, text, value in told]


def _certificates(desk: Desk) -> Gauge:
    now = desk.clock()
    return Gauge(
        "waypost_provider_certificate_expires_in_seconds",
        "Of providers that this process has connected to by TLS.",
        ("provider",),
        [
            ((name,), upstream.certificate_expires_at - now)
            for name, upstream in desk.upstreams.items()
            if upstream.certificate_expires_at is not None
        ],
    )


def _risks(desk: Desk) -> Gauge:
    return Gauge(
        "waypost_ledger_at_risk",
        "1 for each way in which the ledger's store may forget what was spent.",
        ("risk",),
        [((risk,), 1.0) for risk in sorted(desk.ledger.risks)],
    )


async def _budgets(desk: Desk) -> Gauge:
    values: list[tuple[tuple[str, ...], float]] = []
    now = int(desk.clock())
    budgets = desk.config.budgets
    scopes = [budgets.account(account) for account in [*budgets.accounts][:MOST_ACCOUNTS]]
    with suppress(StoreError):  # /readyz says so; a scrape should not fail with the ledger
        for balance in await desk.ledger.balances(scopes, now=now):
            left = balance.limit_nusd - balance.spent_nusd - balance.reserved_nusd
            account = balance.scope.partition(":")[2]
            values.append(((account, balance.window), left / NUSD_PER_USD))
    return Gauge(
        "waypost_budget_left_usd",
        "Of the accounts that validator.yaml lists.",
        ("account", "window"),
        values,
    )
