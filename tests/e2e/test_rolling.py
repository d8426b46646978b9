"""Two validators of two workers each are restarted in turn, behind nginx: nobody notices."""

from pathlib import Path

import pytest

from support.rolling import restart_in_turn

pytestmark = pytest.mark.anyio


async def test_no_request_is_lost_while_validators_are_restarted_in_turn(tmp_path: Path) -> None:
    came_to = await restart_in_turn(tmp_path, requests=200)

    assert set(came_to) == {"200"}, came_to
    assert came_to["200"] >= 200
