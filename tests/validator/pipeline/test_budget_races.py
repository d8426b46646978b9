"""The last dollar, raced for by many clients over HTTP: spent to the nano-dollar, never beyond.

`python -m bench race` runs the same with 500 clients, 20 times over.
"""

from pathlib import Path
from typing import Any

import pytest

from support.racing import races
from support.redis import running_redis
from waypost.validator.ledger import open_sqlite
from waypost.validator.ledger.redis import open_redis

pytestmark = pytest.mark.anyio


async def test_two_validators_that_share_redis_spend_no_more_than_the_limit(tmp_path: Path) -> None:
    with running_redis() as server:
        settings: dict[str, Any] = {"store": "redis", "dsn": "LEDGER_DSN"}
        books = open_redis(server.url)
        async for race in races(tmp_path, settings, server.url, clients=40, books=books, usd="0.2"):
            race.assert_is_exact()
        await books.close()


async def test_two_workers_that_share_a_file_spend_no_more_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    books = open_sqlite(path)
    settings = {"path": str(path)}
    async for race in races(tmp_path, settings, "-", clients=40, books=books, usd="0.2"):
        race.assert_is_exact()
    await books.close()
