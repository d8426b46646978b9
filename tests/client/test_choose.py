"""Choosing: what is proposed, why, and what happens when nothing can be."""

import subprocess
import sys
from collections import Counter

import pytest

from support.worlds import NOW, a_model, a_policy
from waypost.client import InvalidRequestError, TrustError, Waypost
from waypost.client.testing import StaticManifest, static_waypost, unsigned_token
from waypost.shared.contracts import Endpoint, Facts, Hint, Hints, Policy, Route, Weights
from waypost.shared.decision.engine import decide


def a_fast_route(*names: str, **changes: object) -> Policy:
    """Every request goes to the fastest of ``names``, all alike unless changed."""
    route = Route(name="fast", models=names, optimize="latency")
    return a_policy(
        models=tuple(a_model(name) for name in names), routes=(route,), last_resort=(), **changes
    )


def slow(wp: Waypost, model: str, ms: float = 8_000) -> None:
    wp._core.waited_for(model, ms)


def test_a_short_question_goes_to_the_cheap_model() -> None:
    choice = static_waypost(a_policy()).choose("What is the capital of France?")
    assert (choice.model, choice.route, choice.reason) == ("small", "short-chat", "policy_order")
    assert choice.sentence.startswith("The client left the choice open; rule 'short-chat'")
    assert choice.alternatives == ("large", "clinical")
    assert choice.manifest_version == 42


def test_a_choice_knows_what_it_will_cost_and_how_long_it_will_take() -> None:
    choice = static_waypost(a_policy()).choose("Hello")
    assert choice.cost_nusd == 180_900  # 6 tokens in at $0.15, 300 out at $0.60 per million
    assert choice.predicted_ttft_ms == 800


def test_exclusions_say_why_a_model_is_out() -> None:
    choice = static_waypost(a_policy(), tier="free").choose("Hello", data="phi")
    assert choice.model == "clinical"
    assert choice.exclusions["frontier"] == "it is not open to tier free"
    assert "has not promised hipaa_baa" in choice.exclusions["small"]


def test_a_choice_is_what_the_engine_decides() -> None:
    wp = static_waypost(a_policy(), tier="enterprise")
    choice = wp.choose([{"role": "user", "content": "Please prove it."}])
    assert choice.facts is not None
    assert choice.policy is not None
    assert choice.model == decide(choice.policy, choice.facts).model == "frontier"


def test_a_choice_heeds_what_the_body_will_demand() -> None:
    wp = static_waypost(a_policy())

    assert wp.choose("Hello", models=["large", "small"]).model == "large"
    assert wp.choose("Hello", provider={"only": ["medcloud"]}).model == "clinical"
    assert wp.choose("Hello", provider={"ignore": ["acme", "medcloud"]}).reason == (
        "request_excludes"
    )
    with pytest.raises(InvalidRequestError, match="provider"):
        wp.choose("Hello", provider={"olny": ["medcloud"]})
    # What was measured is done with; a demand must not be lost in silence.
    with pytest.raises(TypeError, match="give them to measure"):
        wp.choose(wp.measure("Hello"), models=["large"])


def test_measuring_once_serves_many_choices() -> None:
    wp = static_waypost(a_policy())
    measured = wp.measure([{"role": "user", "content": "x" * 4_000}], max_tokens=5)
    assert measured.input_tokens == 1_004
    assert measured.max_output_tokens == 5
    assert wp.choose(measured).route == wp.choose(measured, task="write").route == "default"


def test_tools_need_a_model_that_can_use_them() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert static_waypost(a_policy()).choose("Hi", tools=[tool]).model == "large"


def test_an_answer_of_an_sdk_can_be_sent_back_as_it_is() -> None:
    from openai.types.chat import ChatCompletionMessage

    answer = ChatCompletionMessage(role="assistant", content="Paris.")
    wp = static_waypost(a_policy())
    assert wp.choose([{"role": "user", "content": "Capital?"}, answer]).model == "small"


def test_what_is_no_message_is_named() -> None:
    wp = static_waypost(a_policy())
    with pytest.raises(InvalidRequestError, match=r"role.*messages\[0\]"):
        wp.choose([{"content": "Hi"}])
    with pytest.raises(TypeError, match="not object"):
        wp.choose([object()])


# ── always an answer ───────────────────────────────────────────────────────────────────────────


