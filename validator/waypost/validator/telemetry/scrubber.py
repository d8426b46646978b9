"""Takes the operator's own keys out of what is told to others. Pure.

The rule: a key is replaced wherever it is repeated, whole, in part, or with its middle masked, as
providers do who mean well: ``Incorrect API key provided: na***ys`` (xAI, continue#10778 and
codex#1352). What is left of a key is a hint for whoever is to guess it.
"""

import re
from collections.abc import Iterable
from urllib.parse import quote

__all__ = ["HIDDEN", "Scrubber"]

HIDDEN = "[key]"

SHOWN_CHARS = 3  # of a masked key; fewer could be of anything
PART_CHARS = 8  # of a key that was cut off; shorter ones are ordinary words

_MASK = r"(?:\*{2,}|\.{3,}|…|\\u2026|•+|(?:\\u2022)+|[xX]{4,})"
_MASKED = re.compile(rf"([A-Za-z0-9_\-]*){_MASK}+([A-Za-z0-9_\-]*)")
_WORD = re.compile(r"[A-Za-z0-9_\-]{8,}")


class Scrubber:
    """Knows the keys of all providers."""

    __slots__ = ("_keys", "_whole")

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = tuple(sorted({key for key in keys if key}, key=len, reverse=True))
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
        hidden = _MASKED.sub(self._masked, hidden)
        hidden = _WORD.sub(self._part, hidden)
        return text if hidden == text else hidden

    def _masked(self, found: "re.Match[str]") -> str:
        begin, end = found[1], found[2]
        if len(begin) + len(end) < SHOWN_CHARS:
            return found[0]
        is_ours = any(key.startswith(begin) and key.endswith(end) for key in self._keys)
        return HIDDEN if is_ours else found[0]

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
