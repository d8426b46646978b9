"""Writes the vectors that nobody wrote by hand: policies, requests and texts at random.

``PYTHONPATH=tests .venv/bin/python -m support.make_vectors`` after a change that is meant to change
decisions; what git shows then is to be looked at, case by case. Drawn by hypothesis with a fixed
seed, and chosen so that few cases show as much as possible of what there is.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from msgspec import Struct

from support.requests import random_facts
from support.worlds import CLASSES, MODELS, NOW, TAGS, TASKS, TIERS, a_policy, policies
from waypost.edge.training.utterances import compile_utterances
from waypost.shared.contracts import (
    AUTO,
    Declared,
    Facts,
    NumberBetween,
    OneOf,
    Policy,
    Proposal,
    Route,
    Signed,
    TextHas,
    decode_policy,
)
from waypost.shared.decision.compiled import CompiledPolicy, compile_policy
from waypost.shared.decision.engine import Decision, decide
from waypost.shared.decision.rules import cohort, holds, place
from waypost.shared.requests.measure import decode_chat, measure_chat

VECTORS = Path(__file__).parents[1] / "vectors"

POLICIES, CASES_EACH, REQUESTS, TEXTS, CALLERS = 28, 13, 60, 60, 20
SPREAD = 7
POOL = 300  # requests of which the most telling are kept

EXAMPLES = {
    "billing": (
        "refund my invoice",
        "a wrong charge on my card",
        "I want to pay the bill",
        "why was I charged twice",
        "cancel the fee please",
    ),
    "shipping": (
        "where is my parcel",
        "the box never arrived",
        "track the order for me",
        "the delivery is late",
        "it was sent to a wrong address",
    ),
}

Case = dict[str, Any]


def drawn(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """Return ``count`` values, the same on every machine."""
    found: list[Any] = []

    @seed(4_711)
    @settings(
        max_examples=SPREAD * count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(value: object) -> None:
        found.append(value)

    collect()
    return found[::-SPREAD][:count]  # one draw is often much like the next


def brief(value: object) -> Any:  # noqa: ANN401 - JSON
    """Return ``value`` as JSON without what is as it is by default."""
    if isinstance(value, Struct):
        config = value.__struct_config__
        made: Case = {} if config.tag is None else {str(config.tag_field): config.tag}
        for field in msgspec.structs.fields(value):
            each = getattr(value, field.name)
            if field.default is msgspec.NODEFAULT or each != field.default:
                made[field.name] = brief(each)
        return made
    if isinstance(value, Mapping):
        return {name: brief(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [brief(each) for each in value]
    return value


def outcome(decision: Decision) -> Case:
    """Return what a vector expects."""
    return {
        "verdict": decision.verdict,
        "reason": decision.reason,
        "route": decision.route,
        "chain": list(decision.chain),
    }


# ── facts → decision ───────────────────────────────────────────────────────────────────────────


def decisions() -> Iterator[Case]:
    """Give policies, each with facts and what is decided of them."""
    seen: set[object] = set()
    named = (Proposal(model=name) for name in (*MODELS[:4], "unheard-of"))
    wishes = cycle((None, None, *named))
    for number, policy in enumerate(drawn(policies(), POLICIES)):
        compiled = compile_policy(policy)
        pool = [
            (facts, wish, decide(compiled, facts, wish))
            for facts, wish in zip(random_facts(POOL, seed=number), wishes, strict=False)
        ]
        kept: list[Case] = []
        while len(kept) < CASES_EACH:
            best = max(pool, key=lambda one: len(_shown(compiled, *one) - seen))
            pool.remove(best)
            seen |= _shown(compiled, *best)
            facts, wish, decision = best
            kept.append(
                {"facts": brief(facts), "proposal": brief(wish), "expect": outcome(decision)}
            )
        yield {"policy": brief(policy), "cases": kept}


def _shown(
    compiled: CompiledPolicy, facts: Facts, wish: Proposal | None, decision: Decision
) -> set[object]:
    """Return what a case shows, as things to be counted once."""
    shown: set[object] = {(decision.verdict, decision.reason), (decision.route, decision.verdict)}
    shown.add(("length", len(decision.chain), wish is None))
    if decision.route is not None:
        row = next(r for r in compiled.policy.routes if r.name == decision.route)
        shown.add((row.optimize, row.enforce, row.cascade is None, len(decision.candidates)))
        demands = facts.measured.demands
        if demands is not None:
            shown |= {
                (name, decision.verdict)
                for name in msgspec.structs.asdict(demands)
                if getattr(demands, name) not in ((), None, True)
            }
        if facts.declared.session is not None:
            shown.add(("session", decision.model == facts.declared.session.model, row.optimize))
        for route in compiled.policy.routes:
            shown |= {
                (type(each).__name__, getattr(each, "field", ""), holds(each, facts))
                for each in route.when
            }
            if route is row:
                break
    return shown


# ── body → decision ────────────────────────────────────────────────────────────────────────────

_words = st.sampled_from(
    ("analyse", "prove", "Analyse this:", "unproven", "héllo", "\U0001f600", "x" * 150, "state-of")
)
_texts = st.lists(_words, max_size=5).map(" ".join)
_parts = st.lists(
    st.one_of(
        _texts.map(lambda text: {"type": "text", "text": text}),
        st.just({"type": "image_url", "image_url": {"url": "https://pictures.example/1.png"}}),
    ),
    min_size=1,
    max_size=3,
)
_some = st.lists(st.sampled_from(("small", "large", "clinical")), unique=True, min_size=1)
_provider = st.fixed_dictionaries(
    {},
    optional={
        "only": st.just(["acme"]) | st.just(["medcloud"]),
        "ignore": st.just(["medcloud"]),
        "order": st.just(["medcloud", "acme"]),
        "allow_fallbacks": st.booleans(),
        "data_collection": st.sampled_from(("allow", "deny")),
        "zdr": st.booleans(),
        "max_price": st.sampled_from(({"prompt": 1}, {"completion": 10.0}, {"request": 0})),
        "sort": st.sampled_from(("price", "latency", "throughput")),
    },
)
_bodies = st.fixed_dictionaries(
    {
        "messages": st.lists(
            st.fixed_dictionaries(
                {
                    "role": st.sampled_from(("user", "user", "assistant", "system")),
                    "content": _texts | _parts,
                }
            ),
            min_size=1,
            max_size=3,
        )
    },
    optional={
        "max_tokens": st.integers(1, 5_000),
        "n": st.integers(1, 3),
        "tools": st.just([{"type": "function", "function": {"name": "look_up"}}]),
        "response_format": st.sampled_from(({"type": "text"}, {"type": "json_object"})),
        "models": _some,
        "provider": _provider,
    },
)
_tokens = st.fixed_dictionaries(
    {"tier": st.sampled_from((*TIERS, "root"))},
    optional={
        "data_classes": st.sampled_from(([], ["pii"], ["phi"])),
        "models": _some,
        "tenant": st.just("acme"),
    },
)
_declared = st.fixed_dictionaries(
    {},
    optional={
        # Not who waits: with that, a rule of the policy looks at the hour, and validators do.
        "task": st.sampled_from(TASKS),
        "tags": st.lists(st.sampled_from(TAGS), unique=True),
        "data_classes": st.lists(st.sampled_from(CLASSES), unique=True, max_size=1),
    },
)


def requests() -> Iterator[Case]:
    """Give chat bodies, the token's claims and declared facts, and what is decided of them."""
    compiled = compile_policy(decode_policy((VECTORS / "policy.json").read_bytes()))
    wishes = st.none() | st.sampled_from(("small", "large", "frontier"))
    for number, (body, token, declared, wish) in enumerate(
        drawn(st.tuples(_bodies, _tokens, _declared, wishes), REQUESTS)
    ):
        raw = json.dumps(body).encode()
        facts = Facts(
            now=NOW,
            signed=msgspec.convert(token, Signed),
            measured=measure_chat(decode_chat(raw), body=raw, reader=compiled.reader),
            declared=msgspec.convert(declared, Declared),
        )
        decision = decide(compiled, facts, None if wish is None else Proposal(model=wish))
        yield {
            "name": f"drawn {number}",
            "token": token,
            "body": {"model": AUTO, **body},
            "declared": declared,
            "proposal": wish,
            "expect": outcome(decision),
        }


