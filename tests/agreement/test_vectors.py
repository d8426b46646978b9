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
    Policy,
    Proposal,
    Signed,
    decode_policy,
)
from waypost.shared.decision.compiled import compile_policy
from waypost.shared.decision.engine import REFUSAL_CODES, Decision, decide
from waypost.shared.decision.rules import cohort, place
from waypost.shared.requests.measure import decode_chat, measure_chat
from waypost.shared.wire.headers import FACTS, PROPOSAL, format_facts, format_proposal

VECTORS = Path(__file__).parents[1] / "vectors"
POLICY = compile_policy(decode_policy((VECTORS / "policy.json").read_bytes()))

Case = dict[str, Any]


def load(file: str) -> list[Case]:
    loaded: list[Case] = json.loads((VECTORS / file).read_text())
    return loaded


def cases(*files: str) -> pytest.MarkDecorator:
    loaded = [case for file in files for case in load(file)]
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


@pytest.mark.parametrize("drawn", load("drawn-decisions.json"))
def test_the_engine_decides_facts_of_other_policies_as_the_vectors_say(drawn: Case) -> None:
    policy = compile_policy(msgspec.convert(drawn["policy"], Policy))
    for case in drawn["cases"]:
        given = msgspec.convert(case["facts"], Facts)
        proposal = msgspec.convert(case["proposal"], Proposal | None)

        assert outcome(decide(policy, given, proposal)) == case["expect"]


def test_texts_are_read_as_the_vectors_say() -> None:
    policy = compile_policy(decode_policy((VECTORS / "reading-policy.json").read_bytes()))
    for case in load("texts.json"):
        assert json.loads(json.dumps(policy.reader.read(case["text"]))) == case["expect"]


def test_callers_stand_where_the_vectors_say() -> None:
    for case in load("callers.json"):
        of_caller = cohort(case["iss"], case["sub"])

        assert {"cohort": of_caller, "place": place(case["salt"], of_caller)} == case["expect"]


def test_the_vectors_show_what_there_is() -> None:
    drawn = load("drawn-decisions.json")
    decided = [*load("decisions.json"), *(case for one in drawn for case in one["cases"])]
    requests = [*load("requests.json"), *load("drawn-requests.json")]
    texts, callers = load("texts.json"), load("callers.json")
    reasons = {case["expect"]["reason"] for case in (*decided, *requests)}
    kinds = {
        c["is"] for one in drawn for route in one["policy"]["routes"] for c in route.get("when", ())
    }

    assert len(decided) + len(requests) + len(texts) + len(callers) >= 400
    assert reasons >= REFUSAL_CODES | {"no_proposal", "proposal_admissible"}
    assert kinds == {"number", "clock", "share", "one_of", "yes_no", "has"}
    assert {case["expect"]["semantic"] for case in texts} == {"", "billing", "shipping"}


def measured(body: Case) -> tuple[Measured, str]:
    raw = json.dumps(body).encode()
    request = decode_chat(raw)
    seen = measure_chat(request, body=raw, reader=POLICY.reader)
    return seen, request.model


@cases("requests.json", "drawn-requests.json")
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
@cases("requests.json", "drawn-requests.json")
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
