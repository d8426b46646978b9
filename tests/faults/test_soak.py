"""A short soak for every run of the suite; ``make soak`` is the long one."""

from pathlib import Path

import pytest

from faults.apart import AT_ONCE, apart
from faults.soak import soak

pytestmark = pytest.mark.anyio


async def test_while_any_one_provider_is_down_callers_notice_nothing_and_nothing_leaks(
    tmp_path: Path,
) -> None:
    report = await soak(tmp_path, seconds=8, seed=20_261_125)

    assert report.success >= 0.999, report.failures[:3]
    assert report.ended["hung up"]
    assert report.leaked == {}
    assert report.held_nusd == 0
    assert 0 < report.billed_nusd <= report.spent_nusd


async def test_two_hundred_tenants_at_once_each_get_their_own_answer(tmp_path: Path) -> None:
    report = await apart(tmp_path, rounds=1, seed=20_261_128)

    assert report.mixed == []
    assert report.held_nusd == 0
    assert report.ended["hung up"]
    assert report.ended["answered"] > AT_ONCE / 2
