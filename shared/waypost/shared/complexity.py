"""How hard a prompt looks, as a whole number from 0 to 1,000, alike in client and validator.

Pure integers from the first byte to the score, so that an implementation in any language gets
the same number; ``//`` is division rounded down:

1. *Window.* A prompt of more than ``2 × WINDOW_CHARS`` code points is cut to its first and last
   ``WINDOW_CHARS`` with a line feed between. As UTF-8; a lone surrogate becomes ``?``.
2. *Words.* The longest runs of ``a-z``, ``0-9`` and bytes from 0x80 up, after ``A-Z`` became
   ``a-z``; of each the first six bytes, which is a stemmer that needs no dictionary.
3. *Features.* Fifteen numbers, each 0 to 1,000: see ``Reading.features``.
4. *Grams.* For each run of one, two and three successive words, the CRC-32 (the one of zlib)
   of their bytes strung together. Its lowest bits are a bucket in the table for that length of
   run. A bucket counts once, however often it is hit.
5. *Raw.* ``bias + Σ weight × feature + gram_scale × Σ bucket weight × 256 // isqrt(65,536 × n)``
   with n buckets hit; the root keeps a long text from winning by its mere number of grams.
6. *Score.* ``knots`` stand evenly spaced on 0 to 1,000; between two of them, the straight line.
"""

import re
from base64 import b64decode
from binascii import Error as Base64Error
from bisect import bisect_right
from itertools import pairwise
from math import isqrt
from operator import mul
from typing import Annotated, NamedTuple
from zlib import crc32

from msgspec import Meta, Struct

from waypost.shared.errors import PolicyError

__all__ = [
    "BUILT_IN",
    "FEATURES",
    "GRAM_LENGTHS",
    "ComplexityModel",
    "ComplexityScorer",
    "Reading",
    "read",
]

# Bounds the slowest request: about 0.3 ms for a megabyte. APGR on MMLU, cross-validated, by window:
# 200 0.57, 400 0.62, 800 and 1,500 0.64.
WINDOW_CHARS = 800

GRAM_LENGTHS = (1, 2, 3)  # APGR with single words 0.57, with pairs 0.61, with triples 0.64

FEATURES = (
    "length",
    "word_length",
    "digits",
    "maths",
    "capitals",
    "clauses",
    "code",
    "lines",
    "sentences",
    "variety",
    "questions",
    "asking",
    "reasoning",
    "routine",
    "negation",
)

_WORD = re.compile(rb"([a-z0-9\x80-\xff]{1,6})[a-z0-9\x80-\xff]*")


def _stems(words: str) -> frozenset[bytes]:
    return frozenset(word.encode()[:6] for word in words.split())


_ASKING = _stems("how what when where which who whom whose why")
_REASONING = _stems(
    "analyse analyze argue assess compare contrast critique debug deduce derive design determine"
    " diagnose differentiate evaluate explain hypothesis implications infer integral interpret"
    " justify optimise plan proof prove reason recommend refactor solve strategy synthesise"
    " theorem tradeoff why"
)
_ROUTINE = _stems(
    "capitalise categorise classify convert copy correct count define detect extract find format"
    " identify label list lowercase match name parse rename repeat reword sort spell summarise"
    " tag transcribe translate"
)
_NEGATION = _stems("cannot except false incorrect least neither never no nor not unless without")


class Reading(NamedTuple):
    """What a prompt is made of.

    Attributes:
        features: in the order of ``FEATURES``; see ``_features``.
        grams: for each of ``GRAM_LENGTHS``, the CRC-32 of each run of that many words.
    """

    features: tuple[int, ...]
    grams: tuple[list[int], list[int], list[int]]


def read(text: str) -> Reading:
    """Return what ``text`` is made of; looks at no more than the window."""
    seen = (
        text if len(text) <= 2 * WINDOW_CHARS else f"{text[:WINDOW_CHARS]}\n{text[-WINDOW_CHARS:]}"
    ).encode(errors="replace")
    words = _WORD.findall(seen.lower())
    singles = list(map(crc32, words))
    # crc32(b, crc32(a)) is crc32(a + b): the grams cost one C call each, and no strings.
    pairs = list(map(crc32, words[1:], singles))
    triples = list(map(crc32, words[2:], pairs))
    return Reading(_features(len(text), seen, words), (singles, pairs, triples))


