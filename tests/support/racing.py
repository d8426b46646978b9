"""Clients that race for the last dollar on two validators that share one ledger."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx

from support.billing import Billing, marked
from support.race_worker import RATES
from support.upstream import running_upstream
from waypost.shared.contracts import SpendLimit
from waypost.validator.ledger import Ledger, scope_of

TESTS = Path(__file__).parents[1]
LIMIT_NUSD = 1_000_000_000
_TOTAL = (SpendLimit(window="total", limit_nusd=LIMIT_NUSD),)
# API → path, and its body.
APIS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": marked(1)}], "max_tokens": 16},
    ),
    "messages": (
        "/v1/messages",
        {"messages": [{"role": "user", "content": marked(2)}], "max_tokens": 16},
    ),
    "responses": (
        "/v1/responses",
        {"input": marked(3), "max_output_tokens": 16, "store": False},
    ),
    "embeddings": ("/v1/embeddings", {"input": marked(4)}),
}
# How the last dollar is raced for: an API, whether it is streamed, and the provider's dialect.
WAYS = (
    ("chat", False, "openai"),
    ("chat", True, "gemini"),
    ("messages", True, "anthropic"),
    ("responses", True, "openai"),
    ("chat", False, "anthropic"),
    ("embeddings", False, "openai"),
    ("chat", False, "gemini"),
    ("messages", False, "anthropic"),
    ("responses", False, "openai"),
    ("chat", True, "openai"),
)


@dataclass(frozen=True)
class Race:
    """How one race ended; ``served`` and ``billed_nusd`` are the provider's own counts.

    Attributes:
        unconfirmed: how many charges no provider has confirmed.
    """

    served: int
    billed_nusd: Fraction
    spent_nusd: int
    reserved_nusd: int
    unconfirmed: int
    statuses: frozenset[int]

    def assert_is_exact(self) -> None:
        """Spent is what the provider bills, and no more than the limit."""
        assert self.unconfirmed == 0, self
        assert self.spent_nusd == self.billed_nusd, self
        self.assert_is_covered()
        assert self.statuses == {200, 402}, self

    def assert_is_covered(self) -> None:
        """What the provider bills is spent, and what it may bill; all within the limit."""
        assert self.reserved_nusd == 0, self
        assert self.billed_nusd <= self.spent_nusd <= LIMIT_NUSD, self
        assert self.spent_nusd, self


@asynccontextmanager
async def _validator(
    folder: Path, ledger: Mapping[str, Any], dsn: str, *arguments: str
) -> AsyncIterator[dict[str, Any]]:
    folder.mkdir()  # noqa: ASYNC240
    process: Process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "support.race_worker", folder, json.dumps(ledger), dsn, *arguments,
        stdin=PIPE, stdout=PIPE, env={**os.environ, "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(await process.stdout.readline())
    finally:
        process.stdin.close()
        await process.wait()


async def races(
    folder: Path,
    ledger: Mapping[str, Any],
    dsn: str,
    *,
    clients: int,
    books: Ledger,
    usd: str = "1",
    times: int = 1,
    timeout_s: float = 300,
    ways: Sequence[tuple[str, bool, str]] = WAYS[:1],
) -> AsyncIterator[Race]:
    """Give what comes of each race of ``clients``, who ask two validators until they are refused.

    Args:
        ledger: the section of ``validator.yaml``, the same for both.
        books: the same ledger, to read what was spent.
        usd: what may be spent, a dollar or less; of each race by another account.
        ways: the races take turns at them; all are of one dialect.
        timeout_s: how long a validator waits for the provider. On a busy machine hundreds at
            once take long.
    """
    accounts = [f"race-{ways[0][2]}-{number}" for number in range(times)]
    billing = Billing(rates=RATES)
    async with running_upstream(billing.behave) as acme, AsyncExitStack() as stack:
        arguments = (str(acme.port), usd, " ".join(accounts), str(timeout_s), ways[0][2])
        starting = [
            stack.enter_async_context(_validator(folder / name, ledger, dsn, *arguments))
            for name in ("one", "two")
        ]
        validators = await asyncio.gather(*starting)
        http = await stack.enter_async_context(
            httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=clients))
        )

        async def spend(number: int, account: str, api: str, streamed: bool) -> set[int]:
            path, body = APIS[api]
            validator = validators[number % 2]
            statuses: set[int] = set()
            while 402 not in statuses and len(statuses - {200, 504}) == 0:
                # Of hundreds that connect at once some are turned away, and ask again.
                with suppress(httpx.ReadError):
                    answer = await http.post(
                        f"{validator['url']}{path}",
                        json={"model": "auto", **body, **({"stream": True} if streamed else {})},
                        headers={"Authorization": validator["tokens"][account]},
                    )
                    statuses.add(answer.status_code)
            return statuses

        for place, account in enumerate(accounts):
            before = len(billing.bills)
            api, streamed, _ = ways[place % len(ways)]
            seen = await asyncio.gather(
                *(spend(number, account, api, streamed) for number in range(clients))
            )
            billed = sum((one.due(RATES) for one in billing.bills[before:]), Fraction())
            served = len(billing.bills) - before
            (total,) = await books.balances((scope_of(f"account:{account}", _TOTAL),), now=0)
            unconfirmed = [
                entry.id
                async for entry in books.journal(since=0, until=2**40)
                if entry.state == "unconfirmed" and f"account:{account}" in entry.scopes
            ]
            statuses = frozenset[int]().union(*seen)
            yield Race(
                served, billed, total.spent_nusd, total.reserved_nusd, len(unconfirmed), statuses
            )
