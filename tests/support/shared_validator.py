"""One running validator for all tests of a module that only ask it, and leave it as it was."""

from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest

from support.upstream import Upstream, answering, running_upstream
from support.validator import Running, running_validator

__all__ = ["fixtures"]


def fixtures() -> tuple[Any, Any, Any, Any]:
    """Return acme, medcloud, validator and what clears the providers, to assign in a module.

    They stand in for the fixtures of the same names that each test has of its own. Money stays:
    a test that spends does it from an account that no other test of the module looks at.
    """

    @pytest.fixture(scope="module", name="acme")
    async def acme() -> AsyncGenerator[Upstream]:
        async with running_upstream() as upstream:
            yield upstream

    @pytest.fixture(scope="module", name="medcloud")
    async def medcloud() -> AsyncGenerator[Upstream]:
        async with running_upstream() as upstream:
            yield upstream

    @pytest.fixture(scope="module", name="validator")
    async def validator(
        tmp_path_factory: pytest.TempPathFactory, acme: Upstream, medcloud: Upstream
    ) -> AsyncGenerator[Running]:
        folder = tmp_path_factory.mktemp("validator")
        async with running_validator(folder, {"acme": acme, "medcloud": medcloud}) as running:
            yield running

    @pytest.fixture(autouse=True, name="forgetful")
    def forgetful(acme: Upstream, medcloud: Upstream) -> Iterator[None]:
        yield
        for upstream in (acme, medcloud):
            upstream.seen.clear()
            upstream.behave = answering()

    return acme, medcloud, validator, forgetful
