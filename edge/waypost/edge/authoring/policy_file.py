"""What ``policy.yaml`` may say: its sections, field by field, as people write them.

What is wrong with one field on its own is refused here; ``policy_checks`` looks at what makes no
sense together.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from msgspec import UNSET, Struct, UnsetType
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from waypost.cli.yamlfile import FileModel, did_you_mean
from waypost.edge.authoring.conditions import EndpointName, TierRef, When, any_of
from waypost.edge.authoring.fields import (
    URL,
    Dollars,
    Factor,
    Millis,
    Name,
    Percent,
    Promise,
    Share,
    Some,
    Tokens,
    Unique,
    among,
    known,
    wrong,
)
from waypost.shared.contracts import (
    AUTO,
    CAPABILITIES,
    CONVERSATIONS,
    Cause,
    Condition,
    HostedTool,
    OneOf,
    Signal,
)
from waypost.shared.contracts import Share as ShareOfCallers
from waypost.shared.money import Factor as PriceFactor
from waypost.shared.money import Price, PriceAbove
from waypost.shared.pictures import RULES, PictureRule

__all__ = [
    "HasData",
    "PolicyFile",
    "Preference",
    "Row",
    "WrittenCascade",
    "WrittenHedge",
    "WrittenInvariant",
    "WrittenModel",
    "WrittenRoute",
]


def _not_reserved(value: str) -> str:
    if value == AUTO:
        raise wrong(f"'{AUTO}' is what clients write to leave the choice open; take another name")
    return value


ModelRef = Annotated[str, known("model or group")]


class _KindPrices(FileModel):
    """Dollars per million tokens of each kind."""

    cached_input: Dollars | None = None
    cache_write: Dollars | None = None
    cache_write_1h: Dollars | None = None
    image_input: Dollars | None = None
    audio_input: Dollars | None = None
    audio_output: Dollars | None = None
    reasoning: Dollars | None = None

    def of_kinds(self) -> dict[str, int | None]:
        """Return nano-dollars by the names that the manifest has."""
        return {f"{kind}_nusd_per_mtok": getattr(self, kind) for kind in _KindPrices.model_fields}


def _count(value: object) -> object:
    # Keys are read as text.
    text = value.replace("_", "") if isinstance(value, str) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else value


_PromptTokens = Annotated[Tokens, BeforeValidator(_count)]


class _LongPromptPrice(_KindPrices):
    input: Dollars | None = None
    output: Dollars | None = None


class _Factors(FileModel):
    """What a request costs by another tier or speed, in per cent of the usual price."""

    service_tier: dict[Name, Factor] = {}
    speed: dict[Name, Factor] = {}
    inference_geo: dict[Name, Factor] = {}

    def manifest(self) -> tuple[PriceFactor, ...]:
        """Return them as the manifest has them."""
        return tuple(
            PriceFactor(f"{field}={value}", percent)
            for field in _Factors.model_fields
            for value, percent in sorted(getattr(self, field).items())
        )


class _Price(_KindPrices):
    """Dollars per million tokens, per request, and per call of a tool that the provider runs."""

    input: Dollars
    output: Dollars
    request: Dollars = 0
    above: Annotated[dict[_PromptTokens, _LongPromptPrice], Field(max_length=8)] = {}
    factors: _Factors = _Factors()
    per_call: dict[Name, Dollars] = {}

    def manifest(self) -> Price:
        """Return it as the manifest has it."""
        return Price(
            input_nusd_per_mtok=self.input,
            output_nusd_per_mtok=self.output,
            request_nusd=self.request,
            above=tuple(
                PriceAbove(
                    above_input_tokens=tokens,
                    input_nusd_per_mtok=step.input,
                    output_nusd_per_mtok=step.output,
                    **step.of_kinds(),
                )
                for tokens, step in sorted(self.above.items())
            ),
            factors=self.factors.manifest(),
            **self.of_kinds(),
        )


class _Provider(FileModel):
    region: Name = "global"
    promises: Unique[Promise] = []


class _Tokens(FileModel):
    """How many fit: prompt and answer together, and the answer alone."""

    context: Tokens
    output: Tokens

    @field_validator("output")
    @classmethod
    def _fits(cls, value: int, info: ValidationInfo) -> int:
        context = info.data.get("context", value)
        if value > context:
            raise wrong(f"{value} is more than the context of {context}")
        return value


class _Speed(FileModel):
    ttft_ms: Millis = 800
    tokens_per_s: Annotated[int, Field(ge=1, le=100_000)] = 60


class _HostedTool(FileModel):
    """How much of a tool that the provider runs one request may use."""

    calls: Annotated[int, Field(ge=1, le=1_000)]
    tokens: Annotated[int, Field(ge=0, le=10_000_000)]


def _picture_rule(value: object) -> object:
    if isinstance(value, str) and value not in RULES:
        raise wrong(
            f"there is no rule '{value[:64]}'{did_you_mean(value, RULES)}; or write how many tokens"
            " a picture has at most"
        )
    return value


PictureTokens = Annotated[str | Tokens, BeforeValidator(_picture_rule)]


class WrittenModel(FileModel):
    provider: Annotated[str, known("provider")]
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    price: _Price
    tiers: Some[TierRef]
    tokens: _Tokens
    region: Name | None = None
    promises: Unique[Promise] = []
    capabilities: Unique[Annotated[str, among("capability", CAPABILITIES)]] = []
    endpoints: Some[EndpointName] = list(CONVERSATIONS)
    quality: Percent = 50
    speed: _Speed = _Speed()
    private: bool = False
    picture_tokens: PictureTokens | None = None
    part_tokens: dict[Name, Tokens] = {}
    hosted_tools: dict[Name, _HostedTool] = {}

    @model_validator(mode="after")
    def _tools_have_prices(self) -> "WrittenModel":
        for name in self.hosted_tools:
            if name not in self.price.per_call:
                raise wrong(
                    f"hosted_tools.{name} has no price: write price.per_call.{name}, with 0 if a"
                    " call costs nothing beside its tokens"
                )
        return self

    @property
    def pictures(self) -> PictureRule | UnsetType:
        """How its pictures are bounded, as the manifest has it."""
        if self.picture_tokens is None:
            return UNSET
        if isinstance(self.picture_tokens, str):
            return RULES[self.picture_tokens]
        return PictureRule(kind="flat", base=self.picture_tokens)

    @property
    def tools(self) -> tuple[HostedTool, ...] | UnsetType:
        """What of its provider's tools is priced, as the manifest has it."""
        return (
            tuple(
                HostedTool(
                    name=name,
                    call_nusd=self.price.per_call[name],
                    calls=tool.calls,
                    tokens=tool.tokens,
                )
                for name, tool in sorted(self.hosted_tools.items())
            )
            or UNSET
        )


