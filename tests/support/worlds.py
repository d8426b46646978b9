"""Small policies and facts that tests depart from, and strategies that draw others."""

from typing import Literal, TypeVar

from hypothesis import strategies as st

from waypost.shared.contracts import (
    Cascade,
    ClockBetween,
    Condition,
    Declared,
    Facts,
    HostedTool,
    Measured,
    Model,
    NumberBetween,
    OneOf,
    Policy,
    Proposal,
    Route,
    Share,
    Signed,
    TextHas,
    YesNo,
    Zone,
)
from waypost.shared.money import Price
from waypost.shared.pictures import RULES

T = TypeVar("T")

NOW = 1_764_000_000  # Mon 24 Nov 2025 16:00 UTC


def a_model(name: str, *, cents_in: int = 15, cents_out: int = 60, **changes: object) -> Model:
    """A model priced in US cents per million tokens, open to every tier unless changed."""
    fields: dict[str, object] = {
        "id": name,
        "provider": "acme",
        "name": f"acme-{name}",
        "price": Price(
            input_nusd_per_mtok=cents_in * 10_000_000, output_nusd_per_mtok=cents_out * 10_000_000
        ),
        "tiers": ("free", "pro", "enterprise"),
        "context_tokens": 32_000,
        "max_output_tokens": 4_096,
    }
    return Model(**{**fields, **changes})  # type: ignore[arg-type]


def a_policy(**changes: object) -> Policy:
    """Three tiers, four models: cheap, capable, enterprise only, and one that may see patients."""
    fields: dict[str, object] = {
        "channel": "prod",
        "version": 42,
        "issued_at": NOW,
        "tiers": ("free", "pro", "enterprise"),
        "models": (
            a_model("small", quality=40, promises=("no_training",)),
            a_model(
                "large",
                cents_in=250,
                cents_out=1_000,
                quality=80,
                promises=("no_training",),
                capabilities=("json", "tools", "vision"),
                context_tokens=128_000,
            ),
            a_model(
                "frontier",
                cents_in=1_000,
                cents_out=3_000,
                quality=95,
                tiers=("enterprise",),
                capabilities=("json", "tools", "vision"),
                context_tokens=200_000,
            ),
            a_model(
                "clinical",
                cents_in=300,
                cents_out=1_200,
                quality=75,
                provider="medcloud",
                promises=("hipaa_baa", "no_training", "zero_retention"),
            ),
        ),
        "data_classes": {"phi": ("hipaa_baa", "no_training"), "pii": ("no_training",)},
        "routes": (
            Route(
                name="hard",
                when=(TextHas("keywords", any_of=("analyse", "prove")),),
                models=("large", "frontier"),
                optimize="quality",
            ),
            Route(
                name="short-chat",
                when=(NumberBetween("input_tokens", below=100), OneOf("tier", ("free", "pro"))),
                models=("small", "large"),
            ),
            Route(name="default", models=("large", "small"), optimize="balanced"),
        ),
        "last_resort": ("large", "clinical"),
    }
    return Policy(**{**fields, **changes})  # type: ignore[arg-type]


def some_facts(
    tier: str = "free",
    *,
    declared: Declared | None = None,
    signed: dict[str, object] | None = None,
    now: int = NOW,
    **measured: object,
) -> Facts:
    """A short chat of the free tier, unless changed."""
    seen: dict[str, object] = {"input_tokens": 41, "max_input_tokens": 200, **measured}
    return Facts(
        now=now,
        signed=Signed(tier=tier, **(signed or {})),  # type: ignore[arg-type]
        measured=Measured(**seen),  # type: ignore[arg-type]
        declared=declared or Declared(),
    )


# ── strategies ─────────────────────────────────────────────────────────────────────────────────

TIERS = ("free", "pro", "enterprise")
PROMISES = ("hipaa_baa", "no_training", "zero_retention", "region:eu")
NEEDS = ("audio", "json", "tools", "vision")
CLASSES = ("phi", "pii", "eu_personal")
WORDS = ("analyse", "refund", "prove", "state of the art")
TAGS = ("beta", "mobile", "batch")
TASKS = ("classify", "extract", "write")
NumberField = Literal["complexity", "input_bytes", "input_tokens", "messages"]
WordField = Literal["keywords", "tags", "needs", "patterns"]
OneOfField = Literal["tier", "tenant", "region", "endpoint", "language", "semantic", "task"]
NUMBERS: tuple[NumberField, ...] = ("complexity", "input_bytes", "input_tokens", "messages")
WORD_SETS: dict[WordField, tuple[str, ...]] = {
    "keywords": WORDS,
    "needs": NEEDS,
    "patterns": ("^dear ", "[0-9]{4}"),
    "tags": TAGS,
}
CHOICES: dict[OneOfField, tuple[str, ...]] = {
    "endpoint": ("chat.completions", "embeddings"),
    "language": ("de", "en"),
    "region": ("eu", "us"),
    "semantic": ("billing", "returns"),
    "task": TASKS,
    "tenant": ("acme", "zebra"),
    "tier": TIERS,
}
# Winter time, summer time, and a zone east of the date line.
ZONES = (
    None,
    Zone("Europe/Berlin", ((0, 3_600), (NOW + 200_000, 7_200))),
    Zone("Pacific/Kiritimati", ((0, 50_400),)),
)
MODELS = tuple(f"m{i}" for i in range(7))


