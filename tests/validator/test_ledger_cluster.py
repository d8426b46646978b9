"""A ledger in a cluster of Redis: real nodes, of which one has it, now this and now that."""

from collections.abc import Iterator
from secrets import token_hex

import pytest
from redis.crc import key_slot

from support.ledgers import (
    LEASE_S,
    NOON,
    a_hold,
    assert_accounts_balance,
    journal,
    limit,
    spent_and_reserved,
)
from support.redis import RedisCluster, find_redis, running_cluster
from waypost.shared.errors import StoreError
from waypost.validator.ledger import Held, IdempotencyKey, RateLimit, Repeat, Shortfall, scope_of
from waypost.validator.ledger.redis import open_redis

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    if find_redis() is None:
        pytest.skip("no redis-server here")
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


async def test_a_cluster_that_is_not_there_is_unavailable() -> None:
    ledger = open_redis("redis+cluster://user:secret@127.0.0.1:1", patience_s=0.2)
    with pytest.raises(StoreError) as refused:
        await ledger.reserve(a_hold("h", 1))
    assert refused.value.code == "ledger_unavailable"
    assert "secret" not in str(refused.value)
    await ledger.close()
