"""The shared cases, decided by the SDK as it decides an app's requests."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from waypost.client import Waypost
from waypost.client._facts import from_header
from waypost.client.testing import StaticManifest, unsigned_token
from waypost.shared.contracts import AUTO, Declared, decode_policy
from waypost.shared.measure import decode_chat

VECTORS = Path(__file__).parents[1] / "vectors"


def cases() -> Iterator[Any]:
    for case in json.loads((VECTORS / "requests.json").read_text()):
        # A proposal is what the SDK comes up with; only what the app left open is its case.
        if case["proposal"] is None and case["body"].get("model", AUTO) == AUTO:
            yield pytest.param(case, id=case["name"])


@pytest.mark.parametrize("case", list(cases()))
def test_the_sdk_decides_requests_as_the_vectors_say(case: dict[str, Any]) -> None:
    policy = decode_policy((VECTORS / "policy.json").read_bytes())
    wp = Waypost(
        token=unsigned_token(**case["token"]),
        manifest=StaticManifest(policy),
        refresh_interval_s=None,
    )
    raw = json.dumps(case["body"]).encode()
    choice = wp._core.choose(
        wp._core.measure(decode_chat(raw), len(raw)),
        wp._core.declared(from_header(msgspec.convert(case["declared"], Declared))),
        wp._tokens.claims(wp._tokens.get() or ""),
        without_claims="no_token",
    )
    assert choice.decision is not None
    expected = case["expect"]
    assert choice.decision.verdict == expected["verdict"]
    assert choice.decision.reason == expected["reason"]
    assert choice.route == expected["route"]
    assert list(choice.decision.chain) == expected["chain"]
    assert choice.model in {None, *choice.decision.candidates, *choice.decision.chain[:1]}
