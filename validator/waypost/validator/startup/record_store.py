"""Opens the store that ``validator.yaml`` names. A driver is imported only if it is named."""

import time
from collections.abc import Callable, Mapping

from waypost.shared.errors import StoreError
from waypost.validator.config import ConfigError
from waypost.validator.config.stores import RecordsConfig
from waypost.validator.records.base import RecordStore
from waypost.validator.records.sqlite import SqliteRecordStore

__all__ = ["open_store"]


async def open_store(
    config: RecordsConfig,
    environment: Mapping[str, str],
    *,
    clock: Callable[[], float] = time.time,
) -> RecordStore:
    """Return the store.

    Raises:
        ConfigError: the variable with the database's address is unset, or its driver missing.
        StoreError: ``records_unavailable``, it cannot be opened.
    """
    if config.store == "sqlite":
        return SqliteRecordStore.open(
            config.path,
            retain_days=config.retain_days,
            totals_days=config.totals_days,
            clock=clock,
        )
    if config.store == "jsonl":
        from waypost.validator.records.jsonl import JsonlRecordStore

        return JsonlRecordStore(config.path, retain_days=config.retain_days, clock=clock)
    dsn = environment.get(config.dsn or "", "")
    if not dsn:
        raise ConfigError(
            "records in PostgreSQL need the database's address in the environment variable that"
            f" records.dsn names ({config.dsn}), which is unset"
        )
    try:
        from waypost.validator.records.postgres import PostgresRecordStore
    except ImportError as exc:
        raise ConfigError(
            f"records in PostgreSQL need the extra: pip install 'waypost[postgres]' ({exc.name})"
        ) from exc
    try:
        return await PostgresRecordStore.open(
            dsn,
            retain_days=config.retain_days,
            totals_days=config.totals_days,
            clock=clock,
        )
    except StoreError as exc:
        # The driver's words may quote the address, and that its password.
        raise StoreError(
            "the decision records in PostgreSQL cannot be opened: "
            f"{type(exc.__cause__).__name__} for the address in {config.dsn}",
            code="records_unavailable",
        ) from None
