"""How the console says numbers, times and other people's text. Pure.

The rule: what a record holds was partly written by callers, so nothing of it reaches a page that
could turn words round, be endless, or hide. ``shown`` sees every value that a template prints.
"""

import re
from datetime import UTC, datetime

from markupsafe import Markup, escape

from waypost.shared.money import NUSD_PER_USD, format_usd
from waypost.shared.records import DecisionRecord, Fate, fate_of
from waypost.validator.console.reasons import in_short, outcome_in_words, step_in_words

__all__ = [
    "FILTERS",
    "count",
    "csv_cell",
    "decimal_ms",
    "duration",
    "mishap",
    "money",
    "percent",
    "pretty_json",
    "shown",
    "when",
    "whole",
]

_MISHAPS: dict[Fate, str] = {
    "failed": "failed",
    "abandoned": "caller left",
    "rejected": "provider refused",
}

MAX_SHOWN_CHARS = 2_000
NOTHING = "–"

_JSON_PART = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?|\b(true|false|null)\b|(-?\d[\d.eE+-]*)')


def shown(value: object) -> object:
    """Return ``value`` as a page may print it; made for Jinja's ``finalize``."""
    if value is None:
        return NOTHING
    if isinstance(value, str) and not isinstance(value, Markup):
        text = value if len(value) <= MAX_SHOWN_CHARS else f"{value[:MAX_SHOWN_CHARS]}…"
        return text if text.isprintable() else "".join(c if c.isprintable() else "�" for c in text)
    return value


def count(number: int) -> str:
    """Return ``12,345``."""
    return f"{number:,}"


def mishap(record: DecisionRecord) -> str:
    """Return what went wrong after the verdict, in a word or two; nothing if it was answered."""
    return _MISHAPS.get(fate_of(record), "")


def percent(part: float, whole: float) -> str:
    """Return ``4.2 %``; a dash where there is no whole."""
    if not whole:
        return NOTHING
    share = 100 * part / whole
    if 0 < share < 0.05:
        return "< 0.1 %"
    return f"{share:.0f} %" if share in (0, 100) or share >= 10 else f"{share:.1f} %"


def decimal_ms(ms: float | None) -> str:
    """Return a duration in milliseconds or seconds, to three figures: ``0.42 ms``, ``1.06 s``."""
    if ms is None:
        return NOTHING
    if ms < 10:
        return f"{ms:.2f} ms"
    return f"{ms:,.0f} ms" if ms < 1_000 else f"{ms / 1_000:,.2f} s"


def duration(seconds: float) -> str:
    """Return whole seconds in the two largest units: ``3 d 4 h``, ``58 s``."""
    left, words = max(0, int(seconds)), list[str]()
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        number, left = divmod(left, length)
        if number or words or unit == "s":
            words.append(f"{number} {unit}")
        if len(words) == 2:
            break
    return " ".join(words)


def when(at_s: float) -> str:
    """Return an instant in UTC: ``2026-11-24 23:59:58``."""
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M:%S}"


def money(nusd: int) -> str:
    """Return dollars to the cent from ten cents on, and else to two figures; with a real minus."""
    if abs(nusd) >= NUSD_PER_USD // 10:
        text = f"${abs(nusd) / NUSD_PER_USD:,.2f}"
    else:
        head, _, digits = format_usd(abs(nusd)).partition(".")
        digits = digits.rstrip("0")
        text = f"{head}.{digits:0<2}" if digits else head
    return f"−{text}" if nusd < 0 else text


def pretty_json(text: str) -> Markup:
    """Return indented JSON with its parts marked for colour."""
    parts: list[Markup] = []
    at = 0
    for match in _JSON_PART.finditer(text):
        parts.append(escape(_visible(text[at : match.start()])))
        string, colon, word, number = match.groups()
        kind = "key" if colon else "text" if string else "word" if word else "number"
        what = escape(_visible(string or word or number))
        parts.append(Markup('<span class="j-{}">{}</span>{}').format(kind, what, colon or ""))
        at = match.end()
    parts.append(escape(_visible(text[at:])))
    return Markup().join(parts)


def whole(text: str) -> Markup:
    """Return text with its line breaks, however long, for where it is shown as it is."""
    return escape(_visible(text))


def _visible(text: str) -> str:
    return "".join(
        c if c == "\n" or c.isprintable() else f"\\u{ord(c):04x}" if ord(c) < 65_536 else "�"
        for c in text
    )


def csv_cell(value: object) -> str:
    """Return a cell that a spreadsheet takes for text or a number, never for a formula.

    Source: OWASP, CSV Injection.
    """
    if value is None:
        return ""
    if isinstance(value, int | float):
        return str(value)
    text = str(shown(str(value)))
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r", "'") else text


FILTERS = {
    "count": count,
    "ms": decimal_ms,
    "pretty": pretty_json,
    "mishap": mishap,
    "outcome": outcome_in_words,
    "reason": in_short,
    "step": step_in_words,
    "duration": duration,
    "usd": money,
    "when": when,
    "whole": whole,
}
