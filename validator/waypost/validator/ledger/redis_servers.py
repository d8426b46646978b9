"""Which Redis or Valkey server has a key: the one at an address, or one node of a cluster.

A plain connection to the node that has a key does what a cluster's client cannot: many scripts in
one round trip. The rule: after any failure the node is looked up anew. Nodes may tell what is no
longer so; the one that has heard of the newest election or move is believed, and one that sends
us on ("MOVED") is followed, so no old answer is kept.

Source: Redis cluster specification, "MOVED redirection" and "Configuration epoch".
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, cast
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import MovedError, RedisError, ResponseError

__all__ = ["RISKS", "Servers", "find_servers", "risks_of"]

CLUSTER = "+cluster"
LOOK_S = 0.5  # for one node's word on who has what; a dead one must not keep the others waiting
ANSWER_S = 0.5  # a node that is silent for so long may have been replaced


RISKS = {
    "no_persistence": 'it keeps nothing on a disk (appendonly no, save "")',
    "evicts_keys": "it drops keys when its memory is full (set maxmemory-policy noeviction)",
    "has_forgotten": "it has already, by a flush, a failover or an eviction",
}


class Servers(Protocol):
    """Where a key is.

    Attributes:
        answer_s: after so long a silence it should be looked up anew.
    """

    answer_s: float

    async def of(self, key: str) -> Any:  # noqa: ANN401 - half of the client's types are unknown
        """Return a client of the server that has ``key``; raises RedisError or OSError."""
        ...

    def lost(self, cause: BaseException) -> None:
        """Note that the server did not answer, or does not have the key any more."""
        ...

    async def close(self) -> None:
        """Let go of all connections."""
        ...


def find_servers(
    url: str,
    *,
    patience_s: float,
    decode_responses: bool = True,
    **settings: Any,  # noqa: ANN401
) -> Servers:
    """Return the server or cluster at ``url``; nothing is sent yet.

    Args:
        url: ``redis://`` or ``rediss://`` (TLS), or ``redis+cluster://`` and
            ``rediss+cluster://`` with any node of a cluster.
        patience_s: how long to wait for an answer.
        settings: more of the client's own.

    Raises:
        ValueError: the address makes no sense. Says nothing of it, since it may hold a password.
    """
    settings = {
        "decode_responses": decode_responses,
        "socket_timeout": patience_s,
        "socket_connect_timeout": patience_s,
        "retry": Retry(NoBackoff(), 0),  # callers try again themselves, after a look who has it
        **settings,
    }
    try:
        if urlsplit(url).scheme.endswith(CLUSTER):
            return _Cluster(urlsplit(url.replace(CLUSTER, "", 1)), settings)
        return _Single(cast(Any, Redis).from_url(url, **settings), patience_s)
    except ValueError:
        raise ValueError("not an address of Redis") from None


async def risks_of(client: Any) -> frozenset[str]:  # noqa: ANN401
    """Return the keys of ``RISKS`` that hold for a server; what it does not tell does not."""
    risks: set[str] = set()
    # Hosted servers let nobody ask for settings, and say what they do otherwise.
    with suppress(ResponseError):
        told = await client.info("persistence")
        if str(told.get("aof_enabled")) == "0":
            save = await client.config_get("save")
            if not _text(next(iter(save.values()), None)):
                risks.add("no_persistence")
    with suppress(ResponseError):
        memory = await client.info("memory")
        policy = str(memory.get("maxmemory_policy", "noeviction"))
        if int(memory.get("maxmemory", 0)) and policy != "noeviction":
            risks.add("evicts_keys")
    return frozenset(risks)


class _Single:
    def __init__(self, client: Any, patience_s: float) -> None:  # noqa: ANN401
        self.answer_s = patience_s
        self._client = client
        self._is_lost = False

    async def of(self, key: str) -> Any:  # noqa: ANN401
        del key  # it has all of them
        if self._is_lost:
            self._is_lost = False
            # The address may have become another server's; a connection to the one before, which
            # takes no writes any more, would be used for ever.
            await self._client.connection_pool.disconnect(inuse_connections=False)
        return self._client

    def lost(self, cause: BaseException) -> None:
        del cause
        self._is_lost = True

    async def close(self) -> None:
        await self._client.aclose()


class _Node(NamedTuple):
    host: str
    port: int


class _Range(NamedTuple):
    first: int
    last: int
    node: _Node
    replicas: Sequence[_Node]


class _Map(NamedTuple):
    """What a node says of the cluster; of two the greater one is newer."""

    is_whole: bool
    epoch: int
    ranges: Sequence[_Range]


class _Cluster:
    def __init__(self, url: SplitResult, settings: dict[str, Any]) -> None:
        self.answer_s = min(ANSWER_S, settings["socket_timeout"])
        self._url = url
        self._settings = settings
        self._seed = _Node(unquote(url.hostname or "localhost"), url.port or 6379)
        self._map: _Map | None = None
        self._nodes = {self._seed}
        self._moved: dict[int, _Node] = {}
        self._clients: dict[_Node, Any] = {}
        self._looking = asyncio.Lock()
        self._client(self._seed)  # raises ValueError

    async def of(self, key: str) -> Any:  # noqa: ANN401
        slot = key_slot(key.encode())
        node = self._moved.get(slot)
        if node is None:
            node = _holder(await self._look(), slot)
        if node is None:
            self._map = None
            raise RedisError("no node of the cluster has the slot of the key")
        return self._client(node)

    def lost(self, cause: BaseException) -> None:
        moved: Any = cause if isinstance(cause, MovedError) else None
        if moved is not None and moved.host:
            node = _Node(str(moved.host), int(moved.port))
            self._moved[int(moved.slot_id)] = node
            self._nodes.add(node)
        else:
            self._map = None
            self._moved.clear()

    async def close(self) -> None:
        for client in self._clients.values():
            with suppress(RedisError, OSError):
                await client.aclose()

    async def _look(self) -> _Map:
        """Return the newest map that any node has; the known ones are asked at once."""
        async with self._looking:
            if self._map is not None:
                return self._map
            nodes = list(self._nodes)
            told = await asyncio.gather(*map(self._ask, nodes), return_exceptions=True)
            maps = [one for one in told if isinstance(one, _Map)]
            if not maps:
                why = told[nodes.index(self._seed)]
                raise RedisError(f"no node of the cluster answers: {why}")
            self._map = max(maps, key=lambda one: one[:2])
            # The address that people wrote stays known: it may be a name for whoever is there.
            known = {self._seed}
            for one in self._map.ranges:
                known |= {one.node, *one.replicas}
            await self._forget(self._nodes - known)
            self._nodes = known
            return self._map

    async def _ask(self, node: _Node) -> _Map:
        async with asyncio.timeout(LOOK_S):
            pipeline = self._client(node).pipeline(transaction=False)
            pipeline.execute_command("CLUSTER INFO")
            pipeline.execute_command("CLUSTER SLOTS")
            info, slots = await pipeline.execute()
        # A node that does not know its own name is where it was asked.
        ranges = [
            _Range(int(first), int(last), *_named(nodes, node.host))
            for first, last, *nodes in slots
        ]
        return _Map(info["cluster_state"] == "ok", int(info["cluster_current_epoch"]), ranges)

    async def _forget(self, nodes: set[_Node]) -> None:
        for node in nodes & self._clients.keys():
            with suppress(RedisError, OSError):
                await self._clients.pop(node).aclose()

    def _client(self, node: _Node) -> Any:  # noqa: ANN401
        client = self._clients.get(node)
        if client is None:
            host = f"[{node.host}]" if ":" in node.host else node.host
            user = self._url.netloc.rpartition("@")
            address = f"{user[0]}{user[1]}{host}:{node.port}"
            url = urlunsplit((self._url.scheme, address, "", self._url.query, ""))
            client = self._clients[node] = cast(Any, Redis).from_url(url, **self._settings)
        return client


def _holder(found: _Map, slot: int) -> _Node | None:
    return next((one.node for one in found.ranges if one.first <= slot <= one.last), None)


def _named(nodes: Sequence[Any], host: str) -> tuple[_Node, list[_Node]]:
    first, *others = [_Node(_text(one[0]) or host, int(one[1])) for one in nodes]
    return first, others


def _text(host: str | bytes | None) -> str:
    text = host.decode() if isinstance(host, bytes) else host or ""
    return "" if text == "?" else text