def test_without_a_manifest_the_validator_chooses() -> None:
    manifest = StaticManifest(a_policy())
    manifest.load = lambda: None  # type: ignore[method-assign]
    choice = static_waypost(manifest).choose("Hello")
    assert (choice.model, choice.reason, choice.freshness) == (None, "no_manifest", "none")
    assert choice.endpoint == "https://validator.test/v1"
    assert "validator chooses" in choice.sentence


def test_an_expired_manifest_chooses_no_more() -> None:
    wp = static_waypost(StaticManifest(a_policy(), expires_at=NOW - 1))
    choice = wp.choose("Hello")
    assert (choice.model, choice.reason, choice.freshness) == (None, "manifest_expired", "none")
    assert wp.freshness == "none"


def test_without_a_token_nobody_knows_whose_request_it_is() -> None:
    wp = Waypost(manifest=StaticManifest(a_policy()), refresh_interval_s=None)
    assert wp.choose("Hello").reason == "no_token"


def test_a_token_that_cannot_be_read_leaves_the_choice_to_the_validator() -> None:
    wp = Waypost(token="opaque", manifest=StaticManifest(a_policy()), refresh_interval_s=None)
    assert wp.choose("Hello").reason == "token_unreadable"


def test_a_failing_token_source_does_not_break_choosing() -> None:
    def broken() -> str:
        raise OSError("the token service is down")

    wp = Waypost(token=broken, manifest=StaticManifest(a_policy()), refresh_interval_s=None)
    assert wp.choose("Hello").reason == "no_token"


def test_what_the_policy_refuses_is_not_proposed() -> None:
    choice = static_waypost(a_policy()).choose("Hello", data="unheard_of")
    assert (choice.model, choice.reason) == (None, "unknown_data_class")
    assert choice.sentence.startswith("Refused:")


def test_a_failed_refresh_makes_a_manifest_stale_and_a_good_one_fresh() -> None:
    manifest = StaticManifest(a_policy())
    wp = static_waypost(manifest)
    assert wp.choose("Hello").freshness == "cached"
    manifest.last_error = TrustError("no network", code="unavailable")
    assert not wp.refresh()
    assert wp.choose("Hello").freshness == "stale"
    assert wp.last_error is manifest.last_error
    manifest.last_error = None
    assert wp.refresh()
    assert wp.choose("Hello").freshness == "fresh"
    wp.close()


def test_a_new_manifest_takes_over_whole() -> None:
    manifest = StaticManifest(a_policy())
    with static_waypost(manifest) as wp:
        manifest.publish(a_policy(version=43, routes=(Route(name="all", models=("large",)),)))
        assert wp.choose("Hello").model == "small"
        wp.refresh()
        choice = wp.choose("Hello")
    assert (choice.model, choice.manifest_version) == ("large", 43)


# ── declared facts ─────────────────────────────────────────────────────────────────────────────


def declared_by(wp: Waypost, **more: object) -> Facts:
    facts = wp.choose("Hello", **more).facts  # type: ignore[arg-type]
    assert facts is not None
    return facts


def test_duties_add_up_and_are_never_taken_back() -> None:
    wp = static_waypost(a_policy(), data="pii")
    with wp.facts(data="phi"), wp.facts(data=()):
        assert declared_by(wp, data="pii").declared.data_classes == ("pii", "phi")
    assert declared_by(wp).declared.data_classes == ("pii",)


def test_of_tasks_the_nearest_counts() -> None:
    wp = static_waypost(a_policy(), task="write", tags="beta")
    assert declared_by(wp).declared.task == "write"
    with wp.facts(task="classify", tags=["mobile"], interactive=False):
        declared = declared_by(wp, task="extract").declared
    assert (declared.task, declared.tags, declared.interactive) == (
        "extract",
        ("beta", "mobile"),
        False,
    )


def test_a_name_that_no_header_can_carry_is_refused_where_it_is_said() -> None:
    wp = static_waypost(a_policy())
    with pytest.raises(InvalidRequestError, match="printable ASCII"), wp.facts(task="a\r\nb: c"):
        pass
    with pytest.raises(InvalidRequestError, match="printable ASCII"):
        static_waypost(a_policy(), data="phi\n")


# ── latency ────────────────────────────────────────────────────────────────────────────────────


