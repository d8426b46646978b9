"""Two providers to go wrong."""

from collections.abc import AsyncGenerator

import pytest

from support.upstream import Upstream, running_upstream


@pytest.fixture
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
