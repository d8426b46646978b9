"""What people write, and what they are told when it is wrong."""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.tokens import NOW, App
from waypost.cli.yamlfile import FileError, FileModel
from waypost.edge.authoring.issuers_file import IssuersFile, load_issuers
from waypost.edge.authoring.load_policy import Authored, load_policy
from waypost.edge.authoring.policy_file import PolicyFile
from waypost.edge.commands.init_project import template
from waypost.shared.contracts import (
    ClockBetween,
    Declared,
    Facts,
    HostedTool,
    Issuers,
    Measured,
    NumberBetween,
    OneOf,
    Share,
    Signed,
    TextHas,
    YesNo,
    Zone,
    decode_policy,
)
from waypost.shared.decision.compiled import compile_policy
from waypost.shared.decision.engine import decide
from waypost.shared.pictures import PictureRule

MINIMAL = """\
tiers: [free, pro]
providers:
  openai: {promises: [no_training]}
models:
  small:
    provider: openai
    price: {input: 0.15, output: 0.60}
    tiers: [free, pro]
    tokens: {context: 8_000, output: 4_000}
  big:
    provider: openai
    name: big-2026
    price: {input: 3, output: 15.00}
    tiers: pro
    tokens: {context: 8_000, output: 4_000}
routes:
  - name: default
    models: [small, big]
"""

Load = Callable[[str], Authored]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str) -> Authored:
        path = tmp_path / "policy.yaml"
        path.write_text(text, encoding="utf-8")
        return load_policy(path, channel="prod", version=7, issued_at=NOW)

    return load


def findings(load: Load, text: str) -> list[str]:
    with pytest.raises(FileError) as caught:
        load(text)
    return [str(finding) for finding in caught.value.findings]


def with_route(route: str) -> str:
    """Return the minimal policy with ``route`` before its default; it is on lines 17 and on."""
    return MINIMAL.replace("routes:\n", f"routes:\n{route}\n")


# ── what is right ──────────────────────────────────────────────────────────────────────────────


def test_a_policy_carries_its_channel_version_and_time(load: Load) -> None:
    policy = load(MINIMAL).full

    assert (policy.channel, policy.version, policy.issued_at) == ("prod", 7, NOW)
    assert (policy.projection, load(MINIMAL).client.projection) == ("full", "client")


def test_a_model_inherits_its_providers_promises_and_region(load: Load) -> None:
    text = MINIMAL.replace("{promises: [no_training]}", "{region: eu, promises: [no_training]}")
    small, big = load(
        text.replace("    name: big-2026\n", "    promises: [hipaa_baa]\n    region: us\n")
    ).full.models

    assert (small.region, small.promises) == ("eu", ("no_training",))
    assert (big.region, big.promises) == ("us", ("hipaa_baa", "no_training"))


def test_a_model_goes_by_its_own_name_unless_the_provider_has_another(load: Load) -> None:
    small, big = load(MINIMAL).full.models

    assert (small.name, big.name) == ("small", "big-2026")


@pytest.mark.parametrize(
    ("written", "nusd"),
    [
        ("0.15", 150_000_000),
        ("0.1", 100_000_000),
        ("3", 3_000_000_000),
        ("15.00", 15_000_000_000),
        ("0.000000001", 1),
        ("1_000.5", 1_000_500_000_000),
        ("0", 0),
        (".5", 500_000_000),
        # As a binary float this is 4.35000000000000008882 and more.
        ("4.35", 4_350_000_000),
    ],
)
def test_a_price_is_exactly_what_is_written(load: Load, written: str, nusd: int) -> None:
    model = load(MINIMAL.replace("0.15", written)).full.models[0]

    assert model.price.input_nusd_per_mtok == nusd


def test_a_group_stands_for_its_models_each_once(load: Load) -> None:
    text = MINIMAL.replace("routes:", "groups: {all: [big, small]}\nroutes:")
    route = load(text.replace("models: [small, big]", "models: [small, all]")).full.routes[0]

    assert route.models == ("small", "big")


