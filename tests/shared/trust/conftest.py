"""One publisher per test: keys take a millisecond."""

import pytest

from support.publisher import Publisher


@pytest.fixture
def publisher() -> Publisher:
    return Publisher()
