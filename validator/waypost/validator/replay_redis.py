"""Remembers what counts once in Redis or Valkey, for validators on several machines.

One round trip per proof or one-time token. Keys hold hashes alone and expire by themselves.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from waypost.shared.errors import StoreError
from waypost.validator.replay import PATIENCE_S

__all__ = ["RedisSeen"]

CLOCKS_APART_S = 60  # the server's clock ends what the validators' clocks began


class RedisSeen:
    """``SeenOnce`` in Redis. Give it a server that evicts nothing (``maxmemory-policy``)."""

    def __init__(self, address: str, *, prefix: str) -> None:
        """Args:
        address: as ``redis://host:6379/0``; nothing is sent yet.
        prefix: tells several deployments in one Redis apart.

        Raises:
            StoreError: ``replay_unavailable``: the address makes no sense.
        """
        self._prefix = prefix
        library: Any = Redis  # its own types are partly unknown
        try:
            self._redis: Redis = library.from_url(
                address,
                socket_timeout=PATIENCE_S,
                socket_connect_timeout=PATIENCE_S,
                # Once, for a connection that the server closed while it was idle.
                retry=Retry(NoBackoff(), 1),
            )
        except ValueError:
            # The client's own words quote the address, which may hold a password.
            raise StoreError(
                "the address for replay is no redis:// URL", code="replay_unavailable"
            ) from None

    async def is_first(self, mark: bytes, *, until: int) -> bool:
        """See ``SeenOnce``.

        If an answer is lost the retry finds its own mark, and a good proof is refused: the client
        makes another, where letting it in could let in two.
        """
        ends_at = until + CLOCKS_APART_S
        with _told():
            return bool(await self._redis.set(self._key(mark), b"", nx=True, exat=ends_at))

    async def end(self, mark: bytes, *, until: int) -> None:
        """See ``SeenOnce``; of two at once the later to come counts."""
        with _told():
            await self._redis.set(self._key(mark), str(until), exat=until + CLOCKS_APART_S)

    async def ended_until(self, mark: bytes) -> int:
        """See ``SeenOnce``."""
        with _told():
            return int(await self._redis.get(self._key(mark)) or 0)

    def _key(self, mark: bytes) -> str:
        return f"{self._prefix}:seen:{mark.hex()}"

    async def sweep(self, *, now: int) -> None:
        """See ``SeenOnce``. Keys expire by themselves."""

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()


@contextmanager
def _told() -> Generator[None]:
    try:
        yield
    except (RedisError, OSError) as exc:
        raise StoreError(f"Redis cannot remember proofs: {exc}", code="replay_unavailable") from exc
