"""What a reserve and its settlement cost, and the race for the last dollar, 20 times over."""

import asyncio
import multiprocessing
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from support.ledgers import USD, a_hold, limit
from support.racing import WAYS, races
from support.redis import find_redis, running_redis
from waypost.validator.ledger import Calendar, Ledger, open_sqlite
from waypost.validator.ledger.leased import LeasedLedger
from waypost.validator.ledger.redis import open_redis

__all__ = ["race_rows", "rows"]

AT_ONCE = 32
ACCOUNTS = 10
RUNS = Counter({"openai": 8, "anthropic": 6, "gemini": 6})  # by the provider's dialect
CLIENTS = 500


async def _pairs_per_s(ledger: Ledger, name: str, pairs: int) -> float:
    now = int(time.time())

    async def spend(task: int) -> None:
        for n in range(pairs // AT_ONCE):
            hold_id = f"{name}-{task}-{n}"
            account = f"a{(task + n) % ACCOUNTS}"
            await ledger.reserve(
                a_hold(hold_id, 1_000, limit("day", 10**6 * USD), account=account, now=now)
            )
            await ledger.settle(hold_id, 600)

    started = time.perf_counter()
    await asyncio.gather(*(spend(task) for task in range(AT_ONCE)))
    return pairs / (time.perf_counter() - started)


def _sqlite_worker(path: Path, name: str, results: "multiprocessing.Queue[float]") -> None:
    async def run() -> float:
        ledger = open_sqlite(path, patience_s=30)
        try:
            return await _pairs_per_s(ledger, name, 16_000)
        finally:
            await ledger.close()

    results.put(asyncio.run(run()))


def _sqlite(folder: Path) -> float:
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[float] = context.Queue()
    path = folder / "two.sqlite"
    workers = [
        context.Process(target=_sqlite_worker, args=(path, f"w{n}", results)) for n in range(2)
    ]
    for worker in workers:
        worker.start()
    rates = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return sum(rates)


async def _leased(folder: Path) -> float:
    ledger = LeasedLedger(
        open_sqlite(folder / "leased.sqlite"),
        Calendar(),
        lease_s=60,
        share=0.05,
        spends_when_down=False,
        monotonic=time.monotonic,
    )
    try:
        await _pairs_per_s(ledger, "warm", 3_200)
        return 1_000_000 / await _pairs_per_s(ledger, "leased", 32_000)
    finally:
        await ledger.close()


async def _redis(url: str) -> tuple[float, float]:
    """Return pairs a second, and commands' round trips per pair when asked one at a time."""
    ledger = open_redis(url, patience_s=30)
    try:
        rate = await _pairs_per_s(ledger, "redis", 8_000)
        store = ledger.store
        client = await store._client()  # type: ignore[attr-defined]
        reads = 0
        connection = await client.connection_pool.get_connection()
        send = connection.send_packed_command

        async def counted(*arguments: object, **options: object) -> object:
            nonlocal reads
            reads += 1
            return await send(*arguments, **options)

        connection.send_packed_command = counted
        await client.connection_pool.release(connection)
        for n in range(100):
            await ledger.reserve(a_hold(f"one-{n}", 1, now=int(time.time())))
        return rate, reads / 100
    finally:
        await ledger.close()


def rows(folder: Path) -> list[tuple[str, str, str]]:
    """Return the section's table."""
    told = [
        ("SQLite, 2 processes, pairs/s", f"{_sqlite(folder):,.0f}", "5,000 or more"),
        ("leased, µs per pair", f"{asyncio.run(_leased(folder)):.1f}", "20 or less"),
    ]
    if find_redis() is None:
        return [*told, ("Redis", "-", "no redis-server here")]
    with running_redis("--appendfsync", "everysec") as server:
        rate, trips = asyncio.run(_redis(server.url))
    return [
        *told,
        ("Redis, pairs/s", f"{rate:,.0f}", "one process, 32 at once"),
        ("Redis, round trips per reserve", f"{trips:g}", "1"),
    ]


def race_rows(folder: Path) -> list[tuple[str, str, str]]:
    """Return how the race for the last dollar ended, over two validators, each store."""
    told: list[tuple[str, str, str]] = []
    for store in ("redis", "sqlite"):
        spent = asyncio.run(_race(folder / store, store))
        least_most = f"{min(spent):,} to {max(spent):,} nusd of {USD:,}"
        told.append(
            (
                f"{CLIENTS} clients, 2 validators, {store}",
                f"{RUNS.total()} of {RUNS.total()} exact",
                least_most,
            )
        )
    return told


async def _race(folder: Path, store: str) -> list[int]:
    folder.mkdir()  # noqa: ASYNC240
    spent: list[int] = []
    with ExitStack() as stack:
        if store == "redis":
            url = stack.enter_context(running_redis()).url
            books, settings = open_redis(url), {"store": "redis", "dsn": "LEDGER_DSN"}
        else:
            url, path = "-", folder / "ledger.sqlite"
            books, settings = open_sqlite(path), {"path": str(path)}
        for dialect, times in RUNS.items():
            ways = [way for way in WAYS if way[2] == dialect]
            here = folder / dialect
            here.mkdir()
            began = time.perf_counter()
            async for one in races(
                here, settings, url, clients=CLIENTS, books=books, times=times, ways=ways
            ):
                one.assert_is_exact()
                spent.append(one.spent_nusd)
                took_s, began = time.perf_counter() - began, time.perf_counter()
                sys.stderr.write(
                    f"{store}, {dialect}, {len(spent)} of {RUNS.total()}: {one.served} served,"
                    f" {one.spent_nusd:,} nusd as billed, {took_s:.1f} s\n"
                )
        await books.close()
    return spent