class _Weights(FileModel):
    cost: Percent = 0
    latency: Percent = 0
    quality: Percent = 0


class WrittenCascade(FileModel):
    signal: Signal
    threshold: Annotated[int, Field(ge=0, le=1_000)]
    samples: Annotated[int, Field(ge=2, le=16)] = 3
    stream_waits: bool = True


class WrittenHedge(FileModel):
    after_ms: Millis | None = None
    max_extra_percent: Annotated[int, Field(ge=1, le=20)] = 5


class Preference(FileModel):
    """Which models, in which order, and how long to wait for them."""

    models: Some[ModelRef]
    fallback: Some[ModelRef] | None = None
    optimize: Literal["cost", "latency", "quality", "balanced"] = "cost"
    weights: _Weights | None = None
    min_quality: Percent = 0
    max_cost: Dollars | None = None
    max_ttft_ms: Millis | None = None
    cascade: WrittenCascade | None = None
    hedge: WrittenHedge | None = None
    fallback_on: list[Cause] | None = None
    timeout_ms: Annotated[int, Field(ge=1, le=3_600_000)] | None = None

    @field_validator("weights")
    @classmethod
    def _weigh(cls, value: _Weights | None) -> _Weights | None:
        if value is not None and not (value.cost or value.latency or value.quality):
            raise wrong("weigh nothing; give at least one of cost, latency and quality")
        return value


class _Override(Preference):
    """What a tier or a variant has instead of the route's own; the rest is the route's."""

    models: Some[ModelRef] = []


class _Variant(_Override):
    share: Share


class Row(Struct, frozen=True, kw_only=True):
    """A row of the decision table, before its groups are taken apart."""

    name: str
    when: When
    also: tuple[Condition, ...]
    prefers: Preference
    enforce: bool


Utterance = Annotated[str, Field(min_length=1, max_length=500)]


