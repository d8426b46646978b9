"""What ``policy check`` finds in policies that compile, and how the tools say it."""

import json
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from hypothesis import given
from msgspec import structs
from typer.testing import CliRunner, Result

from support.requests import few_policies, random_facts, seeds
from support.worlds import NOW, a_model, a_policy, policies, some_facts
from waypost.edge.analysis.findings import Problem, find_problems
from waypost.edge.analysis.prices import differences
from waypost.edge.analysis.requests import as_curl
from waypost.edge.authoring.load_policy import Authored, load_policy
from waypost.edge.commands.analysis_cli import add_commands
from waypost.edge.commands.init_project import template
from waypost.shared.contracts import (
    ClockBetween,
    Condition,
    Declared,
    NumberBetween,
    OneOf,
    Policy,
    Proposal,
    Route,
    TextHas,
)
from waypost.shared.decision.compiled import compile_policy
from waypost.shared.decision.engine import decide
from waypost.shared.money import NUSD_PER_USD, Price
from waypost.shared.pictures import RULES
from waypost.shared.requests.measure import decode_chat, measure_chat
from waypost.shared.wire.headers import parse_facts, parse_proposal

DEFAULT = Route(name="default", models=("large", "small"), fallback=("clinical",))


def problems(policy: Policy) -> list[Problem]:
    return list(find_problems(Authored(policy, policy), now=NOW))


def found(policy: Policy, code: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(p.severity, p.place) for p in problems(policy) if p.code == code]


def with_routes(*routes: Route) -> Policy:
    return a_policy(routes=(*routes, DEFAULT))


def rows(*when: tuple[Condition, ...]) -> Policy:
    return with_routes(
        *(Route(name=f"r{i}", when=w, models=("small",)) for i, w in enumerate(when))
    )


# ── rows ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "when",
    [
        ((NumberBetween("messages", below=10),), (NumberBetween("messages", below=5),)),
        ((OneOf("tier", ("free", "pro")),), (OneOf("tier", ("enterprise",)),), (OneOf("task", ("a",)),)),
        ((TextHas("tags", any_of=("a", "b")),), (TextHas("tags", all_of=("b",)), OneOf("tier", ("pro",)))),
        ((ClockBetween("hour", 22, 6),), (ClockBetween("hour", 23, 1),)),
        ((NumberBetween("complexity", below=500),), (NumberBetween("complexity", at_least=500),), (OneOf("region", ("eu",)),)),
    ],
)  # fmt: skip
def test_a_row_that_others_leave_nothing_to_is_an_error(
    when: tuple[tuple[Condition, ...], ...],
) -> None:
    last = f"r{len(when) - 1}"

    assert found(rows(*when), "shadowed")[0] == ("error", ("routes", last, "when"))


def test_a_shadowed_row_names_just_those_that_shadow_it() -> None:
    policy = rows(
        (OneOf("tier", ("free",)),),
        (OneOf("task", ("a",)),),
        (OneOf("tier", ("pro", "enterprise")),),
        (OneOf("region", ("eu",)),),
    )
    [problem] = [p for p in problems(policy) if p.place == ("routes", "r3", "when")]

    assert "taken by 'r0' and 'r2' above it" in problem.message


def test_conditions_that_contradict_each_other_are_an_error() -> None:
    policy = rows((NumberBetween("messages", below=5), NumberBetween("messages", at_least=5)))

    assert found(policy, "contradiction") == [("error", ("routes", "r0", "when"))]


def test_rows_that_overlap_are_worth_a_note() -> None:
    policy = rows((OneOf("task", ("a",)),), (OneOf("region", ("eu",)),), (OneOf("task", ("b",)),))

    assert found(policy, "overlap") == [("note", ("routes", "r1")), ("note", ("routes", "r2"))]


