"""What travels: the documents that are signed, and the facts a decision is made from.

Each is a frozen ``msgspec.Struct`` decoded strictly (no int from a string, no bool from an int,
no NaN). Unknown fields are ignored, so that an old reader can read a newer document; a change
an old reader must not ignore is named in ``must_understand``, and it refuses.

Units are in the names: ``_ms`` milliseconds, ``_s`` seconds, ``_nusd`` nano-dollars; instants
are Unix seconds.
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.json import Decoder

from waypost.shared.money import Nusd, Price, Tokens
from waypost.shared.scoring.complexity import ComplexityModel
from waypost.shared.scoring.embedding import EmbeddingModel
from waypost.shared.scoring.judge import JudgeModel
from waypost.shared.scoring.semantic import SemanticModel

__all__ = [
    "ALGORITHMS",
    "AUTO",
    "CAPABILITIES",
    "CONVERSATIONS",
    "ENDPOINTS",
    "SUPPORTED_FEATURES",
    "Algorithm",
    "Cascade",
    "Cause",
    "Claims",
    "ClockBetween",
    "Condition",
    "Confirmation",
    "Declared",
    "Demands",
    "Endpoint",
    "Facts",
    "Hedge",
    "Hint",
    "Hints",
    "Issuer",
    "IssuerKey",
    "Issuers",
    "Limits",
    "Measured",
    "Model",
    "Name",
    "NumberBetween",
    "OneOf",
    "Policy",
    "Proposal",
    "Route",
    "Session",
    "Share",
    "Signal",
    "Signed",
    "SpendLimit",
    "TextHas",
    "Weights",
    "Window",
    "YesNo",
    "Zone",
    "decode_hints",
    "decode_issuers",
    "decode_policy",
]

# What a caller writes in the body's ``model`` to leave the choice to Waypost.
AUTO = "auto"

# What a model may be able to do beyond text; a request's needs are drawn from the same list.
CAPABILITIES = ("audio", "json", "tools", "vision")

# Which API a request came by.
ENDPOINTS = ("chat.completions", "completions", "embeddings", "messages", "responses")

# Of these, the ones that say the same in other words, so that a model can be asked by any.
CONVERSATIONS = ("chat.completions", "messages", "responses")

# ``must_understand`` entries this version honours. A document naming any other is refused.
SUPPORTED_FEATURES: frozenset[str] = frozenset({"price_above"})

# \Z and not $ in all patterns: $ lets a trailing line break through.
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}\Z")]
Instant = Annotated[int, Meta(ge=0, le=2**40)]
Version = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Millis = Annotated[int, Meta(ge=0, le=86_400_000)]
Percent = Annotated[int, Meta(ge=0, le=100)]


# ── the policy: which models exist, what they promise, who may use them ───────────────────────


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


# 32 bytes in canonical base64url: the last letter has four bits, so that one key has one spelling.
_Digest = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]\Z")]
_Integer = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,700}\Z")]
_Word = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+\Z")]
Epoch = Annotated[int, Meta(ge=0, lt=2**53)]

Algorithm = Literal["EdDSA", "ES256", "RS256"]
ALGORITHMS: tuple[Algorithm, ...] = ("EdDSA", "ES256", "RS256")


class IssuerKey(Struct, frozen=True, kw_only=True):
    """One public key of a token issuer, as RFC 7517 writes an OKP, EC or RSA key.

    ``alg`` is the key's single algorithm (RFC 8725 §3.1): a token saying another is refused.
    """

    kid: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
    alg: Algorithm
    x: _Digest | None = None
    y: _Digest | None = None
    n: _Integer | None = None
    e: _Integer | None = None
    status: Literal["active", "retiring", "revoked"] = "active"
    not_before: Instant = 0
    expires_at: Instant | None = None


class Issuer(Struct, frozen=True, kw_only=True):
    """One token issuer, and what it is trusted to say.

    Attributes:
        algorithms: of its keys; a key of another is refused with the whole document.
        min_iat: revokes everything it issued before that instant.
        scope: what a token's ``scope`` must hold; ``None`` asks for none.
        tenants: those it may speak for; ``None``: any.
        one_time: each of its tokens counts once, whatever the token says.
        dpop: whether its tokens must be bound to a key (RFC 9449).
        bearer_clients: by ``client_id``, those whose tokens need not be.
    """

    iss: Annotated[str, Meta(min_length=1, max_length=300)]
    keys: tuple[IssuerKey, ...]
    algorithms: tuple[Algorithm, ...] = ALGORITHMS
    max_lifetime_s: Annotated[int, Meta(ge=1, le=86_400)] = 3_600
    min_iat: Instant = 0
    scope: _Word | None = None
    tenants: tuple[Name, ...] | None = None
    one_time: bool = False
    dpop: Literal["optional", "required"] = "optional"
    bearer_clients: tuple[_Word, ...] = ()


class Issuers(Struct, frozen=True, kw_only=True):
    """Target ``issuers/<channel>.json``: who may issue tokens, and which of them are revoked.

    Attributes:
        revoked_jtis: token ids, each as ``<iss> <jti>``.
        min_iat_by_subject: subject, as ``<iss> <sub>`` → instant before which its tokens fall.
        min_iat_by_tenant: tenant, as ``<iss> <tenant>`` → likewise.
        min_epoch_by_subject: subject → the lowest ``auth_epoch`` that its tokens may have.
    """

    channel: Name
    version: Version
    issued_at: Instant
    issuers: tuple[Issuer, ...] = ()
    revoked_jtis: tuple[str, ...] = ()
    min_iat_by_subject: dict[str, Instant] = {}
    min_iat_by_tenant: dict[str, Instant] = {}
    min_epoch_by_subject: dict[str, Epoch] = {}
    kind: Literal["issuers"] = "issuers"
    schema: Literal[1] = 1
    must_understand: tuple[str, ...] = ()


decode_policy = Decoder(Policy).decode
decode_hints = Decoder(Hints).decode
decode_issuers = Decoder(Issuers).decode


# ── the access token ───────────────────────────────────────────────────────────────────────────

Window = Literal["request", "minute", "hour", "day", "week", "month", "total"]


class SpendLimit(Struct, frozen=True, kw_only=True):
    """At most ``limit_nusd`` in each calendar ``window`` of the ledger; ``total`` never resets."""

    window: Window
    limit_nusd: Nusd


class Limits(Struct, frozen=True, kw_only=True):
    """The limits of one account, as ceilings: the lowest of several holds."""

    account: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}\Z")]
    limits: tuple[SpendLimit, ...] = ()


TokenId = Annotated[str, Meta(min_length=16, max_length=128, pattern=r"^[\x21-\x7e]+\Z")]


class Confirmation(Struct, frozen=True, forbid_unknown_fields=True):
    """The key that a token is bound to: its RFC 7638 thumbprint (RFC 9449 §6.1).

    Another kind of bond than this one cannot be checked, and so must not be overlooked.
    """

    jkt: _Digest


class Claims(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An access token's claims: RFC 9068's, and ours. Grants are ceilings; the rest narrows.

    Attributes:
        cnf: the key whose holder alone may use the token.
        scope: words with spaces between (RFC 8693 §4.2); an issuer may have to give one.
        auth_epoch: how often the subject's tokens had been taken back when this was made.
        one_time: the token counts once.
        allowances: further accounts, each with limits of its own, that must all be able to pay.
        tier: must be one of the policy's tiers.
        budget: the account that pays, and ceilings for it. The ledger's own limits hold too.
        data_classes: duties that always hold for this caller.
        models: narrows the set; ``None`` leaves it as the tier has it.
    """

    iss: Annotated[str, Meta(min_length=1, max_length=300)]
    aud: Annotated[str, Meta(min_length=1, max_length=300)]
    sub: _Word
    exp: Instant
    iat: Instant
    jti: TokenId
    client_id: _Word
    tier: Name
    budget: Limits
    nbf: Instant = 0
    tenant: Name | None = None
    region: Name | None = None
    data_classes: tuple[Name, ...] = ()
    models: tuple[Name, ...] | None = None
    scope: Annotated[str, Meta(max_length=1_000)] = ""
    auth_epoch: Epoch = 0
    one_time: bool = False
    allowances: Annotated[tuple[Limits, ...], Meta(max_length=4)] = ()
    cnf: Confirmation | UnsetType = UNSET  # never null: that would be a bond taken off


