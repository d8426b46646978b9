"""Money: integers, rounded so that a reservation bounds the bill."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.shared.money import Price, Usage, bill, format_usd, upper_bound

amounts = st.integers(0, 10**12)
prices = st.builds(
    Price,
    input_nusd_per_mtok=amounts,
    output_nusd_per_mtok=amounts,
    cached_input_nusd_per_mtok=st.none() | amounts,
    request_nusd=amounts,
)
tokens = st.integers(0, 10**7)


@given(prices, tokens, tokens, tokens)
def test_no_usage_within_the_bounds_costs_more_than_the_bound(
    price: Price, tokens_in: int, tokens_out: int, cached: int
) -> None:
    usage = Usage(input_tokens=tokens_in, output_tokens=tokens_out, cached_tokens=cached)

    assert bill(price, usage) <= upper_bound(
        price, input_tokens=tokens_in, output_tokens=tokens_out
    )


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