# ── text → what rules look for; caller → place ─────────────────────────────────────────────────


def a_reading_policy() -> Policy:
    """A policy whose rules look for keywords, complexity, language and meaning."""
    return a_policy(
        routes=(
            Route(
                name="reads",
                when=(
                    TextHas("keywords", any_of=("refund", "step by step", "straße", "e-mail")),
                    NumberBetween("complexity", at_least=500),
                    OneOf("language", ("de", "fr", "ja")),
                    OneOf("semantic", tuple(EXAMPLES)),
                ),
                models=("large",),
            ),
            Route(name="default", models=("small",)),
        ),
        semantic=compile_utterances(EXAMPLES, seed=0),
    )


def texts() -> Iterator[Case]:
    """Give texts, and what is found in them."""
    reader = compile_policy(a_reading_policy()).reader
    pieces = st.sampled_from(
        (
            *(each for some in EXAMPLES.values() for each in some),
            "REFUND, step by step!",
            "Die Straße ist gesperrt und wir kommen nicht nach Hause",
            "Je ne sais pas où est mon colis",
            "配達はいつですか",
            "def f(x):\n    return x ** 2",
            "Prove that √2 is irrational; compare three proofs.",
            "e‑mail E-MAIL e-mail",
            "\U0001f9d1\u200d\U0001f680 ok",
        )
    )
    for text in drawn(st.lists(pieces | st.text(max_size=30), max_size=4).map(" ".join), TEXTS):
        yield {"text": text, "expect": dict(sorted(reader.read(text).items()))}


def callers() -> Iterator[Case]:
    """Give callers, and where they stand among the shares of a name."""
    names = st.text("abcdefgh:/.-0123456789", min_size=1, max_size=20)
    for iss, sub, salt in drawn(st.tuples(names, names, st.sampled_from(("new", "chat"))), CALLERS):
        of_caller = cohort(iss, sub)
        yield {
            "iss": iss,
            "sub": sub,
            "salt": salt,
            "expect": {"cohort": of_caller, "place": place(salt, of_caller)},
        }


def write() -> None:
    """Write all files."""

    def lines(cases: Sequence[Case]) -> str:
        return "[\n" + ",\n".join(json.dumps(case, ensure_ascii=True) for case in cases) + "\n]\n"

    for name, cases in (
        ("drawn-decisions", decisions()),
        ("drawn-requests", requests()),
        ("texts", texts()),
        ("callers", callers()),
    ):
        (VECTORS / f"{name}.json").write_text(lines(list(cases)))
    (VECTORS / "reading-policy.json").write_bytes(msgspec.json.encode(brief(a_reading_policy())))


if __name__ == "__main__":
    write()