# ── facts: what a decision is made from, by who vouches for them ───────────────────────────────


class Signed(Struct, frozen=True, kw_only=True):
    """Vouched for by the access token.

    Attributes:
        cohort: a short hash of who asks (``waypost.shared.decision.rules.cohort``): enough to share
            out callers, too little to tell them apart.
    """

    tier: str
    cohort: Annotated[int, Meta(ge=0, lt=2**20)] = 0
    tenant: str | None = None
    region: str | None = None
    data_classes: tuple[str, ...] = ()
    models: tuple[str, ...] | None = None


class Demands(Struct, frozen=True, kw_only=True):
    """What the request's own body demands of whoever serves it: may narrow and reorder.

    Attributes:
        models: only these, in this order; empty: any.
        providers: only these; ``None``: any.
        not_providers: none of these.
        provider_order: these first, in this order.
        promises: what the provider must have promised; one that is not known counts as not made.
        max_input_nusd_per_mtok, max_output_nusd_per_mtok, max_request_nusd: the dearest price.
        sort: by what the candidates are compared, instead of the route's ``optimize``.
        may_fall_back: whether another model may answer when the first does not.
    """

    models: tuple[Name, ...] = ()
    providers: tuple[Name, ...] | None = None
    not_providers: tuple[Name, ...] = ()
    provider_order: tuple[Name, ...] = ()
    promises: tuple[Name, ...] = ()
    max_input_nusd_per_mtok: Nusd | None = None
    max_output_nusd_per_mtok: Nusd | None = None
    max_request_nusd: Nusd | None = None
    sort: Literal["price", "latency", "throughput"] | None = None
    may_fall_back: bool = True


