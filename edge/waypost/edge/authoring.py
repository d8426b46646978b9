"""Reads policy.yaml and issuers.yaml, as people write them, into the documents that are signed.

People write dollars, groups and promises per provider; machines read nano-dollars and plain
lists. What could surprise in production is refused here: a price that would be rounded, a row
that is never reached, a rule that a client could steer around.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar, cast

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

from waypost.cli.yamlfile import MAX_FILE_BYTES, FileError, FileModel, YAMLFile
from waypost.edge.analysis.cells import DataHas
from waypost.edge.analysis.invariants import Invariant, MaxCost
from waypost.edge.conditions import EndpointName, TierRef, When, any_of
from waypost.edge.fields import (
    URL,
    Dollars,
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
from waypost.edge.issuers_file import load_issuers
from waypost.edge.layers import beside, read_layers
from waypost.shared.compiled import compile_policy
from waypost.shared.complexity import ComplexityModel, ComplexityScorer
from waypost.shared.contracts import (
    AUTO,
    CAPABILITIES,
    CONVERSATIONS,
    Cascade,
    Cause,
    Condition,
    Endpoint,
    Hedge,
    Model,
    OneOf,
    Policy,
    Route,
    Signal,
    Weights,
    decode_policy,
)
from waypost.shared.contracts import Share as ShareOfCallers
from waypost.shared.embedding import EmbeddingModel
from waypost.shared.errors import PolicyError
from waypost.shared.judge import JudgeModel
from waypost.shared.money import Price
from waypost.shared.rules import DECLARED_FIELDS, SHARES
from waypost.shared.semantic import SemanticModel

__all__ = ["Authored", "PolicyFile", "load_issuers", "load_policy"]

T = TypeVar("T")

MAX_NAME = 64
MAX_PATTERNS = 64  # each request is searched for all of them


class Authored(Struct, frozen=True):
    """One policy, twice: for validators, and for clients without what is marked private.

    Attributes:
        invariants: what ``prove`` holds it against before it is signed; they do not travel.
        places: route → its place among those written, which several may have been made of.
    """

    full: Policy
    client: Policy
    invariants: tuple[Invariant, ...] = ()
    places: dict[str, int] = {}


def load_policy(path: Path, *, channel: str, version: int, issued_at: int) -> Authored:
    """Return the policy written in ``path``.

    Args:
        version: of this publication, above all earlier ones.
        issued_at: Unix seconds.

    Raises:
        FileError: all that is wrong with the file, each with line, path and mend.
        PolicyError: it reads well, but the engine finds a contradiction in it.
    """
    file = read_layers(path)
    models = file.names("models")
    known_names = {
        "tier": file.names("tiers"),
        "provider": file.names("providers"),
        "data class": file.names("data_classes"),
        "model": models,
        "model or group": models | file.names("groups"),
        "route with utterances": {
            str(row.get("name")) for _, row in file.rows("routes") if "utterances" in row
        },
    }
    for name in sorted(models & file.names("groups")):
        file.find(("groups", name), "is a model's name as well; rename the group")
    written = file.read(PolicyFile, context=known_names)
    _check_rows(file)
    complexity = _complexity(file, path.parent)
    judge = _trained(file, path.parent, "judge_model", JudgeModel, by="calibrate")
    semantic: SemanticModel | EmbeddingModel | None = None
    if written is not None:
        _check_sense(file, written)
        semantic = _semantic(file, written)
    if written is None or file.findings:
        raise FileError(file.findings)
    full = written.policy(
        channel=channel,
        version=version,
        issued_at=issued_at,
        complexity=complexity,
        semantic=semantic,
        judge=judge,
    )
    authored = Authored(
        full,
        _for_clients(full, written),
        tuple(written.invariant(each, issued_at=issued_at) for each in written.invariants),
        {made.name: at for at, route in enumerate(written.routes) for made in route.made()},
    )
    for policy in (authored.full, authored.client):
        # Through the reader's own eyes: what is published can be decoded and compiled.
        compile_policy(decode_policy(msgspec.json.encode(policy)))
    return authored


# ── the file, section by section ──────────────────────────────────────────────────────────────


def _not_reserved(value: str) -> str:
    if value == AUTO:
        raise wrong(f"'{AUTO}' is what clients write to leave the choice open; take another name")
    return value


ModelRef = Annotated[str, known("model or group")]


class _Price(FileModel):
    """Dollars per million tokens, and per request."""

    input: Dollars
    output: Dollars
    cached_input: Dollars | None = None
    cache_write: Dollars | None = None
    image_input: Dollars | None = None
    audio_input: Dollars | None = None
    audio_output: Dollars | None = None
    reasoning: Dollars | None = None
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
    endpoints: Some[EndpointName] = list(CONVERSATIONS)
    quality: Percent = 50
    speed: _Speed = _Speed()
    private: bool = False


class _Weights(FileModel):
    cost: Percent = 0
    latency: Percent = 0
    quality: Percent = 0


class _Cascade(FileModel):
    signal: Signal
    threshold: Annotated[int, Field(ge=0, le=1_000)]
    samples: Annotated[int, Field(ge=2, le=16)] = 3
    stream_waits: bool = True


class _Hedge(FileModel):
    after_ms: Millis | None = None
    max_extra_percent: Annotated[int, Field(ge=1, le=20)] = 5


class _Preference(FileModel):
    """Which models, in which order, and how long to wait for them."""

    models: Some[ModelRef]
    fallback: Some[ModelRef] | None = None
    optimize: Literal["cost", "latency", "quality", "balanced"] = "cost"
    weights: _Weights | None = None
    min_quality: Percent = 0
    max_cost: Dollars | None = None
    max_ttft_ms: Millis | None = None
    cascade: _Cascade | None = None
    hedge: _Hedge | None = None
    fallback_on: list[Cause] | None = None
    timeout_ms: Annotated[int, Field(ge=1, le=3_600_000)] | None = None

    @field_validator("weights")
    @classmethod
    def _weigh(cls, value: _Weights | None) -> _Weights | None:
        if value is not None and not (value.cost or value.latency or value.quality):
            raise wrong("weigh nothing; give at least one of cost, latency and quality")
        return value


class _Override(_Preference):
    """What a tier or a variant has instead of the route's own; the rest is the route's."""

    models: Some[ModelRef] = []


class _Variant(_Override):
    share: Share


class _Made(Struct, frozen=True, kw_only=True):
    """A row of the decision table, before its groups are taken apart."""

    name: str
    when: When
    also: tuple[Condition, ...]
    prefers: _Preference
    enforce: bool


Utterance = Annotated[str, Field(min_length=1, max_length=500)]


class _Route(_Preference):
    name: Name
    when: When = When()
    utterances: Annotated[list[Utterance], Field(min_length=1, max_length=200)] | None = None
    enforce: bool = False
    tiers: dict[TierRef, _Override] = {}
    split: Annotated[dict[Name, _Variant], Field(min_length=2)] | None = None

    def made(self) -> Iterator[_Made]:
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

    def _row(self, part: str, prefers: _Preference, also: tuple[Condition, ...]) -> _Made:
        name = f"{self.name}/{part}" if part else self.name
        if self.utterances is not None:
            also = (OneOf("semantic", (self.name,)), *also)
        return _Made(name=name, when=self.when, also=also, prefers=prefers, enforce=self.enforce)

    def with_(self, override: _Preference) -> _Preference:
        """Return what a tier or variant has: its own, and else the route's."""
        fields = override.model_fields_set & _Preference.model_fields.keys()
        return self.model_copy(update={field: getattr(override, field) for field in fields})


