"""Connections that wait for their next exchange: bounded in number and in age."""

import asyncio
from collections import deque
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from waypost.validator.http.transports.interface import MAX_IDLE, MAX_IDLE_S

__all__ = ["Idle"]


class _Rests(Protocol):
    def is_fresh(self, now: float) -> bool: ...

    def abort(self) -> None: ...


T = TypeVar("T", bound=_Rests)


class Idle(Generic[T]):
    """The idle connections to one provider, the one used last first.

    Whatever is closed is to be forgotten, by whoever is told of it.
    """

    def __init__(self) -> None:
        self._resting: deque[T] = deque()
        self._sweep: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._resting)

    def put(self, connection: T) -> None:
        """Keep ``connection``, which came to rest just now."""
        self._resting.append(connection)
        if len(self._resting) > MAX_IDLE:
            self._resting.popleft().abort()
        if self._sweep is None:
            self._sweep_later()

    def take(self, now: float) -> T | None:
        """Return the connection that the server is least likely to have closed, if there is one."""
        # If the last one used has aged, all have.
        if self._resting and self._resting[-1].is_fresh(now):
            return self._resting.pop()
        return None

    def forget(self, connection: T) -> None:
        """Heed that ``connection`` was closed, idle or not."""
        with suppress(ValueError):
            self._resting.remove(connection)

    def close(self) -> None:
        """Close all of them."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        while self._resting:
            self._resting.popleft().abort()

    def _sweep_later(self) -> None:
        self._sweep = asyncio.get_running_loop().call_later(MAX_IDLE_S, self._sweep_now)

    def _sweep_now(self) -> None:
        self._sweep = None
        now = asyncio.get_running_loop().time()
        while self._resting and not self._resting[0].is_fresh(now):
            self._resting.popleft().abort()
        if self._resting:
            self._sweep_later()
