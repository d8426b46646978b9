"""Reads policy.yaml and issuers.yaml, as people write them, into the documents that are signed.

People write dollars, groups and promises per provider; machines read nano-dollars and plain
lists. What could surprise in production is refused here: a price that would be rounded, a row
that is never reached, a rule that a client could steer around.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal, cast

import msgspec
from msgspec import Struct, structs
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from waypost.cli.yamlfile import FileError, FileModel, YAMLFile, read_yaml
from waypost.edge.analysis.cells import DataHas
from waypost.edge.analysis.invariants import Invariant, MaxCost
from waypost.edge.fields import (
    URL,
    Days,
    Dollars,
    Hours,
    Keyword,
    Millis,
    Name,
    Percent,
    Promise,
    Some,
    Tokens,
    Unique,
    among,
    known,
    listed,
    wrong,
)
from waypost.edge.issuers_file import load_issuers
from waypost.shared.contracts import (
    AUTO,
    CAPABILITIES,
    ENDPOINTS,
    ClockBetween,
    Condition,
    Endpoint,
    Model,
    NumberBetween,
    OneOf,
    Policy,
    Route,
    TextHas,
    Weights,
    YesNo,
    decode_policy,
)
from waypost.shared.engine import compile_policy
from waypost.shared.money import Price
from waypost.shared.rules import DECLARED_FIELDS

__all__ = ["Authored", "PolicyFile", "load_issuers", "load_policy"]


class Authored(Struct, frozen=True):
    """One policy, twice: for validators, and for clients without what is marked private.

    ``invariants`` are what ``prove`` holds it against before it is signed; they do not travel.
    """

    full: Policy
    client: Policy
    invariants: tuple[Invariant, ...] = ()


def load_policy(path: Path, *, channel: str, version: int, issued_at: int) -> Authored:
    """Return the policy written in ``path``.

    Args:
        version: of this publication, above all earlier ones.
        issued_at: Unix seconds.

    Raises:
        FileError: all that is wrong with the file, each with line, path and mend.
        PolicyError: it reads well, but the engine finds a contradiction in it.
    """
    file = read_yaml(path)
    models = file.names("models")
    known_names = {
        "tier": file.names("tiers"),
        "provider": file.names("providers"),
        "data class": file.names("data_classes"),
        "model": models,
        "model or group": models | file.names("groups"),
    }
    for name in sorted(models & file.names("groups")):
        file.find(("groups", name), "is a model's name as well; rename the group")
    written = file.read(PolicyFile, context=known_names)
    _check_rows(file)
    if written is not None:
        _check_sense(file, written)
    if written is None or file.findings:
        raise FileError(file.findings)
    full = written.policy(channel=channel, version=version, issued_at=issued_at)
    invariants = tuple(map(written.invariant, written.invariants))
    authored = Authored(full, _for_clients(full, written), invariants)
    for policy in (authored.full, authored.client):
        # Through the reader's own eyes: what is published can be decoded and compiled.
        compile_policy(decode_policy(msgspec.json.encode(policy)))
    return authored


# ── the file, section by section ──────────────────────────────────────────────────────────────


def _not_reserved(value: str) -> str:
    if value == AUTO:
        raise wrong(f"'{AUTO}' is what clients write to leave the choice open; take another name")
    return value


TierRef = Annotated[str, known("tier")]
ModelRef = Annotated[str, known("model or group")]
EndpointName = Annotated[str, among("API", ENDPOINTS)]


class _Price(FileModel):
    """Dollars per million tokens, and per request."""

    input: Dollars
    output: Dollars
    cached_input: Dollars | None = None
    request: Dollars = 0


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


class _Model(FileModel):
    provider: Annotated[str, known("provider")]
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    price: _Price
    tiers: Some[TierRef]
    tokens: _Tokens
    region: Name | None = None
    promises: Unique[Promise] = []
    capabilities: Unique[Annotated[str, among("capability", CAPABILITIES)]] = []
    endpoints: Some[EndpointName] = ["chat.completions"]
    quality: Percent = 50
    speed: _Speed = _Speed()
    private: bool = False


class _Range(FileModel):
    at_least: Annotated[int, Field(ge=0, le=2**31)] | None = None
    below: Annotated[int, Field(ge=1, le=2**31)] | None = None

    @field_validator("below")
    @classmethod
    def _is_above(cls, value: int | None, info: ValidationInfo) -> int | None:
        low = info.data.get("at_least")
        if value is not None and low is not None and low >= value:
            raise wrong(f"nothing is at least {low} and below {value}")
        return value


def _bounded(value: _Range) -> _Range:
    if value.at_least is None and value.below is None:
        raise wrong("needs a bound: at_least, below, or both")
    return value


def _any_of(value: object) -> object:
    return cast("object", value) if isinstance(value, dict) else {"any": listed(value)}


class _Has(FileModel):
    any: Unique[Name] = []
    all: Unique[Name] = []
    none: Unique[Name] = []

    def condition(self, field: Literal["keywords", "tags"]) -> TextHas:
        return TextHas(
            field, any_of=tuple(self.any), all_of=tuple(self.all), none_of=tuple(self.none)
        )


class _HasKeywords(_Has):
    any: Unique[Keyword] = []
    all: Unique[Keyword] = []
    none: Unique[Keyword] = []


def _possible(value: _Has) -> _Has:
    if not (value.any or value.all or value.none):
        raise wrong("needs words: any, all or none")
    forbidden = set(value.none) & {*value.any, *value.all}
    if forbidden:
        raise wrong(f"'{min(forbidden)}' is both wanted and forbidden")
    return value


Bounds = Annotated[_Range, AfterValidator(_bounded)]


class _When(FileModel):
    input_tokens: Bounds | None = None
    messages: Bounds | None = None
    weekday: Days | None = None
    hour_utc: Hours | None = None
    tier: Some[TierRef] | None = None
    tenant: Some[Name] | None = None
    region: Some[Name] | None = None
    endpoint: Some[EndpointName] | None = None
    task: Some[Name] | None = None
    interactive: bool | None = None
    keywords: (
        Annotated[_HasKeywords, BeforeValidator(_any_of), AfterValidator(_possible)] | None
    ) = None
    tags: Annotated[_Has, BeforeValidator(_any_of), AfterValidator(_possible)] | None = None

    def conditions(self) -> Iterator[Condition]:
        """Give the conditions in a fixed order, the cheapest to check first."""
        if self.input_tokens is not None:
            yield NumberBetween("input_tokens", self.input_tokens.at_least, self.input_tokens.below)
        if self.messages is not None:
            yield NumberBetween("messages", self.messages.at_least, self.messages.below)
        if self.weekday is not None:
            yield ClockBetween("weekday", *self.weekday)
        if self.hour_utc is not None:
            yield ClockBetween("hour", *self.hour_utc)
        if self.tier is not None:
            yield OneOf("tier", tuple(self.tier))
        if self.tenant is not None:
            yield OneOf("tenant", tuple(self.tenant))
        if self.region is not None:
            yield OneOf("region", tuple(self.region))
        if self.endpoint is not None:
            yield OneOf("endpoint", tuple(self.endpoint))
        if self.task is not None:
            yield OneOf("task", tuple(self.task))
        if self.interactive is not None:
            yield YesNo("interactive", self.interactive)
        if self.keywords is not None:
            yield self.keywords.condition("keywords")
        if self.tags is not None:
            yield self.tags.condition("tags")


class _Weights(FileModel):
    cost: Percent = 0
    latency: Percent = 0
    quality: Percent = 0


class _Route(FileModel):
    name: Name
    when: _When = _When()
    models: Some[ModelRef]
    fallback: Some[ModelRef] | None = None
    optimize: Literal["cost", "latency", "quality", "balanced"] = "cost"
    weights: _Weights | None = None
    min_quality: Percent = 0
    max_cost: Dollars | None = None
    max_ttft_ms: Millis | None = None
    enforce: bool = False

    @field_validator("weights")
    @classmethod
    def _are_used(cls, value: _Weights | None, info: ValidationInfo) -> _Weights | None:
        if value is not None and info.data.get("optimize") != "balanced":
            raise wrong("are only looked at with 'optimize: balanced'")
        if value is not None and not (value.cost or value.latency or value.quality):
            raise wrong("weigh nothing; give at least one of cost, latency and quality")
        return value


class _Endpoint(FileModel):
    url: URL
    region: Name = "global"


DataRef = Annotated[str, known("data class")]


class _HasData(FileModel):
    any: Unique[DataRef] = []
    all: Unique[DataRef] = []
    none: Unique[DataRef] = []


class _SpokenOf(_When):
    """Which requests an invariant speaks of: a route's conditions, and classes of data."""

    data: Annotated[_HasData, BeforeValidator(_any_of)] | None = None


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


