"""A short soak for every run of the suite; ``make soak`` is the long one."""

from pathlib import Path

import pytest

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
