"""A ledger in a cluster of Redis: real nodes, of which one has it, now this and now that."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any, cast

import pytest
from anyio import to_thread
from redis.crc import key_slot

from support.ledgers import (
    LEASE_S,
    NOON,
    a_hold,
    assert_accounts_balance,
    journal,
    limit,
    spent_and_reserved,
    until,
)
from support.redis import RedisCluster, running_cluster
from support.upstream import running_upstream
from support.validator import ENVIRONMENT, running_validator
from waypost.shared.errors import StoreError
from waypost.validator.access.seen_once_redis import RedisSeen
from waypost.validator.ledger import Held, IdempotencyKey, RateLimit, Repeat, Shortfall, scope_of
from waypost.validator.ledger.group_commit import GroupedLedger
from waypost.validator.ledger.redis import open_redis

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with running_cluster() as cluster:
        yield cluster


async def test_whichever_node_is_named_the_books_are_the_same(cluster: RedisCluster) -> None:
    for prefix in ("a", "b", "c"):  # in slots of three nodes
        ledgers = [open_redis(url, prefix=prefix) for url in cluster.urls]
        for number, ledger in enumerate(ledgers):
            held = await ledger.reserve(a_hold(f"h{number}", 40, limit("day", 100)))
            assert isinstance(held, Held if number < 2 else Shortfall)
        await ledgers[2].settle("h0", 10)
        await ledgers[0].sweep(now=NOON + LEASE_S)
        assert await spent_and_reserved(ledgers[1]) == (50, 0)
        assert await journal(ledgers[2]) == {"h0": ("settled", 10), "h1": ("expired", 40)}
        for ledger in ledgers:
            await assert_accounts_balance(ledger)
            await ledger.close()


async def test_all_that_one_hold_touches_is_in_one_slot(cluster: RedisCluster) -> None:
    ledger = open_redis(cluster.urls[0], prefix=token_hex(4))
    rates = (RateLimit(unit="tokens", window="minute", limit=1_000),)
    key = IdempotencyKey(digest="d", body="b", request_id="one")
    also = (scope_of("tenant:t", (limit("week", 99),)), scope_of("global", (limit("day", 99),)))
    await ledger.reserve(a_hold("one", 40, rates=rates, also=also, tokens=10, key=key))
    await ledger.settle("one", 1, tokens=3)

    again = await ledger.reserve(
        a_hold("two", 40, key=IdempotencyKey(digest="d", body="b", request_id="two"))
    )
    assert isinstance(again, Repeat)
    assert {one.scope async for one in ledger.sums("total", now=NOON)} >= {"account:acme"}
    await ledger.close()


async def test_a_ledger_that_moves_to_another_node_is_followed(cluster: RedisCluster) -> None:
    prefix = token_hex(4)
    ledger = open_redis(cluster.urls[0], prefix=prefix)
    await ledger.reserve(a_hold("before", 40))

    cluster.move(key_slot(f"{{{prefix}}}:zone".encode()))

    await ledger.settle("before", 30)
    assert isinstance(await ledger.reserve(a_hold("after", 10)), Held)
    assert await spent_and_reserved(ledger) == (30, 10)
    await assert_accounts_balance(ledger)
    await ledger.close()


class _Load:
    """About a hundred requests a second that are held and settled, counted by how they ended."""

    def __init__(self, ledger: GroupedLedger) -> None:
        self._ledger = ledger
        self._number = 0
        self.ended: Counter[str] = Counter()

    async def call_for_ever(self) -> None:
        while True:
            await self.call()
            await asyncio.sleep(0.07)

    async def call(self) -> str:
        self._number += 1
        name, ending = f"h{self._number}", "held"
        try:
            await self._ledger.reserve(a_hold(name, 10, limit("day", 10**12)))
            await self._ledger.settle(name, 7, tokens=3)
        except StoreError as exc:
            ending = exc.code
        self.ended[ending] += 1
        return ending


@asynccontextmanager
async def _loaded(url: str, prefix: str) -> AsyncGenerator[_Load]:
    """Ask a ledger until the block ends; then its books must balance."""
    ledger = open_redis(url, prefix=prefix)
    load = _Load(ledger)
    callers = [asyncio.create_task(load.call_for_ever()) for _ in range(8)]
    try:
        await until(lambda: load.ended["held"] > 20, pause_s=0.01)
        yield load
        # A second after the cluster is whole again everything goes through.
        assert [await load.call() for _ in range(20)] == ["held"] * 20
    finally:
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
    await ledger.sweep(now=NOON + LEASE_S)
    await assert_accounts_balance(ledger)
    await ledger.close()


async def test_a_slot_that_moves_under_load_is_followed_and_the_books_balance(
    cluster: RedisCluster,
) -> None:
    for place in (1, 2):
        prefix = cluster.prefix_at(place)
        move = partial(
            cluster.move,
            key_slot(f"{{{prefix}}}:zone".encode()),
            meanwhile=lambda: time.sleep(0.002),
        )
        async with _loaded(cluster.urls[1], prefix) as load:
            await to_thread.run_sync(move)
        assert set(load.ended) <= {"held", "ledger_unavailable"}


async def test_a_settlement_in_the_middle_of_a_move_is_made_once(cluster: RedisCluster) -> None:
    prefix = cluster.prefix_at(2)
    ledger = open_redis(cluster.urls[0], prefix=prefix)
    for number in range(30):
        await ledger.reserve(a_hold(f"h{number}", 40, limit("day", 10**9)))
    settling: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()

    def settle() -> None:
        # One hold for each step of the move, so that some have lost some of their windows.
        number = len(settling)
        if number < 30:
            task = asyncio.run_coroutine_threadsafe(_task(ledger.settle(f"h{number}", 30)), loop)
            settling.append(task.result())
            time.sleep(0.02)

    await to_thread.run_sync(
        lambda: cluster.move(key_slot(f"{{{prefix}}}:zone".encode()), meanwhile=settle)
    )
    await asyncio.gather(*settling)
    assert settling
    await assert_accounts_balance(ledger)
    assert await spent_and_reserved(ledger) == (
        30 * len(settling),
        40 * (30 - len(settling)),
    )
    await ledger.close()


async def _task(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.create_task(work)


@pytest.mark.parametrize("how", ["is killed", "hangs", "is replaced", "is restarted"])
async def test_a_node_that_fails_under_load_is_followed(how: str) -> None:
    with ExitStack() as stack:
        cluster = await to_thread.run_sync(lambda: stack.enter_context(running_cluster()))
        first = cluster.servers[0]
        async with _loaded(cluster.urls[1], cluster.prefix_at(0)) as load:
            match how:
                case "is killed":
                    await to_thread.run_sync(first.kill)
                    await to_thread.run_sync(cluster.until_taken_over)
                case "hangs":
                    await to_thread.run_sync(first.hang)
                    await to_thread.run_sync(cluster.until_taken_over)
                case "is replaced":
                    await to_thread.run_sync(cluster.take_over)
                    await to_thread.run_sync(cluster.until_taken_over)
                case _:
                    await to_thread.run_sync(first.kill)
                    await to_thread.run_sync(first.start)
                    await to_thread.run_sync(cluster.until_whole)
        # What a node had not told its replica is unknown afterwards; nothing else may happen.
        assert set(load.ended) <= {"held", "ledger_unavailable", "hold_unknown"}


async def test_a_node_that_tells_what_is_no_longer_so_is_not_believed_twice(
    cluster: RedisCluster,
) -> None:
    # A node of another cluster stands for one that has heard of nothing yet.
    prefix = cluster.prefix_at(0)
    ledger = open_redis(cluster.urls[0], prefix=prefix)
    servers = cast(Any, ledger.store)._servers
    await ledger.reserve(a_hold("one", 40))
    found = servers._map
    wrong = servers._map.ranges[1].node
    servers._map = found._replace(
        ranges=[one._replace(node=wrong, replicas=[]) for one in found.ranges]
    )
    cast(Any, ledger.store)._is_ready = False
    assert isinstance(await ledger.reserve(a_hold("two", 40)), Held)
    await ledger.close()


async def test_peers_and_replay_live_in_a_cluster(cluster: RedisCluster, tmp_path: Path) -> None:
    seen = [RedisSeen(url, prefix=tmp_path.name) for url in cluster.urls]
    marks = [bytes([number]) * 8 for number in range(12)]  # in slots of all nodes
    for number, mark in enumerate(marks):
        assert await seen[number % 4].is_first(mark, until=2**32)
        assert not await seen[(number + 1) % 4].is_first(mark, until=2**32)
        await seen[number % 4].end(mark, until=2**32)
        assert await seen[(number + 2) % 4].ended_until(mark) == 2**32
    key = f"{tmp_path.name}:seen:{marks[0].hex()}"
    await to_thread.run_sync(cluster.move, key_slot(key.encode()))
    assert not await seen[0].is_first(marks[0], until=2**32)
    for one in seen:
        await one.close()


async def test_a_validator_whose_ledger_is_in_a_cluster_starts_and_serves(
    cluster: RedisCluster, tmp_path: Path
) -> None:
    environment = {**ENVIRONMENT, "REDIS": cluster.urls[0]}
    async with (
        running_upstream() as acme,
        running_validator(
            tmp_path,
            {"acme": acme, "medcloud": acme},
            environment=environment,
            ledger={"store": "redis", "dsn": "REDIS", "prefix": token_hex(4)},
            replay={"store": "redis", "dsn": "REDIS", "prefix": token_hex(4)},
        ) as validator,
    ):
        assert (await validator.chat()).status_code == 200
        ready = await validator.client.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["ledger"]) == (200, "ok")


async def test_a_cluster_that_is_not_there_is_unavailable() -> None:
    ledger = open_redis("redis+cluster://user:secret@127.0.0.1:1", patience_s=0.2)
    with pytest.raises(StoreError) as refused:
        await ledger.reserve(a_hold("h", 1))
    assert refused.value.code == "ledger_unavailable"
    assert "secret" not in str(refused.value)
    await ledger.close()
