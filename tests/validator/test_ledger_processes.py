"""A ledger's file between real processes: raced for, and killed over."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from support.ledgers import LEASE_S, NOON, assert_books_balance, holds, spent_and_reserved
from waypost.validator.ledger import open_sqlite

pytestmark = pytest.mark.anyio

TESTS = Path(__file__).parents[1]


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


async def test_processes_that_race_for_the_last_dollar_spend_it_to_the_nano_dollar(
    tmp_path: Path,
) -> None:
    # 64 writers in 4 processes. They also race to make the file, and the account's first row.
    path = tmp_path / "ledger.sqlite"
    amount, limit = 1_000_003, 500 * 1_000_003 + 1_000_002
    with ExitStack() as stack:
        workers = [
            stack.enter_context(_worker("race", path, f"w{n}", amount, limit)) for n in range(4)
        ]
        for worker in workers:
            assert next(_lines(worker)) == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        held = [int(next(_lines(worker))) for worker in workers]

    assert sum(held) == 500
    assert_books_balance(path)
    ledger = open_sqlite(path)
    spent, reserved = await spent_and_reserved(ledger)
    assert spent + reserved == 500 * amount
    await ledger.close()


@pytest.mark.parametrize("lines_before", [1, 70, 901])
async def test_a_killed_process_loses_no_money_that_it_was_told_of(
    tmp_path: Path, lines_before: int
) -> None:
    path = tmp_path / "ledger.sqlite"
    with _worker("serve", path, "w") as worker, _worker("serve", path, "other") as other:
        lines = _lines(worker)
        told = [next(lines) for _ in range(lines_before)]
        worker.kill()
        told += lines  # what was in the pipe
        next(_lines(other))  # and the other worker goes on
        other.kill()
        other.wait()

    assert_books_balance(path)
    kept = holds(path)
    for line in told:
        what, hold_id, *cost = line.split()
        assert hold_id in kept
        if what == "settled":
            assert kept[hold_id] == ("settled", int(cost[0]))

    ledger = open_sqlite(path)
    open_holds = [hold_id for hold_id, (state, _) in kept.items() if state == "held"]
    assert await ledger.sweep(now=NOON + LEASE_S) == len(open_holds)
    costs = sum(cost for _, cost in kept.values()) + 1_000 * len(open_holds)
    assert await spent_and_reserved(ledger, "total") == (costs, 0)
    await ledger.close()
    assert_books_balance(path)
