"""Numbers with an inner logic: payment cards, US social security numbers, IBANs."""

import re
from collections.abc import Iterator
from functools import cache

from stdnum import iban, luhn, numdb
from stdnum.us import ssn

from waypost.validator.detectors.checks import NUMBER, Kind, any_holds, stands_alone
from waypost.validator.detectors.linear import Pattern

__all__ = ["CARD", "IBAN", "SSN"]

# ── payment cards ──────────────────────────────────────────────────────────────────────────────

_CARD_RUN = Pattern(r"\d(?:[\s./_-]{0,3}\d){13,}\b")
# Issuer ranges and lengths: ISO/IEC 7812 as the networks publish them. 13-digit Visa numbers,
# long withdrawn, are left out: every tenth EAN-13 from Germany would be one.
_ISSUED = re.compile(
    rb"""4\d{15} | 4\d{18}                                            # Visa
       | 5[1-5]\d{14} | 2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}  # Mastercard
       | 3[47]\d{13}                                                  # American Express
       | 3(?:0[0-5]|[689]\d)\d{11} | 36\d{14}                         # Diners Club
       | 6(?:011|4[4-9]\d|5\d\d)\d{12}                                # Discover
       | 35(?:2[89]|[3-8]\d)\d{12}                                    # JCB
       | 62\d{14,17}                                                  # UnionPay
       | (?:5018|5020|5038|5893|6304|6759|676[123])\d{12}             # Maestro
       | 220[0-4]\d{12}                                               # Mir
       | (?:508\d|60\d\d|81\d\d|82\d\d)\d{12}                         # RuPay
    """,
    re.VERBOSE,
)
# Unbroken, or as cards print it. A look-ahead, so that a number before it swallows none of it.
_PRINTED = re.compile(
    rb"""(?<!\d)(?=( \d{14,19}
                   | \d{4}(?:\D{1,3}\d{4}){3}
                   | \d{4}\D{1,3}\d{6}\D{1,3}\d{4,5}
                   | \d{8}\D{1,3}\d{8}
                   | \d{6}\D{1,3}\d{13}
         )(?!\d))""",
    re.VERBOSE,
)
_MAX_GROUPS = 12  # a line with more is of a table, where four in a row pass the check by chance
_HALF_BYTES = 24  # of a number that goes on in the next line
_DIGITS = re.compile(rb"\d+")


def _cards(text: bytes) -> Iterator[bytes]:
    for match in _CARD_RUN.matches(text):
        upper = b""
        for line in (match[0] or b"").splitlines():
            is_table = len(_DIGITS.findall(line)) > _MAX_GROUPS
            whole = _digits(line)
            yield whole  # grouped in any way, but alone
            for printed in _PRINTED.finditer(line):
                number = _digits(printed[1])
                if number != whole and (number == printed[1] or not is_table):
                    yield number
            # A number may be broken once by the end of a line.
            if not is_table:
                for printed in _PRINTED.finditer(upper + b"\n" + line[:_HALF_BYTES]):
                    if b"\n" in printed[1]:
                        yield _digits(printed[1])
            upper = b"" if is_table else line[-_HALF_BYTES:]


def _digits(number: bytes) -> bytes:
    return number.translate(None, b" \t\r\n\f\v./_-")


def _has_card(text: bytes) -> bool:
    issued = (digits for digits in _cards(text) if _ISSUED.fullmatch(digits))
    return any_holds(issued, lambda digits: luhn.is_valid(digits.decode()))


CARD = Kind("card", NUMBER, _has_card)

# ── US social security numbers ─────────────────────────────────────────────────────────────────

_SSN_DASHED = Pattern(r"\b\d{3} ?-\s{0,2}\d{2} ?-\s{0,2}\d{4}\b")
# Without its dashes it is any nine digits, so only where the text says what they are.
_SSN_NAMED = Pattern(
    r"(?i:\bssn|\bss ?#|\bsoc(?:ial)?[ ._-]{0,2}sec(?:urity)?\b"
    r"|\bseguro social|sozialversicherung|\bsécurité sociale)"
    r"[^0-9]{0,40}(\d(?:[\s./-]{0,3}\d){8})\b"
)


def _has_ssn(text: bytes) -> bool:
    dashed = (match for match in _SSN_DASHED.matches(text) if stands_alone(text, match))
    return any_holds(dashed, lambda match: _is_ssn(match[0])) or any_holds(
        _SSN_NAMED.matches(text), lambda match: _is_ssn(match[1])
    )


def _is_ssn(number: bytes | None) -> bool:
    return ssn.is_valid(b"".join(_DIGITS.findall(number or b"")).decode())


SSN = Kind("ssn", NUMBER, _has_ssn)

# ── IBANs ──────────────────────────────────────────────────────────────────────────────────────

# Countries of SWIFT's registry, release 101; python-stdnum has the structure of each.
_COUNTRIES = (
    "AD|AE|AL|AT|AZ|BA|BE|BG|BH|BI|BR|BY|CH|CR|CY|CZ|DE|DJ|DK|DO|EE|EG|ES|FI|FK|FO|FR|GB|GE|GI"
    "|GL|GR|GT|HN|HR|HU|IE|IL|IQ|IS|IT|JO|KW|KZ|LB|LC|LI|LT|LU|LV|LY|MC|MD|ME|MK|MN|MR|MT|MU|NI"
    "|NL|NO|OM|PK|PL|PS|PT|QA|RO|RS|RU|SA|SC|SD|SE|SI|SK|SM|SO|ST|SV|TL|TN|TR|UA|VA|VG|XK|YE"
)
# Small letters only with the check digits attached, or "at 10 o'clock" would be a candidate.
_IBAN_HEAD = Pattern(rf"\b(?:(?i:{_COUNTRIES})\d\d|(?:{_COUNTRIES})[ -]\d ?\d|[A-Z] [A-Z] \d \d)")
# Longer than any IBAN: what follows one, a word perhaps, is cut off by the country's length. Read
# anew from each head, or a mistyped IBAN would swallow the head of the right one behind it.
_IBAN = re.compile(rb"(?:[\s./-]{0,2}[A-Za-z0-9]){15,44}")
_WORDS = re.compile(rb"[A-Za-z0-9]+")
_REGISTRY = numdb.get("iban")


@cache
def _iban_length(country: str) -> int:
    [(_, found), *_] = _REGISTRY.info(country)
    return 4 + sum(map(int, re.findall(r"\d+", found["bban"]))) if found else 0


def _ibans(text: bytes) -> Iterator[str]:
    for head in _IBAN_HEAD.matches(text):
        run = _IBAN.match(text, head.start())
        number = ""
        for word in _WORDS.findall(run[0].upper()) if run else ():
            number += word.decode()
            if len(number) >= 15 and len(number) == _iban_length(number[:2]):
                yield number


def _is_iban(number: str) -> bool:
    # Structure and check sum; the lists of banks in some countries' further check go out of date.
    return iban.is_valid(number, check_country=False)


IBAN = Kind("iban", NUMBER, lambda text: any_holds(_ibans(text), _is_iban))
