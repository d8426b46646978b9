"""The words and numbers of the files that people write, each with the mend for its mistakes.

They are pydantic annotations: a validator here says in our own words what is wrong, and what to
write instead.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from importlib import import_module
from typing import Annotated, Any, TypeVar, cast
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from waypost.cli.yamlfile import did_you_mean
from waypost.edge.authoring.zones import zone_names
from waypost.shared.decision.rules import SHARES
from waypost.shared.money import NUSD_PER_USD

__all__ = [
    "URL",
    "Days",
    "Dollars",
    "Factor",
    "Hours",
    "Instant",
    "Keyword",
    "Millis",
    "Name",
    "Pattern",
    "Percent",
    "Promise",
    "Share",
    "Some",
    "Tokens",
    "Unique",
    "ZoneName",
    "among",
    "exact_nusd",
    "known",
    "listed",
    "wrong",
]

# What a provider may have promised in writing. A duty nobody knows would be met by nobody, and
# a misspelt promise would be none, so both must be one of these.
PROMISES = ("hipaa_baa", "no_training", "on_prem", "zero_retention")
OPEN_PROMISES = ("certification:", "region:")  # followed by a name

MAX_NUSD = 2**53 - 1
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

MAX_PATTERN_MEMORY = 2**20  # bytes; a counted repetition of a thousand takes a tenth of it

T = TypeVar("T")

_re2: Any = import_module("re2")  # ships no types


def wrong(message: str) -> PydanticCustomError:
    """Return a mistake to raise from a pydantic validator, in our own words."""
    return PydanticCustomError("authoring", "{message}", {"message": message})


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}", value):
        raise wrong(
            f"'{value[:64]}' is not a name: up to 64 of A-Z a-z 0-9 . _ : / -,"
            " beginning with a letter or digit"
        )
    return value


def known(what: str) -> AfterValidator:
    """Refuse a name that is not in the validation context's set of that name."""

    def check(value: str, info: ValidationInfo) -> str:
        names = cast("Mapping[str, set[str]]", info.context)[what]
        if value not in names:
            raise wrong(
                f"there is no {what.partition(' or ')[0]} '{value}'{did_you_mean(value, names)}"
            )
        return value

    return AfterValidator(check)


def among(what: str, names: Sequence[str]) -> AfterValidator:
    """Refuse a name that is not one of ``names``."""

    def check(value: str) -> str:
        if value not in names:
            raise wrong(f"there is no {what} '{value}'{did_you_mean(value, names)}")
        return value

    return AfterValidator(check)


def _promise(value: str) -> str:
    if value in PROMISES or (value.startswith(OPEN_PROMISES) and not value.endswith(":")):
        return _name(value)
    names = (*PROMISES, "region:eu", "certification:soc2")
    raise wrong(f"there is no promise '{value}'{did_you_mean(value, names)}")


def exact_nusd(dollars: int | Decimal) -> int:
    """Return ``dollars`` in nano-dollars; raises ValueError rather than round."""
    # Fractions, since Decimal would round a long literal to 28 digits without a word.
    nusd = Fraction(dollars) * NUSD_PER_USD
    if nusd < 0:
        raise ValueError(f"{dollars} is negative; write 0 for what is free")
    if nusd.denominator != 1:
        raise ValueError(f"{dollars} is finer than a billionth of a dollar; round it up")
    if nusd > MAX_NUSD:
        raise ValueError(f"{dollars} is more than ${MAX_NUSD // NUSD_PER_USD:,}")
    return int(nusd)


