"""Patterns that cost time linear in the text, whatever the text is: RE2, through one typed door.

Bytes in and bytes out, since RE2's Python binding otherwise converts each offset. Its ``Set`` is
left alone: the binding drops the error that RE2 returns when a set's automaton outgrows its
memory, and what is left reads "nothing found". A single pattern goes on with a slower automaton.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import Any, Protocol
from unicodedata import normalize

__all__ = ["Match", "Pattern"]


class Match(Protocol):
    """One occurrence, as ``re.Match`` has it."""

    def start(self) -> int: ...
    def end(self) -> int: ...
    def __getitem__(self, group: int) -> bytes | None: ...


class _Compiled(Protocol):
    def search(self, text: bytes) -> Match | None: ...
    def finditer(self, text: bytes) -> Iterator[Match]: ...


_re2: Any = import_module("re2")  # ships no types


def _compiled(source: str) -> _Compiled:
    options = _re2.Options()
    options.encoding = _re2.Options.Encoding.LATIN1  # a byte is a byte; UTF-8 passes through
    options.log_errors = False  # RE2 writes to the process's stderr
    compiled: _Compiled = _re2.compile(source.encode(), options)
    return compiled


class Pattern:
    r"""A compiled pattern over UTF-8. ``\w``, ``\b`` and ``(?i)`` know ASCII only.

    A letter outside ASCII stands for itself in either case and for its plain form, so that
    ``é`` finds ``é``, ``É`` and ``e``. It is several bytes, so it may not stand in ``[…]``.
    """

    def __init__(self, source: str) -> None:
        self._compiled = _compiled("".join(c if c.isascii() else _spellings(c) for c in source))

    def is_in(self, text: bytes) -> bool:
        """Return whether it occurs."""
        return self._compiled.search(text) is not None

    def matches(self, text: bytes) -> Iterator[Match]:
        """Return its occurrences from the left, not overlapping."""
        return self._compiled.finditer(text)


def _spellings(letter: str) -> str:
    plain = normalize("NFD", letter)[0]
    return f"(?:{'|'.join([letter.lower(), letter.upper(), plain])})"
