"""What the trained scores share: hashed runs of words, weights of four bits, calibration.

Whole numbers throughout, so that an implementation in any language gets the same scores.
"""

import re
from base64 import b64decode
from binascii import Error as Base64Error
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from zlib import crc32

from waypost.shared.errors import PolicyError

__all__ = ["NO_WEIGHT", "calibrated", "check_knots", "runs", "stems", "unpack", "window", "words"]

NO_WEIGHT = 8  # what a half byte holds for the weight 0; its 0 to 15 are −8 to 7

_WORD = re.compile(rb"[a-z0-9\x80-\xff]+")
_STEM = re.compile(rb"([a-z0-9\x80-\xff]{1,6})[a-z0-9\x80-\xff]*")


def window(text: str, chars: int) -> bytes:
    """Return ``text`` in UTF-8, of a long one the first and last ``chars`` code points.

    They are joined by a line feed; a lone surrogate becomes ``?``.
    """
    if len(text) > 2 * chars:
        text = f"{text[:chars]}\n{text[-chars:]}"
    return text.encode(errors="replace")


def words(seen: bytes) -> list[bytes]:
    """Return the words: the longest runs of a-z, 0-9 and bytes from 0x80 up, A-Z made a-z."""
    return _WORD.findall(seen.lower())


def stems(seen: bytes) -> list[bytes]:
    """Return the first six bytes of each word: a stemmer that needs no dictionary."""
    return _STEM.findall(seen.lower())


def runs(of: list[bytes], longest: int) -> tuple[list[int], ...]:
    """Return the CRC-32 of each run of one of ``of``, of two, and so on, strung together."""
    hashes = [list(map(crc32, of))]
    for length in range(1, longest):
        # crc32(b, crc32(a)) is crc32(a + b): a run costs one C call, and no string.
        hashes.append(list(map(crc32, of[length:], hashes[-1])))
    return tuple(hashes)


def unpack(packed: str, count: int, *, what: str) -> bytes:
    """Return ``count`` half bytes, one a byte; the lower half of each byte comes first.

    Raises:
        PolicyError: not base64, or not that many.
    """
    try:
        octets = b64decode(packed, validate=True)
    except (Base64Error, ValueError):
        raise PolicyError(f"the {what}'s weights are not base64") from None
    if 2 * len(octets) != count:
        raise PolicyError(f"the {what} has {2 * len(octets)} weights, not {count}")
    return bytes(half for octet in octets for half in (octet & 15, octet >> 4))


def check_knots(knots: Sequence[int], *, what: str) -> None:
    """Raise PolicyError unless ``knots`` are at least two, and increase."""
    if len(knots) < 2 or any(low >= high for low, high in pairwise(knots)):
        raise PolicyError(f"the {what}'s knots do not increase")


def calibrated(raw: int, knots: Sequence[int]) -> int:
    """Return where ``raw`` lies among ``knots``, 0 to 1,000, rounded down.

    The knots stand evenly spaced on 0 to 1,000; between two of them is a straight line.
    """
    if raw <= knots[0]:
        return 0
    if raw >= knots[-1]:
        return 1_000
    place = bisect_right(knots, raw) - 1
    low, high = knots[place], knots[place + 1]
    return 1_000 * (place * (high - low) + raw - low) // ((len(knots) - 1) * (high - low))