def test_every_condition_can_be_written_and_reads_as_meant(load: Load) -> None:
    text = with_route(
        """\
  - name: everything
    when:
      input_tokens: {at_least: 10, below: 100}
      messages: {below: 3}
      weekday: Mon-Fri
      hour_utc: 22-6
      tier: free
      tenant: [acme, umbrella]
      region: eu
      endpoint: chat.completions
      task: classify
      interactive: no
      keywords: {any: [Refund, "charge  back"], none: [thanks]}
      tags: beta
      input_bytes: {below: 2_000}
      complexity: {at_least: 600}
      hour: 9-17
      time_zone: Asia/Tokyo
      share: {name: roll-out, below: 12.5%}
      language: [de, fr]
      needs: {none: [tools, vision]}
      patterns: '^INV-\\d{4}$'
    models: small
"""
    )
    tokyo = Zone("Asia/Tokyo", ((0, 9 * 3_600),))

    assert load(text).full.routes[0].when == (
        NumberBetween("input_tokens", 10, 100),
        NumberBetween("input_bytes", None, 2_000),
        NumberBetween("messages", None, 3),
        NumberBetween("complexity", 600),
        ClockBetween("weekday", 0, 5, tokyo),
        ClockBetween("hour", 9, 17, tokyo),
        ClockBetween("hour", 22, 6),
        Share("roll-out", 0, 1_250),
        OneOf("tier", ("free",)),
        OneOf("tenant", ("acme", "umbrella")),
        OneOf("region", ("eu",)),
        OneOf("endpoint", ("chat.completions",)),
        OneOf("language", ("de", "fr")),
        OneOf("task", ("classify",)),
        YesNo("interactive", value=False),
        TextHas("needs", none_of=("tools", "vision")),
        TextHas("keywords", any_of=("refund", "charge back"), none_of=("thanks",)),
        TextHas("patterns", any_of=("^INV-\\d{4}$",)),
        TextHas("tags", any_of=("beta",)),
    )


def test_clients_are_not_shown_private_models(load: Load) -> None:
    text = MINIMAL.replace("    name: big-2026", "    name: big-2026\n    private: true")
    authored = load(text + "    fallback: big\nlast_resort: [big, small]\n")

    assert b"big" in msgspec.json.encode(authored.full)
    assert b"big" not in msgspec.json.encode(authored.client)
    assert authored.client.last_resort == ("small",)


def test_a_byte_order_mark_is_not_a_mistake(load: Load) -> None:
    assert load("\ufeff" + MINIMAL) == load(MINIMAL)


# ── what is wrong ──────────────────────────────────────────────────────────────────────────────


def test_a_misspelt_model_is_found_with_its_line_and_the_mend(load: Load) -> None:
    assert findings(load, MINIMAL.replace("[small, big]", "[smal, big]")) == [
        "policy.yaml:18: routes[0].models[0]: there is no model 'smal'; did you mean 'small'?"
    ]


