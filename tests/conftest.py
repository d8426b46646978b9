"""Settings for the whole suite."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from support.debian import summary
from support.postgres import running_postgres
from support.redis import RedisServer, running_redis
from support.shared_tls import share_default_context

# Matrices here are small: idle BLAS threads only spin, and took four times what the work does.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# The workers of pytest-xdist are told a width, which consoles would keep whatever a test asks for.
os.environ.pop("COLUMNS", None)

share_default_context()

# No deadline: the suite shares its cores, and slowness is the benchmarks' business.
settings.register_profile("waypost", deadline=None, max_examples=100)
# Ten times as much, for a night: HYPOTHESIS_PROFILE=thorough make test
settings.register_profile("thorough", deadline=None, max_examples=1_000)
# The same examples for each mutant, and none kept: ``make mutants``.
settings.register_profile(
    "mutants", deadline=None, max_examples=100, derandomize=True, database=None
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "waypost"))


@pytest.fixture
def anyio_backend() -> str:
    """Servers run on asyncio, and so do their tests."""
    return "asyncio"


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One for all tests that let it run and keep to names of their own."""
    with running_redis() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_dsn() -> Iterator[str]:
    """One for all tests that let it run and keep to schemas of their own."""
    with running_postgres() as dsn:
        yield dsn


# Outermost, so that it comes after what pytest says of each skipped test.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Say at the end what was skipped for want of which packages, and what installs them."""
    yield
    skipped = terminalreporter.getreports("skipped")
    lines = summary(str(report.longrepr[-1]) for report in skipped if report.longrepr)
    if lines:
        terminalreporter.section("Debian packages")
    for line in lines:
        terminalreporter.line(line)
