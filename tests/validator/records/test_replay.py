"""Any record, decided again by its manifest, gives the same decision, to the byte."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from msgspec import structs
from typer.testing import CliRunner

from support.recorded import a_record, fill
from support.requests import few_policies, random_facts, seeds
from support.tokens import Wishes
from support.upstream import Upstream, failing
from support.validator import HELLO, running_validator
from support.worlds import a_policy, policies, proposals, some_facts
from waypost.shared.contracts import Hint, Hints, Policy, Proposal, SpendLimit
from waypost.shared.decision.compiled import compile_policy
from waypost.shared.decision.engine import decide
from waypost.shared.decision.replay import decision_digest, downgraded, replay
from waypost.shared.records import DecisionRecord, decode_record, encode_record
from waypost.validator.commands import decisions_cli
from waypost.validator.records import SqliteRecordStore


@few_policies
@given(policies(), seeds, proposals)
def test_a_decision_is_made_again_to_the_byte(
    policy: Policy, seed: int, proposal: Proposal | None
) -> None:
    compiled = compile_policy(policy)
    for seen in random_facts(10, seed=seed):
        decision = decide(compiled, seen, proposal)
        record = a_record(
            facts=seen,
            proposal=proposal,
            chosen=decision.model,
            decision_digest=decision_digest(decision),
        )
        again = decode_record(encode_record(record))
        assert again.facts is not None
        assert replay(compiled, again.facts, again).is_same


def test_hints_are_part_of_what_is_decided_again() -> None:
    policy = a_policy()
    drained = Hints(
        channel="prod", version=1, issued_at=1, models=(Hint(model="small", drain=True),)
    )
    seen = some_facts()
    decision = decide(compile_policy(policy, drained), seen)
    record = a_record(
        facts=seen, proposal=None, chosen=decision.model, decision_digest=decision_digest(decision)
    )
    assert replay(compile_policy(policy, drained), seen, record).is_same
    assert not replay(compile_policy(policy), seen, record).is_same


def test_a_downgrade_is_decided_again() -> None:
    policy = compile_policy(a_policy())
    seen = some_facts()
    decision = downgraded(decide(policy, seen), "large")
    record = a_record(
        facts=seen,
        proposal=None,
        chosen="large",
        is_downgraded=True,
        decision_digest=decision_digest(decision),
    )
    assert replay(policy, seen, record).is_same
    assert not replay(policy, seen, structs.replace(record, chosen="clinical")).is_same


@pytest.mark.anyio
async def test_what_a_validator_did_is_decided_again_from_its_records(
    tmp_path: Path, acme: Upstream
) -> None:
    asked: list[tuple[dict[str, Any], Wishes]] = [
        (HELLO, {}),
        ({**HELLO, "model": "frontier"}, {}),
        ({**HELLO, "model": "large"}, {"limits": day(10_000_000), "account": "poor"}),
        (HELLO, {"limits": day(100_000), "account": "poorer"}),
        (HELLO, {"models": ("clinical",)}),
        (HELLO, {"tier": "gold"}),
        (HELLO, {"iss": "https://stranger.example"}),
    ]
    records: list[DecisionRecord] = []
    async with running_validator(tmp_path, {"acme": acme, "medcloud": acme}) as validator:
        for body, wishes in asked:
            records.append(await validator.record(await validator.chat(body, **wishes)))
        acme.behave = failing(500)
        await validator.record(await validator.chat())
        path = validator.services.config.records.path
    outcome = await asyncio.to_thread(_run, "replay", "--db", str(path), "--json")
    told = json.loads(outcome.stdout)
    assert told == {
        "same": 7, "different": 0, "undecided": 1, "manifest_missing": 0, "differing": [],
    }  # fmt: skip
    assert records[2].is_downgraded
    assert "cut the answer" in (records[3].detail or "")


def day(limit_nusd: int) -> tuple[SpendLimit, ...]:
    return (SpendLimit(window="day", limit_nusd=limit_nusd),)


def _run(*arguments: str) -> Any:  # noqa: ANN401 - click's result
    import typer

    app = typer.Typer()
    decisions_cli.register(app)
    return CliRunner().invoke(app, ["decisions", *arguments])


def test_a_record_that_was_altered_is_a_finding(tmp_path: Path) -> None:
    policy = a_policy()
    seen = some_facts()
    decision = decide(compile_policy(policy), seen)
    good = a_record(0, facts=seen, proposal=None, decision_digest=decision_digest(decision))
    altered = structs.replace(good, id=a_record(1).id, facts=some_facts(tier="enterprise"))

    async def keep() -> None:
        from support.recorded import DIGEST, POLICY

        store = SqliteRecordStore.open(tmp_path / "r.sqlite")
        await store.put_policy(DIGEST, POLICY)
        await fill(store, good, altered, a_record(2))
        await store.close()

    asyncio.run(keep())
    outcome = _run("replay", "--db", str(tmp_path / "r.sqlite"))
    assert outcome.exit_code == 1
    assert "1 decided again to the byte; 1 came out differently; 1 were refused" in outcome.stdout
    assert f"differs: {altered.id}" in outcome.stdout
    assert _run("replay", good.id, "--db", str(tmp_path / "r.sqlite")).exit_code == 0
