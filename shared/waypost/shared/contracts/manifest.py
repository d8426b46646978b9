"""The documents that are signed: the policy with its models and routes, and the hints."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.json import Decoder

from waypost.shared.contracts.common import Instant, Millis, Name, Percent, Version
from waypost.shared.money import Nusd, Price, Tokens
from waypost.shared.pictures import PictureRule
from waypost.shared.scoring.complexity import ComplexityModel
from waypost.shared.scoring.embedding import EmbeddingModel
from waypost.shared.scoring.judge import JudgeModel
from waypost.shared.scoring.semantic import SemanticModel

__all__ = [
    "SUPPORTED_FEATURES",
    "Cascade",
    "Cause",
    "ClockBetween",
    "Condition",
    "Endpoint",
    "Extra",
    "Hedge",
    "Hint",
    "Hints",
    "HostedTool",
    "Model",
    "NumberBetween",
    "OneOf",
    "Policy",
    "Route",
    "Share",
    "Signal",
    "TextHas",
    "Weights",
    "YesNo",
    "Zone",
    "decode_hints",
    "decode_policy",
]

# ``must_understand`` entries this version honours. A document naming any other is refused.
SUPPORTED_FEATURES: frozenset[str] = frozenset(
    {
        "hosted_tools",
        "issuer_accounts",
        "part_tokens",
        "picture_tokens",
        "price_above",
        "price_factors",
    }
)

# ── the policy: which models exist, what they promise, who may use them ───────────────────────


class HostedTool(Struct, frozen=True, kw_only=True):
    """A tool that the provider runs itself, and what it may cost.

    Attributes:
        call_nusd: price of one call.
        calls: at most, in one request. Each reads the prompt once more.
        tokens: at most, that one call brings into the prompt.
    """

    name: Name
    call_nusd: Nusd
    calls: Annotated[int, Meta(ge=1, le=1_000)]
    tokens: Annotated[int, Meta(ge=0, le=10_000_000)]


class Model(Struct, frozen=True, kw_only=True):
    """One model at one provider in one region, with everything a decision needs.

    Attributes:
        id: our name for it, as proposals, records and rules say it.
        name: the provider's name for it, as sent upstream.
        tiers: who may use it.
        promises: what the provider has promised in writing (``hipaa_baa``, ``no_training``,
            ``zero_retention``, ``region:eu``, ``on_prem``, ``certification:…``).
        quality: the operator's rating, 0 to 100.
        context_tokens: prompt and answer together.
        ttft_prior_ms: expected time to first token before anything was measured.
        tokens_per_s_prior: expected speed of the answer, likewise.
        pictures: how its pictures are bounded; ``UNSET``: as the dearest that is known.
        part_tokens: what bounds a part whose length does not, by its type.
        hosted_tools: those that have a price.
    """

    id: Name
    provider: Name
    name: Annotated[str, Meta(min_length=1, max_length=200)]
    price: Price
    tiers: tuple[Name, ...]
    context_tokens: Annotated[int, Meta(ge=1, le=2**31)]
    max_output_tokens: Annotated[int, Meta(ge=1, le=2**31)]
    region: Name = "global"
    promises: tuple[Name, ...] = ()
    capabilities: tuple[Name, ...] = ()
    endpoints: tuple[Name, ...] = ("chat.completions",)
    quality: Percent = 50
    ttft_prior_ms: Annotated[int, Meta(ge=1, le=600_000)] = 800
    tokens_per_s_prior: Annotated[int, Meta(ge=1, le=100_000)] = 60
    pictures: PictureRule | UnsetType = UNSET
    part_tokens: tuple[tuple[Name, Tokens], ...] | UnsetType = UNSET
    hosted_tools: tuple[HostedTool, ...] | UnsetType = UNSET


class Zone(Struct, frozen=True):
    """A time zone, as the offsets it has: each from an instant on, in seconds east of UTC.

    Written out when the policy is authored, so that no reader needs a time-zone database and
    all agree. The last offset goes on for ever.
    """

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    offsets: Annotated[tuple[tuple[Instant, int], ...], Meta(min_length=1, max_length=64)]


class NumberBetween(Struct, frozen=True, tag="number", tag_field="is"):
    """``at_least ≤ field < below``; an absent bound does not bind.

    ``complexity`` is 0 to 1,000, as the policy's scorer has it.
    """

    field: Literal["complexity", "input_bytes", "input_tokens", "messages"]
    at_least: int | None = None
    below: int | None = None


class ClockBetween(Struct, frozen=True, tag="clock", tag_field="is"):
    """Hour of the day, or day of the week (Monday is 0), from ``start`` up to before ``end``.

    May wrap: 22 to 6, or Saturday to Tuesday. In UTC unless a ``zone`` is given.
    """

    field: Literal["hour", "weekday"]
    start: Annotated[int, Meta(ge=0, le=23)]
    end: Annotated[int, Meta(ge=0, le=24)]
    zone: Zone | None = None


class Share(Struct, frozen=True, tag="share", tag_field="is"):
    """A stable share of the callers: ``at_least ≤ place < below``, in ten-thousandths.

    A caller's place is the same for every request; under another ``salt`` it is another.
    """

    salt: Name
    at_least: Annotated[int, Meta(ge=0, le=10_000)] = 0
    below: Annotated[int, Meta(ge=0, le=10_000)] = 10_000


class OneOf(Struct, frozen=True, tag="one_of", tag_field="is"):
    """The field's value is one of ``values``; an absent value is none of them."""

    field: Literal["tier", "tenant", "region", "endpoint", "language", "semantic", "task"]
    values: tuple[str, ...]


