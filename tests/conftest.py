"""Settings for the whole suite."""

import os

import pytest
from hypothesis import settings

# Matrices here are small: idle BLAS threads only spin, and took four times what the work does.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# The workers of pytest-xdist are told a width, which consoles would keep whatever a test asks for.
os.environ.pop("COLUMNS", None)

# No deadline: the suite shares its cores, and slowness is the benchmarks' business.
settings.register_profile("waypost", deadline=None, max_examples=100)
# Ten times as much, for a night: HYPOTHESIS_PROFILE=thorough make test
settings.register_profile("thorough", deadline=None, max_examples=1_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "waypost"))


@pytest.fixture
def anyio_backend() -> str:
    """Servers run on asyncio, and so do their tests."""
    return "asyncio"
