"""What ``waypost budget rebuild`` does: the books against the decision records."""

import asyncio
import os
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec import Struct

from waypost.cli.output import fail
from waypost.shared.errors import StoreError
from waypost.validator.config import ValidatorConfig, load_config
from waypost.validator.config.stores import LedgerConfig
from waypost.validator.ledger import Ledger
from waypost.validator.ledger.rebuild import Forgotten, enter, forgotten_in
from waypost.validator.ledger.sqlite_damage import note_of
from waypost.validator.records.base import records_between
from waypost.validator.startup.ledger_store import open_ledger
from waypost.validator.startup.record_store import open_store

__all__ = ["AccountRow", "rebuilt"]

DAY_S = 86_400


class AccountRow(Struct, frozen=True, kw_only=True):
    """One account: what its records say, and what of it the books lack."""

    account: str
    requests: int
    recorded_nusd: int
    missing_nusd: int


def rebuilt(path: Path, *, days: int, applies: bool) -> list[AccountRow]:
    """Return each account's difference, entered again if ``applies``."""
    config = load_config(path)
    if config.records.store != "postgres" and not config.records.path.exists():
        fail(f"{config.records.path} does not exist, so there is nothing to rebuild from")
    with TemporaryDirectory() as empty:
        of_ledger = config.ledger.model_copy(update={"leased": False})
        if of_ledger.store == "sqlite" and not _is_sound(config, of_ledger):
            if applies:
                _move_aside(of_ledger.path)
            else:
                beside = Path(empty) / "ledger.sqlite"
                of_ledger = of_ledger.model_copy(update={"path": beside})
        return asyncio.run(_compare(config, of_ledger, days=days, applies=applies))


def _is_sound(config: ValidatorConfig, of_ledger: LedgerConfig) -> bool:
    if not of_ledger.path.exists():
        return False
    try:
        asyncio.run(_open_and_close(config, of_ledger))
    except StoreError as error:
        if error.code != "ledger_damaged":
            raise
        return False
    return True


async def _open_and_close(config: ValidatorConfig, of_ledger: LedgerConfig) -> None:
    await open_ledger(of_ledger, config.budgets, os.environ).close()


def _move_aside(path: Path) -> None:
    mark = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    note_of(path).unlink(missing_ok=True)
    for end in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + end).rename(path.with_name(f"{path.name}.{mark}{end}"))


async def _compare(
    config: ValidatorConfig, of_ledger: LedgerConfig, *, days: int, applies: bool
) -> list[AccountRow]:
    until = int(time.time()) + 1
    ledger = open_ledger(of_ledger, config.budgets, os.environ)
    try:
        store = await open_store(config.records, os.environ)
        try:
            records = partial(records_between, store)
            since = until - days * DAY_S
            found = [one async for one in forgotten_in(ledger, records, since=since, until=until)]
            recorded: Counter[str] = Counter()
            requests: Counter[str] = Counter()
            async for record in records(since, until):
                if record.account is not None and record.cost_nusd:
                    recorded[record.account] += record.cost_nusd
                    requests[record.account] += 1
        finally:
            await store.close()
        if applies:
            await _apply(ledger, found, config)
    finally:
        await ledger.close()
    missing: Counter[str] = Counter()
    for one in found:
        missing[one.record.account or ""] += one.nusd
    return [
        AccountRow(
            account=account,
            requests=requests[account],
            recorded_nusd=recorded[account],
            missing_nusd=missing[account],
        )
        for account in sorted(recorded)
    ]


async def _apply(ledger: Ledger, found: list[Forgotten], config: ValidatorConfig) -> None:
    await enter(ledger, found, config.budgets)
    await ledger.recognise()