class WrittenRoute(Preference):
    name: Name
    when: When = When()
    utterances: Annotated[list[Utterance], Field(min_length=1, max_length=200)] | None = None
    enforce: bool = False
    tiers: dict[TierRef, _Override] = {}
    split: Annotated[dict[Name, _Variant], Field(min_length=2)] | None = None

    def rows(self) -> Iterator[Row]:
        """Give the rows that this is made into: one per tier or variant, or just one."""
        for tier, override in self.tiers.items():
            yield self._row(tier, self.with_(override), (OneOf("tier", (tier,)),))
        if self.split is None:
            yield self._row("", self, ())
            return
        start = 0
        for place, (name, variant) in enumerate(self.split.items(), 1):
            end = start + variant.share
            # The last has who is left: where there are no other conditions, it is the default.
            bounds = ShareOfCallers(self.name, start, end)
            yield self._row(name, self.with_(variant), (bounds,) if place < len(self.split) else ())
            start = end

    def _row(self, part: str, prefers: Preference, also: tuple[Condition, ...]) -> Row:
        name = f"{self.name}/{part}" if part else self.name
        if self.utterances is not None:
            also = (OneOf("semantic", (self.name,)), *also)
        return Row(name=name, when=self.when, also=also, prefers=prefers, enforce=self.enforce)

    def with_(self, override: Preference) -> Preference:
        """Return what a tier or variant has: its own, and else the route's."""
        fields = override.model_fields_set & Preference.model_fields.keys()
        return self.model_copy(update={field: getattr(override, field) for field in fields})


class _Endpoint(FileModel):
    url: URL
    region: Name = "global"


DataRef = Annotated[str, known("data class")]


class HasData(FileModel):
    any: Unique[DataRef] = []
    all: Unique[DataRef] = []
    none: Unique[DataRef] = []


class _SpokenOf(When):
    """Which requests an invariant speaks of: a route's conditions, and classes of data."""

    data: Annotated[HasData, BeforeValidator(any_of)] | None = None


class _For(FileModel):
    input_tokens: Tokens
    output_tokens: Tokens


class _Then(FileModel):
    promises: Some[Promise] | None = None
    models: Some[ModelRef] | None = None
    providers: Some[Annotated[str, known("provider")]] | None = None
    regions: Some[Name] | None = None
    max_cost: Dollars | None = None
    for_: Annotated[_For | None, Field(alias="for")] = None
    has_fallback: Literal[True] | None = None
    never_refused: Literal[True] | None = None

    @model_validator(mode="after")
    def _is_said(self) -> "_Then":
        if not self.model_fields_set:
            raise wrong(
                "claims nothing; say promises, models, providers, regions, max_cost, "
                "has_fallback or never_refused"
            )
        if (self.max_cost is None) != (self.for_ is None):
            raise wrong(
                "max_cost needs 'for: {input_tokens: …, output_tokens: …}', and the reverse"
            )
        return self


class WrittenInvariant(FileModel):
    name: Annotated[str, Field(min_length=1, max_length=100)]
    when: _SpokenOf = _SpokenOf()
    then: _Then


class PolicyFile(FileModel):
    """All of ``policy.yaml``, as written."""

    tiers: Some[Name]
    providers: dict[Name, _Provider]
    models: dict[Annotated[Name, AfterValidator(_not_reserved)], WrittenModel] = Field(min_length=1)
    extends: str | None = None
    complexity_model: str | None = None
    semantic_model: Literal["words", "minilm"] = "words"
    judge_model: str | None = None
    groups: dict[Name, Some[Annotated[str, known("model")]]] = {}
    data_classes: dict[Name, Unique[Promise]] = {}
    routes: Annotated[list[WrittenRoute], Field(min_length=1)]
    last_resort: Some[ModelRef] | None = None
    endpoints: dict[Name, _Endpoint] = {}
    default_output_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 300
    invariants: list[WrittenInvariant] = []

    def promises(self, model: WrittenModel) -> tuple[str, ...]:
        """Return what holds for ``model``: its provider's promises, and its own."""
        return tuple(sorted({*self.providers[model.provider].promises, *model.promises}))

    def region(self, model: WrittenModel) -> str:
        return model.region or self.providers[model.provider].region

    def plain(self, names: Iterable[str] | None) -> tuple[str, ...]:
        """Return ``names`` with each group replaced by its models, each model once."""
        return tuple(
            dict.fromkeys(
                member for name in names or () for member in self.groups.get(name, [name])
            )
        )
