"""What a body demands of whoever serves it is met by the validator, and ends there."""

from pathlib import Path
from typing import Any

import pytest

from support.upstream import running_upstream
from support.validator import HELLO, running_validator

pytestmark = pytest.mark.anyio


async def test_a_demand_is_met_recorded_and_not_passed_on(tmp_path: Path) -> None:
    demand = {"provider": {"zdr": True, "allow_fallbacks": False}, "models": ["clinical", "small"]}
    async with (
        running_upstream() as acme,
        running_upstream() as medcloud,
        running_validator(tmp_path, {"acme": acme, "medcloud": medcloud}) as validator,
    ):
        response = await validator.chat({**HELLO, **demand})
        record = await validator.record(response)

    assert response.status_code == 200
    assert (len(acme.seen), len(medcloud.seen)) == (0, 1)
    assert not {"provider", "models"} & medcloud.seen[0].json.keys()
    assert record.facts is not None
    assert record.facts.measured.demands is not None
    assert record.facts.measured.demands.promises == ("zero_retention",)


@pytest.mark.parametrize(
    ("demand", "code"),
    [
        ({"provider": {"only": ["medcloud"], "max_price": {"prompt": 0}}}, "request_excludes"),
        ({"provider": {"ignore": ["nobody"]}}, "unknown_provider"),
        ({"models": ["gpt-99"]}, "unknown_model"),
        ({"provider": {"onyl": ["acme"]}}, "invalid_body"),
        ({"provider": {"require_parameters": True}, "seed": 7}, "parameter_unsupported"),
    ],
)
async def test_a_demand_that_cannot_be_met_is_a_400_and_costs_nothing(
    tmp_path: Path, demand: dict[str, Any], code: str
) -> None:
    async with (
        running_upstream() as acme,
        running_validator(tmp_path, {"acme": acme, "medcloud": acme}) as validator,
    ):
        response = await validator.chat({**HELLO, **demand})

        assert (response.status_code, response.json()["error"]["code"]) == (400, code)
        assert await validator.spent() == (0, 0)
    assert not acme.seen
