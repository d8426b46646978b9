"""Opens the ledger that ``validator.yaml`` names. A driver is imported only if it is named."""

import time
from collections.abc import Callable, Mapping

from waypost.validator.config import ConfigError
from waypost.validator.config.budgets import Budgets
from waypost.validator.config.stores import LedgerConfig
from waypost.validator.ledger.base import Ledger
from waypost.validator.ledger.leased import LeasedLedger
from waypost.validator.ledger.sqlite import open_sqlite

__all__ = ["open_ledger"]


def open_ledger(
    config: LedgerConfig,
    budgets: Budgets,
    environment: Mapping[str, str],
    *,
    monotonic: Callable[[], float] = time.monotonic,
) -> Ledger:
    """Return the ledger. One that is reached over a network is connected to when it is asked.

    Raises:
        ConfigError: the variable with its address is unset, or its driver missing.
        StoreError: the file cannot be opened.
    """
    ledger = _store(config, budgets, environment)
    if not config.leased:
        return ledger
    return LeasedLedger(
        ledger,
        budgets.calendar,
        lease_s=config.lease_s,
        share=config.lease_percent / 100,
        spends_when_down=config.when_down == "spend_leases",
        monotonic=monotonic,
    )


def _store(config: LedgerConfig, budgets: Budgets, environment: Mapping[str, str]) -> Ledger:
    calendar, patience_s = budgets.calendar, config.patience_s
    if config.store == "sqlite":
        config.path.parent.mkdir(parents=True, exist_ok=True)
        return open_sqlite(
            config.path, durability=config.durability, patience_s=patience_s, calendar=calendar
        )
    dsn = environment.get(config.dsn or "", "")
    if not dsn:
        raise ConfigError(
            f"a ledger in {config.store} needs the store's address in the environment variable"
            f" that ledger.dsn names ({config.dsn}), which is unset"
        )
    try:
        if config.store == "redis":
            from waypost.validator.ledger.redis import open_redis

            return open_redis(dsn, prefix=config.prefix, patience_s=patience_s, calendar=calendar)
        from waypost.validator.ledger.postgres import open_postgres
    except ImportError as exc:
        raise ConfigError(
            f"a ledger in {config.store} needs the extra: pip install"
            f" 'waypost[{config.store}]' ({exc.name})"
        ) from exc
    schema = f"{config.prefix}_ledger"
    return open_postgres(dsn, schema=schema, patience_s=patience_s, calendar=calendar)