def test_all_mistakes_are_found_at_once_in_the_order_of_lines(load: Load) -> None:
    text = (
        MINIMAL.replace("input: 0.15", "input: -0.15")
        .replace("tiers: pro", "tiers: por")
        .replace("[small, big]", "[small, bigg]")
        .replace("no_training", "no_traning")
    )

    assert findings(load, text) == [
        "policy.yaml:3: providers.openai.promises[0]: there is no promise 'no_traning';"
        " did you mean 'no_training'?",
        "policy.yaml:7: models.small.price.input: -0.15 is negative; write 0 for what is free",
        "policy.yaml:14: models.big.tiers[0]: there is no tier 'por'; did you mean 'pro'?",
        "policy.yaml:18: routes[0].models[1]: there is no model 'bigg'; did you mean 'big'?",
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("provider: openai\n    name", "provider: opnai\n    name", "11: models.big.provider: there is no provider 'opnai'; did you mean 'openai'?"),
        ("    name: big", "    nmae: big", "12: models.big.nmae: there is no such field; did you mean 'name'?"),
        ("models: [small, big]", "modles: [small, big]", "18: routes[0].modles: there is no such field; did you mean 'models'?"),
        ("models: [small, big]", "models: []", "18: routes[0].models: should not be empty"),
        ("models: [small, big]", "models: [small, small]", "18: routes[0].models: 'small' is here twice; delete one"),
        ("models: [small, big]", "models: big\n    optimize: spede", "19: routes[0].optimize: should be 'cost', 'latency', 'quality' or 'balanced'"),
        ("models: [small, big]", "models: big\n    optimize: latncy", "19: routes[0].optimize: should be 'cost', 'latency', 'quality' or 'balanced'; did you mean 'latency'?"),
        ("models: [small, big]", "models: big\n    weights: {cost: 1}", "19: routes[0].weights: are only looked at with 'optimize: balanced'"),
        ("models: [small, big]", "models: big\n    optimize: balanced\n    weights: {}", "20: routes[0].weights: weigh nothing; give at least one of cost, latency and quality"),
        ("models: [small, big]", "models: big\n    min_quality: 101", "19: routes[0].min_quality: should be less than or equal to 100"),
        ("models: [small, big]", "models: big\n    max_cost: 1 cent", "19: routes[0].max_cost: should be dollars as a plain number, such as 0.15"),
        ("models: [small, big]", "models: big\n    enforce: 1", "19: routes[0].enforce: should be a valid boolean, not a number"),
        ("name: default", "name: 17", "17: routes[0].name: should be text, not a number; put it in quotes"),
        ("name: default", "name: 🚀", "17: routes[0].name: '🚀' is not a name: up to 64 of A-Z a-z 0-9 . _ : / -, beginning with a letter or digit"),
        ("  small:", "  auto:", "5: models.auto: 'auto' is what clients write to leave the choice open; take another name"),
        ("output: 4_000}\n  big", "output: 9_000}\n  big", "9: models.small.tokens.output: 9000 is more than the context of 8000"),
        ("output: 4_000}\n  big", "output: 0}\n  big", "9: models.small.tokens.output: should be greater than or equal to 1"),
        ("output: 4_000}\n  big", "output: 4.5}\n  big", "9: models.small.tokens.output: should be a valid integer, not a number"),
        ("0.15", "0.15000000000000000000000000000001", "7: models.small.price.input: write '0.15000000000000000000000000000001' as a plain decimal number, or in quotes"),
        ("0.15", "0.0000000001", "7: models.small.price.input: 1E-10 is finer than a billionth of a dollar; round it up"),
        ("0.15", "99_999_999", "7: models.small.price.input: 99999999 is more than $9,007,199"),
        ("0.15", ".inf", "7: models.small.price.input: write '.inf' as a plain decimal number, or in quotes"),
        ("0.15", "$0.15", "7: models.small.price.input: should be dollars as a plain number, such as 0.15"),
        ("0.15", "010", "7: models.small.price.input: write '010' as a plain decimal number, or in quotes"),
        ("0.15", "1:30", "7: models.small.price.input: write '1:30' as a plain decimal number, or in quotes"),
        ("0.15", "yes", "7: models.small.price.input: should be dollars as a plain number, such as 0.15"),
        ("tiers: [free, pro]\nprov", "tiers: [free, pro, gold]\nprov", "1: tiers[2]: no model is open to tier 'gold'; open one or delete it"),
        ("{promises: [no_training]}", "{region: us, promises: [region:eu]}", "5: models.small: promises region:eu, but its region is 'us'; correct one of them"),
        ("{promises: [no_training]}", "", "3: providers.openai: should hold 'name: value' pairs, not nothing"),
        ("routes:", "groups: {small: [big]}\nroutes:", "16: groups.small: is a model's name as well; rename the group"),
        ("routes:", "groups: {two: [one], one: [big]}\nroutes:", "16: groups.two[0]: there is no model 'one'; there is: big, small"),
        ("routes:", "last_resort: [big, smol]\nroutes:", "16: last_resort[1]: there is no model 'smol'; did you mean 'small'?"),
        ("routes:", "data_classes: {phi: [hipaa]}\nroutes:", "16: data_classes.phi[0]: there is no promise 'hipaa'; did you mean 'hipaa_baa'?"),
        ("routes:", "data_classes: {phi: ['region:']}\nroutes:", "16: data_classes.phi[0]: there is no promise 'region:'; did you mean 'region:eu'?"),
        ("routes:", "endpoints: {eu: {url: 'http://eu.example'}}\nroutes:", "16: endpoints.eu.url: sends tokens in the clear; write https://"),
        ("routes:", "endpoints: {eu: {url: 'https://u:p@eu.example'}}\nroutes:", "16: endpoints.eu.url: should hold scheme, host and path only, in ASCII"),
        ("routes:", "endpoints: {eu: {url: 'https://eu.example:99999'}}\nroutes:", "16: endpoints.eu.url: is not a URL; write https://host"),
        ("routes:", "default_output_tokens: 0\nroutes:", "16: default_output_tokens: should be greater than or equal to 1"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line_path_and_mend(
    load: Load, old: str, new: str, expected: str
) -> None:
    assert old in MINIMAL

    # A mistake may also leave something else undefined; the cause is among what is found.
    assert f"policy.yaml:{expected}" in findings(load, MINIMAL.replace(old, new, 1))


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("input_tokens: {at_least: 5, below: 5}", "input_tokens.below: nothing is at least 5 and below 5"),
        ("input_tokens: {}", "input_tokens: needs a bound: at_least, below, or both"),
        ("input_tokens: 100", "input_tokens: should hold 'name: value' pairs, not a number"),
        ("input_tokens: {under: 100}", "input_tokens.under: there is no such field; there is: at_least, below"),
        ("hour_utc: 25-3", "hour_utc: should be two hours, such as 9-17 or 22-6"),
        ("hour_utc: 9", "hour_utc: should be two hours, such as 9-17 or 22-6"),
        ("hour_utc: 8-8", "hour_utc: is the whole day; leave the condition out"),
        ("hour_utc: 0-24", "hour_utc: is the whole day; leave the condition out"),
        ("weekday: tue-mon", "weekday: is the whole week; leave the condition out"),
        ("weekday: someday", "weekday: should be a day or a span, such as mon-fri, of mon, tue, wed, thu, fri, sat, sun"),
        ("tier: [fre]", "tier[0]: there is no tier 'fre'; did you mean 'free'?"),
        ("endpoint: chat", "endpoint[0]: there is no API 'chat'; there is: chat.completions, completions, embeddings, messages, responses"),
        ("keywords: []", "keywords: needs words: any, all or none"),
        ("keywords: [no]", "keywords.any[0]: should be text, not yes or no; put it in quotes"),
        ("keywords: {}", "keywords: needs words: any, all or none"),
        ("keywords: [c++]", "keywords.any[0]: 'c++' is not made of words; keywords match whole words only"),
        ("keywords: ['🙂']", "keywords.any[0]: '🙂' is not made of words; keywords match whole words only"),
        ("keywords: {any: ['Yes'], none: ['yes']}", "keywords: 'yes' is both wanted and forbidden"),
        ("keywords: [a, A]", "keywords.any: 'a' is here twice; delete one"),
        ("hour: 9-17", "hour: needs a 'time_zone', such as Europe/Berlin; or write 'hour_utc'"),
        ("hour: 9-17, time_zone: Europe/Berln", "time_zone: there is no time zone 'Europe/Berln'; did you mean 'Europe/Berlin'?"),
        ("hour: 9-17, time_zone: ../../etc/passwd", "time_zone: there is no time zone '../../etc/passwd'; there is: "),
        ("time_zone: Europe/Berlin", "has a 'time_zone' and neither 'hour' nor 'weekday' to read by it"),
        ("complexity: {below: 1_001}", "complexity.below: should be less than or equal to 1000"),
        ("complexity: {}", "complexity: needs a bound: at_least, below, or both"),
        ("input_bytes: {at_least: 9, below: 9}", "input_bytes.below: nothing is at least 9 and below 9"),
        ("language: [de, klingon]", "language[1]: there is no language 'klingon'; there is: ar, de, el, en, "),
        ("needs: [tool]", "needs.any[0]: there is no capability 'tool'; did you mean 'tools'?"),
        ("share: 10%", "share: should hold 'name: value' pairs, not text"),
        ("share: {below: 10%}", "share.name: 'name' is missing; add it"),
        ("share: {name: a}", "share: is everyone; say 'below' or 'at_least', or leave the condition out"),
        ("share: {name: a, below: 10}", "share.below: should be a share such as 10% or 0.25%, of two decimals at most"),
        ("share: {name: a, below: 100.01%}", "share.below: should be a share such as 10% or 0.25%, of two decimals at most"),
        ("share: {name: a, below: 0.001%}", "share.below: should be a share such as 10% or 0.25%, of two decimals at most"),
        ("share: {name: a, at_least: 10%, below: 10%}", "share.below: leaves nobody; 'below' should be more than 'at_least'"),
        ("patterns: ''", "patterns.any[0]: string should have at least 1 character"),
        ("patterns: '(?=a)b'", "patterns.any[0]: looks around itself, which no engine does in bounded time; match what is there, and put what must not be there under 'none'"),
        ("patterns: '(?<!a)b'", "patterns.any[0]: looks around itself, which no engine does in bounded time; match what is there, and put what must not be there under 'none'"),
        ("patterns: '(a)\\1'", "patterns.any[0]: refers back to a group, which no engine does in bounded time; spell it out"),
        ("patterns: '(a'", "patterns.any[0]: is no regular expression in RE2's syntax: missing ): (a"),
        ("patterns: '(?:a{1000}){9}'", "patterns.any[0]: is no regular expression in RE2's syntax: invalid repetition size: {9}"),
        ("patterns: '" + "\\pL{900}" * 9 + "'", "patterns.any[0]: is no regular expression in RE2's syntax: pattern too large"),
        ("patterns: {any: [a], none: [a]}", "patterns: 'a' is both wanted and forbidden"),
        ("mood: good", "mood: there is no such field; there is: complexity, endpoint, hour, hour_utc, input_bytes, input_tokens, interactive, keywords, language, messages, needs, patterns, …"),
    ],
)  # fmt: skip
def test_a_condition_that_cannot_hold_is_refused(load: Load, when: str, expected: str) -> None:
    route = f"  - name: odd\n    when: {{{when}}}\n    models: small"

    found = findings(load, with_route(route))
    separator = " " if expected.startswith("has ") else "."
    wanted = f"policy.yaml:18: routes[0].when{separator}{expected}".replace("when has", "when: has")
    assert any(each.startswith(wanted) for each in found), found


