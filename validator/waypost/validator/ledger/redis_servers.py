"""Which Redis or Valkey server has a ledger: the one at an address, or one node of a cluster.

All keys of a ledger are in one slot, so one node serves it, and a plain connection to that node
does what a cluster's client cannot: many scripts in one round trip. The rule: after any failure
the node is looked up anew, at whichever node of the cluster answers.
"""

from contextlib import suppress
from typing import Any, Protocol, cast
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError

from waypost.shared.errors import StoreError

__all__ = ["Servers", "find_servers"]

CLUSTER = "+cluster"


class Servers(Protocol):
    """Where a key is."""

    async def of(self, key: str) -> Any:  # noqa: ANN401 - half of the client's types are unknown
        """Return a client of the server that has ``key``; raises RedisError."""
        ...

    def lost(self) -> None:
        """Note that the server did not answer, or does not have the key any more."""
        ...

    async def close(self) -> None:
        """Let go of all connections."""
        ...


def find_servers(url: str, *, patience_s: float) -> Servers:
    """Return the server or cluster at ``url``.

    Args:
        url: ``redis://`` or ``rediss://`` (TLS), or ``redis+cluster://`` and
            ``rediss+cluster://`` with any node of a cluster.
        patience_s: how long to wait for an answer.

    Raises:
        StoreError: ``ledger_unavailable``, the address makes no sense.
    """
    settings: dict[str, Any] = {
        "decode_responses": True,
        "socket_timeout": patience_s,
        "socket_connect_timeout": patience_s,
        "retry": Retry(NoBackoff(), 0),  # the ledger has a queue and a patience of its own
    }
    try:
        if urlsplit(url).scheme.endswith(CLUSTER):
            return _Cluster(url.replace(CLUSTER, "", 1), settings)
        return _Single(cast(Any, Redis).from_url(url, **settings))
    except ValueError:
        # The client's own words quote the address, which holds a password.
        raise StoreError(
            "the ledger's dsn is not a redis:// address", code="ledger_unavailable"
        ) from None


class _Single:
    def __init__(self, client: Any) -> None:  # noqa: ANN401
        self._client = client

    async def of(self, key: str) -> Any:  # noqa: ANN401
        del key  # it has all of them
        return self._client

    def lost(self) -> None:
        """The client connects again by itself."""

    async def close(self) -> None:
        await self._client.aclose()


class _Cluster:
    def __init__(self, url: str, settings: dict[str, Any]) -> None:
        self._url = urlsplit(url)
        self._settings = settings
        self._map = cast(Any, RedisCluster).from_url(url, **settings)
        self._clients: dict[str, Any] = {}
        self._is_known = False

    async def of(self, key: str) -> Any:  # noqa: ANN401
        if not self._is_known:
            await self._map.aclose()
            try:
                await self._map.initialize()  # asks those that it has heard of, too
            except RedisClusterException as exc:  # which is no RedisError
                raise RedisError(str(exc)) from exc
            self._is_known = True
        node = self._map.get_node_from_key(key)
        if node is None:
            self._is_known = False
            raise RedisError("no node of the cluster has the ledger's slot")
        if node.name not in self._clients:
            host = f"[{node.host}]" if ":" in node.host else node.host
            user = self._url.netloc.rpartition("@")
            address = f"{user[0]}{user[1]}{host}:{node.port}"
            url = urlunsplit((self._url.scheme, address, "", self._url.query, ""))
            self._clients[node.name] = cast(Any, Redis).from_url(url, **self._settings)
        return self._clients[node.name]

    def lost(self) -> None:
        self._is_known = False

    async def close(self) -> None:
        for client in (self._map, *self._clients.values()):
            with suppress(RedisError, OSError):
                await client.aclose()
