"""What the validator finds in a request adds duties, whatever the client says of it."""

from pathlib import Path

import pytest

from support.upstream import running_upstream
from support.validator import running_validator
from support.worlds import a_policy

pytestmark = pytest.mark.anyio

SSN = {"model": "auto", "messages": [{"role": "user", "content": "My SSN is 536-90-4399."}]}


async def test_patient_data_nobody_declared_goes_where_it_may(tmp_path: Path) -> None:
    async with (
        running_upstream() as upstream,
        running_validator(
            tmp_path,
            {"acme": upstream, "medcloud": upstream},
            detectors={"ssn": "phi"},
        ) as validator,
    ):
        response = await validator.chat(SSN, headers={"Waypost-Proposal": 'model="small"'})
        record = await validator.record(response)

    assert (record.verdict, record.reason, record.model) == ("overridden", "duty_unmet", "clinical")
    assert record.facts is not None
    assert record.facts.measured.data_classes == ("phi",)


async def test_a_class_found_that_the_policy_does_not_define_is_refused(tmp_path: Path) -> None:
    async with (
        running_upstream() as upstream,
        running_validator(
            tmp_path,
            {"acme": upstream, "medcloud": upstream},
            policy=a_policy(data_classes={}),
            detectors={"ssn": "government_id"},
        ) as validator,
    ):
        response = await validator.chat(SSN)

    assert response.status_code == 403
    assert response.json()["error"]["code"] == "unknown_data_class"
    assert upstream.seen == []