def test_a_name_that_is_there_twice_is_refused_with_both_lines(load: Load) -> None:
    assert findings(load, MINIMAL.replace("  big:", "  small:"))[0] == (
        "policy.yaml:10: models.small: is here twice, first in line 5; delete one"
    )


def test_two_routes_of_one_name_are_refused(load: Load) -> None:
    route = "  - name: default\n    when: {tier: free}\n    models: small"

    assert findings(load, with_route(route)) == [
        "policy.yaml:20: routes[1].name: routes[0] is named 'default' too; rename one"
    ]


def test_a_policy_needs_a_default_route_at_its_end(load: Load) -> None:
    assert findings(load, MINIMAL + "    when: {tier: free}\n") == [
        "policy.yaml:17: routes[0]: 'default' is the last route and has conditions; end with one"
        " that has no 'when', so that every request finds a route"
    ]


def test_a_route_that_is_never_reached_is_refused(load: Load) -> None:
    assert findings(load, with_route("  - name: all\n    models: small")) == [
        "policy.yaml:17: routes[0]: 'all' matches everything, so no route below it is ever"
        " reached; move it to the end"
    ]


@pytest.mark.parametrize("fact", ["task: draft", "tags: [beta]", "interactive: true"])
def test_a_limit_cannot_rest_on_what_clients_declare(load: Load, fact: str) -> None:
    route = f"  - name: fence\n    when: {{{fact}}}\n    models: small\n    enforce: true"

    assert findings(load, with_route(route)) == [
        f"policy.yaml:20: routes[0].enforce: clients only declare '{fact.split(':')[0]}', so they"
        " could escape this route; enforce on signed or measured facts"
    ]


