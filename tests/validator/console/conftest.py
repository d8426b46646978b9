"""One validator with a week of traffic, and one browser, for all tests of a module."""

import os
from collections.abc import Callable, Generator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from support.console import Console, start_console
from support.debian import program

# What Chromium remarks on that is no mistake: a login without a name, and a page meant to be 404.
BY_THE_WAY = ("[DOM] Password forms should have", "Failed to load resource: the server responded")


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Generator[Console]:
    yield from start_console(tmp_path_factory.mktemp("console"))


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    chromium = program("chromium")
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
