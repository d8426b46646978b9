"""What a change of policy changes for requests."""

from random import Random

import pytest
from hypothesis import given
from msgspec import structs

from support.requests import few_policies, random_facts, seeds
from support.worlds import MODELS, PROMISES, TIERS, a_model, a_policy, policies
from waypost.edge.analysis.diff import Change, diff
from waypost.shared.contracts import Facts, Model, NumberBetween, OneOf, Policy, Route, TextHas
from waypost.shared.decision.compiled import CompiledPolicy, compile_policy
from waypost.shared.decision.engine import decide
from waypost.shared.money import Price


def changed_at_random(policy: Policy, seed: int) -> Policy:
    """Return ``policy`` after one small edit, of a kind that people make."""
    random = Random(seed)
    models, routes = list(policy.models), list(policy.routes)
    place, row = random.randrange(len(models)), random.randrange(len(routes))
    names = [model.id for model in models]
    some = tuple(random.sample(names, random.randint(1, len(names))))
    model: dict[str, object] = random.choice(
        [
            {"price": Price(input_nusd_per_mtok=random.randrange(10**10), output_nusd_per_mtok=random.randrange(10**10))},
            {"tiers": tuple(random.sample(TIERS, random.randint(1, 3)))},
            {"promises": tuple(random.sample(PROMISES, random.randint(0, 4)))},
            {"quality": random.randint(0, 100)},
            {"context_tokens": random.randint(1, 1_000)},
            {"max_output_tokens": random.randint(1, 500)},
            {"ttft_prior_ms": random.randint(1, 5_000)},
            {"capabilities": ("json",)},
        ]
    )  # fmt: skip
    route: dict[str, object] = random.choice(
        [
            {"models": some},
            {"fallback": some},
            {"min_quality": random.randint(0, 100)},
            {"max_cost_nusd": random.choice((None, random.randrange(10**7)))},
            {"max_ttft_ms": random.randint(1, 5_000)},
            {"optimize": random.choice(("cost", "latency", "quality", "balanced"))},
            {"name": "renamed"},
            {"when": (*routes[row].when, NumberBetween("messages", below=100))},
        ]
    )
    kind = random.choice(("model", "route", "route", "swap", "drop", "last_resort", "default"))
    match kind:
        case "model":
            models[place] = structs.replace(models[place], **model)
        case "route" if row < len(routes) - 1 or "when" not in route:
            routes[row] = structs.replace(routes[row], **route)
        case "swap" if len(routes) > 2 and not any(r.enforce for r in routes):
            routes[0], routes[1] = routes[1], routes[0]
        case "drop" if row < len(routes) - 1:
            del routes[row]
        case "last_resort":
            return structs.replace(policy, last_resort=some)
        case "default":
            return structs.replace(policy, default_output_tokens=random.randint(1, 600))
        case _:
            pass
    return structs.replace(policy, models=tuple(models), routes=tuple(routes))


def outcome(policy: CompiledPolicy, facts: Facts) -> tuple[object, ...]:
    """Return what a request gets, but for words: whom, in which order, by which route."""
    decision = decide(policy, facts)
    refused = decision.verdict == "refused"
    mask, _ = policy.admissible(facts)
    route = policy.policy.routes[policy.rules.first(facts)]
    within = {*route.models, *route.fallback} if route.enforce else MODELS
    allowed = {name for name in within if policy.bits.get(name, 0) & mask}
    return (
        refused,
        None if refused else decision.route,
        decision.candidates,
        decision.chain,
        allowed,
    )


@few_policies
@given(policies(), seeds)
def test_each_change_comes_with_a_request_that_shows_it_and_no_request_changes_without_one(
    policy: Policy, seed: int
) -> None:
    after = changed_at_random(policy, seed)
    changes = diff(policy, after)
    was, now = compile_policy(policy), compile_policy(after)

    if not changes:
        for request in random_facts(300, seed=seed):
            if not (was.missing(request) or now.missing(request)):
                assert outcome(was, request) == outcome(now, request)
    for change in changes:
        if change.example is None:
            assert change.message.endswith("may weigh some of its models otherwise")
            continue
        facts, proposal = change.example.facts, change.example.proposal
        assert decide(was, facts, proposal) == change.example.before
        assert decide(now, facts, proposal) == change.example.after
        if change.kind not in {"price", "model"}:
            assert outcome(was, facts) != outcome(now, facts)