@few_policies
@given(policies(), seeds)
def test_no_request_takes_a_row_or_uses_a_model_that_is_called_dead(
    policy: Policy, seed: int
) -> None:
    said = problems(policy)
    dead_rows = {p.place[1] for p in said if p.code in {"shadowed", "contradiction"}}
    dead_models = {p.place[1] for p in said if p.code == "dead_model"}
    compiled = compile_policy(policy)

    for request in random_facts(200, seed=seed):
        # An outage, what a request demands, or that providers have no words for it, may bring
        # anyone into a chain; the rest must hold without.
        request = structs.replace(
            request,
            signed=structs.replace(request.signed, models=None),
            measured=structs.replace(
                request.measured,
                affordable_nusd=None,
                out_of_service=(),
                untranslatable=(),
                demands=None,
            ),
        )
        decision = decide(compiled, request)
        assert decision.route not in dead_rows
        assert dead_models.isdisjoint(decision.chain)


# ── models, tiers, data ────────────────────────────────────────────────────────────────────────


def test_a_model_that_nobody_tries_is_dead() -> None:
    *some, frontier, clinical = a_policy().models
    # Wherever it may be used, large may be as well.
    models = (*some, structs.replace(frontier, context_tokens=32_000), clinical)

    assert found(a_policy(models=models, routes=(DEFAULT,)), "dead_model") == [
        ("warning", ("models", "frontier"))
    ]
    assert not found(a_policy(routes=(DEFAULT,)), "dead_model")


def test_a_route_whose_models_its_tier_forbids_is_told_with_the_tier() -> None:
    policy = with_routes(Route(name="best", when=(OneOf("task", ("hard",)),), models=("frontier",)))
    best = [p for p in problems(policy) if p.code == "route_without_model"]

    assert [p.message.split(",")[0] for p in best] == [
        "tier 'free' can take 'best' and may use none of 'frontier'",
        "tier 'pro' can take 'best' and may use none of 'frontier'",
    ]
    assert best[0].facts is not None
    assert decide(compile_policy(policy), best[0].facts).model == "large"


def test_a_route_is_not_blamed_for_a_tier_that_cannot_take_it() -> None:
    when = (OneOf("tier", ("enterprise",)),)

    assert not found(
        with_routes(Route(name="best", when=when, models=("frontier",))), "route_without_model"
    )


def test_an_enforcing_route_that_refuses_what_others_could_serve_is_told_with_a_request() -> None:
    policy = with_routes(
        Route(name="walled", when=(OneOf("tenant", ("acme",)),), models=("small",), enforce=True)
    )
    [problem] = [p for p in problems(policy) if p.code == "enforced_refusal"]

    assert problem.facts is not None
    assert decide(compile_policy(policy), problem.facts).reason == "not_in_route"


def test_data_that_nobody_may_see_is_told() -> None:
    classes = {"secret": ("on_prem",), "phi": ("hipaa_baa",)}

    assert found(a_policy(data_classes=classes), "unseen_data") == [
        ("warning", ("data_classes", "secret"))
    ]


def test_a_tier_without_an_api_or_a_class_is_worth_a_note() -> None:
    models = (*a_policy().models, a_model("embed", tiers=("pro",), endpoints=("embeddings",)))
    doctor = structs.replace(models[3], tiers=("pro",))
    policy = a_policy(models=(*models[:3], doctor, models[4]))

    assert found(policy, "tier_without_api") == [("note", ("tiers",))] * 2
    assert found(policy, "tier_without_data") == [("note", ("data_classes", "phi"))] * 2


def test_a_fallback_that_is_a_candidate_already_does_nothing() -> None:
    twice = Route(
        name="twice", when=(OneOf("task", ("a",)),), models=("small", "large"), fallback=("large",)
    )

    assert found(with_routes(twice), "fallback_twice") == [
        ("warning", ("routes", "twice", "fallback"))
    ]
    # With a floor it says where the candidate goes that misses it.
    assert not found(with_routes(structs.replace(twice, min_quality=60)), "fallback_twice")


def test_a_floor_that_no_candidate_meets_is_told() -> None:
    high = Route(
        name="high", when=(OneOf("task", ("a",)),), models=("small",), min_quality=99, max_ttft_ms=1
    )

    assert [place[2] for _, place in found(with_routes(high), "floor_without_model")] == [
        "min_quality",
        "max_ttft_ms",
    ]