class _Endpoint(FileModel):
    url: URL
    region: Name = "global"


DataRef = Annotated[str, known("data class")]


class _HasData(FileModel):
    any: Unique[DataRef] = []
    all: Unique[DataRef] = []
    none: Unique[DataRef] = []


class _SpokenOf(When):
    """Which requests an invariant speaks of: a route's conditions, and classes of data."""

    data: Annotated[_HasData, BeforeValidator(any_of)] | None = None


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
    extends: str | None = None
    complexity_model: str | None = None
    semantic_model: Literal["words", "minilm"] = "words"
    judge_model: str | None = None
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

    def policy(
        self,
        *,
        channel: str,
        version: int,
        issued_at: int,
        complexity: ComplexityModel | None,
        semantic: SemanticModel | EmbeddingModel | None,
        judge: JudgeModel | None,
    ) -> Policy:
        """Return the policy as validators read it."""
        return Policy(
            channel=channel,
            version=version,
            issued_at=issued_at,
            tiers=tuple(self.tiers),
            models=tuple(self._model(name, model) for name, model in self.models.items()),
            routes=tuple(
                self._route(made, issued_at) for route in self.routes for made in route.made()
            ),
            data_classes={name: tuple(duties) for name, duties in self.data_classes.items()},
            last_resort=self.plain(self.last_resort),
            endpoints=tuple(
                Endpoint(id=name, url=endpoint.url, region=endpoint.region)
                for name, endpoint in self.endpoints.items()
            ),
            default_output_tokens=self.default_output_tokens,
            complexity=complexity,
            semantic=semantic if isinstance(semantic, SemanticModel) else None,
            embedding=semantic if isinstance(semantic, EmbeddingModel) else None,
            judge=judge,
        )

    def invariant(self, written: _Invariant, *, issued_at: int) -> Invariant:
        """Return what is to be proved."""
        then, data = written.then, written.when.data or _HasData()
        return Invariant(
            name=written.name,
            when=tuple(written.when.conditions(issued_at=issued_at)),
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
                cache_write_nusd_per_mtok=model.price.cache_write,
                image_input_nusd_per_mtok=model.price.image_input,
                audio_input_nusd_per_mtok=model.price.audio_input,
                audio_output_nusd_per_mtok=model.price.audio_output,
                reasoning_nusd_per_mtok=model.price.reasoning,
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

    def _route(self, made: _Made, issued_at: int) -> Route:
        prefers, weights = made.prefers, made.prefers.weights
        of_tier = any(isinstance(each, OneOf) and each.field == "tier" for each in made.also)
        when = made.when.model_copy(update={"tier": None}) if of_tier else made.when
        return Route(
            name=made.name,
            models=self.plain(prefers.models),
            when=(*when.conditions(issued_at=issued_at), *made.also),
            optimize=prefers.optimize,
            weights=Weights()
            if weights is None
            else Weights(cost=weights.cost, latency=weights.latency, quality=weights.quality),
            fallback=self.plain(prefers.fallback),
            min_quality=prefers.min_quality,
            max_cost_nusd=prefers.max_cost,
            max_ttft_ms=prefers.max_ttft_ms,
            enforce=made.enforce,
            fallback_on=None if prefers.fallback_on is None else tuple(prefers.fallback_on),
            cascade=_cascade(prefers.cascade),
            hedge=_hedge(prefers.hedge),
            timeout_ms=prefers.timeout_ms,
        )


def _cascade(written: _Cascade | None) -> Cascade | None:
    if written is None:
        return None
    return Cascade(
        signal=written.signal,
        threshold_per_mille=written.threshold,
        samples=written.samples,
        stream_waits=written.stream_waits,
    )


def _hedge(written: _Hedge | None) -> Hedge | None:
    if written is None:
        return None
    return Hedge(after_ms=written.after_ms, max_extra_percent=written.max_extra_percent)


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
        fields |= {"utterances"} & route.keys()
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
    for place, route in enumerate(written.routes):
        _check_route(file, ("routes", place), written, route)
    _check_names(file, written)
    _check_patterns(file, written)


def _check_route(
    file: YAMLFile, path: tuple[str | int, ...], written: PolicyFile, route: _Route
) -> None:
    if route.tiers and route.split is not None:
        file.find(
            (*path, "split"),
            "a route has 'tiers' or 'split', not both; write two routes, the narrower one first",
        )
    for tier in route.tiers:
        if route.when.tier is not None and tier not in route.when.tier:
            file.find(
                (*path, "tiers", tier), f"'{route.name}' is not for tier '{tier}'; see its 'when'"
            )
    variants = route.split or {}
    total = sum(variant.share for variant in variants.values())
    if variants and total != SHARES:
        file.find((*path, "split"), f"the shares are {total / 100:g}% together; make them 100%")
    for name, variant in variants.items():
        if not variant.share:
            file.find((*path, "split", name, "share"), "is nobody; delete the variant")
    own: list[tuple[tuple[str | int, ...], _Preference]] = [(path, route)]
    own += [((*path, "tiers", name), each) for name, each in route.tiers.items()]
    own += [((*path, "split", name), each) for name, each in variants.items()]
    for where, each in own:
        said = each.model_fields_set
        objective = each.optimize if each is route or "optimize" in said else route.optimize
        if each.weights is not None and objective != "balanced":
            file.find((*where, "weights"), "are only looked at with 'optimize: balanced'")
        if each.cascade is not None or (route.cascade is not None and each is not route):
            _check_cascade(file, where, written, each if each is route else route.with_(each))


def _check_cascade(
    file: YAMLFile, path: tuple[str | int, ...], written: PolicyFile, prefers: _Preference
) -> None:
    cascade = prefers.cascade
    if cascade is None:
        return
    if "optimize" in prefers.model_fields_set:
        file.find(
            (*path, "optimize"),
            "is not looked at in a cascade, which asks the models in the order written; delete"
            " one of the two",
        )
    if len(written.plain(prefers.models)) < 2:
        file.find((*path, "cascade"), "needs two models at least, cheapest first")
    if cascade.signal == "judge" and written.judge_model is None:
        file.find(
            (*path, "cascade", "signal"),
            "needs a judge_model, which 'waypost policy calibrate --out' writes",
        )
    if cascade.signal != "self_consistency" and "samples" in cascade.model_fields_set:
        file.find(
            (*path, "cascade", "samples"),
            "is only looked at with 'signal: self_consistency'; delete it",
        )


def _check_names(file: YAMLFile, written: PolicyFile) -> None:
    named = {route.name for route in written.routes}
    for place, route in enumerate(written.routes):
        for section, parts in (("tiers", route.tiers), ("split", route.split or {})):
            for part in cast("Mapping[str, object]", parts):
                name, path = f"{route.name}/{part}", ("routes", place, section, part)
                if len(name) > MAX_NAME:
                    file.find(path, f"makes the name '{name}', longer than {MAX_NAME}; shorten it")
                if name in named:
                    file.find(path, f"makes a route '{name}', and there is one; rename one")
                named.add(name)


def _check_patterns(file: YAMLFile, written: PolicyFile) -> None:
    patterns: set[str] = set()
    for place, route in enumerate(written.routes):
        has = route.when.patterns
        if has is not None:
            patterns.update((*has.any, *has.all, *has.none))
        if len(patterns) > MAX_PATTERNS:
            return file.find(
                ("routes", place, "when", "patterns"),
                f"brings the policy to {len(patterns)} patterns, and {MAX_PATTERNS} are the most;"
                " join some with '|'",
            )
    return None


def _complexity(file: YAMLFile, folder: Path) -> ComplexityModel | None:
    model = _trained(file, folder, "complexity_model", ComplexityModel, by="train")
    try:
        if model is not None:
            ComplexityScorer(model)
    except PolicyError as exc:
        file.find(("complexity_model",), exc.message)
    return model


def _trained(file: YAMLFile, folder: Path, field: str, kind: type[T], *, by: str) -> T | None:
    """Return the model that ``field`` names the file of, if it names one."""
    name = file.value.get(field)
    if name is None:
        return None
    problem = ""
    try:
        path = beside(folder, name)
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"is larger than {MAX_FILE_BYTES // 1024} KiB")
        return msgspec.json.decode(data, type=kind)
    except OSError as exc:
        problem = f"cannot read '{name}': {exc.strerror}"
    except msgspec.MsgspecError as exc:
        problem = f"is not what 'waypost policy {by} --out' writes: {exc}"
    except ValueError as exc:
        problem = str(exc)
    file.find((field,), problem)
    return None


def _semantic(file: YAMLFile, written: PolicyFile) -> SemanticModel | EmbeddingModel | None:
    """Return what tells the routes with utterances apart, if there are any."""
    examples = {
        route.name: route.utterances for route in written.routes if route.utterances is not None
    }
    if not examples:
        return None
    first = next(at for at, route in enumerate(written.routes) if route.utterances is not None)
    by_meaning = written.semantic_model == "minilm"
    try:
        if by_meaning:
            from waypost.edge.training.embeddings import compile_embeddings

            return compile_embeddings(examples, seed=0)
        from waypost.edge.training.utterances import compile_utterances

        return compile_utterances(examples, seed=0)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.startswith("waypost"):
            raise
        problem = f"need an extra: pip install 'waypost[{'semantic,' if by_meaning else ''}train]'"
    except PolicyError as exc:
        problem = exc.message
    file.find(("routes", first, "utterances"), problem)
    return None