def _nusd(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise wrong("should be dollars as a plain number, such as 0.15")
    try:
        return exact_nusd(value)
    except ValueError as exc:
        raise wrong(str(exc)) from None


def listed(value: object) -> object:
    """Return ``value`` as a list: where one value is meant, brackets are not needed."""
    return cast("list[object]", value) if isinstance(value, list) else [value]


def _unique(values: list[T]) -> list[T]:
    for value in values:
        if values.count(value) > 1:
            raise wrong(f"'{value}' is here twice; delete one")
    return values


def _url(value: str) -> str:
    try:
        url = urlsplit(value)
        port_fits = url.port is None or url.port > 0
    except ValueError:
        raise wrong("is not a URL; write https://host") from None
    if not url.hostname or not port_fits or url.scheme not in {"http", "https"}:
        raise wrong("is not a URL; write https://host")
    if url.username is not None or url.query or url.fragment or not value.isascii():
        raise wrong("should hold scheme, host and path only, in ASCII")
    if url.scheme == "http" and url.hostname not in {"localhost", "127.0.0.1", "::1"}:
        raise wrong("sends tokens in the clear; write https://")
    return value


def _hours(value: object) -> object:
    match = re.fullmatch(r"(\d{1,2})-(\d{1,2})", value) if isinstance(value, str) else None
    if match is None or int(match[1]) > 23 or int(match[2]) > 24:
        raise wrong("should be two hours, such as 9-17 or 22-6")
    if int(match[1]) == int(match[2]) % 24:
        raise wrong("is the whole day; leave the condition out")
    return int(match[1]), int(match[2])


def _days(value: object) -> object:
    first, _, last = value.lower().partition("-") if isinstance(value, str) else ("", "", "")
    last = last or first
    if first not in WEEKDAYS or last not in WEEKDAYS:
        raise wrong(f"should be a day or a span, such as mon-fri, of {', '.join(WEEKDAYS)}")
    start, end = WEEKDAYS.index(first), WEEKDAYS.index(last) + 1
    if start == end % 7:
        raise wrong("is the whole week; leave the condition out")
    return start, end if start < end else end % 7


def _instant(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        moment = datetime.fromisoformat(cast("str", value))
    except (TypeError, ValueError):
        raise wrong("should be a time such as 2027-01-31 or 2027-01-31T12:00:00Z") from None
    if moment.tzinfo is None:
        if "T" in cast("str", value) or " " in cast("str", value):
            raise wrong("has no time zone; end it with Z for UTC")
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp())


def _keyword(value: str) -> str:
    # Matched as whole words, case folded; two spellings of one keyword must not compete.
    words = " ".join(value.casefold().split())
    if not re.fullmatch(r"[\w' ’-]+", words) or not re.search(r"\w", words):
        raise wrong(f"'{value}' is not made of words; keywords match whole words only")
    return words


def _pattern(value: str) -> str:
    options = _re2.Options()
    options.log_errors = False
    options.max_mem = MAX_PATTERN_MEMORY
    try:
        # As bytes: so does who looks for it.
        _re2.compile(value.encode(), options)
    except _re2.error as exc:
        reason = cast("bytes", exc.args[0]).decode(errors="replace")
        if re.search(r"\(\?<?[=!]", value):
            raise wrong(
                "looks around itself, which no engine does in bounded time; match what is there,"
                " and put what must not be there under 'none'"
            ) from None
        if re.search(r"\\[1-9]|\(\?P=", value):
            raise wrong(
                "refers back to a group, which no engine does in bounded time; spell it out"
            ) from None
        raise wrong(f"is no regular expression in RE2's syntax: {reason}") from None
    return value


def _share(value: object) -> object:
    match = re.fullmatch(r"(\d{1,3})(?:\.(\d{1,2}))?%", value) if isinstance(value, str) else None
    share = int(match[1]) * 100 + int((match[2] or "").ljust(2, "0")) if match else SHARES + 1
    if share > SHARES:
        raise wrong("should be a share such as 10% or 0.25%, of two decimals at most")
    return share


def _factor(value: object) -> object:
    match = re.fullmatch(r"(\d{1,5}) ?%", value) if isinstance(value, str) else None
    if match is None or int(match[1]) > 10_000:
        raise wrong("should be a whole number of per cent of the usual price, such as 50% or 200%")
    return int(match[1])


def _zone_name(value: str) -> str:
    if value not in zone_names():
        raise wrong(f"there is no time zone '{value}'{did_you_mean(value, zone_names())}")
    return value


Name = Annotated[str, AfterValidator(_name)]
Promise = Annotated[str, AfterValidator(_promise)]
Keyword = Annotated[str, Field(max_length=100), AfterValidator(_keyword)]
Pattern = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_pattern)]
"""A regular expression that RE2 takes, and so searches in linear time."""
ZoneName = Annotated[str, Field(max_length=64), AfterValidator(_zone_name)]
URL = Annotated[str, Field(max_length=500), AfterValidator(_url)]
Dollars = Annotated[int, BeforeValidator(_nusd)]
"""Nano-dollars, written as dollars."""
Share = Annotated[int, BeforeValidator(_share)]
"""Ten-thousandths, written as per cent: ``10%``."""
Factor = Annotated[int, BeforeValidator(_factor)]
"""Per cent of the usual price, written as ``200%``."""
Tokens = Annotated[int, Field(ge=1, le=2**31)]
Percent = Annotated[int, Field(ge=0, le=100)]
Millis = Annotated[int, Field(ge=1, le=600_000)]
Instant = Annotated[int, BeforeValidator(_instant), Field(ge=0, le=2**40)]
"""Unix seconds, written as a date or time."""
Hours = Annotated[tuple[int, int], BeforeValidator(_hours)]
"""First hour, and the hour it ends at, as ``22-6``."""
Days = Annotated[tuple[int, int], BeforeValidator(_days)]
"""First weekday, and the one it ends before, as ``mon-fri``; Monday is 0."""
Unique = Annotated[list[T], AfterValidator(_unique)]
Some = Annotated[list[T], BeforeValidator(listed), Field(min_length=1), AfterValidator(_unique)]
"""One or more, without repetition."""
