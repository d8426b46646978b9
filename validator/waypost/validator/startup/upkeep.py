"""What a validator does beside requests, for ever: refresh, sweep, tell the other workers."""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any

from waypost.shared.errors import StoreError
from waypost.validator.access.seen_once import SeenOnce
from waypost.validator.ledger import Ledger
from waypost.validator.ledger.renewal import HoldRenewal
from waypost.validator.manifest.refresh import ManifestService
from waypost.validator.startup.ledger_mender import LedgerMender
from waypost.validator.telemetry.workers import SharedCounts

__all__ = ["Upkeep"]

logger = logging.getLogger(__name__)

SWEEP_S = 10.0
TELL_S = 2.0
JITTER = 0.2


class Upkeep:
    """The loops of one process."""

    def __init__(
        self,
        manifests: ManifestService,
        ledger: Ledger,
        renewal: HoldRenewal,
        mender: LedgerMender,
        seen: SeenOnce,
        counts: SharedCounts,
        *,
        refresh_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._manifests = manifests
        self._ledger = ledger
        self._renewal = renewal
        self._mender = mender
        self._seen = seen
        self._counts = counts
        self._refresh_s = refresh_s
        self._clock = clock

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """Return all of them, to be run until the process ends."""
        return [self.keep_fresh(), self.keep_swept(), self.keep_told()]

    async def keep_fresh(self) -> None:
        """Refresh the manifest, out of step with other validators."""
        while True:
            await asyncio.sleep(_about(self._refresh_s))
            await self._manifests.refresh()

    async def keep_told(self) -> None:
        """Let the other workers see what this one counted."""
        while True:
            await asyncio.sleep(TELL_S)
            try:
                await self._counts.publish()
            except OSError as exc:
                logger.error("the counts cannot be told to other workers: %s", exc)

    async def keep_swept(self) -> None:
        """Charge expired holds, forget proofs that are over, and judge the canary."""
        while True:
            await asyncio.sleep(_about(SWEEP_S))
            if self._manifests.candidate is not None:
                self._manifests.candidate.judge(await self._counts.total())
            await self._mender.mend()
            await self._renewal.renew()  # first, or it might be swept
            await self._sweep_holds()
            try:
                await self._seen.sweep(now=int(self._clock()))
            except StoreError as exc:
                logger.error("proofs that are over not forgotten: %s", exc)

    async def _sweep_holds(self) -> None:
        try:
            swept = await self._ledger.sweep(now=int(self._clock()))
        except StoreError as exc:
            logger.error("expired holds not charged: %s", exc)
            return
        if swept:
            self._counts.counts.expired(swept)
            logger.warning(
                "charged %d holds in full that nobody settled: a process ended, or the"
                " ledger was away",
                swept,
            )


def _about(period_s: float) -> float:
    return period_s * random.uniform(1 - JITTER, 1 + JITTER)
