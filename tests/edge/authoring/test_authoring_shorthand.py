"""What stands for several routes, or for another file, means what it would mean written out."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.tokens import NOW
from waypost.cli.yamlfile import FileError
from waypost.edge.authoring.load_policy import Authored, load_policy
from waypost.edge.authoring.zones import written_out, zone_names
from waypost.shared.contracts import (
    Cascade,
    ClockBetween,
    Facts,
    Hedge,
    Measured,
    OneOf,
    Share,
    Signed,
)
from waypost.shared.decision.compiled import compile_policy
from waypost.shared.decision.engine import decide
from waypost.shared.decision.rules import cohort, holds
from waypost.shared.scoring.complexity import BUILT_IN

HEAD = """\
tiers: [free, pro, enterprise]
providers: {acme: {promises: [no_training]}}
models:
  small: {provider: acme, price: {input: 1, output: 2}, tiers: [free, pro, enterprise], tokens: {context: 8_000, output: 4_000}}
  big: {provider: acme, price: {input: 3, output: 9}, tiers: [free, pro, enterprise], tokens: {context: 8_000, output: 4_000}}
  huge: {provider: acme, price: {input: 9, output: 30}, tiers: [free, pro, enterprise], tokens: {context: 8_000, output: 4_000}}
routes:
"""
DEFAULT = "  - {name: default, models: small}\n"

Write = Callable[..., Authored]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, **others: str) -> Authored:
        for name, content in {"policy": text, **others}.items():
            (tmp_path / f"{name}.yaml").write_text(content, encoding="utf-8")
        return load_policy(tmp_path / "policy.yaml", channel="prod", version=1, issued_at=NOW)

    return write


def findings(write: Write, text: str, **others: str) -> list[str]:
    with pytest.raises(FileError) as caught:
        write(text, **others)
    return [str(finding) for finding in caught.value.findings]


# ── per tier ───────────────────────────────────────────────────────────────────────────────────


def test_what_a_tier_has_instead_is_a_route_of_its_own_above(write: Write) -> None:
    short = write(
        HEAD + "  - name: chat\n    when: {task: chat, tier: [free, pro]}\n    models: small\n"
        "    min_quality: 10\n    tiers: {pro: {models: big, optimize: quality}}\n" + DEFAULT
    )
    long = write(
        HEAD + "  - {name: chat/pro, when: {task: chat}, models: big, optimize: quality, min_quality: 10}\n"
        "  - {name: chat, when: {task: chat, tier: [free, pro]}, models: small, min_quality: 10}\n" + DEFAULT
    ).full.routes  # fmt: skip

    first, *rest = short.full.routes
    assert first.when == (*long[0].when, OneOf("tier", ("pro",)))
    assert msgspec.structs.replace(first, when=()) == msgspec.structs.replace(long[0], when=())
    assert tuple(rest) == long[1:]
    assert short.places == {"chat/pro": 0, "chat": 0, "default": 1}


def test_the_default_may_differ_by_tier(write: Write) -> None:
    policy = compile_policy(
        write(HEAD + DEFAULT.replace("}", ", tiers: {pro: {models: huge}}}")).full
    )

    def model(tier: str) -> str | None:
        return decide(policy, Facts(now=NOW, signed=Signed(tier=tier))).model

    assert (model("free"), model("pro")) == ("small", "huge")


# ── cascades, hedges, time-outs ────────────────────────────────────────────────────────────────

CASCADE = "cascade: {signal: sequence_logprob, threshold: 850}"


def test_a_cascade_asks_in_the_order_written(write: Write) -> None:
    written = DEFAULT.replace("models: small", f"models: [big, small, huge], {CASCADE}")

    policy = write(HEAD + written.replace("}\n", ", timeout_ms: 20_000, hedge: {}}\n")).full

    (route,) = policy.routes
    assert route.cascade == Cascade(signal="sequence_logprob", threshold_per_mille=850)
    assert (route.hedge, route.timeout_ms) == (Hedge(), 20_000)
    decision = decide(compile_policy(policy), Facts(now=NOW, signed=Signed(tier="free")))
    assert decision.chain == ("big", "small", "huge")


@pytest.mark.parametrize(
    ("route", "mend"),
    [
        (f"models: small, {CASCADE}", "needs two models at least, cheapest first"),
        (f"models: [small, big], optimize: cost, {CASCADE}", "delete one of the two"),
        (
            "models: [small, big], " + CASCADE.replace("}", ", samples: 5}"),
            "only looked at with 'signal: self_consistency'",
        ),
        (
            f"models: [small, big], {CASCADE}, tiers: {{pro: {{models: huge}}}}",
            "needs two models at least, cheapest first",
        ),
        (f"models: [small, big], {CASCADE.replace('850', '1_001')}", "less than or equal to 1000"),
        ("models: [small, big], cascade: {signal: vibes, threshold: 1}", "should be 'answer_logp"),
        ("models: small, hedge: {max_extra_percent: 50}", "less than or equal to 20"),
        ("models: small, timeout_ms: 0", "greater than or equal to 1"),
    ],
)
def test_a_cascade_that_can_do_nothing_is_a_finding(write: Write, route: str, mend: str) -> None:
    (finding,) = findings(write, HEAD + f"  - {{name: default, {route}}}\n")

    assert finding.startswith("policy.yaml:8: routes[0].")
    assert mend in finding


# ── A/B ────────────────────────────────────────────────────────────────────────────────────────


def test_a_split_gives_each_caller_one_variant_and_keeps_to_it(write: Write) -> None:
    policy = compile_policy(
        write(
            HEAD + "  - name: default\n    models: small\n    split:\n"
            "      control: {share: 70%}\n      new: {share: 20%, models: big}\n"
            "      third: {share: 10%, models: huge}\n"
        ).full
    )
    seen: dict[str, int] = {}
    for caller in range(3_000):
        signed = Signed(tier="free", cohort=cohort("https://app.example", f"user-{caller}"))
        by_length = {
            decide(policy, Facts(now=NOW, signed=signed, measured=Measured(input_tokens=n))).model
            for n in (1, 900)
        }
        (model,) = by_length
        seen[str(model)] = seen.get(str(model), 0) + 1

    assert seen["small"] == pytest.approx(2_100, rel=0.06)
    assert seen["big"] == pytest.approx(600, rel=0.12)
    assert seen["huge"] == pytest.approx(300, rel=0.2)


def test_a_split_among_conditions_leaves_the_others_alone(write: Write) -> None:
    routes = write(
        HEAD + "  - name: chat\n    when: {task: chat}\n    models: small\n"
        "    split: {a: {share: 50%}, b: {share: 50%, models: big}}\n" + DEFAULT
    ).full.routes

    assert [(route.name, route.when[1:]) for route in routes] == [
        ("chat/a", (Share("chat", 0, 5_000),)),
        ("chat/b", ()),
        ("default", ()),
    ]


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        ("split: {a: {share: 50%}, b: {share: 49.99%}}", "10: routes[0].split: the shares are 99.99% together; make them 100%"),
        ("split: {a: {share: 100%}}", "10: routes[0].split: should not be empty"),
        ("split: {a: {share: 100%}, b: {share: 0%}}", "10: routes[0].split.b.share: is nobody; delete the variant"),
        ("split: {a: {share: 50%}, b: {models: big}}", "10: routes[0].split.b.share: 'share' is missing; add it"),
        ("split: {a: {share: 50%}, b: {share: 50%, model: big}}", "10: routes[0].split.b.model: there is no such field; did you mean 'models'?"),
        ("split: {a: {share: 50%}, b: {share: 50%, weights: {cost: 1}}}", "10: routes[0].split.b.weights: are only looked at with 'optimize: balanced'"),
        ("tiers: {gold: {models: big}}", "10: routes[0].tiers.gold: there is no tier 'gold'; there is: enterprise, free, pro"),
        ("tiers: {enterprise: {models: big}}", "10: routes[0].tiers.enterprise: 'chat' is not for tier 'enterprise'; see its 'when'"),
        ("tiers: {pro: {models: bgi}}", "10: routes[0].tiers.pro.models[0]: there is no model 'bgi'; did you mean 'big'?"),
        ("tiers: {pro: {models: big}}\n    split: {a: {share: 50%}, b: {share: 50%}}", "11: routes[0].split: a route has 'tiers' or 'split', not both; write two routes, the narrower one first"),
        ("tiers: {pro: {models: big}}\n  - {name: chat/pro, when: {tier: pro}, models: big}", "10: routes[0].tiers.pro: makes a route 'chat/pro', and there is one; rename one"),
        (f"split: {{a: {{share: 50%}}, {'b' * 60}: {{share: 50%}}}}", f"10: routes[0].split.{'b' * 60}: makes the name 'chat/{'b' * 60}', longer than 64; shorten it"),
    ],
)  # fmt: skip
def test_a_mistake_in_what_is_made_is_found_where_it_was_written(
    write: Write, route: str, expected: str
) -> None:
    text = f"  - name: chat\n    when: {{tier: [free, pro]}}\n    {route}\n    models: small\n"
    if "chat/pro" in route:
        text = text.replace("\n    models: small\n", "\n").replace(
            "  - {name", "    models: small\n  - {name"
        )

    assert f"policy.yaml:{expected}" in findings(write, HEAD + text + DEFAULT)


# ── on top of another file ─────────────────────────────────────────────────────────────────────


def test_a_file_on_top_says_only_what_is_different(write: Write) -> None:
    base = HEAD + "  - {name: code, when: {task: code}, models: big, min_quality: 20}\n" + DEFAULT
    top = """\
