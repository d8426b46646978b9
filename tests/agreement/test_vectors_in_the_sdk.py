"""The shared cases, decided by the SDK as it decides an app's requests."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from waypost.client import Waypost
from waypost.client._facts import from_header
from waypost.client.testing import StaticManifest, unsigned_token
from waypost.shared.contracts import AUTO, Declared, Facts, Policy, decode_policy
from waypost.shared.requests.measure import decode_chat
from waypost.shared.tokens.unverified import UnverifiedClaims

VECTORS = Path(__file__).parents[1] / "vectors"


def cases() -> Iterator[Any]:
    both = (VECTORS / name for name in ("requests.json", "drawn-requests.json"))
    for case in (case for path in both for case in json.loads(path.read_text())):
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
        wp._core.measure(decode_chat(raw), raw),
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


def test_what_a_body_demands_may_be_said_to_choose() -> None:
    policy = decode_policy((VECTORS / "policy.json").read_bytes())
    asked = 0
    for (case,) in (param.values for param in cases()):
        body: Any = {name: value for name, value in case["body"].items() if name != "model"}
        if not body.keys() & {"models", "provider"} or "n" in body:
            continue
        wp = Waypost(
            token=unsigned_token(**case["token"]),
            manifest=StaticManifest(policy),
            refresh_interval_s=None,
        )
        declared = msgspec.convert(case["declared"], Declared)

        choice = wp.choose(
            body.pop("messages"),
            interactive=declared.interactive,
            data=declared.data_classes,
            task=declared.task,
            tags=declared.tags,
            expected_output_tokens=declared.expected_output_tokens,
            **body,
        )

        assert choice.decision is not None
        assert list(choice.decision.chain) == case["expect"]["chain"]
        asked += 1
    assert asked > 5


def test_the_sdk_decides_facts_of_other_policies_as_the_vectors_say() -> None:
    decided = 0
    for drawn in json.loads((VECTORS / "drawn-decisions.json").read_text()):
        manifest = StaticManifest(msgspec.convert(drawn["policy"], Policy))
        for case in drawn["cases"]:
            if case["proposal"] is not None:
                continue
            facts = msgspec.convert(case["facts"], Facts)
            core = Waypost(manifest=manifest, refresh_interval_s=None)._core
            core.now = partial(float, facts.now)
            claims = UnverifiedClaims(exp=2**40, iat=0, signed=facts.signed)

            choice = core.choose(facts.measured, facts.declared, claims, without_claims="no_token")

            assert choice.decision is not None
            expected = case["expect"]
            assert (choice.decision.verdict, choice.decision.reason) == (
                expected["verdict"],
                expected["reason"],
            )
            assert list(choice.decision.chain) == expected["chain"]
            assert choice.model in {None, *choice.decision.candidates, *expected["chain"][:1]}
            decided += 1
    assert decided >= 100
