"""One validator with a week of traffic, and one browser, for all tests of a module."""

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from support.traffic import pour, some_traffic
from support.upstream import running_upstream
from support.validator import OPERATOR_TOKEN, Running, running_validator
from support.worlds import a_policy

T = TypeVar("T")

RECORDS = 600
# What Chromium remarks on that is no mistake: a login without a name, and a page meant to be 404.
BY_THE_WAY = ("[DOM] Password forms should have", "Failed to load resource: the server responded")


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
            await pour(running.desk.store, policy, traffic)
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


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Generator[Console]:
    yield from start_console(tmp_path_factory.mktemp("console"))


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed (Debian: chromium)")
    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, console: Console) -> Generator[Callable[..., BrowserContext]]:
    """Makes browser contexts that have logged in; any console message of a page is a failure."""
    contexts: list[BrowserContext] = []
    said: list[str] = []

    def make(*, logged_in: bool = True, **options: Any) -> BrowserContext:  # noqa: ANN401
        context = browser.new_context(base_url=console.running.url, **options)
        contexts.append(context)
        context.set_default_timeout(8_000)
        context.on("console", lambda message: said.append(message.text))
        context.on("weberror", lambda error: said.append(str(error.error)))
        if logged_in:
            with console.operator() as client:
                value = client.cookies["waypost_console"]
            context.add_cookies(
                [{"name": "waypost_console", "value": value, "url": f"{console.url}/"}]
            )
        return context

    yield make
    for context in contexts:
        context.close()
    assert [text for text in said if not text.startswith(BY_THE_WAY)] == []