def test_a_limit_cannot_stand_behind_a_route_that_clients_can_steer_into(load: Load) -> None:
    routes = (
        "  - name: drafts\n    when: {task: draft}\n    models: big\n"
        "  - name: fence\n    when: {tier: free}\n    models: small\n    enforce: true"
    )

    assert findings(load, with_route(routes)) == [
        "policy.yaml:23: routes[1].enforce: clients could escape by way of 'drafts' above, which"
        " matches on what they declare; move this route before it"
    ]


def test_a_mistake_elsewhere_hides_nothing_about_the_order_of_routes(load: Load) -> None:
    text = with_route("  - name: all\n    models: small").replace("0.15", "-1")

    assert len(findings(load, text)) == 2


# ── files that are not what they seem ──────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "policy.yaml: the file is empty"),
        ("# nothing\n", "policy.yaml: the file is empty"),
        ("- a\n", "policy.yaml:1: should hold 'name: value' lines"),
        ("just text", "policy.yaml:1: should hold 'name: value' lines"),
        ("tiers: [free\n", "policy.yaml:2: is not YAML: "),
        ("a: 1\nb: @x\n", "policy.yaml:2: is not YAML: "),
        ("a: b: c\n", "policy.yaml:1: is not YAML: "),
        ("a: 1\n---\nb: 2\n", "policy.yaml:2: is not YAML: expected a single document in the stream, but found another document"),
        ("a: \x00", "policy.yaml: is not YAML: it holds control characters"),
        ("a: &x 1\nb: *x\n", "policy.yaml:2: the alias '*x' is not supported; write it out"),
        ("a: &a [*a]\n", "policy.yaml:1: the alias '*a' is not supported; write it out"),
        ("[" * 33, "policy.yaml:1: is nested deeper than 32 levels"),
    ],
)  # fmt: skip
def test_what_is_no_plain_yaml_is_refused_with_its_line(
    load: Load, text: str, expected: str
) -> None:
    assert findings(load, text)[0].startswith(expected)


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("b: @x\n", "put text that begins with @, % or ` in quotes"),
        ("a:\n\tb: 1\n", "indent with spaces"),
        ("a: b: c\n", "put text with a colon in quotes"),
    ],
)
def test_the_usual_slips_in_yaml_come_with_their_mend(load: Load, text: str, mend: str) -> None:
    assert mend in findings(load, text)[0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("!!python/object/apply:os.system [id]", "the tag 'python/object/apply:os.system' has"),
        ("!!map x", "the tag 'map' has no meaning here"),
        ("!!set {x}", "the tag 'set' has no meaning here"),
        ("!!python/name:os.system x", "the tag 'python/name:os.system' has no meaning here"),
        ("!!binary aGk=", "the tag 'binary' has no meaning here"),
        ("{<<: {x: 1}}", "merging with '<<' is not supported"),
        ("{[a]: 1}", "a name should be plain text"),
        ('{"a\\e[2J": 1}', "a name should be plain text"),
        ('"\\e[2J"', "holds characters that cannot be seen"),
    ],
)
def test_a_file_is_only_ever_data(load: Load, value: str, expected: str) -> None:
    found = findings(load, f"{MINIMAL}extra: {value}\n")

    assert any(expected in finding for finding in found)