def _some(values: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(values), unique=True, max_size=len(values)).map(tuple)


numbers = st.integers(0, 300)


@st.composite
def conditions(draw: st.DrawFn, *, declared: bool = True) -> Condition:
    """Any condition, impossible ones included."""
    kind = draw(st.sampled_from(("number", "clock", "share", "one_of", "yes_no", "has")))
    if kind == "number":
        bound = st.none() | numbers
        return NumberBetween(draw(st.sampled_from(NUMBERS)), draw(bound), draw(bound))
    if kind == "clock":
        field: Literal["hour", "weekday"] = draw(st.sampled_from(("hour", "weekday")))
        last = 23 if field == "hour" else 6
        start, end = draw(st.integers(0, last)), draw(st.integers(0, last + 1))
        return ClockBetween(field, start, end, draw(st.sampled_from(ZONES)))
    if kind == "share":
        some_share = st.integers(0, 10_000)
        return Share(draw(st.sampled_from(("a", "b"))), draw(some_share), draw(some_share))
    if kind == "yes_no" and declared:
        return YesNo("interactive", draw(st.booleans()))
    if kind == "has":
        sets = [name for name in WORD_SETS if declared or name != "tags"]
        words = draw(st.sampled_from(sets))
        some = _some(WORD_SETS[words])
        return TextHas(words, draw(some), draw(some), draw(some))
    names = [name for name in CHOICES if declared or name != "task"]
    choice = draw(st.sampled_from(names))
    return OneOf(choice, draw(_some(CHOICES[choice])))


# What a model may say of the cost of all but plain tokens.
_PRICED = st.fixed_dictionaries(
    {},
    optional={
        "pictures": st.sampled_from([*RULES.values()]),
        "part_tokens": st.sampled_from(((("video_url", 700),), (("pdf", 20), ("video_url", 5)))),
        "hosted_tools": st.builds(
            HostedTool,
            name=st.just("web_search"),
            call_nusd=st.integers(0, 10_000_000),
            calls=st.integers(1, 5),
            tokens=st.integers(0, 300),
        ).map(lambda tool: (tool,)),
    },
)


@st.composite
def models(draw: st.DrawFn, name: str) -> Model:
    """A model with anything that a decision looks at drawn."""
    return a_model(
        name,
        provider=draw(st.sampled_from(("acme", "zeta"))),
        cents_in=draw(st.integers(0, 2_000)),
        cents_out=draw(st.integers(0, 8_000)),
        tiers=draw(_some(TIERS)),
        promises=draw(_some(PROMISES)),
        capabilities=draw(_some(NEEDS)),
        endpoints=draw(
            st.sampled_from((("chat.completions",), ("chat.completions", "embeddings")))
        ),
        quality=draw(st.integers(0, 100)),
        context_tokens=draw(st.integers(1, 1_000)),
        max_output_tokens=draw(st.integers(1, 500)),
        ttft_prior_ms=draw(st.integers(1, 5_000)),
        tokens_per_s_prior=draw(st.integers(1, 500)),
        **draw(_PRICED),
    )


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """A policy that compiles."""
    names = MODELS[: draw(st.integers(1, len(MODELS)))]
    some = st.lists(st.sampled_from(names), unique=True, min_size=1, max_size=len(names)).map(tuple)
    routes: list[Route] = []
    steered = False
    for place in range(draw(st.integers(0, 5))):
        enforce = not steered and draw(st.booleans())
        when = tuple(draw(st.lists(conditions(declared=not enforce), min_size=1, max_size=3)))
        steered = steered or not enforce
        routes.append(draw(_routes(f"r{place}", when, some, enforce)))
    routes.append(draw(_routes("default", (), some, False)))
    return Policy(
        channel="prod",
        version=draw(st.integers(1, 1_000)),
        issued_at=NOW,
        tiers=TIERS,
        models=tuple(draw(models(name)) for name in names),
        routes=tuple(routes),
        data_classes={name: draw(_some(PROMISES)) for name in CLASSES},
        last_resort=draw(st.just(()) | some),
    )


@st.composite
def _routes(
    draw: st.DrawFn,
    name: str,
    when: tuple[Condition, ...],
    some: st.SearchStrategy[tuple[str, ...]],
    enforce: bool,
) -> Route:
    return Route(
        name=name,
        when=when,
        models=draw(some),
        fallback=draw(st.just(()) | some),
        optimize=draw(st.sampled_from(("cost", "latency", "quality", "balanced"))),
        min_quality=draw(st.integers(0, 100)),
        max_cost_nusd=draw(st.none() | st.integers(0, 10_000_000)),
        max_ttft_ms=draw(st.none() | st.integers(0, 5_000)),
        enforce=enforce,
        cascade=draw(st.none() | st.just(Cascade(signal="confidence", threshold_per_mille=800))),
    )


proposals = st.none() | st.sampled_from((*MODELS, "unheard-of")).map(
    lambda name: Proposal(model=name)
)
