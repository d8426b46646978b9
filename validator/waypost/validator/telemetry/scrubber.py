"""Takes the operator's own keys out of what is told to others. Pure.

The rule: a key is replaced wherever it is repeated, whole, in part, or with its middle masked, as
providers do who mean well: ``Incorrect API key provided: na***ys`` (xAI, continue#10778 and
codex#1352). What is left of a key is a hint for whoever is to guess it.
"""

import re
from collections.abc import Iterable
from string import ascii_letters, digits
from urllib.parse import quote

__all__ = ["HIDDEN", "Scrubber"]

HIDDEN = "[key]"

SHOWN_CHARS = 3  # of a masked key; fewer could be of anything
PART_CHARS = 8  # of a key that was cut off; shorter ones are ordinary words

_MASK = r"(?:\*{2,}|\.{3,}|…|\\u2026|•+|(?:\\u2022)+|[xX]{4,})"
# What stands before a mask is looked at from there, backwards: a pattern that begins with it would
# try each letter of a long word as the beginning, and errors repeat what callers write.
_MASKED = re.compile(rf"{_MASK}+([A-Za-z0-9_\-]*)")
_WORD = re.compile(r"[A-Za-z0-9_\-]{8,}")
_LETTERS = frozenset(f"{ascii_letters}{digits}_-")


class Scrubber:
    """Knows the keys of all providers."""

    __slots__ = ("_keys", "_longest", "_whole")

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = tuple(sorted({key for key in keys if key}, key=len, reverse=True))
        self._longest = max(map(len, self._keys), default=0)
        forms = {form for key in self._keys for form in _forms(key)}
        self._whole = tuple(sorted(forms, key=len, reverse=True))

    def bytes(self, data: bytes) -> bytes:
        """Return ``data`` without keys; JSON stays JSON."""
        if not self._keys:
            return data
        text = data.decode("utf-8", "surrogateescape")
        hidden = self.text(text)
        return data if hidden is text else hidden.encode("utf-8", "surrogateescape")

    def text(self, text: str) -> str:
        """Return ``text`` without keys; the same object where there is none."""
        hidden = text
        for form in self._whole:
            if form in hidden:
                hidden = _replaced(hidden, form)
        hidden = self._without_masked(hidden)
        hidden = _WORD.sub(self._part, hidden)
        return text if hidden == text else hidden

    def _without_masked(self, text: str) -> str:
        """Return ``text`` without keys whose middle is masked; the same object if there is none."""
        pieces: list[str] = []
        at = 0
        for found in _MASKED.finditer(text):
            begin, end = self._begin(text, at, found.start()), found[1]
            if self._is_masked(text[begin : found.start()], end):
                pieces += text[at:begin], HIDDEN
                at = found.end()
        return "".join([*pieces, text[at:]]) if pieces else text

    def _begin(self, text: str, least: int, at: int) -> int:
        """Return where the word that ends at ``at`` begins; one longer than any key is cut."""
        least = max(least, at - self._longest - 1)
        while at > least and text[at - 1] in _LETTERS:
            at -= 1
        return at

    def _is_masked(self, begin: str, end: str) -> bool:
        if len(begin) + len(end) < SHOWN_CHARS:
            return False
        return any(key.startswith(begin) and key.endswith(end) for key in self._keys)

    def _part(self, found: "re.Match[str]") -> str:
        part = found[0]
        # From the middle as well: a key may have dots and slashes, and the word ends there.
        is_ours = any(part in key for key in self._keys)
        return HIDDEN if is_ours else part


def _forms(key: str) -> set[str]:
    """Return a key as it may be written: as it is, in JSON, or in a URL."""
    in_json = key.replace("\\", "\\\\").replace('"', '\\"')
    return {key, in_json, in_json.replace("/", "\\/"), quote(key, safe="")}


def _replaced(text: str, form: str) -> str:
    if len(form) >= PART_CHARS:
        return text.replace(form, HIDDEN)
    # A key so short may be a word like any other; inside another it is not meant.
    return re.sub(rf"(?<![\w-]){re.escape(form)}(?![\w-])", HIDDEN, text)