def test_a_billion_laughs_are_refused_at_the_first(load: Load) -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
    )
    started = time.process_time()

    assert findings(load, bomb) == ["policy.yaml:2: the alias '*a' is not supported; write it out"]
    assert time.process_time() - started < 1


@pytest.mark.parametrize("text", ["[" * 1_000_000, "a: " + "9" * 1_000_000, "- " * 500_000])
def test_a_hostile_megabyte_is_refused_in_time(load: Load, text: str) -> None:
    started = time.process_time()

    assert findings(load, text)
    assert time.process_time() - started < 10


def test_a_file_of_more_than_a_megabyte_is_not_read(load: Load) -> None:
    assert findings(load, "#" * 1_048_577) == ["policy.yaml: is larger than 1024 KiB"]


def test_a_file_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"tiers: [free]\n# caf\xe9\n")

    with pytest.raises(FileError, match=r"policy\.yaml:2: is not UTF-8 from here on"):
        load_policy(path, channel="prod", version=1, issued_at=NOW)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileError, match="cannot be read: "):
        load_policy(tmp_path / name, channel="prod", version=1, issued_at=NOW)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_is_cut_out_of_a_policy_it_is_read_or_refused(
    load: Load, data: st.DataObject
) -> None:
    lines = template("policy.yaml").splitlines(keepends=True)
    first = data.draw(st.integers(0, len(lines)))
    count = data.draw(st.integers(0, 20))
    junk = data.draw(st.text(alphabet=" -:[]{}&*!|>'\"#%@,?\nabé0🙂\t", max_size=10))

    with suppress(FileError):
        load("".join([*lines[:first], junk, *lines[first + count :]]))


# ── the policy that everyone starts from ───────────────────────────────────────────────────────


def starter(load: Load, *, tier: str, **facts: Measured | Declared) -> str | None:
    """Return the model that the starter policy decides on."""
    policy = compile_policy(load(template("policy.yaml")).full)
    measured, declared = facts.get("measured", Measured()), facts.get("declared", Declared())
    assert isinstance(measured, Measured)
    assert isinstance(declared, Declared)
    decided = decide(
        policy, Facts(now=NOW, signed=Signed(tier=tier), measured=measured, declared=declared)
    )
    return decided.model


@pytest.mark.parametrize(
    ("tier", "measured", "declared", "model"),
    [
        ("free", Measured(input_tokens=40), Declared(), "small"),
        ("free", Measured(input_tokens=40, keywords=("prove",)), Declared(), "medium"),
        ("pro", Measured(input_tokens=40, keywords=("prove",)), Declared(), "large"),
        ("enterprise", Measured(out_of_service=("large",), keywords=("prove",)), Declared(), "frontier"),
        ("pro", Measured(input_tokens=40), Declared(data_classes=("phi",)), "clinical"),
        ("free", Measured(input_tokens=40), Declared(data_classes=("phi",)), None),
        ("free", Measured(input_tokens=40), Declared(data_classes=("pii",)), "medium"),
        ("free", Measured(input_tokens=40), Declared(data_classes=("eu_personal",)), "eu-medium"),
        ("free", Measured(input_tokens=40), Declared(data_classes=("secret",)), None),
        ("pro", Measured(input_tokens=9_000), Declared(), "medium"),
        ("pro", Measured(input_tokens=9_000), Declared(interactive=False), "medium"),
        ("free", Measured(input_tokens=40, out_of_service=("small",)), Declared(), "medium"),
        ("pro", Measured(input_tokens=300), Declared(task="coding"), "large"),
    ],
)  # fmt: skip
def test_the_starter_policy_does_what_its_comments_say(
    load: Load, tier: str, measured: Measured, declared: Declared, model: str | None
) -> None:
    assert starter(load, tier=tier, measured=measured, declared=declared) == model


