"""A ledger between real processes: raced for, and killed over, in every store."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex

import pytest

from support.ledgers import (
    LEASE_S,
    NOON,
    assert_accounts_balance,
    assert_books_balance,
    journal,
    open_at,
    spent_and_reserved,
)
from support.redis import running_redis

pytestmark = pytest.mark.anyio

TESTS = Path(__file__).parents[2]


@contextmanager
def _worker(*arguments: object) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-m", "support.ledger_worker", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _lines(process: "subprocess.Popen[str]") -> Iterator[str]:
    assert process.stdout is not None
    return iter(process.stdout)


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    # A process that is killed takes nothing of the server's with it, however lazy its disk.
    with running_redis("--appendfsync", "no") as server:
        yield server.url


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where processes find one ledger; a file's books are read past it at the end."""
    match request.param:
        case "redis":
            yield f"{request.getfixturevalue('redis_url')}#{token_hex(4)}"
        case "postgres":
            yield f"{request.getfixturevalue('postgres_dsn')}#w{token_hex(4)}"
        case _:
            yield str(tmp_path / "ledger.sqlite")
            assert_books_balance(tmp_path / "ledger.sqlite")


async def test_processes_that_race_for_the_last_dollar_spend_it_to_the_nano_dollar(
    address: str,
) -> None:
    # 64 writers in 4 processes. They also race to make the tables, and the account's first row.
    amount, limit = 1_000_003, 500 * 1_000_003 + 1_000_002
    with ExitStack() as stack:
        workers = [
            stack.enter_context(_worker("race", address, f"w{n}", amount, limit)) for n in range(4)
        ]
        for worker in workers:
            assert next(_lines(worker)) == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        held = [int(next(_lines(worker))) for worker in workers]

    assert sum(held) == 500
    ledger = open_at(address)
    spent, reserved = await spent_and_reserved(ledger)
    assert spent + reserved == 500 * amount
    await assert_accounts_balance(ledger)
    await ledger.close()


@pytest.mark.parametrize("lines_before", [random.randint(1, 300), 901], ids=["soon", "later"])
async def test_a_killed_process_loses_no_money_that_it_was_told_of(
    address: str, lines_before: int
) -> None:
    with _worker("serve", address, "w") as worker, _worker("serve", address, "other") as other:
        lines = _lines(worker)
        told = [next(lines) for _ in range(lines_before)]
        worker.kill()
        told += lines  # what was in the pipe
        next(_lines(other))  # and the other worker goes on
        other.kill()
        other.wait()

    ledger = open_at(address)
    await assert_accounts_balance(ledger)
    kept = await journal(ledger)
    for line in told:
        what, hold_id, *cost = line.split()
        assert hold_id in kept, lines_before
        if what == "settled":
            assert kept[hold_id] == ("settled", int(cost[0])), lines_before

    open_holds = [hold_id for hold_id, (state, _) in kept.items() if state == "held"]
    assert await ledger.sweep(now=NOON + LEASE_S) == len(open_holds)
    costs = sum(cost for _, cost in kept.values()) + 1_000 * len(open_holds)
    assert await spent_and_reserved(ledger, "total") == (costs, 0)
    await assert_accounts_balance(ledger)
    await ledger.close()
