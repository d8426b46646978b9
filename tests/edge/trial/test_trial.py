"""A policy tried on requests before it is signed: those somebody thought of."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from support.command import Command
from support.projects import a_project
from support.worlds import NOW, a_policy
from waypost.cli.yamlfile import FileError
from waypost.edge.trial.cases import Coverage, Result, load_cases, run_cases
from waypost.shared.contracts import NumberBetween, Policy, Route, Share, TextHas
from waypost.shared.decision.compiled import compile_policy
from waypost.shared.decision.rules import cohort, place

TESTS = "policy.test.yaml"


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """The ``waypost`` command in a new project."""
    a_project(tmp_path)
    return Command(tmp_path, monkeypatch, capsys)


def run(
    folder: Path, *cases: str, policy: Policy | None = None
) -> tuple[tuple[Result, ...], Coverage]:
    path = folder / TESTS
    lines = [f"  - {{name: case {number}, {case}}}" for number, case in enumerate(cases)]
    path.write_text("\n".join(("cases:", *lines)))
    tried = policy or a_policy()
    return run_cases(compile_policy(tried), *load_cases(path, tried))


def differences(folder: Path, case: str, policy: Policy | None = None) -> tuple[str, ...]:
    ((result,), _) = run(folder, case, policy=policy)
    return result.differences


# ── what a case says ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "case",
    [
        "expect: {model: small, route: short-chat, verdict: decided, reason: no_proposal}",
        "request: {text: Please prove it}, expect: {route: hard}",
        "request: {messages: [{role: user, content: prove it}, {role: user, content: hi}]}, expect: {route: short-chat}",
        "request: {keywords: [prove]}, expect: {route: hard}",
        "request: {input_tokens: 500}, expect: {route: default}",
        "request: {tier: enterprise, propose: frontier}, expect: {verdict: accepted, model: frontier}",
        "request: {propose: frontier}, expect: {verdict: overridden, reason: tier_not_allowed}",
        "request: {propose: not-there}, expect: {reason: unknown_model}",
        "request: {data: phi}, expect: {model: clinical, not_admissible: [small, large]}",
        "request: {data: unheard-of}, expect: {verdict: refused, reason: unknown_data_class, not_admissible: small}",
        "request: {needs: vision}, expect: {admissible: large, not_admissible: small}",
        "request: {models: [large]}, expect: {model: large, not_admissible: small}",
        "request: {budget: 0}, expect: {reason: unaffordable}",
        "request: {budget: 1.00}, expect: {verdict: decided}",
        "request: {out_of_service: small}, expect: {model: large}",
        "request: {endpoint: embeddings}, expect: {reason: endpoint_unsupported}",
        "request: {demand: {models: [large, small]}}, expect: {model: large, not_admissible: clinical}",
        "request: {demand: {provider: {only: [medcloud]}}}, expect: {model: clinical}",
        "request: {demand: {provider: {order: [medcloud]}}}, expect: {model: clinical, admissible: small}",
        "request: {demand: {provider: {ignore: [acme, medcloud]}}}, expect: {reason: request_excludes}",
        "request: {demand: {provider: {only: [nobody]}}}, expect: {reason: unknown_provider}",
    ],
)  # fmt: skip
def test_a_case_is_in_the_words_of_the_policy(tmp_path: Path, case: str) -> None:
    assert differences(tmp_path, case) == ()


@pytest.mark.parametrize(
    "demand",
    ["{provider: {only: medcloud}}", "{provider: {zdr: maybe}}", "{provider: {olny: [medcloud]}}"],
)
def test_a_demand_that_no_body_can_make_is_named_with_its_line(tmp_path: Path, demand: str) -> None:
    with pytest.raises(FileError, match=r"policy.test.yaml:2.*no demand that a body can make"):
        run(tmp_path, f"request: {{demand: {demand}}}, expect: {{model: small}}")


def test_a_difference_says_what_came_instead_and_the_engine_says_why(tmp_path: Path) -> None:
    case = "request: {data: phi}, expect: {model: small, route: hard, admissible: large}"
    ((result,), _) = run(tmp_path, case)

    assert result.differences == (
        "model: expected small, got clinical",
        "route: expected hard, got short-chat",
        "admissible: expected large, but acme has not promised hipaa_baa,"
        " which phi data needs (declared)",
    )
    assert (result.file, result.line) == (TESTS, 2)
    assert "rule 'short-chat'" in result.sentence


def test_what_is_not_to_be_admissible_must_not_be(tmp_path: Path) -> None:
    assert differences(tmp_path, "expect: {not_admissible: small}") == (
        "not_admissible: expected small, but it may serve the request",
    )


def test_a_caller_stands_where_the_validator_puts_them(tmp_path: Path) -> None:
    at = place("new", cohort("https://app.example", "alice"))
    new = Route(name="new", when=(Share("new", at, at + 1),), models=("large",))
    policy = a_policy(routes=(new, a_policy().routes[-1]))
    alice = "request: {caller: {iss: https://app.example, sub: alice}}"

    assert differences(tmp_path, f"{alice}, expect: {{route: new}}", policy) == ()
    assert differences(tmp_path, f"{alice.replace('alice', 'bob')}, expect: {{route: new}}", policy)


@pytest.mark.parametrize(
    ("case", "mend"),
    [
        ("expect: {model: smal}", "there is no model 'smal'; did you mean 'small'?"),
        ("expect: {route: hart}", "there is no route 'hart'; did you mean 'hard'?"),
        ("expect: {}", "expects nothing; say model, route, verdict, reason"),
        ("expect: {modell: small}", "there is no such field; did you mean 'model'?"),
        ("request: {keywords: proof}, expect: {route: hard}", "there is no keyword in the policy"),
        ("request: {patterns: a}, expect: {route: hard}", "there is no pattern in the policy"),
        ("request: {semantic: a}, expect: {route: hard}", "there is no route with utterances 'a'"),
        (
            "request: {text: a, messages: [{role: user, content: b}]}, expect: {route: hard}",
            "has 'text' and 'messages'",
        ),
        ("request: {input_tokens: -1}, expect: {route: hard}", "greater than or equal to 0"),
        ("request: {at: tomorrow}, expect: {route: hard}", "should be a time such as 2027-01-31"),
    ],
)
def test_a_case_that_would_test_nothing_is_a_finding(tmp_path: Path, case: str, mend: str) -> None:
    with pytest.raises(FileError, match=r"policy\.test\.yaml:2: cases") as caught:
        run(tmp_path, case)
    assert mend in str(caught.value)


def test_two_cases_of_one_name_are_a_finding(tmp_path: Path) -> None:
    (tmp_path / TESTS).write_text(
        "cases:\n  - {name: a, expect: {model: small}}\n  - {name: a, expect: {model: small}}\n"
    )
    with pytest.raises(FileError, match=r":3: cases\[1\].name: cases\[0\] is named so too"):
        load_cases(tmp_path / TESTS, a_policy())


# ── coverage ───────────────────────────────────────────────────────────────────────────────────


def test_coverage_counts_rules_and_both_outcomes_of_each_condition(tmp_path: Path) -> None:
    hard, short, default = a_policy().routes
    _, coverage = run(tmp_path, "expect: {route: short-chat}", "expect: {route: short-chat}")

    assert coverage.rules == {"hard": 0, "short-chat": 2, "default": 0}
    (keywords,) = coverage.outcomes["hard"]
    assert (keywords.held, keywords.failed) == (0, 2)
    tokens, tier = coverage.outcomes["short-chat"]
    assert (tokens.held, tokens.failed, tier.held) == (2, 0, 2)
    conditions = sum(len(route.when) for route in (hard, short, default))
    assert (coverage.seen, coverage.possible) == (3, 2 * conditions)


def test_who_is_refused_before_the_rules_exercises_none(tmp_path: Path) -> None:
    _, coverage = run(tmp_path, "request: {data: unheard-of}, expect: {verdict: refused}")

    assert (sum(coverage.rules.values()), coverage.seen) == (0, 0)


# ── the command ────────────────────────────────────────────────────────────────────────────────


def test_the_cases_of_a_new_project_reach_all_of_its_rules(command: Command) -> None:
    said = command.good("policy", "test", "--strict")

    assert "12 of 12 cases as expected" in said
    assert "reached: 8 of 8 rules, 16 of 16 outcomes" in said


def test_a_failing_case_is_exit_1_and_says_where_and_why(command: Command) -> None:
    path = command.folder / TESTS
    path.write_text(path.read_text().replace("route: short-chat", "route: default"))

    done = command("policy", "test")

    assert done.code == 1
    assert f"FAIL  {TESTS}:4: a short question goes to the cheapest" in done.out
    assert "route: expected default, got short-chat" in done.out


def test_a_rule_that_no_case_reaches_fails_only_if_strict(command: Command) -> None:
    (command.folder / TESTS).write_text("cases: [{name: a, expect: {route: short-chat}}]")

    assert "no case reaches 'sandbox'" in command.good("policy", "test")
    assert command("policy", "test", "--strict").code == 1


def test_results_are_junit_for_build_servers(command: Command) -> None:
    path = command.folder / TESTS
    path.write_text(path.read_text().replace("model: small, route", "model: medium, route"))

    command("policy", "test", "--junit", "out/junit.xml")

    suite = ElementTree.parse(command.folder / "out/junit.xml").getroot()[0]  # noqa: S314 - ours
    assert (suite.get("tests"), suite.get("failures")) == ("12", "1")
    (failure,) = suite.iter("failure")
    assert failure.get("message") == "model: expected medium, got small"


def test_results_are_json_for_scripts(command: Command) -> None:
    said = json.loads(command.good("policy", "test", "--json"))

    assert {result["name"] for result in said["results"] if not result["differences"]}
    assert said["coverage"]["rules"]["short-chat"] >= 1


def test_complexity_and_patterns_may_be_said_outright(tmp_path: Path) -> None:
    rows = (
        Route(name="dear", when=(NumberBetween("complexity", at_least=700),), models=("large",)),
        Route(name="odd", when=(TextHas("patterns", any_of=("^dear ",)),), models=("large",)),
        a_policy().routes[-1],
    )
    policy = a_policy(routes=rows, issued_at=NOW)

    assert differences(tmp_path, "request: {complexity: 900}, expect: {route: dear}", policy) == ()
    assert (
        differences(
            tmp_path, "request: {complexity: 0, patterns: '^dear '}, expect: {route: odd}", policy
        )
        == ()
    )