def test_the_starter_policy_survives_the_wire(load: Load) -> None:
    for policy in (load(template("policy.yaml")).full, load(template("policy.yaml")).client):
        assert decode_policy(msgspec.json.encode(policy)) == policy


# ── issuers.yaml ───────────────────────────────────────────────────────────────────────────────


def issuers(tmp_path: Path, text: str) -> Issuers:
    path = tmp_path / "issuers.yaml"
    path.write_text(text, encoding="utf-8")
    return load_issuers(path, channel="prod", version=7, issued_at=NOW)


def one_issuer(key: str) -> str:
    return f"issuers:\n  - iss: https://app.example\n    keys:\n      - {{{key}}}\n"


@pytest.mark.parametrize("app", [App(), App.with_es256()], ids=["EdDSA", "ES256"])
def test_issuers_are_read_with_keys_and_revocations(tmp_path: Path, app: App) -> None:
    key = app.public_key()
    y = f", y: '{key.y}'" if key.y else ""
    written = one_issuer(f"kid: {key.kid}, alg: {key.alg}, x: '{key.x}'{y}") + (
        "revoked_tokens: [{iss: https://app.example, jti: 0123456789abcdef}]\n"
        "subjects: [{iss: https://app.example, sub: alice, min_iat: 2027-01-15T08:00:00Z}]\n"
    )

    assert issuers(tmp_path, written) == app.issuers(
        version=7,
        revoked_jtis=("https://app.example 0123456789abcdef",),
        min_iat_by_subject={"https://app.example alice": NOW},
    )


@pytest.mark.parametrize(
    ("written", "instant"),
    [("2027-01-15", NOW - 8 * 3_600), ("2027-01-15T09:00:00+01:00", NOW), (str(NOW), NOW)],
)
def test_an_instant_is_written_as_people_write_it(
    tmp_path: Path, written: str, instant: int
) -> None:
    x = App().public_key().x
    text = one_issuer(f"kid: a, alg: EdDSA, x: '{x}', not_before: {written}")

    assert issuers(tmp_path, text).issuers[0].keys[0].not_before == instant


X = "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqo"


def test_a_reader_that_does_not_know_an_issuers_accounts_must_not_go_on(tmp_path: Path) -> None:
    text = one_issuer(f"kid: a, alg: EdDSA, x: {X}")
    assert issuers(tmp_path, text).must_understand == ()

    confined = issuers(tmp_path, text + "    accounts: [acme, clinic-*]")

    assert confined.issuers[0].accounts == ("acme", "clinic-*")
    assert confined.must_understand == ("issuer_accounts",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (one_issuer("kid: a b, alg: EdDSA, x: ''"), "4: issuers[0].keys[0].kid: should be of the form"),
        (one_issuer(f"kid: a, alg: HS256, x: {X}"), "4: issuers[0].keys[0].alg: should be 'EdDSA', 'ES256' or 'RS256'"),
        (one_issuer(f"kid: a, alg: ES256, x: {X}"), "4: issuers[0].keys[0].x: is no ES256 public key; copy it again from its owner"),
        (one_issuer(f"kid: a, alg: ES256, x: {X}, y: {X}"), "4: issuers[0].keys[0].x: is no ES256 public key; copy it again from its owner"),
        (one_issuer(f"kid: a, alg: EdDSA, x: {X}, not_before: 2027-01-15T08:00:00"), "4: issuers[0].keys[0].not_before: has no time zone; end it with Z for UTC"),
        (one_issuer(f"kid: a, alg: EdDSA, x: {X}, not_before: soon"), "4: issuers[0].keys[0].not_before: should be a time such as 2027-01-31"),
        (one_issuer(f"kid: a, alg: EdDSA, x: {X}, not_before: 9, expires_at: 9"), "4: issuers[0].keys[0].expires_at: is not after not_before"),
        (one_issuer(f"kid: a, alg: EdDSA, x: {X}, d: secret"), "4: issuers[0].keys[0].d: there is no such field"),
        (one_issuer(f"kid: a, alg: EdDSA, x: {X}}}\n      - {{kid: a, alg: EdDSA, x: {X}"), "5: issuers[0].keys[1].kid: there are two keys 'a'; a token names just one"),
        (one_issuer(f"kid: a, alg: EdDSA, x: {X}") + one_issuer(f"kid: b, alg: EdDSA, x: {X}")[9:], "5: issuers[1].iss: 'https://app.example' is here twice; put its keys together"),
        (one_issuer(f"kid: a, alg: EdDSA, x: {X}") + "subjects: [{iss: https://ap.example, sub: a, min_iat: 1}]", "5: subjects[0].iss: there is no issuer 'https://ap.example'; did you mean 'https://app.example'?"),
        (one_issuer(f"kid: a, alg: EdDSA, x: {X}") + one_issuer(f"kid: b, alg: EdDSA, x: {X}")[9:].replace("app.", "idp."), "2: issuers[0]: needs accounts, those it may spend from: with more than one issuer each has its own"),
        (one_issuer(f"kid: a, alg: EdDSA, x: {X}") + '    accounts: ["*"]', "5: issuers[0].accounts[0]: should be of the form"),
        ("issuers: []", "1: issuers: should not be empty"),
        ("isuers: []", "1: isuers: there is no such field; did you mean 'issuers'?"),
    ],
)  # fmt: skip
def test_a_mistake_in_issuers_is_named_with_its_line_path_and_mend(
    tmp_path: Path, text: str, expected: str
) -> None:
    with pytest.raises(FileError) as caught:
        issuers(tmp_path, text)

    assert any(str(f).startswith(f"issuers.yaml:{expected}") for f in caught.value.findings)


