"""What a token is checked with keeps its secrets, however it is printed."""

from pathlib import Path

import pytest

from support.validator import OPERATOR_TOKEN, settings
from waypost.validator.access.checks import AccessChecks
from waypost.validator.access.seen_once import SqliteSeen
from waypost.validator.services import OperatorTokens

PROVIDERS = {"acme": {"base_url": "http://127.0.0.1:1", "api_key": "ACME_KEY"}}
pytestmark = pytest.mark.anyio


async def test_no_secret_is_in_what_is_printed(tmp_path: Path) -> None:
    seen = SqliteSeen.open(tmp_path / "seen.db")
    key = b"the one secret of an operator"
    checks = AccessChecks.configured(settings(tmp_path, PROVIDERS), seen=seen, pseudonym_key=key)
    tokens = OperatorTokens(console=OPERATOR_TOKEN, metrics=OPERATOR_TOKEN)
    try:
        assert "secret of" not in repr(checks)
        assert OPERATOR_TOKEN not in repr(tokens)
    finally:
        await seen.close()