class _Invariant(FileModel):
    name: Annotated[str, Field(min_length=1, max_length=100)]
    when: _SpokenOf = _SpokenOf()
    then: _Then


class PolicyFile(FileModel):
    """All of ``policy.yaml``, as written."""

    tiers: Some[Name]
    providers: dict[Name, _Provider]
    models: dict[Annotated[Name, AfterValidator(_not_reserved)], _Model] = Field(min_length=1)
    groups: dict[Name, Some[Annotated[str, known("model")]]] = {}
    data_classes: dict[Name, Unique[Promise]] = {}
    routes: Annotated[list[_Route], Field(min_length=1)]
    last_resort: Some[ModelRef] | None = None
    endpoints: dict[Name, _Endpoint] = {}
    default_output_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 300
    invariants: list[_Invariant] = []

    def promises(self, model: _Model) -> tuple[str, ...]:
        """Return what holds for ``model``: its provider's promises, and its own."""
        return tuple(sorted({*self.providers[model.provider].promises, *model.promises}))

    def region(self, model: _Model) -> str:
        return model.region or self.providers[model.provider].region

    def plain(self, names: Iterable[str] | None) -> tuple[str, ...]:
        """Return ``names`` with each group replaced by its models, each model once."""
        return tuple(
            dict.fromkeys(
                member for name in names or () for member in self.groups.get(name, [name])
            )
        )

    def policy(self, *, channel: str, version: int, issued_at: int) -> Policy:
        """Return the policy as validators read it."""
        return Policy(
            channel=channel,
            version=version,
            issued_at=issued_at,
            tiers=tuple(self.tiers),
            models=tuple(self._model(name, model) for name, model in self.models.items()),
            routes=tuple(map(self._route, self.routes)),
            data_classes={name: tuple(duties) for name, duties in self.data_classes.items()},
            last_resort=self.plain(self.last_resort),
            endpoints=tuple(
                Endpoint(id=name, url=endpoint.url, region=endpoint.region)
                for name, endpoint in self.endpoints.items()
            ),
            default_output_tokens=self.default_output_tokens,
        )

    def invariant(self, written: _Invariant) -> Invariant:
        """Return what is to be proved."""
        then, data = written.then, written.when.data or _HasData()
        return Invariant(
            name=written.name,
            when=tuple(written.when.conditions()),
            data=DataHas(any_of=tuple(data.any), all_of=tuple(data.all), none_of=tuple(data.none)),
            promises=tuple(then.promises or ()),
            models=None if then.models is None else self.plain(then.models),
            providers=None if then.providers is None else tuple(then.providers),
            regions=None if then.regions is None else tuple(then.regions),
            max_cost=None
            if then.max_cost is None or then.for_ is None
            else MaxCost(then.max_cost, then.for_.input_tokens, then.for_.output_tokens),
            has_fallback=bool(then.has_fallback),
            never_refused=bool(then.never_refused),
        )

    def _model(self, name: str, model: _Model) -> Model:
        return Model(
            id=name,
            provider=model.provider,
            name=model.name or name,
            price=Price(
                input_nusd_per_mtok=model.price.input,
                output_nusd_per_mtok=model.price.output,
                cached_input_nusd_per_mtok=model.price.cached_input,
                request_nusd=model.price.request,
            ),
            tiers=tuple(model.tiers),
            context_tokens=model.tokens.context,
            max_output_tokens=model.tokens.output,
            region=self.region(model),
            promises=self.promises(model),
            capabilities=tuple(sorted(model.capabilities)),
            endpoints=tuple(model.endpoints),
            quality=model.quality,
            ttft_prior_ms=model.speed.ttft_ms,
            tokens_per_s_prior=model.speed.tokens_per_s,
        )

    def _route(self, route: _Route) -> Route:
        weights = route.weights
        return Route(
            name=route.name,
            models=self.plain(route.models),
            when=tuple(route.when.conditions()),
            optimize=route.optimize,
            weights=Weights()
            if weights is None
            else Weights(cost=weights.cost, latency=weights.latency, quality=weights.quality),
            fallback=self.plain(route.fallback),
            min_quality=route.min_quality,
            max_cost_nusd=route.max_cost,
            max_ttft_ms=route.max_ttft_ms,
            enforce=route.enforce,
        )


