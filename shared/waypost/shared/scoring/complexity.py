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

from math import isqrt
from operator import mul
from typing import Annotated, NamedTuple

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
)

__all__ = [
    "BUILT_IN",
    "FEATURES",
    "LONGEST_RUN",
    "ComplexityModel",
    "ComplexityScorer",
    "Reading",
    "read",
]

# Bounds the slowest request: about 0.3 ms for a megabyte. APGR on MMLU, cross-validated, by window:
# 200 0.57, 400 0.62, 800 and 1,500 0.64.
WINDOW_CHARS = 800

LONGEST_RUN = 3  # APGR with single words 0.57, with pairs 0.61, with triples 0.64

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


def _cut(words: str) -> frozenset[bytes]:
    return frozenset(word.encode()[:6] for word in words.split())


_ASKING = _cut("how what when where which who whom whose why")
_REASONING = _cut(
    "analyse analyze argue assess compare contrast critique debug deduce derive design determine"
    " diagnose differentiate evaluate explain hypothesis implications infer integral interpret"
    " justify optimise plan proof prove reason recommend refactor solve strategy synthesise"
    " theorem tradeoff why"
)
_ROUTINE = _cut(
    "capitalise categorise classify convert copy correct count define detect extract find format"
    " identify label list lowercase match name parse rename repeat reword sort spell summarise"
    " tag transcribe translate"
)
_NEGATION = _cut("cannot except false incorrect least neither never no nor not unless without")


class Reading(NamedTuple):
    """What a prompt is made of.

    Attributes:
        features: in the order of ``FEATURES``; see ``_features``.
        grams: the CRC-32 of each word, of each run of two, and of each run of three.
    """

    features: tuple[int, ...]
    grams: tuple[list[int], ...]


def read(text: str) -> Reading:
    """Return what ``text`` is made of; looks at no more than the window."""
    seen = window(text, WINDOW_CHARS)
    words = stems(seen)
    return Reading(_features(len(text), seen, words), runs(words, LONGEST_RUN))


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
        check_knots(model.knots, what="complexity model")
        size = 1 << model.bucket_bits
        count = size * LONGEST_RUN if model.buckets else 0
        weights = unpack(model.buckets, count, what="complexity model")
        self._tables = [weights[start : start + size] for start in range(0, count, size)]
        self._mask = size - 1

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
            total += self.model.gram_scale * (weight - NO_WEIGHT * hit) * 256 // isqrt(65_536 * hit)
        return total

    def score(self, text: str) -> int:
        """Return 0 (simple) to 1,000 (hard); see the model for what lies between."""
        return self.calibrated(self.raw(text))

    def calibrated(self, raw: int) -> int:
        """Return the score that ``raw`` stands for."""
        return calibrated(raw, self.model.knots)
