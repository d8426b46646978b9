"""The operator's prices and windows beside those that genai-prices has collected. Pure."""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from importlib.metadata import version
from typing import cast

from genai_prices.data import providers
from genai_prices.types import ModelInfo, Provider, TieredPrices

from waypost.shared.contracts import Model
from waypost.shared.money import NUSD_PER_USD, format_usd

__all__ = ["SOURCE", "differences", "imported", "is_known"]

SOURCE = f"genai-prices {version('genai-prices')}"

# Summed over all inputs of one request; each of them may have 8,192. OpenAI's API reference,
# "Create embeddings", 2026-11; weaviate#8085, 2025-05.
OPENAI_EMBEDDED_TOKENS = 300_000

FIELDS = {
    "input": ("input_mtok", "input_nusd_per_mtok"),
    "output": ("output_mtok", "output_nusd_per_mtok"),
    "cached_input": ("cache_read_mtok", "cached_input_nusd_per_mtok"),
    "cache_write": ("cache_write_mtok", "cache_write_nusd_per_mtok"),
    "cache_write_1h": ("cache_write_1h_mtok", "cache_write_1h_nusd_per_mtok"),
    "reasoning": ("output_reasoning_mtok", "reasoning_nusd_per_mtok"),
    "image_input": ("input_image_mtok", "image_input_nusd_per_mtok"),
    "audio_input": ("input_audio_mtok", "audio_input_nusd_per_mtok"),
    "audio_output": ("output_audio_mtok", "audio_output_nusd_per_mtok"),
}


def is_known(model: Model) -> bool:
    """Return whether the collection has this model at this provider."""
    return _find(model.provider, model.name) is not None


def imported(models: Mapping[str, object], *, at: datetime) -> str:
    """Return a file of prices and context windows for a policy to extend.

    Args:
        models: as written under ``models``, right or wrong; of each its ``provider``, ``name``
            and ``tokens.output`` are looked at.
        at: the day that the prices are of; with a time zone.
    """
    lines = [
        f"# Written by 'waypost policy prices' from {SOURCE}, prices of {at:%Y-%m-%d}.",
        "# Lay your policy over it with 'extends', and write down what your contract says else.",
        "models:",
    ]
    for name, written in models.items():
        fields = cast("dict[str, object]", written) if isinstance(written, dict) else {}
        provider, own = str(fields.get("provider")), str(fields.get("name", name))
        found = _find(provider, own)
        if found is None:
            lines.append(f"  # {name}: {SOURCE} does not have {provider}'s '{own}'")
            continue
        lines += [f"  {name}:  # {_address(found[0])}", *_figures(found[1], fields, at)]
    return "\n".join(lines) + "\n"


def _figures(info: ModelInfo, written: Mapping[str, object], at: datetime) -> Iterator[str]:
    listed = info.get_prices(at)
    prices = {field: getattr(listed, theirs) for field, (theirs, _) in FIELDS.items()}
    figures = [
        f"{field}: {price:f}"
        for field, each in prices.items()
        if isinstance(price := _base(each), Decimal)
    ]
    if listed.web_searches_kcount is not None:
        figures.append(f"per_call: {{web_search: {_per_call(listed.web_searches_kcount):f}}}")
    steps = _steps(prices)
    if not steps:
        yield f"    price: {{{', '.join(figures)}}}"
    else:
        yield "    price:"
        yield from (f"      {figure}" for figure in figures)
        yield "      above:"
        yield from (
            f"        {at}: {{{', '.join(raised)}}}" for at, raised in sorted(steps.items())
        )
    rule = _picture_rule(str(written.get("provider")), info.id)
    if rule is not None and "vision" in cast("list[object]", written.get("capabilities") or []):
        yield f"    picture_tokens: {rule}"
    tokens = written.get("tokens")
    output = cast("dict[str, object]", tokens).get("output") if isinstance(tokens, dict) else None
    is_embedding = "embeddings" in cast("list[object]", written.get("endpoints") or [])
    if info.context_window is not None and isinstance(output, int) and not is_embedding:
        yield f"    tokens: {{context: {info.context_window}, output: {output}}}"


def _per_call(kcount: object) -> Decimal:
    price = _base(kcount)
    return (price if isinstance(price, Decimal) else Decimal(str(price))) / 1_000