def test_a_slow_model_is_left_alone_for_a_while() -> None:
    wp = static_waypost(a_fast_route("a", "b"))
    slow(wp, "a")
    choice = wp.choose("Hello")
    assert (choice.model, choice.reason) == ("b", "faster")
    assert choice.sentence.endswith("a is slower at the moment, so b is proposed.")


def test_models_that_are_as_fast_share_the_load() -> None:
    hints = Hints(
        channel="prod",
        version=1,
        issued_at=NOW,
        models=tuple(
            Hint(model=name, ttft_ms=ms) for name, ms in (("a", 800), ("b", 790), ("c", 780))
        ),
    )
    wp = static_waypost(StaticManifest(a_fast_route("a", "b", "c"), hints=hints))
    picked = Counter(wp.choose("Hello").model for _ in range(300))
    assert min(picked["a"], picked["b"], picked["c"]) > 50


def test_a_second_choice_is_proposed_too_and_of_another_provider() -> None:
    models = (a_model("a"), a_model("b"), a_model("c", provider="other"))
    route = Route(name="r", models=("a", "b", "c"), optimize="latency")
    wp = static_waypost(a_policy(models=models, routes=(route,), last_resort=()))
    for _ in range(30):
        choice = wp.choose("Hello")
        assert choice.alternatives[0] == choice.otherwise
        assert (choice.model == "c") != (choice.otherwise == "c")


def test_a_second_choice_that_fails_is_left_out() -> None:
    route = Route(name="r", models=("a", "b", "c"))
    models = tuple(a_model(name, cents_in=cents) for name, cents in (("a", 1), ("b", 2), ("c", 3)))
    wp = static_waypost(a_policy(models=models, routes=(route,), last_resort=()))
    assert wp.choose("Hello").otherwise is None, "the policy's own order says it"
    for _ in range(5):
        wp._core.failed_model("b", 20)
    assert (wp.choose("Hello").model, wp.choose("Hello").otherwise) == ("a", "c")


def test_a_model_in_another_region_is_thought_to_be_farther() -> None:
    models = tuple(a_model(region, region=region) for region in ("eu", "us"))
    route = Route(name="r", models=("eu", "us"), optimize="latency")
    policy = a_policy(models=models, routes=(route,), last_resort=())
    wp = Waypost(
        token=unsigned_token(region="us"),
        manifest=StaticManifest(policy),
        refresh_interval_s=None,
    )
    picked = Counter(wp.choose("Hello", max_tokens=1).model for _ in range(300))
    assert picked["us"] > 2 * picked["eu"]


def test_a_long_answer_is_predicted_to_take_longer() -> None:
    wp = static_waypost(a_policy())
    short, long = (
        wp.choose("Hello", expected_output_tokens=tokens).predicted_ms for tokens in (10, 1_000)
    )
    assert short is not None
    assert long is not None
    assert long - short == pytest.approx(990 * 1_000 / 60)


def test_a_slower_prior_is_not_near() -> None:
    models = (a_model("a", ttft_prior_ms=400), a_model("b", ttft_prior_ms=9_000))
    route = Route(name="r", models=("a", "b"), optimize="latency")
    wp = static_waypost(a_policy(models=models, routes=(route,), last_resort=()))
    assert {wp.choose("Hello").model for _ in range(30)} == {"a"}


def test_balanced_does_not_pay_any_price_for_speed() -> None:
    models = (
        a_model("cheap", ttft_prior_ms=800),
        a_model("dear", cents_in=9_000, cents_out=9_000, ttft_prior_ms=700),
    )
    weights = Weights(cost=60, latency=20, quality=20)
    route = Route(name="r", models=("cheap", "dear"), optimize="balanced", weights=weights)
    wp = static_waypost(a_policy(models=models, routes=(route,), last_resort=()))
    assert {wp.choose("Hello").model for _ in range(30)} == {"cheap"}


def test_balanced_leaves_a_model_that_has_become_slow() -> None:
    models = (a_model("a"), a_model("b", cents_in=16))
    route = Route(name="r", models=("a", "b"), optimize="balanced")
    wp = static_waypost(a_policy(models=models, routes=(route,), last_resort=()))
    slow(wp, "a")
    assert {wp.choose("Hello").model for _ in range(30)} == {"b"}


