"""A hold lives as long as its request: in every ledger, and no longer than its process."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from secrets import token_hex

import pytest

from support.ledgers import (
    LEASE_S,
    NOON,
    a_hold,
    assert_accounts_balance,
    journal,
    limit,
    spent_and_reserved,
)
from support.postgres import find_postgres, running_postgres
from support.redis import find_redis, running_cluster, running_redis
from support.upstream import Exchange, Upstream, event, running_upstream, usage_event
from support.validator import HELLO, running_validator
from waypost.validator.ledger import Calendar, Held, Ledger, open_sqlite
from waypost.validator.ledger.group_commit import GroupedLedger
from waypost.validator.ledger.leased import LeasedLedger
from waypost.validator.ledger.postgres import open_postgres
from waypost.validator.ledger.redis import open_redis

pytestmark = pytest.mark.anyio

STORES = ("normal", "full", "redis", "cluster", "postgres")
LATER = NOON + 600


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    if find_redis() is None:
        pytest.skip("no redis-server here")
    with running_redis() as server:
        yield server.url


@pytest.fixture(scope="module")
def cluster_url() -> Iterator[str]:
    if find_redis() is None:
        pytest.skip("no redis-server here")
    with running_cluster() as cluster:
        yield cluster.urls[0]


@pytest.fixture(scope="module")
def postgres_dsn() -> Iterator[str]:
    if find_postgres() is None:
        pytest.skip("no PostgreSQL here")
    with running_postgres() as dsn:
        yield dsn


@pytest.fixture(params=STORES)
async def store(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[GroupedLedger]:
    match request.param:
        case "redis":
            made = open_redis(request.getfixturevalue("redis_url"), prefix=token_hex(4))
        case "cluster":
            made = open_redis(request.getfixturevalue("cluster_url"), prefix=token_hex(4))
        case "postgres":
            dsn = request.getfixturevalue("postgres_dsn")
            made = open_postgres(dsn, schema=f"w{token_hex(4)}")
        case durability:
            made = open_sqlite(tmp_path / "ledger.sqlite", durability=durability)
    yield made
    await assert_accounts_balance(made)
    await made.close()


def leased_on(store: GroupedLedger) -> LeasedLedger:
    return LeasedLedger(
        store,
        Calendar(),
        lease_s=10,
        share=0.1,
        spends_when_down=False,
        monotonic=lambda: 0.0,
    )


@asynccontextmanager
async def validator_on(store: GroupedLedger, *, leased: bool) -> AsyncIterator[Ledger]:
    """The ledger as one validator has it, and ``store`` as all others see it."""
    if not leased:
        yield store
        return
    made = leased_on(store)
    yield made
    upkeep = made._upkeep  # pyright: ignore[reportPrivateUsage] - the store outlives it here
    if upkeep is not None:
        upkeep.cancel()
        await asyncio.gather(upkeep, return_exceptions=True)


@pytest.mark.parametrize("leased", [False, True], ids=["asked", "leased"])
async def test_a_renewed_hold_is_swept_by_nobody_and_settled_at_its_cost(
    store: GroupedLedger, leased: bool
) -> None:
    async with validator_on(store, leased=leased) as ledger:
        assert await ledger.reserve(a_hold("slow", 1_000)) == Held()
        await ledger.renew(["slow"], expires_at=LATER + 60)

        for sweeper in (ledger, store):
            assert await sweeper.sweep(now=LATER) == 0
        await ledger.settle("slow", 3)
        if leased:
            assert isinstance(ledger, LeasedLedger)
            for part in ledger._slices.values():  # pyright: ignore[reportPrivateUsage]
                ledger._end(part)  # pyright: ignore[reportPrivateUsage]
            await asyncio.wait(ledger._tasks)  # pyright: ignore[reportPrivateUsage]
    assert await spent_and_reserved(store) == (3, 0)


@pytest.mark.parametrize("leased", [False, True], ids=["asked", "leased"])
async def test_a_renewal_ends_as_well(store: GroupedLedger, leased: bool) -> None:
    """Of a process that died nobody renews the holds."""
    async with validator_on(store, leased=leased) as ledger:
        await ledger.reserve(a_hold("lost", 1_000))
        await ledger.renew(["lost"], expires_at=LATER)
    assert await store.sweep(now=LATER - 1) == 0
    assert await store.sweep(now=LATER) == 1
    assert (await spent_and_reserved(store))[1] == 0


async def test_a_renewal_shortens_nothing_and_opens_nothing(store: GroupedLedger) -> None:
    for name in ("open", "settled", "expired"):
        await store.reserve(a_hold(name, 10, limit("day", 100)))
    await store.settle("settled", 4)
    await store.renew(["open"], expires_at=LATER)
    await store.sweep(now=NOON + LEASE_S)

    await store.renew(["settled", "expired", "unheard-of"], expires_at=LATER + 1)
    await store.renew(["open"], expires_at=NOON + 1)

    assert await store.sweep(now=LATER - 1) == 0
    assert await journal(store) == {
        "open": ("held", 0),
        "settled": ("settled", 4),
        "expired": ("expired", 10),
    }
    await store.renew([f"h{n}" for n in range(450)], expires_at=LATER)  # in several batches
    await store.release("open")


async def test_a_renewal_beats_the_sweep_that_it_shares_a_batch_with(store: GroupedLedger) -> None:
    await store.reserve(a_hold("a", 10))
    await asyncio.gather(store.renew(["a"], expires_at=LATER), store.sweep(now=NOON + LEASE_S))
    assert await spent_and_reserved(store) == (0, 10)
    await store.release("a")


async def test_a_hold_that_outlives_its_slice_gets_another(store: GroupedLedger) -> None:
    async with validator_on(store, leased=True) as ledger:
        await ledger.reserve(a_hold("short", 10))
        await ledger.reserve(a_hold("long", 10, expires_at=LATER))
        ends = [entry.expires_at async for entry in store.journal(since=0, until=LATER)]
        assert max(ends) > LATER


@pytest.mark.parametrize("leased", [False, True], ids=["asked", "leased"])
async def test_a_stream_longer_than_its_lease_costs_what_it_cost(
    tmp_path: Path, leased: bool
) -> None:
    goes_on = asyncio.Event()

    async def slowly(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.chunk(event("Four"))
        await goes_on.wait()
        for chunk in (event("."), event(None), usage_event(), b"data: [DONE]\n\n"):
            await exchange.chunk(chunk)
        await exchange.end_stream()

    async with (
        running_upstream(slowly) as acme,
        running_validator(tmp_path, {"acme": acme}, ledger={"leased": leased}) as here,
    ):
        asked = asyncio.create_task(here.chat({**HELLO, "stream": True, "max_tokens": 100}))
        await asyncio.wait_for(_begun(acme), 10)
        held = (await here.spent())[1]
        for minutes in range(1, 30):
            here.clock.ahead_s = 20 * minutes
            await here.services.renewal.renew()
            assert await here.services.ledger.sweep(now=int(here.clock())) == 0
        goes_on.set()
        record = await here.record(await asked)

        assert 0 < record.cost_nusd < held
        assert all(reservation.hold_id is None for reservation in here.services.renewal._held)
        if not leased:  # else it is settled with its slice
            assert await here.settled() == (record.cost_nusd, 0)


async def _begun(upstream: Upstream) -> None:
    while not upstream.seen:  # noqa: ASYNC110 - what a provider saw
        await asyncio.sleep(0.01)