class YesNo(Struct, frozen=True, tag="yes_no", tag_field="is"):
    """A yes/no field has this value."""

    field: Literal["interactive"]
    value: bool


class TextHas(Struct, frozen=True, tag="has", tag_field="is"):
    """Sets: at least one of ``any_of``, every one of ``all_of``, none of ``none_of``.

    ``keywords`` are whole words of the newest user message, case folded; ``patterns`` are
    regular expressions found in it; ``needs`` are capabilities; ``tags`` are declared. An empty
    tuple does not bind.
    """

    field: Literal["keywords", "needs", "patterns", "tags"]
    any_of: tuple[str, ...] = ()
    all_of: tuple[str, ...] = ()
    none_of: tuple[str, ...] = ()


Condition = NumberBetween | ClockBetween | Share | OneOf | YesNo | TextHas


class Weights(Struct, frozen=True, kw_only=True):
    """What ``balanced`` weighs, in per cent of the whole; need not add up to 100."""

    cost: Percent = 34
    latency: Percent = 33
    quality: Percent = 33


Signal = Literal["answer_logprob", "confidence", "judge", "self_consistency", "sequence_logprob"]

# What may go wrong with one model so that the next is tried.
Cause = Literal[
    "bad_response", "connect_error", "content_filter", "context_too_long", "key_refused",
    "rate_limited", "server_error", "timeout",
]  # fmt: skip


class Cascade(Struct, frozen=True, kw_only=True):
    """Ask the route's models in their order, and keep the first answer that is sure enough.

    With it the candidates stay in the order of ``Route.models``, cheapest first, whatever
    ``optimize`` says. The last of them is not asked how sure it is.

    Attributes:
        signal: what an answer's confidence is read from: the probability of its tokens
            (``sequence_logprob``), of its first content token, as in classifying
            (``answer_logprob``), a number that it names itself (``confidence``, a field of a
            JSON answer), how many of several answers agree (``self_consistency``), or a judge
            trained on features of the text (``judge``).
        threshold_per_mille: an answer less sure than this is asked for again, of the next.
        samples: how many answers ``self_consistency`` compares.
        stream_waits: hold a streamed answer back until it is judged. If not, streamed requests
            do not cascade.
    """

    signal: Signal
    threshold_per_mille: Annotated[int, Meta(ge=0, le=1_000)]
    samples: Annotated[int, Meta(ge=2, le=16)] = 3
    stream_waits: bool = True


class Hedge(Struct, frozen=True, kw_only=True):
    """Ask a second model when the first is late; interactive requests only.

    Attributes:
        after_ms: how late, without a first byte; ``None``: later than 95% of its answers were.
        max_extra_percent: the most requests that may be asked twice, of all on this route.
    """

    after_ms: Millis | None = None
    max_extra_percent: Annotated[int, Meta(ge=1, le=20)] = 5


