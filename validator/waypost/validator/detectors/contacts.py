"""How to reach a person, or to find their file: e-mail, phone and medical record numbers."""

import re
from collections.abc import Iterator

import phonenumbers
from msgspec import Struct

from waypost.validator.detectors.checks import NUMBER, Kind, any_holds, stands_alone
from waypost.validator.detectors.linear import Match, Pattern

__all__ = ["EMAIL", "MRN", "PHONE"]

# ── e-mail ─────────────────────────────────────────────────────────────────────────────────────

_AT = r"(?:@| ?[\[({] ?(?i:at) ?[\])}] ?)"
_DOT = r"(?:\.| ?[\[({] ?(?i:dot) ?[\])}] ?)"
_EMAIL = Pattern(
    rf"([\w%+'\x80-\xff-][\w.%+'\x80-\xff-]{{0,63}}){_AT}"
    rf"((?:[\w\x80-\xff-]{{1,63}}{_DOT}){{1,8}}(?:[A-Za-z\x80-\xff]{{2,24}}|xn--[\w-]{{2,60}}))"
)
_REMOTES = {b"git", b"hg", b"svn"}  # git@host: is a repository
_SCALED = re.compile(rb"\dx\.")  # logo@2x.png
_AUTHORITY = re.compile(rb"://[^\s/?#\"'<>]*\Z")  # https://user:password@host


def _is_email(text: bytes, match: Match) -> bool:
    start = match.start()
    return not (
        (match[1] or b"").lower() in _REMOTES
        or _SCALED.match(match[2] or b"")
        or _AUTHORITY.search(text[max(start - 80, 0) : start])
    )


EMAIL = Kind(
    "email",
    Pattern(_AT),
    lambda text: any_holds(_EMAIL.matches(text), lambda match: _is_email(text, match)),
)

# ── phone ──────────────────────────────────────────────────────────────────────────────────────

_SEPARATED = r"[\s()./-]{0,3}\d"
_INTERNATIONAL = Pattern(rf"(?:\+ ?|\b00 ?)[1-9](?:{_SEPARATED}){{6,14}}\b")
_AMERICAN = Pattern(r"(?:\([2-9]\d\d\) ?|\b[2-9]\d\d[.-])\d{3}[ .-]\d{4}\b")
_EUROPEAN = Pattern(r"\(?\b0[1-9]\d{0,4}\)?(?: ?[/-] ?| )\d{2,8}(?:[ -]\d{2,6}){0,4}\b")
_NAMED = Pattern(
    r"(?i:phone|\bph\b|\btel\b|\bmobile|\bcell\b|\bfax\b|\bwhatsapp|\bsms\b|\btext me"
    r"|\bcall (?:me|us|her|him|them)\b"
    r"|telefon|\bhandy|\bmobil\b|rufnummer|\berreichbar|\brückruf|\brufen sie (?:mich|uns)"
    r"|téléphone|\btél\b|\bportable|\bfixe\b|\bappele[rz]|\brappele[rz]|\bjoindre"
    r"|teléfono|\btlf\b|\bmóvil|\bcelular|\bllam[ae]|\bllámame)"
    r"(?i:[^0-9A-Za-z\n]{1,4}|number|nummer|numéro|número|num|nr|no|me|moi|mich|is|ist|est|es"
    r"|c'est|le|lautet|unter|at|on|under|to|au|al|el|bitte|please){0,8}"
    rf"(\(?\d(?:{_SEPARATED}){{6,12}})\b"
)
_REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "NL", "BE", "CH", "AT", "MX")
_TRUNK_REGIONS = ("GB", "DE", "FR", "IT", "NL", "BE", "CH", "AT")  # national numbers begin with 0
_LIKE_SSN = re.compile(rb"\d{3}-\d\d-\d{4}")
_GROUP = re.compile(rb"\D*\d+")
_MIN_PHONE_CHARS = 7
_DECIMAL = re.compile(rb"\+ ?\d+\.\d+\Z")


class _Candidate(Struct, frozen=True):
    number: str
    regions: tuple[str | None, ...] = (None,)
    must_be_assigned: bool = True