@few_policies
@given(policies())
def test_a_policy_means_the_same_as_itself(policy: Policy) -> None:
    text_only = structs.replace(policy, version=policy.version + 1, models=policy.models[::-1])

    assert diff(policy, text_only) == ()


# ── what is said ───────────────────────────────────────────────────────────────────────────────


def with_model(name: str, /, **changes: object) -> Policy:
    policy = a_policy()

    def changed(model: Model) -> Model:
        return structs.replace(model, **changes) if model.id == name else model

    return structs.replace(policy, models=tuple(map(changed, policy.models)))


def with_route(name: str, /, **changes: object) -> Policy:
    policy = a_policy()

    def changed(route: Route) -> Route:
        return structs.replace(route, **changes) if route.name == name else route

    return structs.replace(policy, routes=tuple(map(changed, policy.routes)))


def said(after: Policy) -> list[tuple[str, str]]:
    return [(change.kind, change.message) for change in diff(a_policy(), after)]


def only(after: Policy) -> Change:
    (change,) = diff(a_policy(), after)
    return change


def test_a_model_closed_to_a_tier_is_told_with_the_routes_where_it_shows() -> None:
    refused, change = diff(a_policy(), with_model("large", tiers=("enterprise",)))

    assert refused.kind == "refused"
    assert (change.kind, change.subject) == ("forbidden", "large")
    assert change.routes == ("hard", "short-chat", "default")
    assert change.example is not None
    assert (change.example.before.verdict, change.example.after.verdict) == (
        "accepted",
        "overridden",
    )
    assert change.example.after.reason == "tier_not_allowed"


def test_a_dropped_promise_shows_as_requests_that_are_refused() -> None:
    kinds = [kind for kind, _ in said(with_model("clinical", promises=()))]

    assert kinds == ["refused", "forbidden"]


def test_a_route_that_takes_more_requests_takes_them_from_others() -> None:
    after = with_route(
        "short-chat",
        when=(NumberBetween("input_tokens", below=200), OneOf("tier", ("free", "pro"))),
    )

    change = only(after)

    assert (change.kind, change.message) == (
        "route",
        "some requests that took route 'default' take 'short-chat'",
    )
    assert change.example is not None
    assert 100 <= change.example.facts.measured.input_tokens < 200


def test_a_condition_written_in_another_way_is_no_change() -> None:
    after = with_route("hard", when=(TextHas("keywords", any_of=("prove", "analyse")),))
    again = structs.replace(
        after,
        routes=(after.routes[0], structs.replace(after.routes[0], name="again"), *after.routes[1:]),
    )

    assert diff(a_policy(), again) == ()


def test_another_order_is_told_with_both() -> None:
    change = only(with_route("hard", models=("frontier", "large"), optimize="cost"))

    assert change.kind == "order"
    assert (
        change.message
        == "route 'hard' prefers large, frontier, clinical; before, frontier, large, clinical"
    )
    assert change.example is not None
    assert change.example.facts.signed.tier == "enterprise"


def test_another_order_of_the_text_is_none_of_the_models() -> None:
    assert diff(a_policy(), with_route("hard", models=("frontier", "large"))) == ()


def test_a_price_that_turns_no_order_is_told_by_who_can_afford_it() -> None:
    dearer = Price(input_nusd_per_mtok=11 * 10**9, output_nusd_per_mtok=30 * 10**9)

    change = only(with_model("frontier", price=dearer))

    assert change.kind == "price"
    assert change.message == "price of frontier is $11.00 in, $30.00 out, was $10.00 in, $30.00 out"
    assert change.example is not None
    assert (change.example.before.verdict, change.example.after.reason) == (
        "accepted",
        "unaffordable",
    )


def test_another_name_upstream_is_a_change_although_no_decision_differs() -> None:
    assert said(with_model("small", name="acme-mini")) == [
        ("model", "name of small is acme-mini, was acme-small")
    ]


def test_a_model_that_is_new_may_serve() -> None:
    assert said(a_policy(models=(*a_policy().models, a_model("new")))) == [
        ("allowed", "new may now serve some requests that it could not serve")
    ]


@pytest.mark.parametrize("field", ["max_cost_nusd", "min_quality"])
def test_a_ceiling_that_turns_an_order_is_found_where_it_does(field: str) -> None:
    value = {"max_cost_nusd": 400_000, "min_quality": 60}[field]

    change = only(with_route("short-chat", **{field: value}))

    assert change.kind == "order"
    assert change.example is not None
    assert change.example.before.candidates != change.example.after.candidates
