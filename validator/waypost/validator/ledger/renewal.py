"""Keeps the holds of requests under way from ending: a charge for good is what it did cost."""

import logging
from collections.abc import Callable
from typing import Protocol
from weakref import WeakSet

from waypost.shared.errors import StoreError
from waypost.validator.ledger.base import Ledger

__all__ = ["HoldRenewal"]

logger = logging.getLogger(__name__)

# A hold that ends so soon is renewed if its request is still under way: in time for three tries,
# and late enough that few requests live to see it.
RENEW_BEFORE_S = 30
RENEWED_FOR_S = 120


class HasHold(Protocol):
    """Money held for a request under way."""

    hold_id: str | None
    expires_at: int


class HoldRenewal:
    """The holds of one process. As long as somebody has one, somebody may settle it."""

    def __init__(self, ledger: Ledger, *, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._held: WeakSet[HasHold] = WeakSet()

    def watch(self, held: HasHold) -> None:
        """Renew what ``held`` holds for as long as it is there."""
        self._held.add(held)

    async def renew(self) -> None:
        """Renew the holds that end soon."""
        now = int(self._clock())
        due = {
            one.hold_id: one
            for one in self._held
            if one.hold_id is not None and one.expires_at <= now + RENEW_BEFORE_S
        }
        if not due:
            return
        try:
            await self._ledger.renew(due, expires_at=now + RENEWED_FOR_S)
        except StoreError as exc:
            logger.error("holds of requests under way not renewed: %s", exc)
            return
        for hold_id, one in due.items():
            if one.hold_id == hold_id:  # it may hold something else by now
                one.expires_at = now + RENEWED_FOR_S
