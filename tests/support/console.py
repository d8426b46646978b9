"""A validator with a week of traffic, to look at its console."""

import asyncio
import threading
import time
from collections.abc import Coroutine, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from support.traffic import pour, some_traffic
from support.upstream import running_upstream
from support.validator import OPERATOR_TOKEN, Running, running_validator
from support.worlds import a_policy

T = TypeVar("T")

RECORDS = 600


@dataclass
class Console:
    """A running validator on a loop of its own, so that a browser can be driven beside it."""

    running: Running
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        return f"{self.running.url}/console"

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what ``work`` comes to, on the validator's loop."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self.loop)
        return future.result(20)

    @contextmanager
    def operator(self) -> Generator[httpx.Client]:
        """A client that has logged in."""
        origin = {"origin": self.running.url}
        with httpx.Client(base_url=self.running.url, headers=origin, timeout=20) as client:
            answer = client.post("/console/login", data={"token": OPERATOR_TOKEN})
            assert answer.status_code == 303
            yield client


def start_console(folder: Path, *, records: int = RECORDS) -> Generator[Console]:
    ready: Future[Console] = Future()
    ended = threading.Event()

    async def serve() -> None:
        now_ms = int(time.time() * 1_000)
        limits = {"default": [{"window": "day", "limit_usd": 5}]}
        async with (
            running_upstream() as acme,
            running_validator(
                folder,
                {"acme": acme, "medcloud": acme},
                console={"token": "CONSOLE_TOKEN"},
                budgets=limits,
            ) as running,
        ):
            policy = a_policy()
            traffic = some_traffic(records, policy, until_ms=now_ms, days=1)
            await pour(running.services.store, policy, traffic)
            ready.set_result(Console(running, asyncio.get_running_loop()))
            await asyncio.to_thread(ended.wait)

    def work() -> None:
        try:
            asyncio.run(serve())
        except BaseException as exc:
            if ready.done():
                raise
            ready.set_exception(exc)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield ready.result(30)
    finally:
        ended.set()
        thread.join(10)
        assert not thread.is_alive()
