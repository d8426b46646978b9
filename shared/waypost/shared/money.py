"""Money as integers: prices, cost bounds and bills in nano-dollars.

The rule: no float ever holds money, and every rounding is upwards, so that a reservation
bounds the bill. One nano-dollar (``nusd``) is a billionth of a US dollar; $0.15 per million
tokens is 150_000_000 nusd per million tokens.
"""

from collections.abc import Collection
from typing import Annotated

from msgspec import Meta, Struct

__all__ = [
    "MTOK",
    "NUSD_PER_USD",
    "Price",
    "Usage",
    "bill",
    "format_usd",
    "input_ceiling",
    "output_ceiling",
    "upper_bound",
]

NUSD_PER_USD = 1_000_000_000
MTOK = 1_000_000

# Below 2**53, so that every JSON reader in any language holds it exactly.
Nusd = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Tokens = Annotated[int, Meta(ge=0, le=2**40)]


class Price(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a model costs, in nano-dollars per million tokens; ``request_nusd`` is a flat fee.

    Tokens of a kind whose price is ``None`` cost what the dearest of their side does that the
    request may have used: never nothing. Cached and reasoning tokens, which providers bill as
    input and output where they say nothing else, cost those.
    """

    input_nusd_per_mtok: Nusd
    output_nusd_per_mtok: Nusd
    cached_input_nusd_per_mtok: Nusd | None = None
    cache_write_nusd_per_mtok: Nusd | None = None
    image_input_nusd_per_mtok: Nusd | None = None
    audio_input_nusd_per_mtok: Nusd | None = None
    audio_output_nusd_per_mtok: Nusd | None = None
    reasoning_nusd_per_mtok: Nusd | None = None
    request_nusd: Nusd = 0


class Usage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens a provider says it used; the kinds are parts of ``input_tokens`` or of the output.

    Attributes:
        cached_tokens: input read from the provider's cache.
        cache_write_tokens: input written to it.
        reasoning_tokens: output that the caller does not see.
    """

    input_tokens: Tokens = 0
    output_tokens: Tokens = 0
    cached_tokens: Tokens = 0
    cache_write_tokens: Tokens = 0
    image_input_tokens: Tokens = 0
    audio_input_tokens: Tokens = 0
    audio_output_tokens: Tokens = 0
    reasoning_tokens: Tokens = 0


# What a request may need of a model (``contracts.CAPABILITIES``) so that such tokens occur.
AUDIO = "audio"
VISION = "vision"


def input_ceiling(price: Price, needs: Collection[str] = ()) -> int:
    """Return the dearest price of a prompt's token, of a request with these ``needs``.

    A cache may be written whether or not the request asks for it.
    """
    return max(
        price.input_nusd_per_mtok,
        price.cached_input_nusd_per_mtok or 0,
        price.cache_write_nusd_per_mtok or 0,
        (price.image_input_nusd_per_mtok or 0) if VISION in needs else 0,
        (price.audio_input_nusd_per_mtok or 0) if AUDIO in needs else 0,
    )


def output_ceiling(price: Price, needs: Collection[str] = ()) -> int:
    """Return the dearest price of an answer's token, of a request with these ``needs``."""
    return max(
        price.output_nusd_per_mtok,
        price.reasoning_nusd_per_mtok or 0,
        (price.audio_output_nusd_per_mtok or 0) if AUDIO in needs else 0,
    )


def bill(price: Price, usage: Usage, needs: Collection[str] = ()) -> int:
    """Return what ``usage`` costs at ``price``, in nano-dollars, rounded up once.

    Args:
        needs: of the request; where a kind has no price, they say which ones may apply.
    """
    into, out = price.input_nusd_per_mtok, price.output_nusd_per_mtok
    if not (
        usage.cached_tokens
        or usage.cache_write_tokens
        or usage.image_input_tokens
        or usage.audio_input_tokens
        or usage.reasoning_tokens
        or usage.audio_output_tokens
    ):
        # Most usage is of one kind, and then half the work.
        return price.request_nusd - (
            -(usage.input_tokens * into + usage.output_tokens * out) // MTOK
        )
    unpriced_in, unpriced_out = input_ceiling(price, needs), output_ceiling(price, needs)
    total = _side(
        usage.input_tokens,
        into,
        (
            (usage.cached_tokens, price.cached_input_nusd_per_mtok, into),
            (usage.cache_write_tokens, price.cache_write_nusd_per_mtok, unpriced_in),
            (usage.image_input_tokens, price.image_input_nusd_per_mtok, unpriced_in),
            (usage.audio_input_tokens, price.audio_input_nusd_per_mtok, unpriced_in),
        ),
    ) + _side(
        usage.output_tokens,
        out,
        (
            (usage.reasoning_tokens, price.reasoning_nusd_per_mtok, out),
            (usage.audio_output_tokens, price.audio_output_nusd_per_mtok, unpriced_out),
        ),
    )
    return price.request_nusd - (-total // MTOK)


def _side(tokens: int, plain: int, kinds: tuple[tuple[int, int | None, int], ...]) -> int:
    """Return the cost of one side's tokens, those of each kind at its price.

    Kinds may overlap, as cached audio does. Then the dearer price is paid: it is handed out
    first, until no token is left.
    """
    told = [(unpriced if paid is None else paid, count) for count, paid, unpriced in kinds if count]
    if not told:
        return tokens * plain
    total, left = 0, tokens
    for paid, count in sorted((*told, (plain, max(0, tokens - sum(n for _, n in told)))))[::-1]:
        taken = min(count, left)
        total += taken * paid
        left -= taken
    return total


def upper_bound(
    price: Price, *, input_tokens: int, output_tokens: int, needs: Collection[str] = ()
) -> int:
    """Return the most that so many tokens can cost a request with these ``needs``."""
    total = input_tokens * input_ceiling(price, needs) + output_tokens * output_ceiling(
        price, needs
    )
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
