"""A kind of data: the pattern that proposes, and the check that disposes.

Patterns are generous and fast, checks strict and slow. A pattern proposes candidates; the first
that passes its check decides, since what is asked is whether, not how often.
"""

import re
from collections.abc import Callable, Iterable
from typing import TypeVar

from msgspec import Struct

from waypost.validator.detectors.linear import Match, Pattern

__all__ = ["MAX_CHECKS", "NUMBER", "Kind", "any_holds", "stands_alone"]

T = TypeVar("T")

# The hint of all kinds that are numbers: five digits with no more than punctuation between.
NUMBER = Pattern(r"\d(?:[\s()./_-]{0,3}\d){4}")

MAX_CHECKS = 1_000  # at some microseconds each; no honest text has so many near misses


class Kind(Struct, frozen=True):
    """One kind of data that text may contain.

    Attributes:
        hint: is wherever the kind is, and costs one pass; most text goes no further. Kinds share
            hints where they can.
        is_in: whether folded text, in UTF-8, contains it.
    """

    name: str
    hint: Pattern
    is_in: Callable[[bytes], bool]


def any_holds(candidates: Iterable[T], check: Callable[[T], bool]) -> bool:
    """Return whether a candidate passes ``check``.

    After 1,000 that did not, the rest is taken to: a text made to exhaust the check is treated
    as if it had passed.
    """
    return any(
        tried >= MAX_CHECKS or check(candidate) for tried, candidate in enumerate(candidates)
    )


_JOINED_BEFORE = re.compile(rb"(?:[\w$]|\w[+-]|\d\.)\Z")
_JOINED_AFTER = re.compile(rb"[-.,]\d|%")


def stands_alone(text: bytes, match: Match) -> bool:
    """Return whether ``match`` is no part of a longer number, an amount or a part's name."""
    start = match.start()
    return not (
        _JOINED_BEFORE.search(text[max(start - 2, 0) : start])
        or _JOINED_AFTER.match(text, match.end())
    )