def _phones(text: bytes) -> Iterator[_Candidate]:
    for match in _INTERNATIONAL.matches(text):
        number = match[0] or b""
        is_marked = number.startswith(b"+")
        if (
            stands_alone(text, match)
            and not _DECIMAL.match(number)
            and (is_marked or not _follows_digits(text, match))
        ):
            if not is_marked:
                number = b"+" + number[2:]
            for shorter in _without_tail(number):
                yield _Candidate(shorter, must_be_assigned=not is_marked)
    for match in _AMERICAN.matches(text):
        # The grouping says it all, and people make up numbers that are not assigned.
        if stands_alone(text, match):
            yield _Candidate((match[0] or b"").decode(), ("US",), must_be_assigned=False)
    for match in _EUROPEAN.matches(text):
        number = match[0] or b""
        if (
            stands_alone(text, match)
            and not _follows_digits(text, match)
            and not _LIKE_SSN.fullmatch(number)
            and sum(map(number.count, b"0123456789")) >= 9
        ):
            yield _Candidate(number.decode(), _TRUNK_REGIONS)
    for match in _NAMED.matches(text):
        for shorter in _without_tail(match[1] or b""):
            yield _Candidate(shorter, _REGIONS)


def _without_tail(number: bytes) -> Iterator[str]:
    """Yield ``number``, then without its last groups: a house number may have followed."""
    groups = _GROUP.findall(number)
    while sum(map(len, groups)) > _MIN_PHONE_CHARS:
        yield b"".join(groups).decode()
        groups.pop()


def _follows_digits(text: bytes, match: Match) -> bool:
    """Return whether ``match`` is but the next group of an account number, say."""
    return re.match(rb"\d\s", text[max(match.start() - 2, 0) : match.start()]) is not None


def _is_phone(candidate: _Candidate) -> bool:
    for region in candidate.regions:
        try:
            number = phonenumbers.parse(" ".join(candidate.number.split()), region)
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number(number) or (
            not candidate.must_be_assigned and phonenumbers.is_possible_number(number)
        ):
            return True
    return False


PHONE = Kind("phone", NUMBER, lambda text: any_holds(_phones(text), _is_phone))

# ── medical record numbers ─────────────────────────────────────────────────────────────────────

# No two hospitals number alike, so a number counts where the text calls it one.
_MRN = Pattern(
    r"(?i:\b(?:mrn|m\.r\.n|nhc|ipp|kvnr"
    r"|(?:electronic )?med(?:ical|\.)?[ _-]?rec(?:ord|\.)?s?"
    r"|(?:patient|chart|hospital|nhs)[ _-]?(?:id|identifier|number|no|nr|num|#)"
    r"|pat(?:ient(?:en)?|\.)?[ _-]?(?:akte|nummer|nr|id|kennung)\b|krankenakte|fallakte"
    r"|versichertennummer"
    r"|(?:numéro|n°|nº) (?:de |du )?(?:dossier(?: médical)?|patient)"
    r"|dossier (?:médical|patient)"
    r"|(?:número|núm\.?|n°|nº) de (?:historia(?: clínica)?|paciente"
    r"|expediente(?: médico| clínico)?)"
    r"|historia clínica|expediente (?:médico|clínico))"
    r"(?:[^A-Za-z0-9\n]{1,4}|\n ?)?"
    r"(?:(?:is|was|number|num|no|nr|nummer|id|ist|lautet|numéro|est|número|núm|es|of|for|von|de"
    r"|n°|nº)[^A-Za-z0-9\n]{1,4}){0,3}"
    r"\b([a-z]{0,4}-?\d(?:[ ./-]?\d){3,14}))\b"
)
_DATE = re.compile(rb"(?:19|20)\d\d[-./]\d\d?[-./]\d\d?|\d\d?[-./]\d\d?[-./](?:19|20)\d\d")


def _is_record_number(match: Match) -> bool:
    number = match[1] or b""
    return sum(map(number.count, b"0123456789")) >= 5 and not _DATE.fullmatch(number)


MRN = Kind("mrn", NUMBER, lambda text: any_holds(_MRN.matches(text), _is_record_number))
