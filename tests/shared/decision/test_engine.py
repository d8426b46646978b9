"""The decision engine: what no policy and no request may ever bring it to do."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from support.requests import few_policies, random_facts, seeds
from support.worlds import CLASSES, MODELS, a_model, a_policy, policies, proposals, some_facts
from waypost.shared.contracts import (
    Declared,
    Hint,
    Hints,
    Model,
    NumberBetween,
    Policy,
    Proposal,
    Route,
    Session,
    YesNo,
)
from waypost.shared.decision.compiled import CompiledPolicy, compile_policy
from waypost.shared.decision.costs import affordable_output, cost_bound_nusd, output_bound
from waypost.shared.decision.demands import unknown
from waypost.shared.decision.engine import Decision, decide, exclusion
from waypost.shared.decision.rules import holds
from waypost.shared.errors import PolicyError
from waypost.shared.money import Price, upper_bound

REQUESTS = 25


@few_policies
@given(policies(), seeds, proposals)
def test_masks_agree_with_the_rules_written_one_model_at_a_time(
    policy: Policy, seed: int, proposal: Proposal | None
) -> None:
    compiled = compile_policy(policy)
    for given_facts in random_facts(REQUESTS, seed=seed):
        known = all(
            name in policy.data_classes
            for source in (given_facts.signed, given_facts.measured, given_facts.declared)
            for name in source.data_classes
        )
        wanted = given_facts.measured.demands
        admissible = {
            model.id
            for model in policy.models
            if known
            and not compiled.missing(given_facts)
            and given_facts.signed.tier in policy.tiers
            and (wanted is None or not unknown(wanted, models=compiled.models))
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


@few_policies
@given(policies(), seeds)
def test_the_first_row_that_holds_is_the_route(policy: Policy, seed: int) -> None:
    compiled = compile_policy(policy)
    for given_facts in random_facts(REQUESTS, seed=seed):
        if compiled.missing(given_facts):
            continue
        naive = next(r.name for r in policy.routes if all(holds(c, given_facts) for c in r.when))

        assert policy.routes[compiled.rules.first(given_facts)].name == naive


@few_policies
@given(policies(), seeds, st.sampled_from((*CLASSES, "unheard_of")))
def test_declaring_a_data_class_never_lets_another_model_in(
    policy: Policy, seed: int, name: str
) -> None:
    compiled = compile_policy(policy)
    for given_facts in random_facts(REQUESTS, seed=seed):
        declared = structs.replace(
            given_facts.declared, data_classes=(*given_facts.declared.data_classes, name)
        )

        before, _ = compiled.admissible(given_facts)
        after, _ = compiled.admissible(structs.replace(given_facts, declared=declared))

        assert after & ~before == 0


@few_policies
@given(policies(), seeds)
def test_nothing_a_client_declares_or_demands_widens_the_set(policy: Policy, seed: int) -> None:
    compiled = compile_policy(policy)
    for loud in random_facts(REQUESTS, seed=seed):
        measured = structs.replace(loud.measured, demands=None)
        silent = structs.replace(loud, declared=Declared(), measured=measured)
        for name in MODELS:
            if decide(compiled, loud, Proposal(model=name)).verdict == "accepted":
                assert decide(compiled, silent, Proposal(model=name)).verdict == "accepted"


@few_policies
@given(policies(), seeds, st.integers(0, 50_000_000))
def test_a_smaller_budget_never_lets_another_model_in(policy: Policy, seed: int, nusd: int) -> None:
    compiled = compile_policy(policy)
    for given_facts in random_facts(REQUESTS, seed=seed):
        smaller = structs.replace(given_facts.measured, affordable_nusd=nusd)
        larger = structs.replace(given_facts.measured, affordable_nusd=nusd * 2)

        before, _ = compiled.admissible(structs.replace(given_facts, measured=larger))
        after, _ = compiled.admissible(structs.replace(given_facts, measured=smaller))

        assert after & ~before == 0


@few_policies
@given(policies(), seeds, proposals, st.lists(st.sampled_from(MODELS), unique=True))
def test_hints_reorder_and_never_widen(
    policy: Policy, seed: int, proposal: Proposal | None, slow: list[str]
) -> None:
    hints = Hints(
        channel="prod",
        version=1,
        issued_at=0,
        models=tuple(
            Hint(model=name, ttft_ms=60_000, drain=True) for name in (*slow, "unheard-of")
        ),
    )
    without, with_hints = compile_policy(policy), compile_policy(policy, hints)
    for given_facts in random_facts(REQUESTS, seed=seed):
        plain = decide(without, given_facts, proposal)
        hinted = decide(with_hints, given_facts, proposal)

        assert hinted.verdict == plain.verdict
        assert hinted.reason == plain.reason
        assert len(hinted.chain) == len(plain.chain)
        assert set(hinted.chain) == set(plain.chain) or len(plain.chain) == 1


@few_policies
@given(policies(), seeds, proposals)
def test_a_decision_is_the_same_every_time(
    policy: Policy, seed: int, proposal: Proposal | None
) -> None:
    compiled, again = compile_policy(policy), compile_policy(policy)
    requests = random_facts(REQUESTS, seed=seed)
    first = [decide(compiled, given_facts, proposal) for given_facts in requests]

    # In another order: what was asked before must not matter.
    assert [decide(again, given_facts, proposal) for given_facts in requests[::-1]] == first[::-1]
    assert [decide(compiled, given_facts, proposal) for given_facts in requests] == first


@few_policies
@given(policies(), seeds, st.integers(0, 10_000_000))
def test_an_answer_clamped_to_a_budget_fits_it(policy: Policy, seed: int, budget_nusd: int) -> None:
    for given_facts in random_facts(REQUESTS, seed=seed):
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


def by_rules_of(manifest: int, model: str = "large", otherwise: str | None = None) -> Proposal:
    return Proposal(model=model, otherwise=otherwise, route="short-chat", manifest=manifest)


def test_a_proposal_counts_for_two_versions_more_and_ahead_of_time() -> None:
    policy = compile_policy(a_policy(version=42))

    for manifest in (40, 41, 42, 43, 1_000):
        assert decide(policy, some_facts(), by_rules_of(manifest)).verdict == "accepted"


def test_a_proposal_by_rules_that_are_long_over_is_overridden_by_todays() -> None:
    policy = compile_policy(a_policy(version=42))

    decision = decide(policy, some_facts(), by_rules_of(39, otherwise="clinical"))

    assert (decision.verdict, decision.reason) == ("overridden", "proposal_stale")
    assert decision.chain == decide(policy, some_facts()).chain
    # Whatever else is wrong with it; and what today's rules say as well is no override.
    outside = decide(policy, some_facts(), by_rules_of(39, "frontier"))
    assert outside.reason == "proposal_stale"
    assert decide(policy, some_facts(), by_rules_of(39, "small")).verdict == "accepted"


def test_a_model_asked_for_by_name_is_never_stale() -> None:
    policy = compile_policy(a_policy(version=42))

    named = decide(policy, some_facts(), Proposal(model="large", manifest=1))

    assert named.verdict == "accepted"


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


def test_a_model_that_costs_all_there_is_may_serve_and_one_that_costs_more_may_not() -> None:
    policy = compile_policy(a_policy())
    bound = cost_bound_nusd(policy.models["small"], some_facts())

    assert exclusion(policy, "small", some_facts(affordable_nusd=bound)) is None
    short = exclusion(policy, "small", some_facts(affordable_nusd=bound - 1))
    assert short is not None
    assert short.code == "unaffordable"


@pytest.mark.parametrize(
    ("name", "changes", "code"),
    [
        ("none", {}, "unknown_model"),
        ("small", {"untranslatable": ("small",)}, "untranslatable"),
        ("small", {"out_of_service": ("small",)}, "out_of_service"),
    ],
)
def test_an_exclusion_has_the_code_of_its_reason(
    name: str, changes: dict[str, Any], code: str
) -> None:
    policy, facts = compile_policy(a_policy()), some_facts(**changes)

    found = exclusion(policy, name, facts)
    proposed = decide(policy, facts, Proposal(model=name))

    assert found is not None
    assert found.code == code
    assert (proposed.verdict, proposed.reason) == ("overridden", code)
    assert name not in proposed.chain


@pytest.mark.parametrize("otherwise", [None, "no such model either"])
def test_a_proposed_model_that_no_policy_knows_is_never_sent_to(otherwise: str | None) -> None:
    policy = compile_policy(a_policy())

    decision = decide(policy, some_facts(), Proposal(model="no such model", otherwise=otherwise))

    assert (decision.verdict, decision.reason) == ("overridden", "unknown_model")
    assert set(decision.chain) <= set(policy.models)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"out_of_service": ("clinical",)}, "out_of_service"),
        ({"affordable_nusd": 0}, "unaffordable"),
        ({"signed": {"models": ("small",)}}, "not_in_route"),
    ],
)
def test_an_enforced_route_that_is_closed_says_whether_that_passes(
    changes: dict[str, Any], reason: str
) -> None:
    # Free models are left to everybody else, so that no empty set says it first.
    free = a_model("small", cents_in=0, cents_out=0)
    models = (free, *(model for model in a_policy().models if model.id != "small"))
    routes = (Route(name="default", models=("clinical",), enforce=True),)

    decision = decide(compile_policy(a_policy(models=models, routes=routes)), some_facts(**changes))

    assert (decision.verdict, decision.reason) == ("refused", reason)


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


# ── conversations ──────────────────────────────────────────────────────────────────────────────

PROMPT = 30_000


def a_conversation(*models: Model, **route: object) -> CompiledPolicy:
    return compile_policy(
        a_policy(
            models=models,
            routes=(Route(name="default", models=tuple(m.id for m in models), **route),),  # type: ignore[arg-type]
            last_resort=(),
        )
    )


def went_on(policy: CompiledPolicy, model: str, cached: int, **declared: object) -> Decision:
    session = Declared(session=Session(model, cached), **declared)  # type: ignore[arg-type]
    return decide(policy, some_facts(declared=session, input_tokens=PROMPT))


def priced(name: str, cents_in: int, cached: int | None, **changes: object) -> Model:
    price = Price(
        input_nusd_per_mtok=cents_in * 10_000_000,
        output_nusd_per_mtok=600_000_000,
        cached_input_nusd_per_mtok=None if cached is None else cached * 10_000_000,
    )
    return a_model(name, price=price, context_tokens=100_000, **changes)  # type: ignore[arg-type]


CHEAP, DEAR = priced("cheap", 15, None), priced("dear", 25, 2)


def test_a_conversation_stays_where_its_cache_makes_it_cheaper() -> None:
    policy = a_conversation(CHEAP, DEAR)

    assert decide(policy, some_facts(input_tokens=PROMPT)).model == "cheap"
    stayed = went_on(policy, "dear", 20_000)
    assert (stayed.model, stayed.candidates) == ("dear", ("dear",))
    assert stayed.chain == ("dear", "cheap")


def test_a_conversation_moves_where_that_is_cheaper_all_the_same() -> None:
    policy = a_conversation(CHEAP, DEAR)

    assert went_on(policy, "dear", 5_000).model == "cheap"
    # No price for what is cached means no discount.
    assert went_on(a_conversation(CHEAP, priced("dear", 25, None)), "dear", PROMPT).model == "cheap"


def test_a_client_cannot_claim_more_cached_than_the_prompt_has() -> None:
    assert went_on(a_conversation(CHEAP, priced("dear", 25, 20)), "dear", 2**40).model == "cheap"


def test_a_duty_moves_a_conversation() -> None:
    policy = a_conversation(structs.replace(CHEAP, promises=("hipaa_baa", "no_training")), DEAR)

    assert went_on(policy, "dear", PROMPT, data_classes=("phi",)).chain == ("cheap",)


def test_a_floor_and_a_better_model_move_a_conversation() -> None:
    weak = structs.replace(DEAR, quality=30)

    assert went_on(a_conversation(CHEAP, weak, min_quality=40), "dear", PROMPT).model == "cheap"
    assert went_on(a_conversation(CHEAP, weak, optimize="quality"), "dear", PROMPT).model == "cheap"


@pytest.mark.parametrize(("ttft_ms", "model"), [(900, "dear"), (2_000, "cheap")])
def test_where_speed_decides_a_conversation_stays_if_that_is_about_as_fast(
    ttft_ms: int, model: str
) -> None:
    policy = a_conversation(
        structs.replace(CHEAP, ttft_prior_ms=200, tokens_per_s_prior=100),
        structs.replace(DEAR, ttft_prior_ms=ttft_ms, tokens_per_s_prior=100),
        optimize="latency",
    )

    assert went_on(policy, "dear", PROMPT).model == model


@pytest.mark.parametrize("model", ["frontier", "unheard-of"])
def test_a_session_with_a_model_that_is_no_candidate_changes_nothing(model: str) -> None:
    policy = compile_policy(a_policy())

    assert went_on(policy, model, PROMPT) == decide(policy, some_facts(input_tokens=PROMPT))
