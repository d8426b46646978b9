"""Where what takes long is done: one thread for large bodies, so that the event loop is never held.

One, not many: threads share the interpreter, and each that computes makes the loop wait its turn.
Small bodies, which are nearly all, stay on the loop: a hop costs more than reading them does.
"""

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

__all__ = ["LARGE_BYTES", "Lane", "is_large"]

LARGE_BYTES = 64_000  # 25 ms of detectors at worst, a millisecond of JSON

T = TypeVar("T")


def is_large(body: bytes) -> bool:
    """Whether a body's shape may hold up the loop."""
    return len(body) > LARGE_BYTES


class Lane:
    """The thread of one process."""

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(1)

    async def run(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, made off the loop when its turn comes."""
        return await to_thread.run_sync(work, limiter=self._limiter)
