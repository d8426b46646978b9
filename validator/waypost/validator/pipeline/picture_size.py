"""How large a picture is, read from its header; the picture itself is never decoded.

Of JPEG, PNG, GIF and WebP, which all providers take. Whatever cannot be read is of unknown size,
and then bounded by what its provider makes of the largest.
"""

from binascii import a2b_base64
from importlib import import_module
from io import BytesIO
from typing import Any

from waypost.shared.pictures import UNKNOWN, Picture

__all__ = ["size_of"]

_imagesize: Any = import_module("imagesize")  # ships no types

_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"RIFF")
MAX_SIDE = 1_000_000


def size_of(data: str) -> Picture:
    """Return the size of a picture of which ``data`` is the beginning, in base64."""
    try:
        header = a2b_base64(data[: len(data) & ~3])
    except ValueError:
        return UNKNOWN
    if not header.startswith(_MAGIC):
        return UNKNOWN
    try:
        width, height = _imagesize.get(BytesIO(header))
    except Exception:  # a parser of what strangers send: whatever it raises, nothing is known
        return UNKNOWN
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        return UNKNOWN
    return Picture(int(width), int(height))
