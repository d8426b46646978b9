"""A store that has forgotten what was spent: noticed, refused, and entered again from the records."""

from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from secrets import token_hex

import pytest
import redis
from msgspec import structs

from support.ledgers import NOON, USD, a_hold, assert_accounts_balance, limit, spent_and_reserved
from support.recorded import a_record
from support.redis import RedisServer, find_redis, running_redis
from support.upstream import Upstream
from support.validator import ENVIRONMENT, running_validator
from waypost.shared.errors import StoreError
from waypost.shared.records import DecisionRecord
from waypost.validator.config.budgets import Budgets, SpendRule
from waypost.validator.ledger import Held, open_sqlite
from waypost.validator.ledger.base import HAS_FORGOTTEN, Ledger
from waypost.validator.ledger.group_commit import GroupedLedger
from waypost.validator.ledger.rebuild import forgotten_in, rebuild
from waypost.validator.ledger.redis import open_redis
from waypost.validator.records import sink
from waypost.validator.startup.ledger_mender import LedgerMender

pytestmark = pytest.mark.anyio

DAY_S = 86_400
COST = 66_150
BUDGETS = Budgets(
    default=[SpendRule(window="month", limit_usd=Decimal(9))], models={"small": [SpendRule(window="day", limit_usd=Decimal(9))]}
)  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    if find_redis() is None:
        pytest.skip("no Redis or Valkey is installed")
    with running_redis() as running:
        yield running


@pytest.fixture
async def ledger(server: RedisServer) -> AsyncIterator[GroupedLedger]:
    made = open_redis(server.url, prefix=token_hex(4))
    yield made
    await made.close()


def told(server: RedisServer) -> "redis.Redis":
    return redis.Redis.from_url(server.url, decode_responses=True)


async def refused(ledger: Ledger, hold_id: str) -> str:
    with pytest.raises(StoreError) as caught:
        await ledger.reserve(a_hold(hold_id, 1))
    return caught.value.code


async def test_nothing_is_held_in_books_that_were_flushed(
    server: RedisServer, ledger: GroupedLedger, caplog: pytest.LogCaptureFixture
) -> None:
    await ledger.reserve(a_hold("a", USD))
    await ledger.settle("a", USD)
    told(server).flushall()

    assert await refused(ledger, "b") == "ledger_lost"
    assert await refused(ledger, "c") == "ledger_lost"
    assert HAS_FORGOTTEN in ledger.risks
    assert await spent_and_reserved(ledger) == (0, 0)
    assert caplog.text.count("it has already, by a flush") == 1

    await ledger.recognise()
    assert await ledger.reserve(a_hold("d", 1)) == Held()
    assert not ledger.risks


async def test_another_validator_does_not_take_flushed_books_for_its_own(
    server: RedisServer, ledger: GroupedLedger
) -> None:
    prefix = ledger.store._prefix[1:-2]  # type: ignore[attr-defined]
    await ledger.reserve(a_hold("a", 1))
    told(server).flushall()
    newcomer = open_redis(server.url, prefix=prefix)
    await newcomer.reserve(a_hold("b", 1))  # makes a mark of its own

    assert await ledger.sweep(now=NOON) == 0  # looks, without being asked for money
    assert HAS_FORGOTTEN in ledger.risks
    assert await refused(ledger, "c") == "ledger_lost"

    await newcomer.recognise()  # as `waypost budget rebuild --apply` does
    await ledger.sweep(now=NOON + 30)
    assert await refused(ledger, "d") == "ledger_lost"
    await ledger.sweep(now=NOON + 60)
    assert await ledger.reserve(a_hold("e", 1)) == Held()
    await newcomer.close()


@pytest.mark.parametrize("keeps", [(), ("mark",)])
async def test_a_failover_that_lost_the_last_holds_is_noticed_by_the_first_of_them(
    server: RedisServer, ledger: GroupedLedger, keeps: tuple[str, ...]
) -> None:
    await ledger.reserve(a_hold("old", 1))
    await ledger.reserve(a_hold("lost", 5))
    prefix = ledger.store._prefix  # type: ignore[attr-defined]
    told(server).delete(f"{prefix}h:lost", *(() if keeps else [f"{prefix}mark"]))
    if keeps:
        with pytest.raises(StoreError, match="no hold lost"):
            await ledger.settle("lost", 5)

    assert await refused(ledger, "next") == "ledger_lost"
    await ledger.settle("old", 1)  # what was served is charged all the same


