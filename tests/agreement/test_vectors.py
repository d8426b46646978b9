"""One set of cases, decided alike by engine, SDK and validator."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.tokens import Wishes
from support.upstream import running_upstream
from support.validator import Running, running_validator
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
from waypost.shared.headers import FACTS, PROPOSAL, format_facts, format_proposal
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
    seen = measure_chat(request, body_bytes=len(raw), reader=POLICY.reader)
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


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def validator(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Running]:
    folder = tmp_path_factory.mktemp("validator")
    async with (
        running_upstream() as upstream,
        running_validator(
            folder, {"acme": upstream, "medcloud": upstream}, policy=POLICY.policy
        ) as running,
    ):
        yield running


@pytest.mark.anyio
@cases("requests.json")
async def test_the_validator_decides_requests_as_the_vectors_say(
    case: Case, validator: Running
) -> None:
    headers = validator.headers(**msgspec.convert(case["token"], Wishes))
    if case["proposal"] is not None:
        headers[PROPOSAL] = format_proposal(Proposal(model=case["proposal"]))
    if case["declared"]:
        headers[FACTS] = format_facts(msgspec.convert(case["declared"], Declared))

    response = await validator.client.post("/v1/decide", json=case["body"], headers=headers)

    if case["expect"]["verdict"] == "refused":
        assert response.json()["error"]["code"] == case["expect"]["reason"]
    else:
        assert {key: response.json()[key] for key in case["expect"]} == case["expect"]
