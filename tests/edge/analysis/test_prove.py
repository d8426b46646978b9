"""What is proved of a policy holds for any request, and what is not comes with one."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from support.projects import a_project, publish_project
from support.requests import few_policies, random_facts, seeds
from support.worlds import (
    CLASSES,
    MODELS,
    NOW,
    PROMISES,
    TIERS,
    a_model,
    a_policy,
    conditions,
    policies,
)
from waypost.edge.analysis.cells import Space, View
from waypost.edge.analysis.prove import Broken, Proof, prove, refuse_broken
from waypost.edge.analysis.solver import solve
from waypost.edge.authoring.invariants import DataHas, Invariant, MaxCost
from waypost.edge.authoring.load_policy import Authored, load_policy
from waypost.shared.contracts import (
    ClockBetween,
    Facts,
    NumberBetween,
    OneOf,
    Policy,
    Route,
    Share,
    TextHas,
    Zone,
)
from waypost.shared.decision.compiled import CompiledPolicy, compile_policy
from waypost.shared.decision.costs import cost_estimate_nusd, expected_output
from waypost.shared.decision.engine import decide, exclusion
from waypost.shared.decision.rules import holds, value_of
from waypost.shared.errors import PolicyError

searching = settings(few_policies, suppress_health_check=[HealthCheck.data_too_large])
PHI = DataHas(any_of=("phi",))


def broken(proof: Proof) -> Broken:
    assert proof.broken is not None
    return proof.broken


# ── cells ──────────────────────────────────────────────────────────────────────────────────────


@searching
@given(policies(), seeds)
def test_a_row_is_found_to_be_taken_if_and_only_if_some_request_takes_it(
    policy: Policy, seed: int
) -> None:
    space = Space([policy])
    view = View(space, policy)
    reached: set[int] = set()
    for row in range(len(policy.routes)):
        found = solve(space.everything, view.takes(row))
        if found is not None:
            reached.add(row)
            assert view.compiled.rules.first(space.facts(found)) == row

    known = [
        request
        for request in random_facts(200, seed=seed)
        if request.signed.tier in TIERS and not view.compiled.missing(request)
    ]
    assert {view.compiled.rules.first(request) for request in known} <= reached


@searching
@given(policies(), seeds)
def test_a_model_is_found_to_serve_if_and_only_if_some_request_gets_it(
    policy: Policy, seed: int
) -> None:
    space = Space([policy])
    view = View(space, policy)
    used: set[tuple[int, str]] = set()
    for row in range(len(policy.routes)):
        for model in view.within(row):
            found = solve(space.everything, [*view.takes(row), (view.serves(model),)])
            if found is not None:
                used.add((row, model))
                assert exclusion(view.compiled, model, space.facts(found)) is None

    for request in random_facts(200, seed=seed):
        for name in decide(view.compiled, request).chain:
            assert (view.compiled.rules.first(request), name) in used


def test_a_share_too_small_to_hold_anyone_is_known_to_be_empty() -> None:
    # Under two salts a ten-thousandth each: of a million cohorts hardly one is in both.
    both = (Share("a", 7, 8), Share("b", 1, 2))
    policy = a_policy(
        routes=(
            Route(name="both", when=both, models=("small",)),
            Route(name="default", models=("large",)),
        )
    )
    space = Space([policy])

    found = solve(space.everything, View(space, policy).takes(0))

    assert found is None or all(holds(share, space.facts(found)) for share in both)


def test_hours_of_two_time_zones_are_told_apart_by_the_same_clock() -> None:
    berlin = Zone("Europe/Berlin", ((0, 3_600),))
    night = (ClockBetween("hour", 2, 3), ClockBetween("hour", 5, 6, berlin))
    policy = a_policy(
        routes=(
            Route(name="never", when=night, models=("small",)),
            Route(name="default", models=("large",)),
        )
    )
    space = Space([policy])

    assert solve(space.everything, View(space, policy).takes(0)) is None


# ── invariants ─────────────────────────────────────────────────────────────────────────────────


@st.composite
def invariants(draw: st.DrawFn) -> Invariant:
    some = st.lists(st.sampled_from(MODELS), unique=True, min_size=3).map(tuple)
    classes = st.lists(st.sampled_from(CLASSES), unique=True, max_size=2).map(tuple)
    return Invariant(
        name="drawn",
        when=tuple(draw(st.lists(conditions(), max_size=2))),
        data=DataHas(any_of=draw(classes), all_of=draw(classes), none_of=draw(classes)),
        promises=draw(st.just(()) | st.sampled_from(PROMISES).map(lambda name: (name,))),
        models=draw(st.none() | some),
        regions=draw(st.sampled_from((None, ("global",)))),
        max_cost=draw(
            st.none()
            | st.builds(
                MaxCost, st.integers(0, 30_000_000), st.integers(0, 1_000), st.integers(0, 500)
            )
        ),
        has_fallback=draw(st.booleans()),
        never_refused=draw(st.integers(0, 5)) == 0,
    )


def breaks(policy: CompiledPolicy, invariant: Invariant, request: Facts) -> bool:
    """Whether a request breaks an invariant, told one request at a time."""
    classes = {
        *request.signed.data_classes,
        *request.measured.data_classes,
        *request.declared.data_classes,
    }
    data = invariant.data
    if (
        policy.missing(request)
        or request.signed.tier not in TIERS
        or not classes <= policy.policy.data_classes.keys()
        or not all(
            value_of(condition, request) is not None or isinstance(condition, OneOf)
            for condition in invariant.when
        )
        or not all(holds(condition, request) for condition in invariant.when)
        or (data.any_of and classes.isdisjoint(data.any_of))
        or not classes.issuperset(data.all_of)
        or not classes.isdisjoint(data.none_of)
    ):
        return False
    may = [m for m in policy.policy.models if exclusion(policy, m.id, request) is None]
    limit = invariant.max_cost
    within = (
        limit is not None
        and request.measured.choices == 1
        and request.measured.input_tokens <= limit.input_tokens
        and expected_output(policy.policy, request) <= limit.output_tokens
    )
    return (
        any(invariant.broken_by(model) for model in may)
        or (limit is not None and within and any(cost_estimate_nusd(policy.policy, m, request) > limit.nusd for m in may))
        or (invariant.has_fallback and len(decide(policy, request).chain) == 1)
        or (invariant.never_refused and not may)
    )  # fmt: skip


def unnarrowed(request: Facts) -> Facts:
    return structs.replace(
        request,
        signed=structs.replace(request.signed, models=None),
        measured=structs.replace(request.measured, affordable_nusd=None, out_of_service=()),
    )


@searching
@given(policies(), invariants(), seeds)
def test_an_invariant_holds_for_every_request_or_comes_with_one_that_breaks_it(
    policy: Policy, invariant: Invariant, seed: int
) -> None:
    compiled = compile_policy(policy)
    proof = prove(policy, invariant)
    requests = random_facts(200, seed=seed)

    if proof.broken is not None:
        assert breaks(compiled, invariant, proof.broken.facts)
        assert decide(compiled, proof.broken.facts, proof.broken.proposal) == proof.broken.decision
    else:
        assert not any(breaks(compiled, invariant, unnarrowed(request)) for request in requests)
    if not proof.applies:
        nothing = structs.replace(invariant, models=(), never_refused=False)
        assert not any(breaks(compiled, nothing, request) for request in requests)


def test_patient_data_is_proved_to_stay_with_those_who_signed_for_it() -> None:
    proof = prove(a_policy(), Invariant(name="phi", data=PHI, promises=("hipaa_baa",)))

    assert proof.broken is None
    assert proof.applies


def test_a_model_that_only_a_client_would_propose_breaks_an_invariant_too() -> None:
    policy = a_policy()
    found = broken(
        prove(policy, Invariant(name="no frontier", models=("small", "large", "clinical")))
    )

    assert found.proposal is not None
    assert found.proposal.model == "frontier"
    assert found.decision.verdict == "accepted"
    assert found.facts.signed.tier == "enterprise"


def test_cost_is_bounded_by_the_dearest_size_within_not_by_the_size_stated() -> None:
    # Long prompts may only use the cheap model, so the dearest request is a shorter one.
    routes = (
        Route(
            name="long",
            when=(NumberBetween("input_tokens", at_least=3_000),),
            models=("small",),
            enforce=True,
        ),
        Route(name="default", models=("large", "small")),
    )
    policy = a_policy(routes=routes)
    pro = (OneOf("tier", ("pro",)),)
    costs = Invariant(name="cheap", when=pro, max_cost=MaxCost(5_000_000, 4_000, 100))

    found = broken(prove(policy, costs))

    assert found.facts.measured.input_tokens == 2_999
    assert "clinical costs $0.0101 for 2999 tokens in and 100 out" in found.because


def test_an_enforcing_route_of_one_model_has_no_fallback() -> None:
    routes = (
        Route(name="alone", when=(OneOf("tenant", ("acme",)),), models=("small",), enforce=True),
        Route(name="default", models=("large", "small")),
    )
    found = broken(
        prove(
            a_policy(routes=routes),
            Invariant(name="two", data=DataHas(none_of=("phi",)), has_fallback=True),
        )
    )

    assert found.facts.signed.tenant == "acme"
    assert found.decision.chain == ("small",)
    assert found.because == "small alone may serve it"


def test_a_request_that_nobody_may_serve_is_found() -> None:
    when = (
        OneOf("endpoint", ("chat.completions",)),
        TextHas("needs", none_of=("audio", "json", "tools", "vision")),
        NumberBetween("input_tokens", below=10_000),
    )
    invariant = Invariant(name="served", when=when, never_refused=True)

    assert prove(a_policy(), invariant).broken is None
    found = broken(prove(a_policy(data_classes={"phi": ("on_prem",)}), invariant))
    assert (found.decision.verdict, found.decision.reason) == ("refused", "duty_unmet")


def test_an_invariant_that_speaks_of_no_request_says_so() -> None:
    never = (NumberBetween("messages", below=2), NumberBetween("messages", at_least=2))

    proof = prove(a_policy(), Invariant(name="void", when=never, models=("small",)))

    assert not proof.applies


def test_hidden_models_count() -> None:
    policy = a_policy(
        models=(*a_policy().models, a_model("internal", provider="own", region="mars"))
    )

    assert broken(prove(policy, Invariant(name="earth", regions=("global",)))).because == (
        "internal: its region mars is not one of global"
    )


# ── written ────────────────────────────────────────────────────────────────────────────────────

POLICY = Path(__file__).parents[3] / "edge/waypost/edge/templates/policy.yaml"


def written(tmp_path: Path, then: str, when: str = "{}") -> Authored:
    path = tmp_path / "policy.yaml"
    path.write_text(
        f"{POLICY.read_text()}\ninvariants:\n  - {{name: it holds, when: {when}, then: {then}}}\n"
    )
    return load_policy(path, channel="prod", version=1, issued_at=NOW)


@pytest.mark.parametrize(
    ("when", "then"),
    [
        ("{data: phi}", "{promises: [hipaa_baa, no_training]}"),
        ("{tenant: sandbox}", "{models: small, providers: groq}"),
        ("{data: {any: [eu_personal], none: [phi]}}", "{regions: eu}"),
        ("{tier: free}", "{max_cost: 0.004, for: {input_tokens: 4_000, output_tokens: 1_000}}"),
        ("{input_tokens: {below: 99_000}, data: {none: [phi, pii, eu_personal]}, endpoint: chat.completions, tags: {none: [x]}}", "{models: [capable, small, medium, eu-medium, clinical]}"),
    ],
)  # fmt: skip
def test_invariants_are_written_beside_the_routes(tmp_path: Path, when: str, then: str) -> None:
    refuse_broken(written(tmp_path, then, when))


def test_a_broken_invariant_is_a_policy_error_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(
        PolicyError, match="breaks its invariant 'it holds': eu-medium costs"
    ) as caught:
        refuse_broken(written(tmp_path, "{max_cost: 0.001, for: {input_tokens: 4_000, output_tokens: 1_000}}", "{tier: free}"))  # fmt: skip

    assert caught.value.code == "invariant_broken"


def test_a_policy_that_breaks_its_invariant_is_not_published(tmp_path: Path) -> None:
    project = a_project(tmp_path)
    publish_project(project)
    bundle = (project.public / "v1/prod/bundle.json").read_bytes()
    claim = "{name: nothing is American, then: {regions: eu}}"
    project.policy.write_text(f"{project.policy.read_text()}\ninvariants:\n  - {claim}\n")

    with pytest.raises(PolicyError, match="breaks its invariant 'nothing is American'"):
        publish_project(project)

    assert (project.public / "v1/prod/bundle.json").read_bytes() == bundle