async def test_readiness_and_answers_say_it_and_rebuild_mends_it(
    server: RedisServer,
    tmp_path: Path,
    acme: Upstream,
    medcloud: Upstream,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sink, "GATHER_S", 0.5)  # the store lacks the records when books are lost
    environment = {**ENVIRONMENT, "REDIS": server.url}
    ledger = {"store": "redis", "dsn": "REDIS", "on_loss": "rebuild", "prefix": token_hex(4)}
    upstreams = {"acme": acme, "medcloud": medcloud}
    async with running_validator(
        tmp_path, upstreams, environment=environment, ledger=ledger
    ) as validator:
        for _ in range(3):
            await validator.record(await validator.chat())
        before = await validator.settled()
        assert before[0] > 0
        told(server).flushall()
        answer = await validator.chat()
        ready = await validator.client.get("/readyz")

        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "ledger_lost")
        assert (ready.status_code, ready.json()["checks"]["ledger"]) == (503, "lost")
        assert ready.json()["checks"]["ledger_risks"] == HAS_FORGOTTEN

        services = validator.services
        mender = LedgerMender(
            services.ledger,
            services.records,
            services.store,
            services.config,
            clock=services.clock,
        )
        await mender.mend()

        assert await validator.settled() == before
        assert (await validator.chat()).status_code == 200
        assert (await validator.client.get("/readyz")).status_code == 200


# ── from the records ───────────────────────────────────────────────────────────────────────────


class Records:
    """Gives records as a store does."""

    def __init__(self, *records: DecisionRecord) -> None:
        self._records = records

    async def __call__(self, since: int, until: int) -> AsyncIterator[DecisionRecord]:
        for record in self._records:
            if since <= record.at_ms // 1_000 < until:
                yield record


def at(now: int, number: int) -> DecisionRecord:
    record = a_record(number, at_ms=now * 1_000)
    (attempt,) = record.attempts
    return a_record(number, at_ms=now * 1_000, attempts=(structs.replace(attempt, cost_nusd=COST),))


@pytest.fixture(params=["sqlite", "redis"])
async def books(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[GroupedLedger]:
    if request.param == "redis":
        made = open_redis(request.getfixturevalue("server").url, prefix=token_hex(4))
    else:
        made = open_sqlite(tmp_path / "ledger.sqlite")
    yield made
    await made.close()


async def spend(ledger: Ledger, record: DecisionRecord, cost: int = COST) -> None:
    await ledger.reserve(a_hold(record.id, cost, limit("month", USD), now=record.at_ms // 1_000))
    await ledger.settle(record.id, cost)


async def test_what_the_books_lack_is_entered_once_at_its_own_time(books: GroupedLedger) -> None:
    known, half, lost = (at(NOON - DAY_S, n) for n in range(3))
    await spend(books, known)
    await spend(books, half, COST // 2)
    free = a_record(4, at_ms=NOON * 1_000, cost_nusd=0)
    records = Records(known, half, lost, free)

    entered = [await rebuild(books, records, BUDGETS, since=0, until=NOON + 1) for _ in range(2)]

    assert entered == [COST + COST - COST // 2, 0]
    assert await spent_and_reserved(books, "month") == (3 * COST, 0)
    assert await spent_and_reserved(books, "day", now=NOON - DAY_S) == (3 * COST, 0)
    assert await spent_and_reserved(books, "day") == (0, 0)
    small = await spent_and_reserved(books, "day", scope="model:small", now=NOON - DAY_S)
    assert small == (COST + COST - COST // 2, 0)
    await assert_accounts_balance(books)


async def test_what_is_older_than_any_journal_is_entered_in_empty_books_alone(
    books: GroupedLedger,
) -> None:
    old, new = at(NOON - 20 * DAY_S, 1), at(NOON - DAY_S, 2)
    found = [
        one.record.id
        async for one in forgotten_in(books, Records(old, new), since=0, until=NOON + 1)
    ]
    assert found == [old.id, new.id]
    await spend(books, old)
    await books.sweep(now=NOON)  # drops it from the journal of Redis; the total stays
    kept = [
        one.record.id
        async for one in forgotten_in(books, Records(old, new), since=0, until=NOON + 1)
    ]
    assert kept == [new.id]


async def test_what_a_lease_may_have_paid_for_is_not_entered_again(books: GroupedLedger) -> None:
    before, after = at(NOON - 100, 1), at(NOON + 100, 2)
    await books.reserve(a_hold("lease-1", 10 * COST, limit("month", USD)))
    await books.settle("lease-1", COST)

    found = [
        one.record.id
        async for one in forgotten_in(books, Records(before, after), since=0, until=NOON + 999)
    ]

    assert found == [before.id]
