"""What a body's ``provider`` and ``models`` demand: it narrows and reorders, and is never ignored."""

import json
from typing import Any

import pytest
from msgspec import structs

from support.worlds import a_model, a_policy, some_facts
from waypost.shared.contracts import Demands, Measured, Policy, Proposal, Route
from waypost.shared.decision.compiled import compile_policy
from waypost.shared.decision.engine import Decision, decide
from waypost.shared.decision.explain import explain
from waypost.shared.decision.reading import TextReader
from waypost.shared.errors import InvalidRequestError
from waypost.shared.money import Price
from waypost.shared.requests.measure import decode_chat, measure_chat

ROUTES = (Route(name="default", models=("small", "large", "clinical"), fallback=("frontier",)),)


def a_body(**fields: Any) -> bytes:  # noqa: ANN401 - JSON
    return json.dumps({"messages": [{"role": "user", "content": "hello"}], **fields}).encode()


def measured(**fields: Any) -> Measured:  # noqa: ANN401 - JSON
    raw = a_body(**fields)
    return measure_chat(decode_chat(raw), body=raw, reader=TextReader(()))


def decided(
    policy: Policy | None = None,
    proposal: Proposal | None = None,
    **fields: Any,  # noqa: ANN401 - JSON
) -> Decision:
    """Decide an enterprise caller's body with these ``fields``."""
    facts = structs.replace(some_facts(tier="enterprise"), measured=measured(**fields))
    return decide(compile_policy(policy or a_policy(routes=ROUTES)), facts, proposal)


def chain(**provider: object) -> tuple[str, ...]:
    return decided(provider=provider).chain


# ── what narrows ───────────────────────────────────────────────────────────────────────────────


def test_a_body_that_demands_nothing_has_no_demands() -> None:
    assert measured().demands is None
    assert chain() == ("small", "large", "clinical", "frontier")


def test_only_and_ignore_say_which_providers() -> None:
    assert chain(only=["medcloud"]) == ("clinical",)
    assert chain(ignore=["medcloud"]) == ("small", "large", "frontier")


def test_a_promise_that_nobody_wrote_down_counts_as_not_made() -> None:
    # frontier's provider has promised nothing, so it trains on what it sees and keeps it.
    assert "frontier" not in chain(data_collection="deny")
    assert chain(zdr=True) == ("clinical",)
    assert chain(data_collection="allow", zdr=False) == chain()


def test_a_price_ceiling_holds_for_prompt_completion_and_request() -> None:
    # In dollars per million: small 0.15 and 0.60, large 2.50 and 10.
    assert chain(max_price={"prompt": 2.5}) == ("small", "large")
    assert chain(max_price={"completion": 9.999999}) == ("small",)
    dear = a_model(
        "flat", price=Price(input_nusd_per_mtok=0, output_nusd_per_mtok=0, request_nusd=9)
    )
    policy = a_policy(
        models=(*a_policy().models, dear), routes=(Route(name="r", models=("flat", "small")),)
    )
    capped = decided(policy, provider={"max_price": {"request": 0.000_000_008}})
    assert "flat" not in capped.chain
    assert decided(policy).chain[0] == "flat"


def test_models_are_all_that_may_be_used_in_their_order() -> None:
    assert decided(models=["clinical", "small"]).chain == ("clinical", "small")
    # The body's own model comes first, as it does at OpenRouter.
    first = decided(model="large", models=["clinical"], proposal=Proposal(model="large"))
    assert (first.verdict, first.chain) == ("accepted", ("large", "clinical"))


def test_a_model_that_no_route_names_may_be_asked_for() -> None:
    policy = a_policy(routes=(Route(name="default", models=("small",)),), last_resort=())

    assert decided(policy, models=["frontier"]).chain == ("frontier",)


def test_an_enforced_route_holds_whatever_the_body_asks_for() -> None:
    policy = a_policy(routes=(Route(name="only", models=("small",), enforce=True),), last_resort=())

    assert decided(policy, models=["frontier"]).reason == "not_in_route"


# ── what reorders ──────────────────────────────────────────────────────────────────────────────


def test_the_order_of_providers_goes_before_the_routes_own() -> None:
    assert chain(order=["medcloud"]) == ("clinical", "small", "large", "frontier")
    assert chain(order=["medcloud"], allow_fallbacks=False) == ("clinical",)
    assert chain(order=["medcloud"], only=["acme"], allow_fallbacks=False) == ()