class Measured(Struct, frozen=True, kw_only=True):
    """Seen by whoever decides, in the request itself or in its own state.

    Attributes:
        input_bytes: UTF-8 length of all text.
        input_tokens: estimate that rules compare and prices are compared by.
        max_input_tokens: no tokenizer makes more of this prompt; bounds the cost.
        max_output_tokens: per answer, as the caller asked; ``None``: the model's own limit.
        choices: answers asked for (OpenAI's ``n``).
        needs: capabilities the request uses.
        keywords: words of the policy's vocabulary found in the newest user message.
        patterns, complexity, semantic, language: likewise of the newest user message, where the
            policy asks; ``None`` if nobody looked. ``semantic`` and ``language`` are ``""`` where
            nothing was recognised.
        affordable_nusd: what the account can still pay for this request; ``None`` unbounded.
        out_of_service: models whose breaker is open.
        untranslatable: models whose provider speaks an API that cannot express this request.
        demands: ``None`` where the body makes none.
        keeps_cache: whether it asks that a cache keeps the prompt for an hour, which costs more.
    """

    endpoint: str = "chat.completions"
    input_bytes: Tokens = 0
    input_tokens: Tokens = 0
    max_input_tokens: Tokens = 0
    max_output_tokens: Tokens | None = None
    choices: Tokens = 1
    messages: Tokens = 1
    needs: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    patterns: tuple[str, ...] | None = None
    complexity: Annotated[int, Meta(ge=0, le=1_000)] | None = None
    semantic: str | None = None
    language: str | None = None
    data_classes: tuple[str, ...] = ()
    affordable_nusd: int | None = None
    out_of_service: tuple[str, ...] = ()
    untranslatable: tuple[str, ...] = ()
    demands: Demands | None = None
    # Left out where it is not so: digests of facts are on record.
    keeps_cache: Literal[True] | UnsetType = UNSET


class Session(Struct, frozen=True):
    """Which model the conversation is with, and how much of its prompt that has in its cache.

    Kept by the client, vouched for by nobody: advice on which candidate is cheapest.
    """

    model: Name
    cached_tokens: Tokens


class Declared(Struct, frozen=True, kw_only=True):
    """Said by the client. May add duties and steer preference; never widens the set."""

    interactive: bool = True
    task: str | None = None
    tags: tuple[str, ...] = ()
    data_classes: tuple[str, ...] = ()
    expected_output_tokens: Tokens | None = None
    session: Session | None = None


class Facts(Struct, frozen=True, kw_only=True):
    """Everything a decision may depend on, time included, so that it can be replayed."""

    now: Instant
    signed: Signed
    measured: Measured = Measured()
    declared: Declared = Declared()


class Proposal(Struct, frozen=True, kw_only=True):
    """What the client would choose: a model, and how it came to it.

    ``otherwise`` is tried next, on the same terms. Without it all clients of a failing model
    would be sent to the same other one, and herd there. ``route`` is the row that chose the model,
    ``None`` where somebody asked for it by name.
    """

    model: str
    otherwise: str | None = None
    route: str | None = None
    manifest: int | None = None
