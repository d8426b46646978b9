"""Clients that race for the last dollar on two validators that share one ledger."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from support.race_worker import DEARER
from support.upstream import running_upstream
from support.validator import HELLO
from waypost.shared.contracts import SpendLimit
from waypost.validator.ledger import Ledger, scope_of

TESTS = Path(__file__).parents[1]
LIMIT_NUSD = 1_000_000_000
_TOTAL = (SpendLimit(window="total", limit_nusd=LIMIT_NUSD),)
BODY = {**HELLO, "max_tokens": 8}
COST_NUSD = (20 * 150 + 7 * 600) * DEARER  # the provider tells 20 tokens in and 7 out


@dataclass(frozen=True)
class Race:
    """How one race ended; ``served`` is the provider's own count."""

    served: int
    spent_nusd: int
    reserved_nusd: int
    statuses: frozenset[int]

    def assert_is_exact(self) -> None:
        """Spent is what the provider served, and no more than the limit."""
        assert self.reserved_nusd == 0, self
        assert self.spent_nusd == self.served * COST_NUSD, self
        assert 0 < self.spent_nusd <= LIMIT_NUSD, self
        assert self.statuses == {200, 402}, self


@asynccontextmanager
async def _validator(
    folder: Path, ledger: Mapping[str, Any], dsn: str, port: int, usd: str
) -> AsyncIterator[dict[str, str]]:
    folder.mkdir()  # noqa: ASYNC240
    process: Process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "support.race_worker", folder, json.dumps(ledger), dsn, str(port), usd,
        stdin=PIPE, stdout=PIPE, env={**os.environ, "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(await process.stdout.readline())
    finally:
        process.stdin.close()
        await process.wait()


async def race(
    folder: Path,
    ledger: Mapping[str, Any],
    dsn: str,
    *,
    clients: int,
    books: Ledger,
    usd: str = "1",
) -> Race:
    """Return what came of ``clients`` that ask two validators until each is refused.

    Args:
        ledger: the section of ``validator.yaml``, the same for both.
        books: the same ledger, to read what was spent.
        usd: what may be spent, a dollar or less.
    """
    async with running_upstream() as acme, AsyncExitStack() as stack:
        validators = [
            await stack.enter_async_context(_validator(folder / name, ledger, dsn, acme.port, usd))
            for name in ("one", "two")
        ]
        http = await stack.enter_async_context(
            httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=clients))
        )

        async def spend(number: int) -> set[int]:
            validator = validators[number % 2]
            statuses: set[int] = set()
            while 402 not in statuses and len(statuses - {200}) == 0:
                answer = await http.post(
                    f"{validator['url']}/v1/chat/completions",
                    json=BODY,
                    headers={"Authorization": validator["token"]},
                )
                statuses.add(answer.status_code)
            return statuses

        seen = await asyncio.gather(*(spend(number) for number in range(clients)))
        served = len(acme.seen)
    (total,) = await books.balances((scope_of("account:acme", _TOTAL),), now=0)
    return Race(served, total.spent_nusd, total.reserved_nusd, frozenset().union(*seen))
