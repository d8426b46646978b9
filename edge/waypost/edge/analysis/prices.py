"""The operator's prices and windows beside those that genai-prices has collected."""

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from importlib.metadata import version

from genai_prices.data import providers
from genai_prices.types import ModelInfo, Provider, TieredPrices

from waypost.shared.contracts import Model
from waypost.shared.money import NUSD_PER_USD, format_usd

__all__ = ["SOURCE", "differences", "is_known"]

SOURCE = f"genai-prices {version('genai-prices')}"

FIELDS = {
    "input": ("input_mtok", "input_nusd_per_mtok"),
    "output": ("output_mtok", "output_nusd_per_mtok"),
    "cached_input": ("cache_read_mtok", "cached_input_nusd_per_mtok"),
    "cache_write": ("cache_write_mtok", "cache_write_nusd_per_mtok"),
    "audio_input": ("input_audio_mtok", "audio_input_nusd_per_mtok"),
    "audio_output": ("output_audio_mtok", "audio_output_nusd_per_mtok"),
}


def is_known(model: Model) -> bool:
    """Return whether the collection has this model at this provider."""
    return _find(model) is not None


def differences(model: Model, *, at: datetime) -> Iterator[tuple[str, str]]:
    """Give each figure of ``model`` that is another there: field, and what is said where.

    Args:
        at: prices change, and may depend on the hour; with a time zone.
    """
    found = _find(model)
    if found is None:
        return
    provider, info = found
    source = f"{SOURCE} ({(provider.pricing_urls or [provider.name])[0]})"
    listed = info.get_prices(at)
    for field, (theirs, ours) in FIELDS.items():
        price: object = getattr(listed, theirs)
        price = price.base if isinstance(price, TieredPrices) else price
        paid = getattr(model.price, ours)
        if isinstance(price, Decimal) and paid is not None and price * NUSD_PER_USD != paid:
            yield f"price.{field}", f"{format_usd(paid)} here, ${price} in {source}"
    if info.context_window is not None and info.context_window < model.context_tokens:
        window = f"{model.context_tokens} here, {info.context_window} in {source}"
        yield "tokens.context", window


def _find(model: Model) -> tuple[Provider, ModelInfo] | None:
    name = model.provider.lower()
    for provider in providers:
        matches = provider.provider_match is not None and provider.provider_match.is_match(name)
        if provider.id == name or matches:
            info = provider.find_model(model.name, all_providers=providers)
            return None if info is None else (provider, info)
    return None
