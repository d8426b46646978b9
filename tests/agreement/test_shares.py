"""A share of the callers is the same callers to the client and to the validator."""

from pathlib import Path

import pytest

from support.upstream import running_upstream
from support.validator import running_validator
from support.worlds import a_policy
from waypost.client import Waypost
from waypost.client.testing import StaticManifest
from waypost.shared.contracts import Route, Share
from waypost.shared.wire.headers import parse_decision

pytestmark = pytest.mark.anyio

HALF = a_policy(
    routes=(
        Route(name="new", when=(Share("roll-out", below=5_000),), models=("large",)),
        Route(name="default", models=("small",)),
    )
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_client_and_validator_draw_the_same_callers(tmp_path: Path) -> None:
    both: set[tuple[str | None, object]] = set()
    async with (
        running_upstream() as acme,
        running_validator(tmp_path, {"acme": acme, "medcloud": acme}, policy=HALF) as validator,
    ):
        for caller in range(12):
            token = validator.bearer(sub=f"user-{caller}")
            with Waypost(
                token=token.removeprefix("Bearer "),
                manifest=StaticManifest(HALF),
                base_url=validator.url,
                refresh_interval_s=None,
            ) as client:
                chosen = client.choose("Hello").model
            response = await validator.chat(headers={"Authorization": token})
            decided = parse_decision(response.headers["waypost-decision"])["model"]
            both.add((chosen, decided))

    assert both == {("small", "small"), ("large", "large")}
