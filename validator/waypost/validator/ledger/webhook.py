"""Tells the operator's own URL of soft limits that are used up, off the hot path.

Each is told once by each process, at least once in all; nothing waits for it, and nothing is
refused for its sake.
"""

import asyncio
import logging
from collections.abc import Iterable

import httpx
from msgspec import json

from waypost.validator.ledger import Crossed

__all__ = ["BudgetWebhook"]

logger = logging.getLogger(__name__)

TRIES = 3
FIRST_PAUSE_S = 1.0
MAX_WAITING = 100
MAX_TOLD = 10_000


class BudgetWebhook:
    """One URL, and what it was told. Use it from one event loop."""

    def __init__(self, url: str, *, first_pause_s: float = FIRST_PAUSE_S) -> None:
        # A client of its own: that of the manifest sends a token.
        self._client = httpx.AsyncClient(timeout=10)
        self._url = url
        self._first_pause_s = first_pause_s
        self._told: set[tuple[str, str, int | None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, crossed: Iterable[Crossed]) -> None:
        """Tell of what was not told yet, soon."""
        for one in crossed:
            mark = (one.scope, one.window, one.resets_at)
            if mark in self._told or len(self._tasks) >= MAX_WAITING:
                continue
            if len(self._told) >= MAX_TOLD:
                self._told.clear()
            self._told.add(mark)
            task = asyncio.create_task(self._post(one))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _post(self, crossed: Crossed) -> None:
        body = json.encode(
            {
                "event": "budget_warning",
                "scope": crossed.scope,
                "window": crossed.window,
                "warn_nusd": crossed.warn_nusd,
                "used_nusd": crossed.used_nusd,
                "resets_at": crossed.resets_at,
            }
        )
        pause_s = self._first_pause_s
        for number in range(TRIES):
            try:
                answer = await self._client.post(
                    self._url, content=body, headers={"content-type": "application/json"}
                )
                answer.raise_for_status()
            except httpx.HTTPError as exc:
                if number < TRIES - 1:
                    await asyncio.sleep(pause_s)
                    pause_s *= 2
                else:  # the URL may hold a secret, and the error's own words quote it
                    logger.warning("budget webhook failed: %s", type(exc).__name__)
            else:
                return

    async def close(self) -> None:
        """Give up on what is not told yet."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()