# ── prices ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("usd", [("3", "1"), ("0.0002", "1"), ("3", "15000")])
def test_prices_that_look_mistaken_are_told(usd: tuple[str, str]) -> None:
    into, out = (int(float(dollars) * 10**9) for dollars in usd)
    odd = a_model("odd", price=Price(input_nusd_per_mtok=into, output_nusd_per_mtok=out))

    assert found(a_policy(models=(*a_policy().models, odd)), "odd_price")


def test_a_price_unlike_the_published_one_is_told_with_both_and_the_source() -> None:
    price = Price(input_nusd_per_mtok=250_000_000, output_nusd_per_mtok=3_000_000_000)
    mini = a_model("mini", provider="openai", price=price, context_tokens=10**6)
    said = [p for p in problems(a_policy(models=(*a_policy().models, structs.replace(mini, name="gpt-5-mini")))) if p.place[1] == "mini"]  # fmt: skip

    assert [p.place[2:] for p in said if p.code.startswith("stale")] == [
        ("price", "output"),
        ("tokens", "context"),
    ]
    assert said[0].message.startswith("$3.0000 here, $2 in genai-prices ")


def test_a_price_that_nobody_publishes_is_worth_a_note() -> None:
    assert ("note", ("models", "clinical", "price")) in found(a_policy(), "unknown_price")


# ── a request to try ───────────────────────────────────────────────────────────────────────────


