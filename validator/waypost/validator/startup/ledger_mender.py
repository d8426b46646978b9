"""Enters again what a ledger's store has forgotten, where the operator wants that."""

import logging
from collections.abc import Callable
from functools import partial

from waypost.shared.errors import StoreError
from waypost.shared.money import format_usd
from waypost.validator.config import ValidatorConfig
from waypost.validator.ledger import Ledger
from waypost.validator.ledger.base import HAS_FORGOTTEN
from waypost.validator.ledger.rebuild import rebuild
from waypost.validator.records import RecordSink, RecordStore
from waypost.validator.records.base import records_between

__all__ = ["LedgerMender"]

logger = logging.getLogger(__name__)


class LedgerMender:
    """The ledger and the records that it can be rebuilt from."""

    def __init__(
        self,
        ledger: Ledger,
        records: RecordSink,
        store: RecordStore,
        config: ValidatorConfig,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._records = records
        self._store = store
        self._config = config
        self._clock = clock

    async def mend(self) -> None:
        """Rebuild the ledger if it has forgotten something and ``on_loss`` says ``rebuild``."""
        is_wanted = self._config.ledger.on_loss == "rebuild"
        if HAS_FORGOTTEN not in self._ledger.risks or not is_wanted:
            return
        now = int(self._clock())
        try:
            # What was charged last may not be in the store yet, and is not looked for again.
            await self._records.until_written()
            entered = await rebuild(
                self._ledger,
                partial(records_between, self._store),
                self._config.budgets,
                since=self._config.budgets.calendar.month_start(now),
                until=now + 1,
            )
        except StoreError as exc:
            logger.error("the ledger is not rebuilt: %s", exc)
        else:
            logger.warning("the ledger is rebuilt: %s entered again", format_usd(entered))