def _features(chars: int, seen: bytes, words: list[bytes]) -> tuple[int, ...]:
    """Return the features: logarithms, thousandths of bytes or words, and counts that saturate."""
    size = len(seen) or 1
    count = len(words) or 1
    different = set(words)
    return (
        _log(chars),
        min(1_000, 32 * size // count),
        (len(seen) - len(seen.translate(None, b"0123456789"))) * 1_000 // size,
        (len(seen) - len(seen.translate(None, b"=+*/^<>$\\|~%"))) * 1_000 // size,
        (len(seen) - len(seen.translate(None, b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"))) * 1_000 // size,
        (len(seen) - len(seen.translate(None, b",;:"))) * 1_000 // size,
        (len(seen) - len(seen.translate(None, b"{}[]()_`"))) * 1_000 // size,
        min(1_000, seen.count(b"\n") * 1_000 // count),
        min(1_000, seen.count(b".") * 1_000 // count),
        len(different) * 1_000 // count,
        min(1_000, seen.count(b"?") * 250),
        min(1_000, len(different & _ASKING) * 250),
        min(1_000, len(different & _REASONING) * 250),
        min(1_000, len(different & _ROUTINE) * 250),
        min(1_000, len(different & _NEGATION) * 250),
    )


def _log(chars: int) -> int:
    """Return 64 × log₂ ``chars``, straight between powers of two; 1,000 is about 50,000 chars."""
    if chars == 0:
        return 0
    power = chars.bit_length() - 1
    return min(1_000, 64 * power + (chars * 64 >> power) - 64)


Raw = Annotated[int, Meta(ge=-(2**40), le=2**40)]


class ComplexityModel(Struct, frozen=True, kw_only=True):
    """What a scorer weighs with; rides in the signed manifest.

    Attributes:
        weights: one per feature, in the order of ``FEATURES``.
        bucket_bits: each table has two to this power buckets.
        buckets: base64 of the tables for one, two and three words, two buckets a byte, the
            lower half first, each its weight plus 8; empty: no tables.
        knots: strictly increasing raw values, evenly spaced in score.
    """

    weights: Annotated[tuple[Raw, ...], Meta(min_length=len(FEATURES), max_length=len(FEATURES))]
    knots: Annotated[tuple[Raw, ...], Meta(min_length=2, max_length=101)]
    bias: Raw = 0
    gram_scale: Annotated[int, Meta(ge=0, le=2**32)] = 0
    bucket_bits: Annotated[int, Meta(ge=1, le=16)] = 1
    buckets: Annotated[str, Meta(max_length=140_000)] = ""


# By hand. On questions (trivia to MATH; MMLU-Pro) length, digits and maths carry over from one
# set to the next, in that order; no public set of outcomes asks for classification or extraction,
# so the verbs are worth what they say: each as much as doubling the length two times over.
BUILT_IN = ComplexityModel(
    weights=tuple(
        {
            "length": 600,
            "digits": 1_000,
            "maths": 2_000,
            "code": 1_000,
            "lines": 300,
            "reasoning": 400,
            "routine": -400,
            "negation": 100,
        }.get(name, 0)
        for name in FEATURES
    ),
    knots=(0, 1_000_000),
)


class ComplexityScorer:
    """Scores prompts with one model; without a model, with the built-in heuristic."""

    def __init__(self, model: ComplexityModel | None = None) -> None:
        """Unpack ``model``.

        Raises:
            PolicyError: its tables cannot be read, or its parts do not fit each other.
        """
        self.model = model = model or BUILT_IN
        if len(model.weights) != len(FEATURES):
            raise PolicyError(
                f"the complexity model weighs {len(model.weights)} features, not {len(FEATURES)}"
            )
        if len(model.knots) < 2 or any(low >= high for low, high in pairwise(model.knots)):
            raise PolicyError("the complexity model's knots do not increase")
        self._tables = _tables(model)
        self._mask = (1 << model.bucket_bits) - 1

    def raw(self, text: str) -> int:
        """Return what the model makes of ``text`` before calibration."""
        features, grams = read(text)
        total: int = self.model.bias + sum(map(mul, self.model.weights, features))
        mask = self._mask
        weight = hit = 0
        for table, hashes in zip(self._tables, grams, strict=False):
            buckets = {value & mask for value in hashes}
            weight += sum(map(table.__getitem__, buckets))
            hit += len(buckets)
        if hit:
            total += self.model.gram_scale * (weight - 8 * hit) * 256 // isqrt(65_536 * hit)
        return total

    def score(self, text: str) -> int:
        """Return 0 (simple) to 1,000 (hard); see the model for what lies between."""
        return self.calibrated(self.raw(text))

    def calibrated(self, raw: int) -> int:
        """Return the score that ``raw`` stands for."""
        knots = self.model.knots
        if raw <= knots[0]:
            return 0
        if raw >= knots[-1]:
            return 1_000
        place = bisect_right(knots, raw) - 1
        low, high = knots[place], knots[place + 1]
        return 1_000 * (place * (high - low) + raw - low) // ((len(knots) - 1) * (high - low))


def _tables(model: ComplexityModel) -> list[bytes]:
    """Return one byte a bucket, its weight plus 8, for each length of run; none if it has none."""
    if not model.buckets:
        return []
    try:
        packed = b64decode(model.buckets, validate=True)
    except (Base64Error, ValueError):
        raise PolicyError("the complexity model's buckets are not base64") from None
    size = 1 << model.bucket_bits
    if 2 * len(packed) != size * len(GRAM_LENGTHS):
        raise PolicyError(
            f"the complexity model has {2 * len(packed)} buckets, not {size * len(GRAM_LENGTHS)}"
        )
    plain = bytes(half for byte in packed for half in (byte & 15, byte >> 4))
    return [plain[start : start + size] for start in range(0, len(plain), size)]