# How a model's pictures are bounded, by its provider and name; see ``waypost.shared.pictures``.
_PICTURES = (
    ("openai", r"gpt-4o-mini", "openai-tiles-gpt-4o-mini"),
    ("openai", r"gpt-4o|gpt-4\.1(-\d{4}|$)|gpt-4\.5|gpt-4-turbo", "openai-tiles"),
    ("openai", r"gpt-5(-chat|-\d{4}|$)", "openai-tiles-gpt-5"),
    ("openai", r"o[13](-pro|-\d{4}|$)", "openai-tiles-o"),
    ("openai", r"o4-mini", "openai-patches-o4-mini"),
    ("openai", r"gpt-(4\.1|5)-mini", "openai-patches-mini"),
    ("openai", r"gpt-(4\.1|5)-nano", "openai-patches-nano"),
    (
        "anthropic",
        r"claude-opus-4-[7-9]|claude-(sonnet|opus|haiku)-[5-9]",
        "claude-high-resolution",
    ),
    ("anthropic", r"claude-3|claude-(opus|sonnet|haiku)-4", "claude"),
    ("google", r"gemini-[12]\.", "gemini-tiles"),
    ("google", r"gemini-3", "gemini-flat"),
)


def _picture_rule(provider: str, model: str) -> str | None:
    return next(
        (rule for of, name, rule in _PICTURES if of == provider and re.match(name, model)), None
    )


def _steps(prices: Mapping[str, object]) -> dict[int, list[str]]:
    """Return what costs something else above which length of the prompt."""
    steps: dict[int, list[str]] = {}
    for field, price in prices.items():
        if isinstance(price, TieredPrices):
            for tier in price.tiers:
                steps.setdefault(tier.start, []).append(f"{field}: {tier.price:f}")
    return steps


def _base(price: object) -> object:
    return price.base if isinstance(price, TieredPrices) else price


def _address(provider: Provider) -> str:
    return (provider.pricing_urls or [provider.name])[0]


def differences(model: Model, *, at: datetime) -> Iterator[tuple[str, str]]:
    """Give each figure of ``model`` that is another there: field, and what is said where.

    Args:
        at: prices change, and may depend on the hour; with a time zone.
    """
    found = _find(model.provider, model.name)
    if found is None:
        return
    provider, info = found
    source = f"{SOURCE} ({_address(provider)})"
    listed = info.get_prices(at)
    for field, (theirs, ours) in FIELDS.items():
        price = getattr(listed, theirs)
        yield from _different(f"price.{field}", _base(price), getattr(model.price, ours), source)
        steps = price.tiers if isinstance(price, TieredPrices) else ()
        for tier in (step for step in steps if step.start < model.context_tokens):
            paid = getattr(model.price.at(tier.start + 1), ours)
            place = f"price.above.{tier.start}.{field}"
            yield from _different(place, tier.price, paid, source)
    if "embeddings" in model.endpoints:
        yield from _embedding_window(provider, model)
    elif info.context_window is not None and info.context_window < model.context_tokens:
        window = f"{model.context_tokens} here, {info.context_window} in {source}"
        yield "tokens.context", window


def _different(
    place: str, listed: object, paid: int | None, source: str
) -> Iterator[tuple[str, str]]:
    if isinstance(listed, Decimal) and paid is not None and listed * NUSD_PER_USD != paid:
        yield place, f"{format_usd(paid)} here, ${listed} in {source}"


def _embedding_window(provider: Provider, model: Model) -> Iterator[tuple[str, str]]:
    """Give a window that is one text's: ours bounds all texts of a request together."""
    if provider.id in ("openai", "azure") and model.context_tokens < OPENAI_EMBEDDED_TOKENS:
        window = (
            f"{model.context_tokens} here bounds all texts of a request together;"
            f" {OPENAI_EMBEDDED_TOKENS} at {provider.name}"
        )
        yield "tokens.context", window


def _find(provider_name: str, model: str) -> tuple[Provider, ModelInfo] | None:
    name = provider_name.lower()
    for provider in providers:
        matches = provider.provider_match is not None and provider.provider_match.is_match(name)
        if provider.id == name or matches:
            info = provider.find_model(model, all_providers=providers)
            return None if info is None else (provider, info)
    return None
