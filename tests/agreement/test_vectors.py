"""One set of cases, decided alike by engine, SDK and validator."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.worlds import NOW
from waypost.shared.contracts import (
    AUTO,
    Declared,
    Facts,
    Measured,
    Proposal,
    Signed,
    decode_policy,
)
from waypost.shared.engine import Decision, compile_policy, decide
from waypost.shared.measure import decode_chat, measure_chat

VECTORS = Path(__file__).parents[1] / "vectors"
POLICY = compile_policy(decode_policy((VECTORS / "policy.json").read_bytes()))

Case = dict[str, Any]


def cases(file: str) -> pytest.MarkDecorator:
    loaded: list[Case] = json.loads((VECTORS / file).read_text())
    return pytest.mark.parametrize("case", loaded, ids=[case["name"] for case in loaded])


def outcome(decision: Decision) -> Case:
    return {
        "verdict": decision.verdict,
        "reason": decision.reason,
        "route": decision.route,
        "chain": list(decision.chain),
    }


@cases("decisions.json")
def test_the_engine_decides_facts_as_the_vectors_say(case: Case) -> None:
    given = msgspec.convert(case["facts"], Facts)
    proposal = msgspec.convert(case["proposal"], Proposal | None)

    assert outcome(decide(POLICY, given, proposal)) == case["expect"]


def measured(body: Case) -> tuple[Measured, str]:
    raw = json.dumps(body).encode()
    request = decode_chat(raw)
    seen = measure_chat(request, body_bytes=len(raw), vocabulary=POLICY.vocabulary)
    return seen, request.model


@cases("requests.json")
def test_the_engine_decides_requests_as_the_vectors_say(case: Case) -> None:
    seen, model = measured(case["body"])
    given = Facts(
        now=NOW,
        signed=msgspec.convert(case["token"], Signed),
        measured=seen,
        declared=msgspec.convert(case["declared"], Declared),
    )
    wish = case["proposal"] or (None if model == AUTO else model)

    decision = decide(POLICY, given, None if wish is None else Proposal(model=wish))

    assert outcome(decision) == case["expect"]
