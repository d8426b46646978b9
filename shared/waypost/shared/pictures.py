"""How many tokens a picture is at most, by its provider's own rule. Pure.

The rules are those that providers publish. Each grows with the picture up to a size, beyond which
the provider scales it down: that bounds a picture of which nobody could read the size.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

__all__ = ["RULES", "UNKNOWN", "UNRULED_TOKENS", "Picture", "PictureRule", "picture_tokens"]

_Side = Annotated[int, Meta(ge=0, le=2**31)]
_Count = Annotated[int, Meta(ge=0, le=10_000_000)]


class Picture(Struct, frozen=True, omit_defaults=True):
    """One picture of a request: its pixels, 0 where nobody could read them.

    ``is_low`` is OpenAI's ``detail: low``.
    """

    width: _Side = 0
    height: _Side = 0
    is_low: bool = False


UNKNOWN = Picture()


class PictureRule(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What bounds a picture's tokens.

    Attributes:
        kind: ``flat``: ``base`` each; ``tiles`` and ``patches``: OpenAI's; ``claude``: Anthropic's;
            ``crops``: Gemini's.
        base: tokens of any picture.
        each: of each tile, or crop; of patches a hundred.
        most: tokens, patches of OpenAI, or pixels of a side for Anthropic.
    """

    kind: Literal["flat", "tiles", "patches", "claude", "crops"]
    base: _Count = 0
    each: _Count = 0
    most: _Count = 0


# Of a model that has no rule: the dearest that is known, gpt-4o-mini's eight tiles (below).
UNRULED_TOKENS = 2_833 + 8 * 5_667

# What ``picture_tokens`` may be in a policy, by name.
RULES = {
    # OpenAI, "Images and vision", "Calculating costs", 2026-11; openai-python#2851, 2026-02 (which
    # models go by which). gpt-4o-mini: ai-dial-adapter-openai#165, 2024-11; autogen#57, 2024-10.
    # gpt-4o, gpt-4.1 and gpt-4.5; then gpt-5, and o1 and o3.
    "openai-tiles": PictureRule(kind="tiles", base=85, each=170),
    "openai-tiles-gpt-4o-mini": PictureRule(kind="tiles", base=2_833, each=5_667),
    "openai-tiles-gpt-5": PictureRule(kind="tiles", base=70, each=140),
    "openai-tiles-o": PictureRule(kind="tiles", base=75, each=150),
    # By patches of 32 pixels, times a factor by model: openai's page, and tokenlens#7, 2025-10.
    "openai-patches": PictureRule(kind="patches", each=100, most=1_536),
    "openai-patches-mini": PictureRule(kind="patches", each=162, most=1_536),
    "openai-patches-o4-mini": PictureRule(kind="patches", each=172, most=1_536),
    "openai-patches-nano": PictureRule(kind="patches", each=246, most=1_536),
    # Anthropic, "Vision", 2026-11: patches of 28 pixels, and up to 2026 width x height / 750;
    # 1,568 pixels and about 1,600 tokens at most, since Opus 4.7 2,576 and 4,784.
    # Measured: claudecodecamp.com, "Images cost 3x more tokens in Claude Opus 4.7", 2026-04.
    "claude": PictureRule(kind="claude", most=1_568, base=1_600),
    "claude-high-resolution": PictureRule(kind="claude", most=2_576, base=4_784),
    # Google, "Understand and count tokens", 2026-11; litellm#3269, 2024-06. Gemini 3 and newer have
    # a flat count by ``media_resolution``, 1,120 unless told otherwise (Rokabot#121, 2026-08: 1,089
    # measured, whatever the size).
    "gemini-tiles": PictureRule(kind="crops", each=258),
    "gemini-flat": PictureRule(kind="flat", base=1_120),
}


def picture_tokens(rule: PictureRule | None, picture: Picture) -> int:
    """Return how many tokens ``picture`` is at most."""
    if rule is None:
        return UNRULED_TOKENS
    match rule.kind:
        case "tiles":
            return rule.base + (0 if picture.is_low else rule.each * _tiles(picture))
        case "patches":
            return -(-rule.each * _patches(picture, most=rule.most) // 100)
        case "claude":
            return _claude(picture, side=rule.most, most=rule.base)
        case "crops":
            return rule.each * _crops(picture)
        case "flat":
            return rule.base


def _up(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def _within(picture: Picture, side: int) -> tuple[int, int]:
    """Return the pixels of the picture, scaled down until it fits a square; rounded up."""
    longest = max(picture.width, picture.height)
    if longest <= side:
        return picture.width, picture.height
    return _up(picture.width * side, longest), _up(picture.height * side, longest)


def _tiles(picture: Picture) -> int:
    """Return how many squares of 512 pixels are read of it.

    It is scaled down to fit 2,048 pixels, and then until its shorter side has 768.
    """
    if not (picture.width and picture.height):
        return 8
    width, height = _within(picture, 2_048)
    shortest = min(width, height)
    if shortest > 768:
        width, height = _up(width * 768, shortest), _up(height * 768, shortest)
    return _up(width, 512) * _up(height, 512)


def _patches(picture: Picture, *, most: int) -> int:
    if not (picture.width and picture.height):
        return most
    return min(most, _up(picture.width, 32) * _up(picture.height, 32))


def _claude(picture: Picture, *, side: int, most: int) -> int:
    """Return the larger of the two counts that Anthropic has published."""
    if not (picture.width and picture.height):
        return most
    width, height = _within(picture, side)
    return min(most, max(_up(width, 28) * _up(height, 28), _up(width * height, 750)))


LARGEST_SIDE = 3_072  # to which Gemini scales a picture down
MOST_CROPS = 24  # of that length, and as narrow as makes the most of them


def _crops(picture: Picture) -> int:
    """Return how many crops are read of it: squares of its shorter side over 1.5.

    A crop has 256 to 768 pixels.
    """
    width, height = _within(picture, LARGEST_SIDE)
    if not (width and height):
        return MOST_CROPS
    if width <= 384 and height <= 384:
        return 1
    side = max(256, min(768, 2 * min(width, height) // 3))
    return min(MOST_CROPS, _up(width, side) * _up(height, side))
