"""What detectors read: the text of a request, with its typographic disguises taken off."""

import re
from unicodedata import digit

__all__ = ["fold", "json_text"]


def _chars(*spans: tuple[int, int]) -> str:
    return "".join(chr(code) for first, last in spans for code in range(first, last + 1))


# Unicode's default-ignorable code points, and marks that combine with what stands before them:
# invisible, or as good as.
_INVISIBLE = _chars(
    (0x00AD, 0x00AD),
    (0x0300, 0x036F),
    (0x061C, 0x061C),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200B, 0x200F),
    (0x202A, 0x202E),
    (0x2060, 0x206F),
    (0x20DD, 0x20E4),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xE0000, 0xE01EF),
)
_SPACES = _chars(
    (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x202F, 0x202F), (0x205F, 0x205F)
)
_BREAKS = _chars((0x85, 0x85), (0x2028, 0x2029))
_DASHES = _chars(
    (0x2010, 0x2015), (0x2043, 0x2043), (0x2212, 0x2212), (0xFE58, 0xFE58), (0xFE63, 0xFE63)
)
_DIGITS = [c for c in _chars((0x80, 0xD7FF), (0xE000, 0x1FBF9)) if c.isdigit()]

_FOLDED: dict[str, str] = {
    **dict.fromkeys(_INVISIBLE, ""),
    **dict.fromkeys(_SPACES + "\u3000", " "),
    **dict.fromkeys(_BREAKS, "\n"),
    **dict.fromkeys(_DASHES, "-"),
    **dict.fromkeys("‘’‚‛′", "'"),
    **dict.fromkeys("“”„‟″«»", '"'),
    **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full-width ASCII
    **{c: str(digit(c)) for c in _DIGITS},
}
# One range for all beyond U+FFFF: `re` has a table for the plane below, and tries others in turn.
_ODD = re.compile(
    f"[{re.escape(''.join(sorted(c for c in _FOLDED if c < chr(0x10000))))}\U00010000-\U0010ffff]"
)


def fold(text: str) -> str:
    """Return ``text`` with digits, dashes, spaces and quotes in ASCII, and nothing invisible.

    Covers digits of all scripts, full-width ASCII, and zero-width and combining characters.
    Not Unicode's NFKC: CPython's takes quadratic time for a long run of combining marks.
    """
    return text if text.isascii() else _ODD.sub(lambda match: _FOLDED.get(match[0], match[0]), text)


# The backslash itself comes first and waits as NUL, which JSON never holds raw: after that, each
# backslash begins an escape. Replacing is ten times as fast as a pattern with a function.
_ESCAPES = {r"\\": "\0", r"\n": "\n", r"\r": "\r", r"\t": "\t", r"\b": "", r"\f": "\n"}
_BY_CODE = re.compile(r"\\u([0-9a-fA-F]{4})")


def json_text(body: bytes) -> str:
    """Return all of a JSON body as text: every key, string and number, escapes resolved.

    What a provider may read is what must be looked at, so nothing is parsed and nothing left
    out: a field that we do not know, a tool's arguments, the first of two equal keys.
    """
    text = body.decode("utf-8", "replace")
    if "\\" not in text:
        return text
    for escape, meant in _ESCAPES.items():
        text = text.replace(escape, meant)
    if r"\u" in text:
        text = _BY_CODE.sub(lambda match: chr(int(match[1], 16)), text)
        # Code points beyond U+FFFF come in halves; this joins them. A lone half becomes U+FFFD.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace("\\", "").replace("\0", "\\")