# ── what costs something beside tokens ─────────────────────────────────────────────────────────


def priced(tmp_path: Path, price: str, more: str) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(
        "tiers: [free]\nproviders: {acme: {}}\nmodels:\n  one:\n    provider: acme\n"
        f"    price: {{input: 1, output: 2{price}}}\n    tiers: [free]\n"
        f"    tokens: {{context: 1000, output: 100}}\n{more}"
        "routes: [{name: all, models: one}]\n"
    )
    return path


def test_a_price_may_have_factors_and_tools_and_a_model_bounds(tmp_path: Path) -> None:
    path = priced(
        tmp_path,
        ", factors: {service_tier: {flex: 50%, priority: 200 %}, speed: {fast: 600%}},"
        " per_call: {web_search: 0.01}",
        "    picture_tokens: 1500\n    part_tokens: {video_url: 60_000}\n"
        "    hosted_tools: {web_search: {calls: 5, tokens: 8_000}}\n",
    )
    policy = load_policy(path, channel="prod", version=1, issued_at=NOW).full

    (model,) = policy.models
    assert model.pictures == PictureRule(kind="flat", base=1_500)
    assert model.part_tokens == (("video_url", 60_000),)
    assert model.hosted_tools == (
        HostedTool(name="web_search", call_nusd=10_000_000, calls=5, tokens=8_000),
    )
    assert [(factor.asks, factor.percent) for factor in model.price.factors] == [
        ("service_tier=flex", 50),
        ("service_tier=priority", 200),
        ("speed=fast", 600),
    ]
    # Validators from before would hold and charge too little.
    assert policy.must_understand == (
        "hosted_tools", "part_tokens", "picture_tokens", "price_factors",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("price", "more", "said"),
    [
        (", factors: {service_tier: {flex: 0.5}}", "", "per cent of the usual price"),
        (", factors: {tier: {flex: 50%}}", "", "tier"),
        ("", "    picture_tokens: claud\n", "did you mean 'claude'"),
        (
            "",
            "    hosted_tools: {web_search: {calls: 1, tokens: 9}}\n",
            "price.per_call.web_search",
        ),
        (
            ", per_call: {web_search: 0.01}",
            "    hosted_tools: {web_search: {calls: 1}}\n",
            "tokens",
        ),
    ],
)
def test_a_bound_that_bounds_nothing_is_a_mistake(
    tmp_path: Path, price: str, more: str, said: str
) -> None:
    with pytest.raises(FileError) as caught:
        load_policy(priced(tmp_path, price, more), channel="prod", version=1, issued_at=NOW)

    assert said in str(caught.value.findings[0])


# ── the reference ──────────────────────────────────────────────────────────────────────────────

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize(
    ("pages", "model"), [("policy*.md", PolicyFile), ("tokens.md", IssuersFile)]
)
def test_the_reference_describes_every_field(pages: str, model: type[FileModel]) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob(pages))
    described = set(re.findall(r"[a-z0-9_]+", text))
    schema = model.model_json_schema()
    sections = [schema, *schema["$defs"].values()]

    assert {name for section in sections for name in section["properties"]} <= described
