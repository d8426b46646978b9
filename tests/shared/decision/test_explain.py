"""Explanations: one sentence for anyone, and never another story than the decision."""

from typing import get_args

import pytest
from hypothesis import given
from msgspec import structs

from support.requests import few_policies, random_facts, seeds
from support.worlds import NOW, a_policy, policies, proposals, some_facts
from waypost.shared.contracts import Declared, Facts, Policy, Proposal
from waypost.shared.decision.compiled import compile_policy
from waypost.shared.decision.engine import decide
from waypost.shared.decision.explain import explain, explain_record
from waypost.shared.records import (
    Attempt,
    AttemptOutcome,
    DecisionRecord,
    decode_record,
    encode_record,
)


def sentence(given_facts: Facts, proposal: Proposal | None = None) -> str:
    policy = compile_policy(a_policy())
    return explain(policy, given_facts, decide(policy, given_facts, proposal)).sentence


def test_an_accepted_choice_names_the_rule_and_its_values() -> None:
    assert sentence(some_facts(), Proposal(model="small")) == (
        "The client chose small, which the policy allows;"
        " rule 'short-chat' (input_tokens 41 < 100, tier = free) matched."
    )


def test_an_override_says_what_was_wrong_with_the_wish() -> None:
    assert sentence(some_facts(), Proposal(model="frontier")) == (
        "The client asked for frontier, but it is not open to tier free;"
        " rule 'short-chat' (input_tokens 41 < 100, tier = free) matched,"
        " so small was used instead."
    )


def test_a_preferred_model_that_is_out_of_service_is_said_to_be() -> None:
    well = some_facts()
    best = decide(compile_policy(a_policy()), well, None).model
    assert best is not None
    facts = structs.replace(
        well, measured=structs.replace(well.measured, out_of_service=(best, "clinical"))
    )
    policy = compile_policy(a_policy())
    chosen = decide(policy, facts, None).model

    assert sentence(facts).endswith(
        f"prefers {best}, which was out of service, so {chosen} was used instead."
    )
    # What would not have been chosen anyway is not spoken of.
    other = structs.replace(
        well, measured=structs.replace(well.measured, out_of_service=("clinical",))
    )
    assert "out of service" not in sentence(other)
    # Nor twice: here it is what the client had asked for.
    assert sentence(facts, Proposal(model=best)).count(best) == 1
    assert f"{best}, which it prefers, was out of service." in sentence(
        facts, Proposal(model="frontier")
    )


def test_a_stale_proposal_is_said_to_be_one() -> None:
    policy = compile_policy(a_policy(version=42))
    old = Proposal(model="large", route="short-chat", manifest=1)

    told = explain(policy, some_facts(), decide(policy, some_facts(), old))

    assert "asked for large, but by the rules of a manifest that is long over" in told.sentence


def test_a_missing_promise_is_named_with_the_class_that_needs_it() -> None:
    phi = some_facts(declared=Declared(data_classes=("phi",)))

    assert "acme has not promised hipaa_baa, which phi data needs (declared)" in sentence(
        phi, Proposal(model="small")
    )


def test_a_refusal_says_why_in_words() -> None:
    nobody = some_facts(needs=("audio",))

    assert sentence(nobody) == "Refused: no model open to this caller can do audio."


@few_policies
@given(policies(), seeds, proposals)
def test_every_model_is_either_admissible_or_excluded_with_a_reason(
    policy: Policy, seed: int, proposal: Proposal | None
) -> None:
    compiled = compile_policy(policy)
    for given_facts in random_facts(10, seed=seed):
        decision = decide(compiled, given_facts, proposal)

        told = explain(compiled, given_facts, decision)

        assert not set(decision.chain) & set(told.exclusions)
        assert told.sentence.endswith(".")
        for model in policy.models:
            assert any(line.startswith(f"{model.id}: ") for line in told.trace)


def a_record(**changes: object) -> DecisionRecord:
    fields: dict[str, object] = {
        "id": "01-x",
        "at_ms": NOW * 1_000,
        "verdict": "accepted",
        "reason": "proposal_admissible",
        "http_status": 200,
        "facts": some_facts(),
        "proposal": Proposal(model="small"),
        "chosen": "small",
        "model": "large",
        "attempts": (
            Attempt(model="small", provider="acme", outcome="server_error", http_status=503),
            Attempt(model="large", provider="acme", outcome="ok", http_status=200, ttft_ms=20.0),
        ),
        "cost_nusd": 2_000_000,
        "baseline_cost_nusd": 3_000_000,
    }
    return DecisionRecord(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_fallback_is_told_as_what_failed_and_who_answered() -> None:
    told = explain_record(a_record(), compile_policy(a_policy()))

    assert told.sentence.endswith("matched. small failed. large answered in its place.")
    assert "without routing: $0.0030, saved $0.0010" in told.trace


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (("small", "small", "large"), "small failed twice. large answered in its place."),
        (
            ("small", "small", "small", "large"),
            "small failed 3 times. large answered in its place.",
        ),
        (("small", "small"), "small failed. It answered in the end."),
    ],
)
def test_retries_are_counted_and_not_taken_for_a_fallback(
    models: tuple[str, ...], said: str
) -> None:
    *failing, answering = models
    failed = [
        Attempt(model=model, provider="acme", outcome="server_error", http_status=503)
        for model in failing
    ]
    answered = Attempt(model=answering, provider="acme", outcome="ok", http_status=200)
    record = a_record(model=answering, attempts=(*failed, answered))

    told = explain_record(record, compile_policy(a_policy()))

    assert told.sentence.endswith(f"matched. {said}")


@pytest.mark.parametrize("outcome", get_args(AttemptOutcome))
def test_every_outcome_of_an_attempt_has_its_words(outcome: AttemptOutcome) -> None:
    attempts = (Attempt(model="small", provider="acme", outcome=outcome),)

    told = explain_record(a_record(model="small", attempts=attempts), None)

    assert any(line.startswith("attempt: small at acme ") for line in told.trace)


def test_the_loser_of_two_was_not_hung_up_on_by_the_caller() -> None:
    winner = Attempt(model="large", provider="acme", outcome="ok", kind="hedge")
    loser = Attempt(model="small", provider="acme", outcome="cancelled")

    told = explain_record(a_record(attempts=(winner, loser)), compile_policy(a_policy()))

    assert told.sentence.endswith("small was not waited for, as another was sooner.")


def test_what_each_of_several_attempts_cost_is_told() -> None:
    unsure = Attempt(model="small", provider="acme", outcome="ok", cost_nusd=2_000_000)
    better = Attempt(
        model="large", provider="acme", outcome="ok", kind="escalation", cost_nusd=30_000_000
    )

    told = explain_record(a_record(attempts=(unsure, better)), compile_policy(a_policy()))

    assert told.sentence.endswith("small's answer was not sure enough, so large answered.")
    lines = [line for line in told.trace if line.startswith("attempt: ")]
    assert [line.rpartition(", ")[2] for line in lines] == ["$0.0020", "$0.0300"]


def test_a_record_is_decided_again_from_its_own_json() -> None:
    record = a_record()
    again = decode_record(encode_record(record))

    assert again == record
    assert again.facts is not None
    policy = compile_policy(a_policy())
    assert decide(policy, again.facts, again.proposal).model == record.chosen


def test_a_record_without_its_manifest_still_tells_what_it_knows() -> None:
    told = explain_record(a_record(model="small", attempts=()), None)

    assert told.sentence == "Sent to small (accepted, proposal admissible)."
