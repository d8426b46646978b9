"""The conditions of routes, as people write them under ``when``.

Nothing here is ever ignored: a condition that cannot hold, or that nobody would look at, is a
mistake with its mend.
"""

from collections.abc import Iterator
from typing import Annotated, Literal, Self, cast

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from waypost.cli.yamlfile import FileModel
from waypost.edge.authoring.fields import (
    Days,
    Hours,
    Keyword,
    Name,
    Pattern,
    Share,
    Some,
    Unique,
    ZoneName,
    among,
    known,
    listed,
    wrong,
)
from waypost.edge.authoring.zones import written_out
from waypost.shared.contracts import (
    CAPABILITIES,
    ENDPOINTS,
    ClockBetween,
    Condition,
    NumberBetween,
    OneOf,
    TextHas,
    YesNo,
)
from waypost.shared.contracts import Share as ShareOfCallers
from waypost.shared.decision.rules import SHARES
from waypost.shared.scoring.language import LANGUAGES

__all__ = ["EndpointName", "TierRef", "When", "any_of"]

TierRef = Annotated[str, known("tier")]
EndpointName = Annotated[str, among("API", ENDPOINTS)]
Capability = Annotated[str, among("capability", CAPABILITIES)]


class _Range(FileModel):
    at_least: Annotated[int, Field(ge=0, le=2**31)] | None = None
    below: Annotated[int, Field(ge=1, le=2**31)] | None = None

    @field_validator("below")
    @classmethod
    def _is_above(cls, value: int | None, info: ValidationInfo) -> int | None:
        low = info.data.get("at_least")
        if value is not None and low is not None and low >= value:
            raise wrong(f"nothing is at least {low} and below {value}")
        return value


class _Scores(_Range):
    """Within 0 to 1,000."""

    at_least: Annotated[int, Field(ge=1, le=1_000)] | None = None
    below: Annotated[int, Field(ge=1, le=1_000)] | None = None


class _Callers(FileModel):
    """A share of the callers: those whose place under ``name`` is within the bounds."""

    name: Name
    at_least: Share = 0
    below: Share = SHARES

    @field_validator("below")
    @classmethod
    def _is_above(cls, value: int, info: ValidationInfo) -> int:
        if value <= info.data.get("at_least", 0):
            raise wrong("leaves nobody; 'below' should be more than 'at_least'")
        return value


def _some_callers(value: _Callers) -> _Callers:
    if (value.at_least, value.below) == (0, SHARES):
        raise wrong("is everyone; say 'below' or 'at_least', or leave the condition out")
    return value


def _bounded(value: _Range) -> _Range:
    if value.at_least is None and value.below is None:
        raise wrong("needs a bound: at_least, below, or both")
    return value


def any_of(value: object) -> object:
    """Return sets of words, where a plain list of them means any."""
    return cast("object", value) if isinstance(value, dict) else {"any": listed(value)}


class _Has(FileModel):
    any: Unique[Name] = []
    all: Unique[Name] = []
    none: Unique[Name] = []

    def condition(self, field: Literal["keywords", "needs", "patterns", "tags"]) -> TextHas:
        return TextHas(
            field, any_of=tuple(self.any), all_of=tuple(self.all), none_of=tuple(self.none)
        )


class _HasKeywords(_Has):
    any: Unique[Keyword] = []
    all: Unique[Keyword] = []
    none: Unique[Keyword] = []


class _HasPatterns(_Has):
    any: Unique[Pattern] = []
    all: Unique[Pattern] = []
    none: Unique[Pattern] = []


class _HasNeeds(_Has):
    any: Unique[Capability] = []
    all: Unique[Capability] = []
    none: Unique[Capability] = []


def _possible(value: _Has) -> _Has:
    if not (value.any or value.all or value.none):
        raise wrong("needs words: any, all or none")
    forbidden = set(value.none) & {*value.any, *value.all}
    if forbidden:
        raise wrong(f"'{min(forbidden)}' is both wanted and forbidden")
    return value


def _zoned(value: tuple[int, int], info: ValidationInfo) -> tuple[int, int]:
    if info.data.get("time_zone") is None:
        raise wrong("needs a 'time_zone', such as Europe/Berlin; or write 'hour_utc'")
    return value


Bounds = Annotated[_Range, AfterValidator(_bounded)]
Words = (BeforeValidator(any_of), AfterValidator(_possible))


class When(FileModel):
    """What must all hold."""

    input_tokens: Bounds | None = None
    input_bytes: Bounds | None = None
    messages: Bounds | None = None
    complexity: Annotated[_Scores, AfterValidator(_bounded)] | None = None
    # Before what is told by it: fields are checked in their order.
    time_zone: ZoneName | None = None
    weekday: Days | None = None
    hour: Annotated[Hours, AfterValidator(_zoned)] | None = None
    hour_utc: Hours | None = None
    share: Annotated[_Callers, AfterValidator(_some_callers)] | None = None
    tier: Some[TierRef] | None = None
    tenant: Some[Name] | None = None
    region: Some[Name] | None = None
    endpoint: Some[EndpointName] | None = None
    language: Some[Annotated[str, among("language", LANGUAGES)]] | None = None
    semantic: Some[Annotated[str, known("route with utterances")]] | None = None
    task: Some[Name] | None = None
    interactive: bool | None = None
    needs: Annotated[_HasNeeds, *Words] | None = None
    keywords: Annotated[_HasKeywords, *Words] | None = None
    patterns: Annotated[_HasPatterns, *Words] | None = None
    tags: Annotated[_Has, *Words] | None = None

    @model_validator(mode="after")
    def _looks_at_its_zone(self) -> Self:
        if self.time_zone is not None and self.weekday is None and self.hour is None:
            raise wrong("has a 'time_zone' and neither 'hour' nor 'weekday' to read by it")
        return self

    def conditions(self, *, issued_at: int) -> Iterator[Condition]:
        """Give the conditions in a fixed order, the cheapest to check first.

        Args:
            issued_at: Unix seconds; time zones are written out for the years around it.
        """
        for number in _NUMBERS:
            bounds: _Range | None = getattr(self, number)
            if bounds is not None:
                yield NumberBetween(number, bounds.at_least, bounds.below)
        zone = None
        if self.time_zone is not None:
            zone = written_out(self.time_zone, issued_at=issued_at)
        if self.weekday is not None:
            yield ClockBetween("weekday", *self.weekday, zone)
        if self.hour is not None:
            yield ClockBetween("hour", *self.hour, zone)
        if self.hour_utc is not None:
            yield ClockBetween("hour", *self.hour_utc)
        if self.share is not None:
            yield ShareOfCallers(self.share.name, self.share.at_least, self.share.below)
        for choice in _CHOICES:
            values: list[str] | None = getattr(self, choice)
            if values is not None:
                yield OneOf(choice, tuple(values))
        if self.interactive is not None:
            yield YesNo("interactive", self.interactive)
        for field in _SETS:
            words: _Has | None = getattr(self, field)
            if words is not None:
                yield words.condition(field)


_NumberField = Literal["complexity", "input_bytes", "input_tokens", "messages"]
_ChoiceField = Literal["endpoint", "language", "region", "semantic", "task", "tenant", "tier"]
_SetField = Literal["keywords", "needs", "patterns", "tags"]

_NUMBERS: tuple[_NumberField, ...] = ("input_tokens", "input_bytes", "messages", "complexity")
_CHOICES: tuple[_ChoiceField, ...] = (
    "tier",
    "tenant",
    "region",
    "endpoint",
    "language",
    "semantic",
    "task",
)
_SETS: tuple[_SetField, ...] = ("needs", "keywords", "patterns", "tags")
