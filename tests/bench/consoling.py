"""The console's pages over many records: 100,000 of them, or WAYPOST_BENCH_RECORDS.

Making a million takes some minutes; WAYPOST_BENCH_FOLDER keeps them for the next run.
"""

import asyncio
import os
import statistics
import time
from pathlib import Path

import httpx

from support.traffic import pour, some_traffic
from support.upstream import running_upstream
from support.validator import OPERATOR_TOKEN, Running, running_validator
from support.worlds import a_policy
from waypost.validator.records import RecordFilter, SqliteRecordStore

ROUNDS = 5
DAYS = 29.5
PAGES = (
    "decisions?window=1h",
    "decisions",
    "decisions?window=30d",
    "decisions?window=30d&verdict=overridden",
    "decisions?window=30d&route=hard&tenant=north&verdict=overridden",
    "decisions?window=30d&account=alice",
    "decisions?window=30d&account=nobody",
    "routes?window=7d",
    "routes?window=30d",
    "budgets",
    "providers",
    "manifest",
    "playground",
)


def rows(folder: Path) -> list[tuple[str, str, str]]:
    """Return how long each page takes: time of a core, and all in all."""
    return asyncio.run(_rows(Path(os.environ.get("WAYPOST_BENCH_FOLDER") or folder)))


async def _rows(folder: Path) -> list[tuple[str, str, str]]:
    policy = a_policy()
    count = int(os.environ.get("WAYPOST_BENCH_RECORDS", "100000"))
    path = folder / "state" / "records.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    store = SqliteRecordStore.open(path)
    if not await store.list(RecordFilter(), limit=1):
        now_ms = int(time.time() * 1_000)
        await pour(store, policy, some_traffic(count, policy, until_ms=now_ms, days=DAYS))
        await store.compact()
    found = sum(row.requests for row in (await store.stats(RecordFilter(), by=())).rows)
    await store.close()
    async with (
        running_upstream() as acme,
        running_validator(
            folder, {"acme": acme, "medcloud": acme}, console={"token": "CONSOLE_TOKEN"}
        ) as running,
    ):
        times = await _times(running)
    return [
        (
            f"/console/{page}, {found:,} records",
            f"{core:.0f} ms of a core, {whole:.0f} ms in all, worst {worst:.0f}",
            "≤ 300 ms",
        )
        for page, (core, whole, worst) in times.items()
    ]


async def _times(running: Running) -> dict[str, tuple[float, float, float]]:
    origin = {"origin": running.url, "accept": "text/html"}
    async with httpx.AsyncClient(base_url=running.url, headers=origin, timeout=60) as operator:
        await operator.post("/console/login", data={"token": OPERATOR_TOKEN})
        newest = (await running.services.store.list(RecordFilter(), limit=1))[0].id
        found: dict[str, tuple[float, float, float]] = {}
        for page in (*PAGES, f"decisions/{newest}"):
            taken: list[float] = []
            cores: list[float] = []
            for _ in range(ROUNDS):
                begin, core = time.perf_counter(), time.process_time()
                (await operator.get(f"/console/{page}")).raise_for_status()
                taken.append((time.perf_counter() - begin) * 1_000)
                cores.append((time.process_time() - core) * 1_000)
            found[page.replace(newest, "ID")] = (
                statistics.median(cores),
                statistics.median(taken),
                max(taken),
            )
        return found