def test_a_request_shown_is_measured_as_the_facts_it_shows(tmp_path: Path) -> None:
    facts = some_facts(
        "pro",
        signed={"tenant": "acme"},
        input_tokens=3_000,
        needs=("json",),
        keywords=("analyse", "it's"),
        max_output_tokens=77,
        declared=Declared(interactive=False, data_classes=("phi",), tags=("a b",)),
    )
    shell = as_curl(facts, Proposal(model="large")).replace("curl ", "printf '%s\\n' ", 1)
    (tmp_path / "waypost").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "waypost").chmod(0o755)
    sent = subprocess.run(
        ["sh", "-c", shell], env={"PATH": f"{tmp_path}:/usr/bin:/bin", "WAYPOST_URL": "https://w"},
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip

    body = sent[-1].encode()
    words = Route(
        name="words", when=(TextHas("keywords", any_of=facts.measured.keywords),), models=("small",)
    )
    reader = compile_policy(with_routes(words)).reader
    measured = measure_chat(decode_chat(body), body=body, reader=reader)
    headers = dict(
        line.split(": ", 1) for line in sent if ": " in line and not line.startswith("{")
    )
    assert structs.replace(measured, max_input_tokens=200, input_bytes=0) == facts.measured
    assert parse_facts(headers["Waypost-Facts"]) == facts.declared
    assert parse_proposal(headers["Waypost-Proposal"]) == Proposal(model="large")
    assert "--tier pro --tenant acme" in headers["Authorization"]


# ── the commands ───────────────────────────────────────────────────────────────────────────────

TEMPLATE = (Path(__file__).parents[3] / "edge/waypost/edge/templates/policy.yaml").read_text()
FREE = "  - {name: free is cheap, when: {tier: free}, then: {max_cost: 0.001, for: {input_tokens: 4_000, output_tokens: 1_000}}}\n"  # fmt: skip
PHI = "  - {name: phi stays at home, when: {data: phi}, then: {promises: hipaa_baa}}\n"


def run(*arguments: str) -> Result:
    app = typer.Typer()
    add_commands(app)
    return CliRunner(env={"COLUMNS": "500"}).invoke(app, arguments)


def policy_file(folder: Path, text: str, name: str = "policy.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_check_names_line_and_path_of_what_it_finds(tmp_path: Path) -> None:
    text = TEMPLATE.replace(
        "when: {task: [coding, review]}", "when: {tenant: sandbox, task: coding}"
    )
    result = run("check", policy_file(tmp_path, text))

    line = 1 + text[: text.index("tenant: sandbox, task")].count("\n")
    assert result.exit_code == 1
    assert result.output.startswith(
        f"policy.yaml:{line}: routes[3].when: every request that 'coding' would match"
    )


def test_check_fails_on_warnings_only_if_strict(tmp_path: Path) -> None:
    path = policy_file(tmp_path, TEMPLATE.replace("output: 15.00", "output: 14.00"))

    assert run("check", path).exit_code == 0
    assert run("check", path, "--strict").exit_code == 1
    assert (
        "warning: models.large.price.output: $14.00 here, $15 in genai-prices"
        in run("check", path).output
    )


def test_check_tells_of_a_broken_invariant(tmp_path: Path) -> None:
    result = run("check", policy_file(tmp_path, f"{TEMPLATE}\ninvariants:\n{FREE}"), "--json")

    [finding] = [f for f in json.loads(result.output)["findings"] if f["severity"] == "error"]
    assert (finding["code"], finding["path"]) == ("invariant_broken", "invariants[0]")
    assert finding["facts"]["signed"]["tier"] == "free"


def test_prove_shows_what_holds_and_a_request_for_what_does_not(tmp_path: Path) -> None:
    result = run("prove", policy_file(tmp_path, f"{TEMPLATE}\ninvariants:\n{PHI}{FREE}"))

    assert result.exit_code == 1
    holds, broken, because, *_ = result.output.splitlines()
    assert holds.startswith("holds   phi stays at home (in all of ")
    assert broken == "BROKEN  free is cheap"
    assert (
        because.strip()
        == "eu-medium costs $0.0036 for 4000 tokens in and 1000 out, more than $0.0010."
    )
    assert "waypost token mint --sub you --account trial --tier free" in result.output


def test_prove_is_exit_0_if_all_holds(tmp_path: Path) -> None:
    result = run("prove", policy_file(tmp_path, f"{TEMPLATE}\ninvariants:\n{PHI}"), "--json")

    assert result.exit_code == 0
    [proof] = json.loads(result.output)["proofs"]
    assert (proof["name"], proof["holds"], proof["broken"]) == ("phi stays at home", True, None)


def test_diff_tells_meaning_from_text(tmp_path: Path) -> None:
    before = policy_file(tmp_path, TEMPLATE)
    text = policy_file(
        tmp_path,
        "# new words\n" + TEMPLATE.replace("[coding, review]", "[review, coding]"),
        "text.yaml",
    )
    meaning = policy_file(tmp_path, TEMPLATE.replace("below: 100", "below: 120"), "meaning.yaml")

    same, other = run("diff", before, text), run("diff", before, meaning)

    assert (same.exit_code, same.output) == (0, "no change in meaning\n")
    assert other.exit_code == 1
    assert other.output.startswith(
        "route: some requests that took route 'default' take 'short-chat' (under short-chat)\n"
    )


def test_diff_tells_that_a_model_is_hidden_from_clients(tmp_path: Path) -> None:
    before = policy_file(tmp_path, TEMPLATE)
    after = policy_file(
        tmp_path, TEMPLATE.replace("  large:\n", "  large:\n    private: true\n"), "after.yaml"
    )

    assert run("diff", before, after).output == "model: large is now hidden from clients\n"


# ── prices ─────────────────────────────────────────────────────────────────────────────────────


def test_imported_prices_are_a_file_that_a_policy_can_extend(tmp_path: Path) -> None:
    own = template("policy.yaml")
    bare = re.sub(
        r"    price: \{.*\}\n(?=    tiers: \[free, pro, enterprise\]\n    tokens: \{context: 400)",
        "",
        own,
    )
    assert bare != own
    (tmp_path / "policy.yaml").write_text("extends: prices.yaml\n" + bare)

    done = run("prices", str(tmp_path / "policy.yaml"), "--out", str(tmp_path / "prices.yaml"))

    assert done.exit_code == 0, done.output
    written = (tmp_path / "prices.yaml").read_text()
    assert "from genai-prices" in written
    assert "# clinical: genai-prices" in written
    policy = load_policy(tmp_path / "policy.yaml", channel="prod", version=1, issued_at=NOW).full
    (medium,) = (model for model in policy.models if model.id == "medium")
    assert medium.price.input_nusd_per_mtok == 250_000_000
    assert not [p for p in problems(policy) if p.code == "stale_price"]


def test_prices_of_long_prompts_are_imported_published_and_compared(tmp_path: Path) -> None:
    bare = "models: {writer: {provider: anthropic, name: claude-sonnet-4-5, tokens: {output: 9}}}"
    (tmp_path / "models.yaml").write_text(bare)
    run("prices", str(tmp_path / "models.yaml"), "--out", str(tmp_path / "prices.yaml"))
    (tmp_path / "policy.yaml").write_text(
        "extends: prices.yaml\ntiers: [free]\nproviders: {anthropic: {}}\n"
        "models: {writer: {provider: anthropic, name: claude-sonnet-4-5, tiers: [free],"
        " tokens: {context: 1_000_000, output: 9}}}\nroutes: [{name: all, models: writer}]\n"
    )

    policy = load_policy(tmp_path / "policy.yaml", channel="prod", version=1, issued_at=NOW).full

    price = policy.models[0].price
    assert price.at(200_000).input_nusd_per_mtok == 3 * NUSD_PER_USD
    assert price.at(200_001).input_nusd_per_mtok == 6 * NUSD_PER_USD
    assert price.at(200_001).cache_write_1h_nusd_per_mtok == 12 * NUSD_PER_USD
    # Who does not know such prices must not serve by the lower ones.
    assert policy.must_understand == ("price_above",)
    assert not [p for p in problems(policy) if p.code == "stale_price"]
    cheaper = structs.replace(policy.models[0], price=price.at(0))
    told = [p.message for p in problems(structs.replace(policy, models=(cheaper,)))]
    assert any("$3.0000 here, $6 in genai-prices" in message for message in told)


def test_searches_and_pictures_are_imported_and_published(tmp_path: Path) -> None:
    bare = (
        "provider: anthropic, name: claude-sonnet-4-5, capabilities: [vision],"
        " tokens: {context: 200_000, output: 9}"
    )
    (tmp_path / "models.yaml").write_text(f"models: {{writer: {{{bare}}}}}")
    run("prices", str(tmp_path / "models.yaml"), "--out", str(tmp_path / "prices.yaml"))
    (tmp_path / "policy.yaml").write_text(
        "extends: prices.yaml\ntiers: [free]\nproviders: {anthropic: {}}\n"
        f"models: {{writer: {{{bare}, tiers: [free],"
        " hosted_tools: {web_search: {calls: 3, tokens: 9_000}}}}\n"
        "routes: [{name: all, models: writer}]\n"
    )

    policy = load_policy(tmp_path / "policy.yaml", channel="prod", version=1, issued_at=NOW).full

    (model,) = policy.models
    assert model.pictures == RULES["claude"]
    (tool,) = model.hosted_tools or ()
    assert (tool.name, tool.call_nusd, tool.calls, tool.tokens) == (
        "web_search", 10_000_000, 3, 9_000,
    )  # fmt: skip
    assert policy.must_understand == ("hosted_tools", "picture_tokens", "price_above")


@pytest.mark.parametrize(("context", "is_told"), [(8_192, True), (300_000, False)])
def test_an_embedding_models_window_is_of_all_texts_of_a_request(
    context: int, is_told: bool
) -> None:
    price = Price(input_nusd_per_mtok=NUSD_PER_USD // 50, output_nusd_per_mtok=0)
    model = structs.replace(
        a_model("e", price=price),
        provider="openai",
        name="text-embedding-3-small",
        endpoints=("embeddings",),
        context_tokens=context,
    )

    told = dict(differences(model, at=datetime.fromtimestamp(NOW, UTC)))

    assert list(told) == (["tokens.context"] if is_told else [])


def test_prices_are_looked_up_of_the_models_of_every_layer(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(template("policy.yaml"))
    (tmp_path / "policy.yaml").write_text(
        "extends: base.yaml\nmodels: {small: {provider: openai, name: gpt-5-mini}}\n"
    )

    said = run("prices", str(tmp_path / "policy.yaml")).output

    assert "  medium:  #" in said
    assert "  small:  # https://developers.openai.com" in said


def test_prices_of_nothing_are_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("tiers: [free]")

    assert run("prices", str(tmp_path / "policy.yaml")).exit_code == 1
