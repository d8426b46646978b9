"""Reads policy.yaml, as people write it, into the documents that are signed.

People write dollars, groups and promises per provider; machines read nano-dollars and plain
lists. ``policy_file`` is what they may write, ``policy_checks`` what makes no sense together; only
a file without a finding becomes a policy.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import UNSET, Struct, structs

from waypost.cli.yamlfile import MAX_FILE_BYTES, FileError, YAMLFile
from waypost.edge.authoring.invariants import DataHas, Invariant, MaxCost
from waypost.edge.authoring.layers import beside, read_layers
from waypost.edge.authoring.policy_checks import check_rows, check_sense
from waypost.edge.authoring.policy_file import (
    HasData,
    PolicyFile,
    Row,
    WrittenCascade,
    WrittenHedge,
    WrittenInvariant,
    WrittenModel,
)
from waypost.shared.contracts import (
    Cascade,
    Endpoint,
    Hedge,
    Model,
    OneOf,
    Policy,
    Route,
    Weights,
    decode_policy,
)
from waypost.shared.decision.compiled import compile_policy
from waypost.shared.errors import PolicyError
from waypost.shared.scoring.complexity import ComplexityModel, ComplexityScorer
from waypost.shared.scoring.embedding import EmbeddingModel
from waypost.shared.scoring.judge import JudgeModel
from waypost.shared.scoring.semantic import SemanticModel

__all__ = ["Authored", "load_policy"]

T = TypeVar("T")


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
            name
            for _, row in file.rows("routes")
            if "utterances" in row and isinstance(name := row.get("name"), str)
        },
    }
    for name in sorted(models & file.names("groups")):
        file.find(("groups", name), "is a model's name as well; rename the group")
    written = file.read(PolicyFile, context=known_names)
    check_rows(file)
    complexity = _complexity(file, path.parent)
    judge = _trained(file, path.parent, "judge_model", JudgeModel, by="calibrate")
    semantic: SemanticModel | EmbeddingModel | None = None
    if written is not None:
        check_sense(file, written)
        semantic = _semantic(file, written)
    if written is None or file.findings:
        raise FileError(file.findings)
    full = _policy(
        written,
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
        tuple(_invariant(written, each, issued_at=issued_at) for each in written.invariants),
        {row.name: at for at, route in enumerate(written.routes) for row in route.rows()},
    )
    for policy in (authored.full, authored.client):
        try:
            # Through the reader's own eyes: what is published can be decoded and compiled.
            compile_policy(decode_policy(msgspec.json.encode(policy)))
        except PolicyError as exc:
            file.find(_place_of(exc, authored), exc.message)
            raise FileError(file.findings) from None
    return authored


def _place_of(exc: PolicyError, authored: Authored) -> tuple[str | int, ...]:
    """Return the place of the first route that a contradiction is about; the file's, if of none."""
    named = (name for name in authored.places if f"route '{name}'" in exc.message)
    first = min(named, key=lambda name: exc.message.index(f"'{name}'"), default=None)
    return () if first is None else ("routes", authored.places[first])


# ── from the file to what is signed ──────────────────────────────────────────────────────────────


def _policy(
    written: PolicyFile,
    *,
    channel: str,
    version: int,
    issued_at: int,
    complexity: ComplexityModel | None,
    semantic: SemanticModel | EmbeddingModel | None,
    judge: JudgeModel | None,
) -> Policy:
    models = tuple(_model(written, name, model) for name, model in written.models.items())
    return Policy(
        channel=channel,
        version=version,
        issued_at=issued_at,
        tiers=tuple(written.tiers),
        models=models,
        routes=tuple(
            _route(written, row, issued_at) for route in written.routes for row in route.rows()
        ),
        data_classes={name: tuple(duties) for name, duties in written.data_classes.items()},
        last_resort=written.plain(written.last_resort),
        endpoints=tuple(
            Endpoint(id=name, url=endpoint.url, region=endpoint.region)
            for name, endpoint in written.endpoints.items()
        ),
        default_output_tokens=written.default_output_tokens,
        complexity=complexity,
        semantic=semantic if isinstance(semantic, SemanticModel) else None,
        embedding=semantic if isinstance(semantic, EmbeddingModel) else None,
        judge=judge,
        must_understand=_must_understand(models),
    )


