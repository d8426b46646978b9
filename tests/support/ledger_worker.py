"""A process that spends from a shared ledger, told what by its arguments.

``race ADDRESS NAME AMOUNT_NUSD LIMIT_NUSD``: after a line on standard input, holds the amount from
16 tasks at once until refused; writes how many holds it got.
``serve ADDRESS NAME``: holds and settles for ever, writing each id (and cost) once it is told so.
"""

import asyncio
import os
import sys
from collections.abc import Iterator
from itertools import count

from support.ledgers import NOON, USD, a_hold, limit, open_at
from waypost.validator.ledger import Held

TASKS = 16


async def race(address: str, name: str, amount_nusd: int, limit_nusd: int) -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)
    ledger = open_at(address)
    numbers = count()

    async def spend() -> int:
        held = 0
        while True:
            hold = a_hold(f"{name}-{next(numbers)}", amount_nusd, limit("day", limit_nusd))
            if not isinstance(await ledger.reserve(hold), Held):
                return held
            held += 1
            if held % 2:
                await ledger.settle(hold.id, amount_nusd)

    held = await asyncio.gather(*(spend() for _ in range(TASKS)))
    await ledger.close()
    sys.stdout.write(f"{sum(held)}\n")


async def serve(address: str, name: str) -> None:
    ledger = open_at(address)
    numbers = count()

    async def spend(numbers: Iterator[int]) -> None:
        for number in numbers:
            hold = a_hold(f"{name}-{number}", 1_000, limit("day", 10**6 * USD), now=NOON)
            await ledger.reserve(hold)
            os.write(1, f"held {hold.id}\n".encode())
            await ledger.settle(hold.id, number)
            os.write(1, f"settled {hold.id} {number}\n".encode())

    await asyncio.gather(*(spend(numbers) for _ in range(TASKS)))


if __name__ == "__main__":
    command, address, name, *rest = sys.argv[1:]
    if command == "race":
        asyncio.run(race(address, name, *map(int, rest)))
    else:
        asyncio.run(serve(address, name))
