"""Notices that the caller has gone away, while an answer is on its way to them."""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

from waypost.validator.pipeline.exchange import Receive

__all__ = ["HangUp"]


class HangUp:
    """Ends the body of its ``async with`` when the caller goes away; what follows then runs."""

    def __init__(self, receive: Receive) -> None:
        self._happened = False
        self._receive = receive

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        self._listener = asyncio.create_task(self._listen())
        return self

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._happened = True
        if self._task is not None:
            self._task.cancel()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._listener.cancel()
        with suppress(asyncio.CancelledError):
            await self._listener
        if not self._happened or self._task is None:
            return False
        # As asyncio.timeout does: our own cancellation ends here, anybody else's goes on.
        return self._task.uncancel() == 0 and kind is asyncio.CancelledError
