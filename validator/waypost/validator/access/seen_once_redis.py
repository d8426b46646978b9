"""Remembers what counts once in Redis or Valkey, for validators on several machines.

One round trip per proof or one-time token. Keys hold hashes alone and expire by themselves.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from redis.exceptions import RedisError

from waypost.shared.errors import StoreError
from waypost.validator.access.seen_once import PATIENCE_S
from waypost.validator.ledger.redis_servers import find_servers

__all__ = ["RedisSeen"]

TRIES = 3  # a connection that was closed while idle, and a slot that another node has now
CLOCKS_APART_S = 60  # the server's clock ends what the validators' clocks began


class RedisSeen:
    """``SeenOnce`` in Redis. Give it a server that evicts nothing (``maxmemory-policy``)."""

    def __init__(self, address: str, *, prefix: str) -> None:
        """Args:
        address: as ``find_servers`` takes it; nothing is sent yet.
        prefix: tells several deployments in one Redis apart.

        Raises:
            StoreError: ``replay_unavailable``: the address makes no sense.
        """
        self._prefix = prefix
        try:
            self._servers = find_servers(address, patience_s=PATIENCE_S, decode_responses=False)
        except ValueError:
            raise StoreError(
                "the address for replay is no redis:// URL", code="replay_unavailable"
            ) from None

    async def is_first(self, mark: bytes, *, until: int) -> bool:
        """See ``SeenOnce``.

        If an answer is lost the retry finds its own mark, and a good proof is refused: the client
        makes another, where letting it in could let in two.
        """
        key, ends_at = self._key(mark), until + CLOCKS_APART_S
        return bool(await self._ask(key, lambda redis: redis.set(key, b"", nx=True, exat=ends_at)))

    async def end(self, mark: bytes, *, until: int) -> None:
        """See ``SeenOnce``; of two at once the later to come counts."""
        key, ends_at = self._key(mark), until + CLOCKS_APART_S
        await self._ask(key, lambda redis: redis.set(key, str(until), exat=ends_at))

    async def ended_until(self, mark: bytes) -> int:
        """See ``SeenOnce``."""
        key = self._key(mark)
        return int(await self._ask(key, lambda redis: redis.get(key)) or 0)

    async def _ask(self, key: str, ask: Callable[[Any], Awaitable[Any]]) -> Any:  # noqa: ANN401
        failure: Exception | None = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                for _ in range(TRIES):
                    try:
                        return await ask(await self._servers.of(key))
                    except (RedisError, OSError) as exc:
                        failure = exc
                        self._servers.lost(exc)
        except TimeoutError as exc:
            self._servers.lost(exc)
            failure = failure or exc
        why = str(failure) or "it takes too long"
        raise StoreError(f"Redis cannot remember proofs: {why}", code="replay_unavailable")

    def _key(self, mark: bytes) -> str:
        return f"{self._prefix}:seen:{mark.hex()}"

    async def sweep(self, *, now: int) -> None:
        """See ``SeenOnce``. Keys expire by themselves."""

    async def close(self) -> None:
        """Close the connections."""
        await self._servers.close()