def _must_understand(models: Sequence[Model]) -> tuple[str, ...]:
    """Return what a validator must know of, or it would hold and charge too little."""
    # In the order of their names, as each policy has one spelling.
    says: dict[str, Callable[[Model], object]] = {
        "hosted_tools": lambda model: model.hosted_tools,
        "part_tokens": lambda model: model.part_tokens,
        "picture_tokens": lambda model: model.pictures,
        "price_above": lambda model: model.price.above,
        "price_factors": lambda model: model.price.factors,
    }
    return tuple(name for name, of in says.items() if any(map(of, models)))


def _invariant(written: PolicyFile, claim: WrittenInvariant, *, issued_at: int) -> Invariant:
    then, data = claim.then, claim.when.data or HasData()
    return Invariant(
        name=claim.name,
        when=tuple(claim.when.conditions(issued_at=issued_at)),
        data=DataHas(any_of=tuple(data.any), all_of=tuple(data.all), none_of=tuple(data.none)),
        promises=tuple(then.promises or ()),
        models=None if then.models is None else written.plain(then.models),
        providers=None if then.providers is None else tuple(then.providers),
        regions=None if then.regions is None else tuple(then.regions),
        max_cost=None
        if then.max_cost is None or then.for_ is None
        else MaxCost(then.max_cost, then.for_.input_tokens, then.for_.output_tokens),
        has_fallback=bool(then.has_fallback),
        never_refused=bool(then.never_refused),
    )


def _model(written: PolicyFile, name: str, model: WrittenModel) -> Model:
    return Model(
        id=name,
        provider=model.provider,
        name=model.name or name,
        price=model.price.manifest(),
        tiers=tuple(model.tiers),
        context_tokens=model.tokens.context,
        max_output_tokens=model.tokens.output,
        region=written.region(model),
        promises=written.promises(model),
        capabilities=tuple(sorted(model.capabilities)),
        endpoints=tuple(model.endpoints),
        quality=model.quality,
        ttft_prior_ms=model.speed.ttft_ms,
        tokens_per_s_prior=model.speed.tokens_per_s,
        pictures=model.pictures,
        part_tokens=tuple(sorted(model.part_tokens.items())) or UNSET,
        hosted_tools=model.tools,
    )


def _route(written: PolicyFile, row: Row, issued_at: int) -> Route:
    prefers, weights = row.prefers, row.prefers.weights
    of_tier = any(isinstance(each, OneOf) and each.field == "tier" for each in row.also)
    when = row.when.model_copy(update={"tier": None}) if of_tier else row.when
    return Route(
        name=row.name,
        models=written.plain(prefers.models),
        when=(*when.conditions(issued_at=issued_at), *row.also),
        optimize=prefers.optimize,
        weights=Weights()
        if weights is None
        else Weights(cost=weights.cost, latency=weights.latency, quality=weights.quality),
        fallback=written.plain(prefers.fallback),
        min_quality=prefers.min_quality,
        max_cost_nusd=prefers.max_cost,
        max_ttft_ms=prefers.max_ttft_ms,
        enforce=row.enforce,
        fallback_on=None if prefers.fallback_on is None else tuple(prefers.fallback_on),
        cascade=_cascade(prefers.cascade),
        hedge=_hedge(prefers.hedge),
        timeout_ms=prefers.timeout_ms,
    )


def _cascade(written: WrittenCascade | None) -> Cascade | None:
    if written is None:
        return None
    return Cascade(
        signal=written.signal,
        threshold_per_mille=written.threshold,
        samples=written.samples,
        stream_waits=written.stream_waits,
    )


def _hedge(written: WrittenHedge | None) -> Hedge | None:
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


# ── what was learned ─────────────────────────────────────────────────────────────────────────────


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
    except (msgspec.MsgspecError, RecursionError) as exc:
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
