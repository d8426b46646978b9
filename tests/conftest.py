"""Settings for the whole suite."""

import pytest
from hypothesis import settings

# No deadline: the suite shares its cores, and slowness is the benchmarks' business.
settings.register_profile("waypost", deadline=None, max_examples=100)
settings.load_profile("waypost")


@pytest.fixture
def anyio_backend() -> str:
    """Servers run on asyncio, and so do their tests."""
    return "asyncio"
