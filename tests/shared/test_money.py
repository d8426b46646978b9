"""Money: integers, rounded so that a reservation bounds the bill."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from waypost.shared.money import (
    KEPT_1H,
    MTOK,
    Price,
    PriceAbove,
    Usage,
    bill,
    format_usd,
    upper_bound,
)

amounts = st.integers(0, 10**12)
tokens = st.integers(0, 10**7)
kinds = {
    f"{kind}_nusd_per_mtok": st.none() | amounts
    for kind in (
        "cached_input",
        "cache_write",
        "cache_write_1h",
        "image_input",
        "audio_input",
        "audio_output",
        "reasoning",
    )
}
steps = st.lists(
    st.builds(
        PriceAbove,
        above_input_tokens=tokens,
        input_nusd_per_mtok=st.none() | amounts,
        output_nusd_per_mtok=st.none() | amounts,
        **kinds,
    ),
    max_size=3,
    unique_by=lambda step: step.above_input_tokens,
).map(lambda some: tuple(sorted(some, key=lambda step: step.above_input_tokens)))
prices = st.builds(
    Price,
    input_nusd_per_mtok=amounts,
    output_nusd_per_mtok=amounts,
    request_nusd=amounts,
    above=steps,
    **kinds,
)
KINDS = (
    "cached", "cache_write", "cache_write_1h", "image_input", "audio_input", "audio_output",
    "reasoning",
)  # fmt: skip
# Kinds that providers report may overlap, or exceed what they are part of.
usages = st.builds(
    Usage,
    input_tokens=tokens,
    output_tokens=tokens,
    **{f"{kind}_tokens": tokens for kind in KINDS},
)
EVERYTHING = ("audio", "vision", KEPT_1H)


@given(prices, usages)
def test_no_usage_within_the_bounds_costs_more_than_the_bound(price: Price, usage: Usage) -> None:
    assert bill(price, usage, EVERYTHING) <= upper_bound(
        price,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        needs=EVERYTHING,
    )


@given(prices, tokens, tokens, tokens, tokens)
def test_a_smaller_request_is_within_the_bound_of_a_larger_one(
    price: Price, into: int, out: int, less_in: int, less_out: int
) -> None:
    usage = Usage(input_tokens=min(into, less_in), output_tokens=min(out, less_out))

    assert bill(price, usage) <= upper_bound(price, input_tokens=into, output_tokens=out)


def test_a_long_prompt_costs_more_from_its_first_token_on() -> None:
    price = Price(
        input_nusd_per_mtok=1 * MTOK,
        output_nusd_per_mtok=10 * MTOK,
        cached_input_nusd_per_mtok=MTOK // 10,
        above=(
            PriceAbove(above_input_tokens=200, input_nusd_per_mtok=2 * MTOK),
            PriceAbove(above_input_tokens=500, output_nusd_per_mtok=30 * MTOK),
        ),
    )

    def cost(into: int) -> int:
        return bill(price, Usage(input_tokens=into, output_tokens=1))

    assert [cost(200), cost(201), cost(501)] == [210, 412, 1_032]
    assert upper_bound(price, input_tokens=501, output_tokens=1) == 1_032
    assert bill(price, Usage(input_tokens=300, cached_tokens=300)) == 30


def test_what_a_cache_keeps_for_an_hour_costs_twice_the_input_or_what_is_written_down() -> None:
    usage = Usage(input_tokens=10, cache_write_tokens=8, cache_write_1h_tokens=6)
    price = Price(
        input_nusd_per_mtok=100 * MTOK,
        output_nusd_per_mtok=0,
        cache_write_nusd_per_mtok=125 * MTOK,
    )

    assert bill(price, usage) == 2 * 100 + 2 * 125 + 6 * 200
    assert upper_bound(price, input_tokens=1, output_tokens=0) == 125
    assert upper_bound(price, input_tokens=1, output_tokens=0, needs=(KEPT_1H,)) == 200
    own = structs.replace(price, cache_write_1h_nusd_per_mtok=180 * MTOK)
    assert bill(own, usage) == 2 * 100 + 2 * 125 + 6 * 180


@given(prices, usages)
def test_no_token_is_cheaper_than_the_cheapest_price_of_its_side(
    price: Price, usage: Usage
) -> None:
    price = price.at(usage.input_tokens)
    into = (price.input_nusd_per_mtok, price.cached_input_nusd_per_mtok,
            price.cache_write_nusd_per_mtok, price.image_input_nusd_per_mtok,
            price.audio_input_nusd_per_mtok, price.cache_write_1h_nusd_per_mtok)  # fmt: skip
    out = (price.output_nusd_per_mtok, price.reasoning_nusd_per_mtok,
           price.audio_output_nusd_per_mtok)  # fmt: skip
    least = usage.input_tokens * min(paid for paid in into if paid is not None)
    least += usage.output_tokens * min(paid for paid in out if paid is not None)

    assert bill(price, usage, EVERYTHING) >= price.request_nusd + least // MTOK


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        (Usage(input_tokens=10, cached_tokens=4), 6 * 20 + 4 * 2),
        (Usage(input_tokens=10, cache_write_tokens=4), 6 * 20 + 4 * 25),
        (Usage(input_tokens=10, image_input_tokens=4), 6 * 20 + 4 * 30),
        (Usage(input_tokens=10, audio_input_tokens=4), 6 * 20 + 4 * 40),
        (Usage(output_tokens=10, audio_output_tokens=4), 6 * 50 + 4 * 80),
        (Usage(output_tokens=10, reasoning_tokens=4), 6 * 50 + 4 * 60),
        # Cached audio may be told as both: the dearer price is paid for it.
        (Usage(input_tokens=10, audio_input_tokens=8, cached_tokens=8), 8 * 40 + 2 * 2),
    ],
)
def test_each_kind_of_token_is_billed_at_its_own_price(usage: Usage, cost: int) -> None:
    m = 1_000_000
    price = Price(
        input_nusd_per_mtok=20 * m,
        output_nusd_per_mtok=50 * m,
        cached_input_nusd_per_mtok=2 * m,
        cache_write_nusd_per_mtok=25 * m,
        image_input_nusd_per_mtok=30 * m,
        audio_input_nusd_per_mtok=40 * m,
        audio_output_nusd_per_mtok=80 * m,
        reasoning_nusd_per_mtok=60 * m,
    )
    assert bill(price, usage) == cost


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("cached", "cache_write_1h")])
def test_tokens_of_a_kind_without_a_price_are_not_free(kind: str) -> None:
    price = Price(input_nusd_per_mtok=MTOK, output_nusd_per_mtok=MTOK, cached_input_nusd_per_mtok=0)
    usage = Usage(input_tokens=10, output_tokens=10, **{f"{kind}_tokens": 10})

    assert bill(price, usage) == 20


def test_a_picture_is_reserved_for_only_where_there_may_be_one() -> None:
    price = Price(
        input_nusd_per_mtok=MTOK, output_nusd_per_mtok=MTOK, image_input_nusd_per_mtok=9 * MTOK
    )

    assert upper_bound(price, input_tokens=1, output_tokens=0) == 1
    assert upper_bound(price, input_tokens=1, output_tokens=0, needs=("vision",)) == 9


def test_a_bill_is_rounded_up_once() -> None:
    price = Price(input_nusd_per_mtok=1, output_nusd_per_mtok=1)

    assert bill(price, Usage(input_tokens=1, output_tokens=1)) == 1
    assert bill(price, Usage()) == 0


def test_cached_tokens_are_billed_at_their_own_price() -> None:
    price = Price(
        input_nusd_per_mtok=1_000_000, output_nusd_per_mtok=0, cached_input_nusd_per_mtok=100_000
    )

    assert bill(price, Usage(input_tokens=1_000, cached_tokens=600)) == 400 + 60


@pytest.mark.parametrize(
    ("nusd", "text"),
    [
        (0, "$0"),
        (1, "$0.000000001"),
        (42_000, "$0.000042"),
        (-42_000, "-$0.000042"),
        (150_000_000, "$0.1500"),
        (1_500_000_000, "$1.5000"),
        (12_345_678_900_000, "$12,345.67"),
    ],
)
def test_amounts_read_as_dollars(nusd: int, text: str) -> None:
    assert format_usd(nusd) == text
