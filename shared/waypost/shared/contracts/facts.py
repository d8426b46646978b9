"""What a decision is made from, by who vouches for it."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from waypost.shared.contracts.common import Instant, Name
from waypost.shared.contracts.manifest import Extra
from waypost.shared.money import Nusd, Tokens
from waypost.shared.pictures import Picture

__all__ = [
    "AUTO",
    "CAPABILITIES",
    "CONVERSATIONS",
    "ENDPOINTS",
    "Declared",
    "Demands",
    "Facts",
    "Measured",
    "Proposal",
    "Session",
    "Signed",
]

# What a caller writes in the body's ``model`` to leave the choice to Waypost.
AUTO = "auto"

# What a model may be able to do beyond text; a request's needs are drawn from the same list.
CAPABILITIES = ("audio", "json", "tools", "vision")

# Which API a request came by.
ENDPOINTS = ("chat.completions", "completions", "embeddings", "messages", "responses")

# Of these, the ones that say the same in other words, so that a model can be asked by any.
CONVERSATIONS = ("chat.completions", "messages", "responses")


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
        pictures: each of the prompt, in no other count than ``input_tokens``. Where it is left out,
            ``max_input_tokens`` has them.
        extras: what no length bounds, or has another price.
        reasoning_tokens: what the answer must have room for before it begins.
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
    pictures: tuple[Picture, ...] | UnsetType = UNSET
    extras: tuple[Extra, ...] | UnsetType = UNSET
    reasoning_tokens: Tokens | UnsetType = UNSET


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
