"""The decision engine: what no policy and no request may ever bring it to do."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec import structs

from support.worlds import (
    CLASSES,
    MODELS,
    a_model,
    a_policy,
    facts,
    policies,
    proposals,
    some_facts,
)
from waypost.shared.contracts import (
    Declared,
    Facts,
    Hint,
    Hints,
    NumberBetween,
    Policy,
    Proposal,
    Route,
    YesNo,
)
from waypost.shared.engine import (
    affordable_output,
    compile_policy,
    cost_bound_nusd,
    decide,
    exclusion,
    output_bound,
)
from waypost.shared.errors import PolicyError
from waypost.shared.money import upper_bound
from waypost.shared.rules import holds


@given(policies(), facts(), proposals)
def test_masks_agree_with_the_rules_written_one_model_at_a_time(
    policy: Policy, given_facts: Facts, proposal: Proposal | None
) -> None:
    compiled = compile_policy(policy)
    known = all(
        name in policy.data_classes
        for source in (given_facts.signed, given_facts.measured, given_facts.declared)
        for name in source.data_classes
    )
    admissible = {
        model.id
        for model in policy.models
        if known
        and not compiled.missing(given_facts)
        and given_facts.signed.tier in policy.tiers
        and exclusion(compiled, model.id, given_facts) is None
    }

    decision = decide(compiled, given_facts, proposal)

    assert (decision.verdict == "refused") == (not admissible)
    assert set(decision.chain) <= admissible
    assert set(decision.candidates) <= admissible
    if admissible:
        assert decision.model == decision.chain[0]
        assert len(set(decision.chain)) == len(decision.chain)
    if proposal is not None and proposal.model in admissible:
        assert (decision.verdict, decision.model) == ("accepted", proposal.model)


@given(policies(), facts())
def test_the_first_row_that_holds_is_the_route(policy: Policy, given_facts: Facts) -> None:
    compiled = compile_policy(policy)
    assume(not compiled.missing(given_facts))
    naive = next(r.name for r in policy.routes if all(holds(c, given_facts) for c in r.when))

    assert policy.routes[compiled.rules.first(given_facts)].name == naive


@given(policies(), facts(), st.sampled_from((*CLASSES, "unheard_of")))
def test_declaring_a_data_class_never_lets_another_model_in(
    policy: Policy, given_facts: Facts, name: str
) -> None:
    compiled = compile_policy(policy)
    declared = structs.replace(
        given_facts.declared, data_classes=(*given_facts.declared.data_classes, name)
    )

    before, _ = compiled.admissible(given_facts)
    after, _ = compiled.admissible(structs.replace(given_facts, declared=declared))

    assert after & ~before == 0


@given(policies(), facts(), facts())
def test_nothing_a_client_declares_widens_the_set(
    policy: Policy, given_facts: Facts, other: Facts
) -> None:
    compiled = compile_policy(policy)
    silent = structs.replace(given_facts, declared=Declared())
    loud = structs.replace(given_facts, declared=other.declared)

    for name in MODELS:
        if decide(compiled, loud, Proposal(model=name)).verdict == "accepted":
            assert decide(compiled, silent, Proposal(model=name)).verdict == "accepted"


@given(policies(), facts(), st.integers(0, 50_000_000))
def test_a_smaller_budget_never_lets_another_model_in(
    policy: Policy, given_facts: Facts, nusd: int
) -> None:
    compiled = compile_policy(policy)
    smaller = structs.replace(given_facts.measured, affordable_nusd=nusd)
    larger = structs.replace(given_facts.measured, affordable_nusd=nusd * 2)

    before, _ = compiled.admissible(structs.replace(given_facts, measured=larger))
    after, _ = compiled.admissible(structs.replace(given_facts, measured=smaller))

    assert after & ~before == 0


@given(policies(), facts(), proposals, st.lists(st.sampled_from(MODELS), unique=True))
def test_hints_reorder_and_never_widen(
    policy: Policy, given_facts: Facts, proposal: Proposal | None, slow: list[str]
) -> None:
    hints = Hints(
        channel="prod",
        version=1,
        issued_at=0,
        models=tuple(
            Hint(model=name, ttft_ms=60_000, drain=True) for name in (*slow, "unheard-of")
        ),
    )

    plain = decide(compile_policy(policy), given_facts, proposal)
    hinted = decide(compile_policy(policy, hints), given_facts, proposal)

    assert hinted.verdict == plain.verdict
    assert hinted.reason == plain.reason
    assert set(hinted.chain) == set(plain.chain)


@given(policies(), facts(), proposals)
def test_a_decision_is_the_same_every_time(
    policy: Policy, given_facts: Facts, proposal: Proposal | None
) -> None:
    compiled = compile_policy(policy)

    first = decide(compiled, given_facts, proposal)

    assert decide(compiled, given_facts, proposal) == first
    assert decide(compile_policy(policy), given_facts, proposal) == first


@given(policies(), facts(), st.integers(0, 10_000_000))
def test_an_answer_clamped_to_a_budget_fits_it(
    policy: Policy, given_facts: Facts, budget_nusd: int
) -> None:
    for model in policy.models:
        tokens = affordable_output(model, given_facts, budget_nusd=budget_nusd)
        if tokens:
            bound = upper_bound(
                model.price,
                input_tokens=given_facts.measured.max_input_tokens,
                output_tokens=tokens * given_facts.measured.choices,
            )
            assert bound <= budget_nusd
            assert tokens <= output_bound(model, given_facts)


def test_a_short_question_goes_to_the_cheap_model() -> None:
    decision = decide(compile_policy(a_policy()), some_facts())

    assert (decision.verdict, decision.route, decision.model) == ("decided", "short-chat", "small")
    assert decision.chain == ("small", "large", "clinical")


def test_a_hard_question_goes_to_a_capable_model() -> None:
    decision = decide(compile_policy(a_policy()), some_facts(keywords=("prove",)))

    assert (decision.route, decision.model) == ("hard", "large")


def test_a_proposal_outside_the_tier_is_overridden() -> None:
    decision = decide(compile_policy(a_policy()), some_facts(), Proposal(model="frontier"))

    assert (decision.verdict, decision.reason) == ("overridden", "tier_not_allowed")
    assert decision.model == "small"


def test_a_second_choice_is_tried_next() -> None:
    policy = compile_policy(a_policy())

    decision = decide(policy, some_facts(), Proposal(model="small", otherwise="clinical"))

    assert decision.chain == ("small", "clinical", "large")


def test_a_second_choice_takes_over_from_a_first_that_is_out() -> None:
    policy = compile_policy(a_policy())
    down = some_facts(out_of_service=("small",))

    decision = decide(policy, down, Proposal(model="small", otherwise="clinical"))

    assert (decision.verdict, decision.model) == ("overridden", "clinical")


@pytest.mark.parametrize("otherwise", ["frontier", "invented"])
def test_a_second_choice_outside_the_set_is_no_way_in(otherwise: str) -> None:
    policy = compile_policy(a_policy())

    decision = decide(policy, some_facts(), Proposal(model="small", otherwise=otherwise))

    assert decision == decide(policy, some_facts(), Proposal(model="small"))


def test_patient_data_reaches_only_who_signed_an_agreement() -> None:
    declared = Declared(data_classes=("phi",))

    decision = decide(
        compile_policy(a_policy()), some_facts(declared=declared), Proposal(model="large")
    )

    assert (decision.verdict, decision.reason) == ("overridden", "duty_unmet")
    assert decision.chain == ("clinical",)


def test_a_data_class_nobody_defined_is_refused() -> None:
    declared = Declared(data_classes=("biometric",))

    decision = decide(compile_policy(a_policy()), some_facts(declared=declared))

    assert (decision.verdict, decision.reason) == ("refused", "unknown_data_class")


def test_a_token_that_names_models_narrows_the_tier() -> None:
    signed: dict[str, object] = {"models": ("large",)}

    decision = decide(
        compile_policy(a_policy()), some_facts(signed=signed), Proposal(model="small")
    )

    assert (decision.verdict, decision.reason) == ("overridden", "not_in_token")
    assert decision.chain == ("large",)


def test_a_budget_that_covers_only_the_cheap_model_leaves_it_the_cheap_model() -> None:
    policy = compile_policy(a_policy())
    small = policy.models["small"]
    hard = some_facts(keywords=("prove",), affordable_nusd=cost_bound_nusd(small, some_facts()))

    decision = decide(policy, hard, Proposal(model="large"))

    assert (decision.verdict, decision.reason) == ("overridden", "unaffordable")
    assert decision.chain == ("small",)


def test_an_outage_moves_on_and_total_outage_says_so() -> None:
    policy = compile_policy(a_policy())

    assert decide(policy, some_facts(out_of_service=("small",))).model == "large"
    everything = some_facts(out_of_service=("small", "large", "frontier", "clinical"))
    assert decide(policy, everything).reason == "out_of_service"


def test_an_enforced_route_is_the_whole_set() -> None:
    routes = (
        Route(
            name="long",
            when=(NumberBetween("input_tokens", at_least=1_000),),
            models=("large",),
            enforce=True,
        ),
        Route(name="default", models=("small",)),
    )
    policy = compile_policy(a_policy(routes=routes))

    decision = decide(policy, some_facts(input_tokens=5_000), Proposal(model="small"))

    assert (decision.verdict, decision.reason) == ("overridden", "not_in_route")
    assert decision.chain == ("large",)


def test_what_misses_a_floor_is_tried_only_after_the_fallback() -> None:
    routes = (
        Route(name="default", models=("small", "large"), min_quality=60, fallback=("clinical",)),
    )

    decision = decide(compile_policy(a_policy(routes=routes)), some_facts())

    assert decision.candidates == ("large",)
    assert decision.chain == ("large", "clinical", "small")


def test_latency_routes_follow_hints_within_bounds() -> None:
    routes = (Route(name="default", models=("small", "large"), optimize="latency"),)
    policy = a_policy(routes=routes)
    stolen = Hints(
        channel="prod", version=1, issued_at=0, models=(Hint(model="small", ttft_ms=86_400_000),)
    )

    compiled = compile_policy(policy, stolen)

    assert decide(compiled, some_facts()).chain[:2] == ("large", "small")
    assert compiled.ttft_ms["small"] == 16 * compiled.models["small"].ttft_prior_ms


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": (a_model("a"), a_model("a"))}, "two models named 'a'"),
        ({"last_resort": ("nobody",)}, "last_resort names a model that does not exist: 'nobody'"),
        ({"routes": ()}, "last route must have no conditions"),
        (
            {"routes": (Route(name="x", models=("nobody",)),)},
            "route 'x' names a model that does not exist: 'nobody'",
        ),
        (
            {"routes": (Route(name="a", models=("small",)), Route(name="b", models=("small",)))},
            "route 'a' matches everything",
        ),
        (
            {
                "routes": (
                    Route(
                        name="a",
                        models=("small",),
                        when=(YesNo("interactive", True),),
                        enforce=True,
                    ),
                    Route(name="b", models=("small",)),
                )
            },
            "enforces on interactive, which clients only declare",
        ),
        (
            {
                "routes": (
                    Route(name="a", models=("small",), when=(YesNo("interactive", True),)),
                    Route(name="b", models=("large",), enforce=True),
                )
            },
            "clients can steer into route 'a' before it",
        ),
        ({"models": (a_model("small", tiers=("gold",)),)}, "does not exist"),
        ({"must_understand": ("time-travel",)}, "needs a newer version, for: time-travel"),
    ],
)
def test_a_policy_that_makes_no_sense_does_not_compile(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(PolicyError, match=message):
        compile_policy(a_policy(**changes))