extends: base.yaml
models: {big: {price: {input: 4, output: 11}}}
routes:
  - {name: night, when: {hour_utc: 22-6}, models: small}
  - {name: code, models: [huge, big]}
"""
    whole = (
        HEAD.replace("input: 3, output: 9", "input: 4, output: 11")
        + "  - {name: night, when: {hour_utc: 22-6}, models: small}\n"
        + "  - {name: code, when: {task: code}, models: [huge, big], min_quality: 20}\n"
        + DEFAULT
    )

    assert write(top, base=base).full == write(whole).full


def test_what_the_base_demands_cannot_be_taken_back(write: Write) -> None:
    base = (
        HEAD.replace("routes:", "data_classes: {pii: [no_training]}\nroutes:")
        + DEFAULT
        + "invariants: [{name: safe, when: {data: pii}, then: {promises: no_training}}]\n"
    )
    top = "extends: base.yaml\ndata_classes: {pii: [zero_retention], phi: [hipaa_baa]}\n"

    authored = write(top, base=base)
    assert authored.full.data_classes == {
        "pii": ("no_training", "zero_retention"),
        "phi": ("hipaa_baa",),
    }
    assert [invariant.name for invariant in authored.invariants] == ["safe"]
    weaker = "invariants: [{name: safe, then: {has_fallback: true}}]\n"
    assert findings(write, top + weaker, base=base) == [
        "policy.yaml:3: invariants[0].name: base.yaml has an invariant of this name, which nothing"
        " on top of it can take back; give this one another"
    ]


def test_a_mistake_is_found_in_the_file_and_line_where_it_was_written(write: Write) -> None:
    base = HEAD + "  - {name: code, when: {task: code}, models: bgi}\n" + DEFAULT
    top = "extends: base.yaml\nroutes:\n  - {name: a, when: {tier: fre}, models: small}\n"
    middle = "extends: base.yaml\nmodels:\n  big: {quality: 101}\n"

    assert sorted(findings(write, top.replace("base", "middle"), base=base, middle=middle)) == [
        "base.yaml:8: routes[0].models[0]: there is no model 'bgi'; did you mean 'big'?",
        "middle.yaml:3: models.big.quality: should be less than or equal to 100",
        "policy.yaml:3: routes[0].when.tier[0]: there is no tier 'fre'; did you mean 'free'?",
    ]


@pytest.mark.parametrize(
    ("extends", "expected"),
    [
        ("policy.yaml", "policy.yaml:1: extends: goes round in a circle (policy.yaml → policy.yaml); take one of them out"),
        ("other.yaml", "other.yaml:1: extends: goes round in a circle (policy.yaml → other.yaml → policy.yaml); take one of them out"),
        ("../base.yaml", "policy.yaml:1: extends: should be the name of a file in the same folder"),
        ("/etc/passwd", "policy.yaml:1: extends: should be the name of a file in the same folder"),
        ("[a.yaml, b.yaml]", "policy.yaml:1: extends: should be the name of a file in the same folder"),
        ("link.yaml", "policy.yaml:1: extends: is a link out of this folder; put the file itself here"),
        ("absent.yaml", "policy.yaml:1: extends: there is no file 'absent.yaml' in this folder"),
        ("broken.yaml", "broken.yaml:2: is not YAML: "),
    ],
)  # fmt: skip
def test_a_base_that_cannot_be_used_is_named(
    write: Write, tmp_path: Path, extends: str, expected: str
) -> None:
    (tmp_path / "link.yaml").symlink_to("/etc/hostname")
    found = findings(
        write,
        f"extends: {extends}\n",
        other="extends: policy.yaml\n",
        broken="tiers: [free\n",
    )

    assert found[0].startswith(expected)


def test_files_that_stand_on_each_other_for_ever_are_refused(write: Write) -> None:
    chain = {f"f{i}": f"extends: f{i + 1}.yaml\n" for i in range(20)}

    assert findings(write, "extends: f0.yaml\n", **chain) == [
        "f6.yaml:1: extends: is more than 8 files deep"
    ]


NAMES = ("a", "b", "c")
ROWS = st.lists(st.sampled_from(NAMES), unique=True, max_size=3)
FIELDS = st.fixed_dictionaries(
    {"models": st.sampled_from(("small", "big", "huge"))},
    optional={
        "min_quality": st.integers(0, 99),
        "optimize": st.sampled_from(("cost", "latency", "quality")),
        "fallback": st.sampled_from(("small", "big")),
    },
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    under=st.dictionaries(st.sampled_from(NAMES), FIELDS, max_size=3),
    over=st.dictionaries(st.sampled_from(NAMES), FIELDS, max_size=3),
)
def test_a_layered_policy_equals_the_one_written_out(
    write: Write, under: dict[str, dict[str, object]], over: dict[str, dict[str, object]]
) -> None:
    def rows(of: dict[str, dict[str, object]]) -> str:
        return "".join(
            f"  - {json.dumps({'name': name, 'when': {'task': name}, **fields})}\n"
            for name, fields in of.items()
        )

    new = {name: fields for name, fields in over.items() if name not in under}
    merged = {name: {**fields, **over.get(name, {})} for name, fields in under.items()}
    top = "extends: base.yaml\n" + (f"routes:\n{rows(over)}" if over else "")
    base = HEAD + rows(under) + DEFAULT

    assert (
        write(top, base=base).full.routes == write(HEAD + rows({**new, **merged}) + DEFAULT).full.routes
    )  # fmt: skip


# ── time zones ─────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(("Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "Africa/Casablanca", "Pacific/Kiritimati")),
    at=st.integers(NOW - 300 * 86_400, NOW + 3 * 365 * 86_400),
)  # fmt: skip
def test_hours_and_days_are_those_of_the_clocks_there(name: str, at: int) -> None:
    zone = written_out(name, issued_at=NOW)
    there = datetime.fromtimestamp(at, UTC).astimezone(ZoneInfo(name))
    facts = Facts(now=at, signed=Signed(tier="free"))

    assert holds(ClockBetween("hour", there.hour, there.hour + 1, zone), facts)
    assert holds(ClockBetween("weekday", there.weekday(), there.weekday() + 1, zone), facts)


def test_every_time_zone_fits_into_a_manifest() -> None:
    for name in sorted(zone_names())[::12]:
        zone = written_out(name, issued_at=NOW)
        assert msgspec.convert(msgspec.to_builtins(zone), type(zone)) == zone


# ── patterns and the complexity model ──────────────────────────────────────────────────────────


def test_a_policy_has_64_patterns_at_most(write: Write) -> None:
    many = "".join(
        f"  - {{name: r{i}, when: {{patterns: [{', '.join(f'x{i}y{j}' for j in range(13))}]}}, models: small}}\n"
        for i in range(5)
    )  # fmt: skip

    assert findings(write, HEAD + many + DEFAULT) == [
        "policy.yaml:12: routes[4].when.patterns: brings the policy to 65 patterns, and 64 are the"
        " most; join some with '|'"
    ]


def test_a_trained_model_travels_in_the_manifest(write: Write, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_bytes(msgspec.json.encode(BUILT_IN))
    text = "complexity_model: model.json\n" + HEAD + DEFAULT

    authored = write(text)
    assert authored.full.complexity == authored.client.complexity == BUILT_IN


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot read 'model.json': No such file or directory"),
        (b"{}", "is not what 'waypost policy train --out' writes: Object missing required field"),
        (b"\xff", "is not what 'waypost policy train --out' writes: "),
        (b" " * 1_048_577, "is larger than 1024 KiB"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused(
    write: Write, tmp_path: Path, content: bytes | None, expected: str
) -> None:
    if content is not None:
        (tmp_path / "model.json").write_bytes(content)
    (found,) = findings(write, HEAD + DEFAULT + "complexity_model: model.json\n")

    assert found.startswith(f"policy.yaml:9: complexity_model: {expected}")


# ── routes by example ──────────────────────────────────────────────────────────────────────────

BY_EXAMPLE = """\
  - name: refunds
    utterances: [I want my money back, please refund my order, how do I get a refund, return this for a refund, refund the payment]
    models: big
  - name: passwords
    utterances: [I forgot my password, reset my password, my password does not work, cannot log in with my password, change my password]
    models: huge
