"""Money as integers: prices, cost bounds and bills in nano-dollars.

The rule: no float ever holds money, and every rounding is upwards, so that a reservation
bounds the bill. One nano-dollar (``nusd``) is a billionth of a US dollar; $0.15 per million
tokens is 150_000_000 nusd per million tokens.
"""

from collections.abc import Collection
from typing import Annotated

from msgspec import Meta, Struct, structs

__all__ = [
    "KEPT_1H",
    "MTOK",
    "NUSD_PER_USD",
    "Factor",
    "Price",
    "PriceAbove",
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


class PriceAbove(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The prices of a request whose prompt has more than ``above_input_tokens`` tokens.

    All tokens of such a request cost these, the first ones too. A price that is ``None`` stays
    what it was below.
    """

    above_input_tokens: Tokens
    input_nusd_per_mtok: Nusd | None = None
    output_nusd_per_mtok: Nusd | None = None
    cached_input_nusd_per_mtok: Nusd | None = None
    cache_write_nusd_per_mtok: Nusd | None = None
    cache_write_1h_nusd_per_mtok: Nusd | None = None
    image_input_nusd_per_mtok: Nusd | None = None
    audio_input_nusd_per_mtok: Nusd | None = None
    audio_output_nusd_per_mtok: Nusd | None = None
    reasoning_nusd_per_mtok: Nusd | None = None


class Factor(Struct, frozen=True):
    """What a request costs by another tier or speed, in per cent of the usual price.

    ``asks`` is the field of the request and its value, as ``service_tier=priority``.
    """

    asks: Annotated[str, Meta(min_length=3, max_length=100)]
    percent: Annotated[int, Meta(ge=0, le=10_000)]


class Price(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a model costs, in nano-dollars per million tokens; ``request_nusd`` is a flat fee.

    Tokens of a kind whose price is ``None`` cost what the dearest of their side does that the
    request may have used: never nothing. Cached and reasoning tokens, which providers bill as
    input and output where they say nothing else, cost those.

    Attributes:
        cache_write_1h_nusd_per_mtok: input that a cache keeps for an hour; ``None``: twice the
            input price, as Anthropic has it.
        above: prices of longer prompts, the shortest first.
        factors: of what a request may ask for besides.
    """

    input_nusd_per_mtok: Nusd
    output_nusd_per_mtok: Nusd
    cached_input_nusd_per_mtok: Nusd | None = None
    cache_write_nusd_per_mtok: Nusd | None = None
    cache_write_1h_nusd_per_mtok: Nusd | None = None
    image_input_nusd_per_mtok: Nusd | None = None
    audio_input_nusd_per_mtok: Nusd | None = None
    audio_output_nusd_per_mtok: Nusd | None = None
    reasoning_nusd_per_mtok: Nusd | None = None
    request_nusd: Nusd = 0
    above: tuple[PriceAbove, ...] = ()
    factors: tuple[Factor, ...] = ()

    def at(self, input_tokens: int) -> "Price":
        """Return the prices of a request whose prompt has so many tokens."""
        price = structs.replace(self, above=())
        for step in self.above:
            if input_tokens > step.above_input_tokens:
                price = _raised(price, step)
        return price

    def up_to(self, input_tokens: int) -> "tuple[Price, ...]":
        """Return the prices that a request may have whose prompt has at most so many tokens."""
        if not self.above:
            return (self,)
        steps = (s.above_input_tokens for s in self.above if s.above_input_tokens < input_tokens)
        return (self.at(0), *(self.at(step + 1) for step in steps))

    @property
    def longest_kept_write(self) -> int:
        """What input costs that a cache keeps for an hour."""
        if self.cache_write_1h_nusd_per_mtok is not None:
            return self.cache_write_1h_nusd_per_mtok
        return 2 * self.input_nusd_per_mtok


_PER_MTOK = tuple(name for name in PriceAbove.__struct_fields__ if name.endswith("_per_mtok"))


def _raised(price: Price, step: PriceAbove) -> Price:
    told = {name: getattr(step, name) for name in _PER_MTOK}
    raised = {name: value for name, value in told.items() if value is not None}
    return structs.replace(price, above=(), **raised)


class Usage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens a provider says it used; the kinds are parts of ``input_tokens`` or of the output.

    Attributes:
        cached_tokens: input read from the provider's cache.
        cache_write_tokens: input written to it.
        cache_write_1h_tokens: as much of that as it keeps for an hour.
        reasoning_tokens: output that the caller does not see.
    """

    input_tokens: Tokens = 0
    output_tokens: Tokens = 0
    cached_tokens: Tokens = 0
    cache_write_tokens: Tokens = 0
    cache_write_1h_tokens: Tokens = 0
    image_input_tokens: Tokens = 0
    audio_input_tokens: Tokens = 0
    audio_output_tokens: Tokens = 0
    reasoning_tokens: Tokens = 0


# What a request may need of a model (``contracts.CAPABILITIES``) so that such tokens occur.
AUDIO = "audio"
VISION = "vision"
# And what it may ask for without a need: that a cache keeps what it writes for an hour.
KEPT_1H = "kept_1h"


def input_ceiling(price: Price, needs: Collection[str] = ()) -> int:
    """Return the dearest price of a prompt's token, of a request with these ``needs``.

    A cache may be written whether or not the request asks for it.
    """
    return max(
        price.input_nusd_per_mtok,
        price.cached_input_nusd_per_mtok or 0,
        price.cache_write_nusd_per_mtok or 0,
        price.longest_kept_write if KEPT_1H in needs else 0,
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
    if price.above:
        price = price.at(usage.input_tokens)
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
    kept = min(usage.cache_write_1h_tokens, usage.cache_write_tokens)
    total = _side(
        usage.input_tokens,
        into,
        (
            (usage.cached_tokens, price.cached_input_nusd_per_mtok, into),
            (usage.cache_write_tokens - kept, price.cache_write_nusd_per_mtok, unpriced_in),
            (kept, price.longest_kept_write, unpriced_in),
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
    if price.above:
        return max(
            upper_bound(one, input_tokens=input_tokens, output_tokens=output_tokens, needs=needs)
            for one in price.up_to(input_tokens)
        )
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
