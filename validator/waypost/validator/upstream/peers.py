"""Tells other validators what rests here, and heeds what they tell, by way of Redis or Valkey.

The rule: it is advice. What rests elsewhere is doubted here: one request finds out, others are
sent elsewhere first meanwhile, and any answer that is under way already clears it. So nobody goes
without a provider because some validator is cut off itself. No request waits for Redis; while it
is down everybody finds out for themselves. Whose requests failed is told by fingerprints, so that
one account's failures, there and here, are not taken for those of two.
"""

import asyncio
import logging
import os
import random
from collections.abc import Callable, Mapping
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from redis.exceptions import RedisError

from waypost.validator.config import ConfigError
from waypost.validator.ledger.redis_servers import find_servers
from waypost.validator.upstream.provider import Upstream

__all__ = ["Peers"]

logger = logging.getLogger(__name__)

PATIENCE_S = 2.0
LISTEN_S = 30.0  # so long a silence of Redis is asked about: the connection may be dead
FIRST_PAUSE_S = 0.2
LAST_PAUSE_S = 1.0  # one connection a second to a Redis that is down
MOST_ACCOUNTS = 8  # two are enough to believe it
MOST_UNTOLD = 256  # while Redis is slow; what is dropped the others find out


class _Rest(Struct, frozen=True):
    """A target was given a rest.

    Attributes:
        by: the process that says so.
        accounts: fingerprints of whom it failed for; empty: it could have been anybody.
    """

    by: str
    provider: str
    model: str
    region: str
    accounts: Annotated[tuple[str, ...], Meta(max_length=MOST_ACCOUNTS)] = ()


_decode = msgspec.json.Decoder(_Rest).decode


class Peers:
    """The other validators of one deployment, for one event loop."""

    def __init__(
        self,
        address: str,
        *,
        prefix: str,
        monotonic: Callable[[], float],
    ) -> None:
        """Args:
        address: as ``find_servers`` takes it; nothing is sent yet.
        prefix: tells several deployments in one Redis apart.

        Raises:
            ConfigError: the address makes no sense.
        """
        self._monotonic = monotonic
        self._me = os.urandom(8).hex()
        self._channel = f"{prefix}:rests"
        self._untold: asyncio.Queue[_Rest] = asyncio.Queue(MOST_UNTOLD)
        self._is_down = False
        try:
            # Whichever node of a cluster it is told to, all nodes tell what is published.
            self._servers = find_servers(
                address,
                patience_s=PATIENCE_S,
                decode_responses=False,
                health_check_interval=LISTEN_S,
            )
        except ValueError:
            raise ConfigError("the address for peers is no redis:// URL") from None

    def note(self, provider: str, model: str, region: str, accounts: frozenset[str]) -> None:
        """Have the others told of a rest that is given here."""
        if not self._untold.full():
            told = tuple(sorted(accounts)[:MOST_ACCOUNTS])
            self._untold.put_nowait(_Rest(self._me, provider, model, region, told))

    async def keep_telling(self) -> None:
        """Tell the others what is given a rest here, for ever."""
        while True:
            rest = await self._untold.get()
            try:
                await self._publish(msgspec.json.encode(rest))
            except (RedisError, OSError) as exc:
                self._log_down(exc)

    async def _publish(self, data: bytes) -> None:
        try:
            await (await self._servers.of(self._channel)).publish(self._channel, data)
        except (RedisError, OSError) as exc:
            # Once more, for a server that was restarted or replaced since the last time.
            self._servers.lost(exc)
            await (await self._servers.of(self._channel)).publish(self._channel, data)

    async def keep_listening(self, upstreams: Mapping[str, Upstream]) -> None:
        """Have ``upstreams`` heed what the others tell, for ever."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                server = await self._servers.of(self._channel)
                async with server.pubsub(ignore_subscribe_messages=True) as told:
                    await told.subscribe(self._channel)
                    self._is_down, pause_s = False, FIRST_PAUSE_S
                    while True:
                        message = await told.get_message(timeout=LISTEN_S)
                        if message is not None:
                            self._heed(upstreams, message["data"])
            except (RedisError, OSError) as exc:
                self._servers.lost(exc)
                self._log_down(exc)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))
            pause_s = min(pause_s * 2, LAST_PAUSE_S)

    def _heed(self, upstreams: Mapping[str, Upstream], data: bytes) -> None:
        try:
            rest = _decode(data)
        except msgspec.MsgspecError:
            return  # of another version
        upstream = upstreams.get(rest.provider)
        if upstream is not None and rest.by != self._me:
            accounts = frozenset(rest.accounts)
            upstream.doubt(rest.model, rest.region, now=self._monotonic(), accounts=accounts)

    def _log_down(self, exc: Exception) -> None:
        if not self._is_down:
            self._is_down = True
            logger.warning("breakers are not shared for now: %s", type(exc).__name__)

    async def close(self) -> None:
        """Close the connections."""
        await self._servers.close()
