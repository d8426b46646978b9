"""A running validator with two providers, as most of its tests want it."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from support.upstream import Upstream, running_upstream
from support.validator import Running, running_validator


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The loop that the validator runs on."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
async def acme() -> AsyncGenerator[Upstream]:
    """The provider of small, large and frontier."""
    async with running_upstream() as upstream:
        yield upstream


@pytest.fixture
async def medcloud() -> AsyncGenerator[Upstream]:
    """The provider of clinical, which alone may see patient data."""
    async with running_upstream() as upstream:
        yield upstream


@pytest.fixture
async def validator(tmp_path: Path, acme: Upstream, medcloud: Upstream) -> AsyncGenerator[Running]:
    async with running_validator(tmp_path, {"acme": acme, "medcloud": medcloud}) as running:
        yield running