class Route(Struct, frozen=True, kw_only=True):
    """One row of the decision table: when it applies, and whom it prefers.

    Attributes:
        when: all must hold; empty means always (the default, which is the last row).
        models: candidates, compared by ``optimize``.
        fallback: tried in this order after the candidates.
        min_quality: candidates rated lower step back behind the fallback.
        max_cost_nusd: candidates whose estimate is dearer step back likewise.
        max_ttft_ms: candidates expected slower step back likewise.
        enforce: the models and fallback of this row are the whole set, not a preference. Its
            conditions may then use signed and measured facts only.
        fallback_on: the causes for which the next of the chain is tried; ``None``: all.
        cascade: the candidates in the order written, each only if the one before is not sure.
        hedge: ask a second model when the first is late.
        timeout_ms: how long the answer may take, all attempts together; ``None``: as long as
            whoever forwards it allows. The caller's own deadline may only shorten it.
    """

    name: Name
    models: tuple[Name, ...]
    when: tuple[Condition, ...] = ()
    optimize: Literal["cost", "latency", "quality", "balanced"] = "cost"
    weights: Weights = Weights()
    fallback: tuple[Name, ...] = ()
    min_quality: Percent = 0
    max_cost_nusd: Nusd | None = None
    max_ttft_ms: Millis | None = None
    enforce: bool = False
    fallback_on: tuple[Cause, ...] | None = None
    cascade: Cascade | None = None
    hedge: Hedge | None = None
    timeout_ms: Annotated[int, Meta(ge=1, le=3_600_000)] | None = None


class Endpoint(Struct, frozen=True, kw_only=True):
    """A validator that clients may send requests to."""

    id: Name
    url: Annotated[str, Meta(max_length=500)]
    region: Name = "global"


class Policy(Struct, frozen=True, kw_only=True):
    """The routing manifest: target ``policy/<channel>.json`` of the signed repository.

    Attributes:
        version: grows with each publication.
        data_classes: class of data → promises a provider must have made to see it. A class
            that is not listed here is refused.
        last_resort: ends each chain, as far as it is admissible.
        default_output_tokens: expected answer length where nobody says.
        complexity: what ``complexity`` conditions score by; ``None`` is the built-in heuristic.
        semantic, embedding: what tells the routes apart that were given by example, by their
            words or by their meaning; one of the two.
        judge: what cascades by the signal ``judge`` ask how sure an answer sounds.
        projection: ``client`` leaves out what the operator marked private.
    """

    channel: Name
    version: Version
    issued_at: Instant
    tiers: tuple[Name, ...]
    models: tuple[Model, ...]
    routes: tuple[Route, ...]
    data_classes: dict[Name, tuple[Name, ...]] = {}
    last_resort: tuple[Name, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    default_output_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 300
    complexity: ComplexityModel | None = None
    semantic: SemanticModel | None = None
    embedding: EmbeddingModel | None = None
    judge: JudgeModel | None = None
    projection: Literal["full", "client"] = "full"
    kind: Literal["policy"] = "policy"
    schema: Literal[1] = 1
    must_understand: tuple[str, ...] = ()


# ── hints: numbers from an online key, which may reorder and demote, never widen ───────────────


class Hint(Struct, frozen=True, kw_only=True):
    """What the fleet sees of one model lately. ``health``: how many of a hundred are answered."""

    model: Name
    ttft_ms: Millis | None = None
    tokens_per_s: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    health: Percent = 100
    drain: bool = False


class Hints(Struct, frozen=True, kw_only=True):
    """Target ``hints/<channel>.json``, signed by a delegated online role."""

    channel: Name
    version: Version
    issued_at: Instant
    models: tuple[Hint, ...] = ()
    kind: Literal["hints"] = "hints"
    schema: Literal[1] = 1
    must_understand: tuple[str, ...] = ()


# ── issuers: whose access tokens hold ──────────────────────────────────────────────────────────

decode_policy = Decoder(Policy).decode
decode_hints = Decoder(Hints).decode

# ── facts: what a decision is made from, by who vouches for them ───────────────────────────────


class Extra(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a request asks for beyond tokens that its length bounds.

    Attributes:
        kind: a ``part`` of its content, a ``tool`` that the provider runs, or another ``price``.
        name: the part's type, the tool's name, or ``<field>=<value>``.
        at: where it is in the body.
        calls: how often the tool may be called, where the request says.
    """

    kind: Literal["part", "tool", "price"]
    name: str
    at: str
    calls: Tokens | None = None
