"""The store of records is killed under load, and comes back: no record is missing or there twice.

Some seconds of it. ``python -m bench outage`` has the full minute at full load.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from anyio import to_thread

from support.postgres import a_postgres
from support.upstream import Upstream
from support.validator import ENVIRONMENT, running_validator
from waypost.validator.records import RecordFilter

pytestmark = pytest.mark.anyio

CALLERS = 4
ALL = RecordFilter()


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110 - nothing says so but its state
            await asyncio.sleep(0.01)


async def test_a_store_that_is_killed_under_load_has_every_record_when_it_is_back(
    tmp_path: Path, acme: Upstream
) -> None:
    answered: list[str] = []
    with a_postgres() as server:
        environment = {**ENVIRONMENT, "RECORDS_DSN": server.dsn}
        records = {"store": "postgres", "dsn": "RECORDS_DSN"}
        async with running_validator(
            tmp_path, {"acme": acme}, environment=environment, records=records
        ) as validator:

            async def call() -> None:
                while not is_over.is_set():
                    answer = await validator.chat()
                    assert answer.status_code == 200
                    answered.append(answer.headers["x-request-id"])

            is_over = asyncio.Event()
            callers = [asyncio.create_task(call()) for _ in range(CALLERS)]
            sink, store = validator.services.records, validator.services.store
            await _until(lambda: len(answered) > 50)
            await to_thread.run_sync(server.kill)
            down_at = len(answered)
            await _until(lambda: sink.spilled_bytes > 0 and len(answered) > down_at + 50)
            await to_thread.run_sync(server.start)
            is_over.set()
            await asyncio.gather(*callers)
            await _until(lambda: not sink.spilled_bytes and not sink.waiting)
            kept = [record.id for record in await store.list(ALL, limit=100_000)]
            stats = await store.stats(ALL, by=())
    assert sink.dropped == 0
    assert sorted(kept) == sorted(answered)
    assert (stats.rows[0].requests, stats.dropped) == (len(answered), 0)
