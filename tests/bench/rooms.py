"""How far one request walks through the house: ``PYTHONPATH=tests python -m bench.rooms``.

One chat request to a running validator is traced, from its first byte to its record. Each call of
a function of ours is a step; a step into another folder than the step before is a change of room.
A coroutine that goes on after a wait is no new step; other threads are not followed.
"""

import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType

from support.upstream import running_upstream
from support.validator import running_validator

WARM_UP = 3  # caches, connections, the token's signature
DOORS_SHOWN = 12
OURS = "waypost."


class Walk:
    """The functions entered, in order, each as its module's name."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self._frames: set[FrameType] = set()  # kept, so that no id is used again

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        name = frame.f_globals.get("__name__", "")
        if event == "call" and name.startswith(OURS) and frame not in self._frames:
            self._frames.add(frame)
            self.steps.append(name.removeprefix(OURS))

    @property
    def modules(self) -> set[str]:
        """The modules entered."""
        return set(self.steps)

    def doors(self) -> Counter[tuple[str, str]]:
        """Return how often it went from which room to which other."""
        steps = pairwise(map(_room, self.steps))
        return Counter((before, after) for before, after in steps if before != after)


def _room(module: str) -> str:
    """Return the folder or loose file of a part: ``validator.pipeline``, ``shared.money``."""
    return ".".join(module.split(".")[:2])


@contextmanager
def _traced(walk: Walk) -> Generator[None]:
    sys.setprofile(walk)
    try:
        yield
    finally:
        sys.setprofile(None)


async def walked(folder: Path) -> Walk:
    """Return the walk of one chat request that is answered."""
    async with (
        running_upstream() as upstream,
        running_validator(folder, {"acme": upstream, "medcloud": upstream}) as validator,
    ):
        for _ in range(WARM_UP):
            await validator.record(await validator.chat())
        headers, walk = validator.headers(), Walk()
        await validator.chat(headers=headers)
        with _traced(walk):
            response = await validator.chat(headers=headers)
        response.raise_for_status()
        return walk


def main() -> None:
    """Print how far the request went, and through which doors most often."""
    with tempfile.TemporaryDirectory() as folder:
        walk = asyncio.run(walked(Path(folder)))
    doors = walk.doors()
    print(f"functions entered  {len(walk.steps)}")
    print(f"modules entered    {len(walk.modules)}")
    print(f"rooms entered      {len(set(map(_room, walk.modules)))}")
    print(f"changes of room    {doors.total()}")
    for (before, after), times in doors.most_common(DOORS_SHOWN):
        print(f"{times:4} x  {before} -> {after}")


if __name__ == "__main__":
    main()
