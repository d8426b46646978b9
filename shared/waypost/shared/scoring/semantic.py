"""Which of the routes that were given by example a prompt belongs to, if any.

Whole numbers throughout, alike in client and validator and in any language:

1. *Words.* Window, words and stems (six bytes) as ``waypost.shared.scoring.grams`` has them.
2. *Grams.* CRC-32 of each stem, of each pair of successive stems strung together, and of each run
   of three and of four bytes of the line: a space, the words with a space between, a space. The
   lowest bits are a bucket, which counts once. The runs of bytes see through inflection and
   typing errors: with ten examples a route, two to four prompts in a hundred.
3. *Fit.* A route's sum of weights over the buckets hit, × 4,096 // isqrt(65,536 × (n + 16))
   with n buckets hit; the 16 keep a chance hit from speaking for a text of a few letters.
4. *Best.* The route of the highest fit, the first named of several; its score is where that fit
   lies among ``knots``. Below ``accept_at`` it is none of them.
"""

import struct
from math import isqrt
from typing import Annotated, Protocol
from zlib import crc32

from msgspec import Meta, Struct

from waypost.shared.errors import PolicyError
from waypost.shared.scoring.grams import (
    NO_WEIGHT,
    calibrated,
    check_knots,
    runs,
    stems,
    unpack,
    window,
    words,
)

__all__ = ["Scorer", "SemanticModel", "SemanticScorer", "hashes"]

WINDOW_CHARS = 256  # intent stands at either end of a prompt; bounds the slowest to about 0.3 ms
RUNS_OF_BYTES = (3, 4)
FEW = 16  # of buckets; a short sentence hits about 100


def hashes(text: str) -> set[int]:
    """Return the CRC-32 of all that is looked at in ``text``."""
    seen = window(text, WINDOW_CHARS)
    line = b" %b " % b" ".join(words(seen))
    found = {
        crc32(line[start : start + length])
        for length in RUNS_OF_BYTES
        for start in range(len(line) - length + 1)
    }
    return found.union(*runs(stems(seen), longest=2))


class SemanticModel(Struct, frozen=True, kw_only=True):
    """How prompts are told apart; rides in the signed manifest, half a byte per bucket and route.

    Attributes:
        routes: their names.
        bucket_bits: there are two to this power buckets.
        weights: base64 of each bucket's weight for each route, bucket by bucket: two a byte, the
            lower half first, each plus 8.
        knots: strictly increasing fits, evenly spaced in score.
        accept_at: a prompt that scores lower belongs to none of the routes.
    """

    routes: Annotated[tuple[str, ...], Meta(min_length=2, max_length=512)]
    bucket_bits: Annotated[int, Meta(ge=1, le=16)]
    weights: Annotated[str, Meta(max_length=2_000_000)]
    knots: Annotated[tuple[int, ...], Meta(min_length=2, max_length=101)]
    accept_at: Annotated[int, Meta(ge=0, le=1_000)]


class Scorer(Protocol):
    """What tells routes apart, by whatever means."""

    def best(self, text: str) -> tuple[str | None, int]:
        """Return the route of ``text``, or ``None``, and how well it fits: 0 to 1,000."""
        ...


class SemanticScorer:
    """Tells routes apart by the words of their examples, in microseconds and without a library."""

    def __init__(self, model: SemanticModel) -> None:
        """Unpack ``model``.

        Raises:
            PolicyError: its weights cannot be read, or its parts do not fit each other.
        """
        self.model = model
        check_knots(model.knots, what="semantic model")
        if len(set(model.routes)) < len(model.routes):
            raise PolicyError("the semantic model names a route twice")
        self._lanes = struct.Struct(f"<{len(model.routes)}H")
        width = self._lanes.size
        size = 1 << model.bucket_bits
        lanes = bytearray(width * size)
        lanes[::2] = unpack(model.weights, len(model.routes) * size, what="semantic model")
        # One whole number a bucket, with 16 bits for each route: adding two adds all routes at
        # once, so a prompt takes 23 µs with 77 routes and with 150. A lane has room for 4,369
        # buckets; the window, 2,049 bytes at most, lets 4,105 grams through.
        self._rows = [
            int.from_bytes(lanes[start : start + width], "little")
            for start in range(0, len(lanes), width)
        ]
        self._mask = size - 1

    def best(self, text: str) -> tuple[str | None, int]:
        """Return the route of ``text``, or ``None``, and how well it fits: 0 to 1,000."""
        place, fit = self.fit(text)
        score = calibrated(fit, self.model.knots)
        return (self.model.routes[place] if score >= self.model.accept_at else None, score)

    def fit(self, text: str) -> tuple[int, int]:
        """Return the place of the best route, and its fit before calibration."""
        mask = self._mask
        buckets = {value & mask for value in hashes(text)}
        total = sum(map(self._rows.__getitem__, buckets))
        sums = self._lanes.unpack(total.to_bytes(self._lanes.size, "little"))
        top = max(sums)
        hit = len(buckets)
        return sums.index(top), (top - NO_WEIGHT * hit) * 4_096 // isqrt(65_536 * (hit + FEW))
