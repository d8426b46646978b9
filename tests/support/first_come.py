"""What several processes at once do in tests: apart, so that they import next to nothing."""

import asyncio
from pathlib import Path

from waypost.client.dpop import DPoPKey, FileKeyStore
from waypost.validator.access.seen_once import SqliteSeen


def firsts(path: Path, marks: int) -> int:
    """Return how many of ``marks`` this process was the first to see."""

    async def claim() -> int:
        seen = SqliteSeen.open(path)
        found = [await seen.is_first(b"%d" % mark, until=100) for mark in range(marks)]
        await seen.close()
        return sum(found)

    return asyncio.run(claim())


def kept_thumbprint(path: Path) -> str:
    """Return the thumbprint of the key that this process finds or makes in ``path``."""
    return DPoPKey.kept(FileKeyStore(path)).thumbprint
