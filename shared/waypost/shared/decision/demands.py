"""What a request's own body demands of whoever serves it, in OpenRouter's words. Pure.

``{"provider": {"only": ["mistral"], "data_collection": "deny"}, "models": ["large", "medium"]}``

The rule: it may narrow the set and reorder what is in it, never widen it. A key or value that
is not known is an error, since a demand that is quietly not met would be a breach; and what a
provider has not promised counts as not done: it trains on what it sees, and keeps it.
"""

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Annotated, Literal

from msgspec import Meta, Raw, Struct

from waypost.shared.contracts import AUTO, Demands, Model, Name
from waypost.shared.errors import InvalidRequestError
from waypost.shared.money import NUSD_PER_USD

__all__ = ["ABSENT", "Demanding", "demanded", "require_parameters", "unknown", "unmet"]

Names = Annotated[tuple[Name, ...], Meta(min_length=1, max_length=64)]
Dollars = Annotated[float, Meta(ge=0, le=1_000_000)] | None
Sort = Literal["price", "latency", "throughput"]

# Parameters that every model of the API takes, or that are capabilities, which are always required.
# Of any other, nobody has written down which models honour it.
_TAKEN_BY_ALL = frozenset(
    {
        "functions",
        "input",
        "instructions",
        "max_completion_tokens",
        "max_output_tokens",
        "max_tokens",
        "messages",
        "metadata",
        "model",
        "models",
        "n",
        "output_config",
        "prompt",
        "provider",
        "response_format",
        "stop",
        "stream",
        "stream_options",
        "system",
        "temperature",
        "text",
        "tool_choice",
        "tools",
        "top_p",
        "user",
    }
)


class MaxPrice(Struct, frozen=True, forbid_unknown_fields=True):
    """The dearest price, in dollars: per million tokens, and per request."""

    prompt: Dollars = None
    completion: Dollars = None
    request: Dollars = None


class ProviderDemands(Struct, frozen=True, forbid_unknown_fields=True):
    """The body's ``provider`` object, as it is written."""

    order: Names | None = None
    only: Names | None = None
    ignore: Names | None = None
    allow_fallbacks: bool | None = None
    require_parameters: bool | None = None
    data_collection: Literal["allow", "deny"] | None = None
    zdr: bool | None = None
    max_price: MaxPrice | None = None
    sort: Sort | None = None


# Raw cannot be one of several types, so its absence has to be a Raw as well.
ABSENT = Raw()


class Demanding(Struct, kw_only=True):
    """What the requests of all APIs may say of models and providers, and order beside tokens."""

    model: Annotated[str, Meta(min_length=1, max_length=200)] = AUTO
    models: Names | None = None
    provider: ProviderDemands | None = None
    service_tier: Raw = ABSENT
    speed: Raw = ABSENT
    inference_geo: Raw = ABSENT
    enable_search: Raw = ABSENT
    extra_body: Raw = ABSENT
    mcp_servers: Raw = ABSENT
    plugins: Raw = ABSENT
    search_parameters: Raw = ABSENT
    web_search_options: Raw = ABSENT
    # How much a model may think, in the words of Anthropic, OpenRouter, and Alibaba.
    thinking: Raw = ABSENT
    reasoning: Raw = ABSENT
    thinking_budget: Raw = ABSENT


def demanded(request: Demanding) -> Demands | None:
    """Return what ``request`` demands; ``None`` if nothing."""
    provider, models = request.provider, request.models
    if provider is None:
        if models is None:
            return None
        provider = ProviderDemands()
    price = provider.max_price or MaxPrice()
    only, order = provider.only, provider.order or ()
    may_fall_back = provider.allow_fallbacks is not False
    if order and not may_fall_back:
        # Of those named each may be tried; it is others that must not.
        only = tuple(name for name in order if only is None or name in only)
        may_fall_back = True
    promises = (
        *(("no_training",) if provider.data_collection == "deny" else ()),
        *(("zero_retention",) if provider.zdr else ()),
    )
    # The body's own model comes before the others, as it does at OpenRouter.
    own = () if request.model == AUTO else (request.model,)
    return Demands(
        models=() if models is None else tuple(dict.fromkeys((*own, *models))),
        providers=only,
        not_providers=provider.ignore or (),
        provider_order=order,
        promises=promises,
        max_input_nusd_per_mtok=_nusd(price.prompt),
        max_output_nusd_per_mtok=_nusd(price.completion),
        max_request_nusd=_nusd(price.request),
        sort=provider.sort,
        may_fall_back=may_fall_back,
    )


def _nusd(dollars: float | None) -> int | None:
    # As it was written, and then cut, not rounded: a ceiling is never raised.
    return None if dollars is None else int(Decimal(repr(dollars)) * NUSD_PER_USD)


def require_parameters(fields: Iterable[str]) -> None:
    """Refuse a body whose ``fields`` nobody can promise a model for.

    Raises:
        InvalidRequestError: ``parameter_unsupported``.
    """
    for field in fields:
        if field not in _TAKEN_BY_ALL:
            shown = field if re.fullmatch(r"[a-z_]{1,40}", field) else "a parameter"
            raise InvalidRequestError(
                f"provider.require_parameters: no policy says which models take {shown}, so none"
                " can be promised; leave out one of the two.",
                code="parameter_unsupported",
                param="provider.require_parameters",
            )


def unknown(demands: Demands, *, models: Mapping[str, Model]) -> str:
    """Return the code for a model or provider that is named and does not exist; ``""`` if none."""
    if not models.keys() >= {*demands.models}:
        return "unknown_model"
    providers = {model.provider for model in models.values()}
    named = (*(demands.providers or ()), *demands.not_providers, *demands.provider_order)
    return "" if providers.issuperset(named) else "unknown_provider"


def unmet(demands: Demands, model: Model) -> str:
    """Return the clause that says which demand ``model`` does not meet; ``""`` if none."""
    if demands.models and model.id not in demands.models:
        return "the request's models leave it out"
    if demands.providers is not None and model.provider not in demands.providers:
        return "the request wants other providers"
    if model.provider in demands.not_providers:
        return f"the request wants {model.provider} ignored"
    missing = [promise for promise in demands.promises if promise not in model.promises]
    if missing:
        return f"{model.provider} has not promised {' or '.join(missing)}, which the request wants"
    price = model.price
    for dearest, paid in (
        (demands.max_input_nusd_per_mtok, price.input_nusd_per_mtok),
        (demands.max_output_nusd_per_mtok, price.output_nusd_per_mtok),
        (demands.max_request_nusd, price.request_nusd),
    ):
        if dearest is not None and paid > dearest:
            return "it is dearer than the request's max_price"
    return ""
