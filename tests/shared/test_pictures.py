"""What bounds a picture, against each provider's own rule, and read from real files."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.pictures import (
    Format,
    claude,
    claude_patches,
    gemini_tiles,
    openai_patches,
    openai_tiles,
    picture,
)
from waypost.shared.pictures import RULES, UNKNOWN, UNRULED_TOKENS, Picture, picture_tokens
from waypost.validator.pipeline.picture_size import size_of

sides = st.integers(1, 3_000) | st.integers(3_000, 20_000)


@pytest.mark.parametrize(
    ("rule", "width", "height", "tokens"),
    [
        # Pictures of which somebody was told the tokens, in the providers' pages and in reports.
        ("openai-tiles", 1_024, 1_024, 765),
        ("openai-tiles", 2_048, 4_096, 1_105),
        ("openai-tiles-gpt-4o-mini", 1, 1, 8_500),
        ("openai-patches-mini", 1_024, 1_024, 1_659),
        ("claude", 200, 200, 64),  # 54 by area, 64 by patches
        ("claude", 1_092, 1_092, 1_590),
        ("claude-high-resolution", 2_000, 1_500, 4_000),
        ("gemini-tiles", 384, 384, 258),
        ("gemini-tiles", 960, 540, 6 * 258),
        ("gemini-flat", 1, 1, 1_120),
    ],
)
def test_a_picture_counts_as_its_provider_says(
    rule: str, width: int, height: int, tokens: int
) -> None:
    assert picture_tokens(RULES[rule], Picture(width, height)) == tokens


@given(sides, sides)
def test_no_provider_counts_more_than_the_bound(width: int, height: int) -> None:
    counted = {
        "openai-tiles": openai_tiles(width, height, base=85, tile=170),
        "openai-tiles-gpt-4o-mini": openai_tiles(width, height, base=2_833, tile=5_667),
        "openai-tiles-gpt-5": openai_tiles(width, height, base=70, tile=140),
        "openai-tiles-o": openai_tiles(width, height, base=75, tile=150),
        "openai-patches": openai_patches(width, height, factor=1),
        "openai-patches-mini": openai_patches(width, height, factor=1.62),
        "openai-patches-o4-mini": openai_patches(width, height, factor=1.72),
        "openai-patches-nano": openai_patches(width, height, factor=2.46),
        "claude": max(
            claude(width, height, side=1_568, most=1_600),
            claude_patches(width, height, side=1_568, most=1_600),
        ),
        "claude-high-resolution": max(
            claude(width, height, side=2_576, most=4_784),
            claude_patches(width, height, side=2_576, most=4_784),
        ),
        "gemini-flat": 1_120,
    }
    if max(width, height) <= 3_072:
        counted["gemini-tiles"] = gemini_tiles(width, height)
    for name, tokens in counted.items():
        bound = picture_tokens(RULES[name], Picture(width, height))
        assert tokens <= bound <= picture_tokens(RULES[name], UNKNOWN) <= UNRULED_TOKENS, name
        # Nor is it held for twice: a bound that is far off refuses who could pay.
        assert bound <= 2 * tokens + 300 or name == "gemini-tiles"


def test_detail_low_is_the_base_alone() -> None:
    low = Picture(4_000, 4_000, is_low=True)
    assert picture_tokens(RULES["openai-tiles-gpt-4o-mini"], low) == 2_833


def test_a_model_without_a_rule_is_as_dear_as_any() -> None:
    assert picture_tokens(None, Picture(1, 1)) == UNRULED_TOKENS


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_pixels_are_read_from_the_header(kind: Format) -> None:
    assert size_of(picture(613, 47, kind)[:131_072]) == Picture(613, 47)


@settings(max_examples=200)
@given(st.binary(max_size=200), st.sampled_from(("", "iVBORw0KGgo", "/9j/", "R0lGODlh", "UklGR")))
def test_whatever_comes_as_a_picture_is_read_or_unknown(data: bytes, begins: str) -> None:
    found = size_of(begins + base64.b64encode(data).decode())

    assert found == UNKNOWN or (found.width > 0 and found.height > 0)


@pytest.mark.parametrize("text", ["", "!!!", "PHN2ZyB3aWR0aD0iMSIgaGVpZ2h0PSIxIi8+", "héllo", "A"])
def test_what_is_no_picture_that_providers_take_is_unknown(text: str) -> None:
    assert size_of(text) == UNKNOWN