@pytest.mark.parametrize("optimize", ["cost", "quality", "latency", "balanced"])
def test_what_keeps_failing_is_passed_over(optimize: str) -> None:
    route = Route(name="r", models=("a", "b"), optimize=optimize)  # type: ignore[arg-type]
    policy = a_policy(models=(a_model("a"), a_model("b")), routes=(route,), last_resort=())
    wp = static_waypost(policy)
    for _ in range(5):
        wp._core.failed_model("a", 20)
    choice = wp.choose("Hello")
    assert (choice.model, choice.reason) == ("b", "others_failing")
    assert choice.sentence.endswith("a is failing at the moment, so b is proposed.")


@pytest.mark.parametrize("optimize", ["cost", "latency", "balanced"])
def test_when_everything_fails_the_policy_s_order_holds(optimize: str) -> None:
    route = Route(name="r", models=("a", "b"), optimize=optimize)  # type: ignore[arg-type]
    policy = a_policy(models=(a_model("a"), a_model("b")), routes=(route,), last_resort=())
    wp = static_waypost(policy)
    for name in ("a", "b"):
        for _ in range(5):
            wp._core.failed_model(name, 20)
    assert (wp.choose("Hello").model, wp.choose("Hello").reason) == ("a", "policy_order")


def test_latency_never_leads_outside_of_the_policy() -> None:
    wp = static_waypost(a_policy(), tier="free")
    for name in ("small", "large", "clinical"):
        slow(wp, name, 300_000)
    assert wp.choose("Please prove it.").model == "large"


def test_models_no_manifest_names_leave_no_tracks() -> None:
    manifest = StaticManifest(a_fast_route("a", "b"))
    with static_waypost(manifest) as wp:
        slow(wp, "invented")
        slow(wp, "a")
        assert set(wp._core.models.estimates) == {"a"}
        manifest.publish(a_fast_route("b", "c", version=43))
        wp.refresh()
        assert not wp._core.models.estimates


# ── endpoints ──────────────────────────────────────────────────────────────────────────────────


def test_a_choice_s_endpoint_is_of_the_callers_region() -> None:
    endpoints = tuple(
        Endpoint(id=region, url=f"https://{region}.example/v1", region=region)
        for region in ("us", "eu", "ap")
    )
    wp = Waypost(
        token=unsigned_token(region="eu"),
        manifest=StaticManifest(a_policy(endpoints=endpoints)),
        refresh_interval_s=None,
    )
    assert wp.choose("Hello").endpoint == "https://eu.example/v1"


# ── lean ───────────────────────────────────────────────────────────────────────────────────────

LEAN = """
import sys
from waypost.client.testing import static_waypost, unsigned_token
from waypost.shared.contracts import Model, Policy, Route
from waypost.shared.money import Price
model = Model(id="m", provider="p", name="n", tiers=("free",), context_tokens=9_000,
    max_output_tokens=9, price=Price(input_nusd_per_mtok=1, output_nusd_per_mtok=1))
policy = Policy(channel="prod", version=1, issued_at=0, tiers=("free",), models=(model,),
    routes=(Route(name="r", models=("m",)),))
assert static_waypost(policy).choose("Hello").model == "m"
print(sorted({name.partition(".")[0] for name in sys.modules}
    & {"httpx", "httpx2", "tuf", "securesystemslib", "cryptography", "jwt", "pydantic", "anyio",
       "ssl", "asyncio"}))
"""


def test_choosing_imports_neither_http_nor_tuf() -> None:
    done = subprocess.run([sys.executable, "-c", LEAN], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


REFRESHING = """
import sys
from waypost.client import Waypost
Waypost(manifest_url="http://127.0.0.1:9/v1/prod/bundle.json", root=b"", cache_dir=False)
print(hasattr(sys.modules.get("httpx"), "Response"))
"""


def test_a_client_that_refreshes_leaves_no_import_to_its_thread() -> None:
    """openai looks at ``sys.modules["httpx"]`` at each request, and breaks on half a module."""
    done = subprocess.run(
        [sys.executable, "-c", REFRESHING], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"


def test_a_choice_prints_in_one_line_and_holds_no_prompt() -> None:
    choice = static_waypost(a_policy()).choose("my secret diagnosis")
    assert repr(choice) == (
        "Choice(model='small', route='short-chat', reason='policy_order', freshness='cached')"
    )
    assert "diagnosis" not in str(choice.facts)
