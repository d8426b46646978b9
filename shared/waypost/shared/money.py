"""Money as integers: prices, cost bounds and bills in nano-dollars.

The rule: no float ever holds money, and every rounding is upwards, so that a reservation
bounds the bill. One nano-dollar (``nusd``) is a billionth of a US dollar; $0.15 per million
tokens is 150_000_000 nusd per million tokens.
"""

from typing import Annotated

from msgspec import Meta, Struct

__all__ = ["MTOK", "NUSD_PER_USD", "Price", "Usage", "bill", "format_usd", "upper_bound"]

NUSD_PER_USD = 1_000_000_000
MTOK = 1_000_000

# Below 2**53, so that every JSON reader in any language holds it exactly.
Nusd = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Tokens = Annotated[int, Meta(ge=0, le=2**40)]


class Price(Struct, frozen=True, kw_only=True):
    """What a model costs, in nano-dollars.

    ``cached_input_nusd_per_mtok`` is for prompt tokens read from the provider's cache; ``None``
    bills them as ordinary input. ``request_nusd`` is a flat fee per request.
    """

    input_nusd_per_mtok: Nusd
    output_nusd_per_mtok: Nusd
    cached_input_nusd_per_mtok: Nusd | None = None
    request_nusd: Nusd = 0


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens a provider says it used. ``cached_tokens`` are part of ``input_tokens``."""

    input_tokens: Tokens = 0
    output_tokens: Tokens = 0
    cached_tokens: Tokens = 0


def bill(price: Price, usage: Usage) -> int:
    """Return what ``usage`` costs at ``price``, in nano-dollars, rounded up once."""
    cached = min(usage.cached_tokens, usage.input_tokens)
    cached_price = price.cached_input_nusd_per_mtok
    if cached_price is None:
        cached_price = price.input_nusd_per_mtok
    total = (
        (usage.input_tokens - cached) * price.input_nusd_per_mtok
        + cached * cached_price
        + usage.output_tokens * price.output_nusd_per_mtok
    )
    return price.request_nusd - (-total // MTOK)


def upper_bound(price: Price, *, input_tokens: int, output_tokens: int) -> int:
    """Return the most that so many tokens can cost, in nano-dollars.

    Providers may charge more for writing a cache than for plain input, never here less than
    the dearer of the two prices that the manifest knows.
    """
    dearest = max(price.input_nusd_per_mtok, price.cached_input_nusd_per_mtok or 0)
    total = input_tokens * dearest + output_tokens * price.output_nusd_per_mtok
    return price.request_nusd - (-total // MTOK)


def format_usd(nusd: int) -> str:
    """Return ``nusd`` as dollars a person can read: ``$1.50``, ``$0.000042``, ``$0``."""
    if nusd == 0:
        return "$0"
    sign, whole = ("-", -nusd) if nusd < 0 else ("", nusd)
    dollars, rest = divmod(whole, NUSD_PER_USD)
    digits = f"{rest:09d}"
    if dollars:
        return (
            f"{sign}${dollars:,}.{digits[:2]}"
            if dollars >= 10
            else f"{sign}${dollars}.{digits[:4]}"
        )
    # Two significant digits after the leading zeros say enough of a small amount.
    zeros = len(digits) - len(digits.lstrip("0"))
    return f"{sign}$0.{digits[: max(4, zeros + 2)]}"