def test_without_fallbacks_one_model_is_tried() -> None:
    assert chain(allow_fallbacks=False) == ("small",)
    proposed = decided(provider={"allow_fallbacks": False}, proposal=Proposal(model="large"))
    assert proposed.chain == ("large",)
    overridden = decided(provider={"allow_fallbacks": False}, proposal=Proposal(model="unheard-of"))
    assert overridden.chain == ("small",)


@pytest.mark.parametrize(
    ("sort", "first"), [("price", "cheap"), ("latency", "near"), ("throughput", "quick")]
)
def test_sorting_compares_the_candidates(sort: str, first: str) -> None:
    policy = a_policy(
        models=(
            a_model("good", quality=99),
            a_model("cheap", cents_in=1, cents_out=1),
            a_model("near", ttft_prior_ms=10),
            a_model("quick", tokens_per_s_prior=900),
        ),
        routes=(Route(name="r", models=("good", "cheap", "near", "quick"), optimize="quality"),),
        last_resort=(),
    )
    assert decided(policy).model == "good"

    # One to pick from: an SDK must not sort anew by what it prefers.
    assert decided(policy, provider={"sort": sort}).candidates == (first,)


# ── what is refused ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "reason", "words"),
    [
        ({"provider": {"only": ["nobody"]}}, "unknown_provider", "names a provider that this"),
        ({"provider": {"ignore": ["nobody"]}}, "unknown_provider", "names a provider that this"),
        ({"provider": {"order": ["nobody"]}}, "unknown_provider", "names a provider that this"),
        ({"models": ["gpt-99"]}, "unknown_model", "names a model that this policy does not"),
        (
            {"provider": {"max_price": {"prompt": 0}}},
            "request_excludes",
            "no model open to this caller meets what the request's provider and models",
        ),
    ],
)
def test_a_demand_that_nobody_meets_is_a_refusal_with_a_code(
    fields: dict[str, Any], reason: str, words: str
) -> None:
    decision = decided(**fields)

    assert (decision.verdict, decision.reason) == ("refused", reason)
    facts = structs.replace(some_facts(tier="enterprise"), measured=measured(**fields))
    told = explain(compile_policy(a_policy(routes=ROUTES)), facts, decision)
    assert words in told.sentence
    assert any(line.startswith("request demands: ") for line in told.trace)


@pytest.mark.parametrize(
    ("provider", "param", "words"),
    [
        ({"quantizations": ["int4"]}, "provider", "unknown field `quantizations`"),
        ({"only": []}, "provider.only", "length >= 1"),
        ({"only": "acme"}, "provider.only", "Expected `array"),
        ({"only": ["my secret"]}, "provider.only[0]", "matching regex"),
        ({"sort": "cleverness"}, "provider.sort", "Invalid enum value"),
        ({"data_collection": "never"}, "provider.data_collection", "Invalid enum value"),
        ({"zdr": "yes"}, "provider.zdr", "Expected `bool"),
        ({"max_price": {"prompt": -1}}, "provider.max_price.prompt", ">= 0"),
        ({"max_price": {"image": 1}}, "provider.max_price", "unknown field `image`"),
        ({"allow_fallbacks": 1}, "provider.allow_fallbacks", "Expected `bool"),
        (7, "provider", "Expected `object"),
    ],
)
def test_a_key_or_value_that_is_not_known_is_a_clear_400(
    provider: object, param: str, words: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        decode_chat(a_body(provider=provider))

    assert (caught.value.code, caught.value.param) == ("invalid_body", param)
    assert words in caught.value.message


@pytest.mark.parametrize("name", ["my diabetes", "a" * 30, "Secret-1"])
def test_a_key_that_is_no_word_of_ours_is_not_quoted(name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        decode_chat(a_body(provider={name: 1}))

    assert name not in caught.value.message


def test_parameters_that_no_policy_speaks_of_cannot_be_required() -> None:
    wanted = {"require_parameters": True}

    decode_chat(a_body(provider=wanted, tools=[], temperature=0))
    with pytest.raises(InvalidRequestError, match="which models take top_k") as caught:
        decode_chat(a_body(provider=wanted, top_k=5))
    assert caught.value.code == "parameter_unsupported"
    decode_chat(a_body(provider={"require_parameters": False}, top_k=5))


def test_demands_are_kept_in_facts_in_the_units_that_decisions_use() -> None:
    provider = {"max_price": {"prompt": 0.15, "completion": 0.000_000_001}, "only": ["acme"]}

    assert measured(provider=provider).demands == Demands(
        providers=("acme",), max_input_nusd_per_mtok=150_000_000, max_output_nusd_per_mtok=1
    )
