"""Pictures of any size, written by Pillow, and what providers count for them by their own rules.

The rules are written here a second time, as providers' pages have them: with floats, and by
scaling first.
"""

import base64
from io import BytesIO
from math import ceil, sqrt
from typing import Literal

from PIL import Image

Format = Literal["PNG", "JPEG", "GIF", "WEBP"]


def picture(width: int, height: int, kind: Format = "PNG") -> str:
    """Return a picture in base64."""
    into = BytesIO()
    Image.new("L", (width, height)).save(into, kind)
    return base64.b64encode(into.getvalue()).decode()


def openai_tiles(width: float, height: float, *, base: int, tile: int) -> int:
    fits = min(1.0, 2_048 / max(width, height))
    width, height = width * fits, height * fits
    shorter = min(1.0, 768 / min(width, height))
    width, height = round(width * shorter, 6), round(height * shorter, 6)
    return base + tile * ceil(width / 512) * ceil(height / 512)


def openai_patches(width: int, height: int, *, factor: float) -> int:
    patches = ceil(width / 32) * ceil(height / 32)
    if patches > 1_536:
        shrink = sqrt(1_536 * 32 * 32 / (width * height))
        wide, high = width * shrink / 32, height * shrink / 32
        shrink *= min(max(1, int(wide)) / wide, max(1, int(high)) / high)
        patches = min(1_536, ceil(width * shrink / 32) * ceil(height * shrink / 32))
    return ceil(round(patches * factor, 6))


def claude(width: float, height: float, *, side: int, most: int) -> int:
    fits = min(1.0, side / max(width, height), sqrt(most * 750 / (width * height)))
    return min(most, int(width * fits * height * fits / 750))


def claude_patches(width: float, height: float, *, side: int, most: int) -> int:
    fits = min(1.0, side / max(width, height))
    return min(most, ceil(int(width * fits) / 28) * ceil(int(height * fits) / 28))


def gemini_tiles(width: int, height: int) -> int:
    if width <= 384 and height <= 384:
        return 258
    side = min(768, max(256, int(min(width, height) / 1.5)))
    return 258 * ceil(width / side) * ceil(height / side)