def _for_clients(full: Policy, written: PolicyFile) -> Policy:
    hidden = {name for name, model in written.models.items() if model.private}

    def seen(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if name not in hidden)

    return structs.replace(
        full,
        models=tuple(model for model in full.models if model.id not in hidden),
        routes=tuple(
            structs.replace(route, models=seen(route.models), fallback=seen(route.fallback))
            for route in full.routes
        ),
        last_resort=seen(full.last_resort),
        projection="client",
    )


def _check_rows(file: YAMLFile) -> None:
    """Find what is wrong with the order of the routes, even while some of them do not hold."""
    seen: dict[str, int] = {}
    steered = ""
    rows = file.rows("routes")
    for place, route in rows:
        path = ("routes", place)
        name = str(route.get("name"))
        if seen.setdefault(name, place) != place:
            file.find((*path, "name"), f"routes[{seen[name]}] is named '{name}' too; rename one")
        when = route.get("when")
        fields = set(cast("dict[str, object]", when)) if isinstance(when, dict) else set[str]()
        declared = sorted(fields & DECLARED_FIELDS)
        if route.get("enforce") is True and (declared or steered):
            file.find(
                (*path, "enforce"),
                f"clients only declare '{declared[0]}', so they could escape this route;"
                " enforce on signed or measured facts"
                if declared
                else f"clients could escape by way of '{steered}' above, which matches on what"
                " they declare; move this route before it",
            )
        if declared and not steered:
            steered = name
        last = place == rows[-1][0]
        if not fields and not last:
            file.find(
                path,
                f"'{name}' matches everything, so no route below it is ever reached;"
                " move it to the end",
            )
        if fields and last:
            file.find(
                path,
                f"'{name}' is the last route and has conditions; end with one that has no 'when',"
                " so that every request finds a route",
            )


def _check_sense(file: YAMLFile, written: PolicyFile) -> None:
    """Find what holds field by field and makes no sense together."""
    used = {tier for model in written.models.values() for tier in model.tiers}
    for place, tier in enumerate(written.tiers):
        if tier not in used:
            file.find(("tiers", place), f"no model is open to tier '{tier}'; open one or delete it")
    for name, model in written.models.items():
        promised = {p for p in written.promises(model) if p.startswith("region:")}
        region = written.region(model)
        if promised and f"region:{region}" not in promised:
            file.find(
                ("models", name),
                f"promises {min(promised)}, but its region is '{region}'; correct one of them",
            )