"""  # fmt: skip


def test_a_route_is_found_by_what_its_examples_have_in_common(write: Write) -> None:
    policy = compile_policy(write(HEAD + BY_EXAMPLE + DEFAULT).full)

    def model(text: str) -> str | None:
        measured = Measured(**policy.reader.read(text))
        return decide(policy, Facts(now=NOW, signed=Signed(tier="pro"), measured=measured)).model

    assert model("Could you refund my money please?") == "big"
    assert model("I cannot remember my password") == "huge"
    assert model("zzz qqq") == "small"


def test_an_example_s_route_can_be_a_condition_of_another(write: Write) -> None:
    rude = "  - {name: rude, when: {semantic: refunds, keywords: lawyer}, models: huge}\n"
    first = write(HEAD + rude + BY_EXAMPLE + DEFAULT).full.routes[0]

    assert first.when[0] == OneOf("semantic", ("refunds",))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("reset my password", "reset my password, reset my password"), None),
        (("reset my password", "I want my money back"), "9: routes[0].utterances: routes 'refunds' and 'passwords' share an example"),
        (("reset my password, ", ""), "9: routes[0].utterances: route 'passwords' has 4 different examples; at least 5 are needed"),
        (("    models: huge", "    when: {semantic: refund}\n    models: huge"), "13: routes[1].when.semantic[0]: there is no route with utterances 'refund'; did you mean 'refunds'?"),
    ],
)  # fmt: skip
def test_examples_that_tell_nothing_apart_are_refused(
    write: Write, change: tuple[str, str], expected: str | None
) -> None:
    text = HEAD + BY_EXAMPLE.replace(*change) + DEFAULT

    if expected is None:
        assert write(text)
    else:
        assert findings(write, text) == [f"policy.yaml:{expected}"]


def test_a_route_by_example_cannot_be_the_default(write: Write) -> None:
    (found,) = findings(write, HEAD + BY_EXAMPLE)

    assert found.startswith("policy.yaml:11: routes[1]: 'passwords' is the last route and has")
