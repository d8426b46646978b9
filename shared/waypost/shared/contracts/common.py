"""The plain types that all contracts are made of: names, instants, versions."""

from typing import Annotated

from msgspec import Meta

__all__ = ["Instant", "Millis", "Name", "Percent", "Version"]

# \Z and not $ in all patterns: $ lets a trailing line break through.
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}\Z")]
Instant = Annotated[int, Meta(ge=0, le=2**40)]
Version = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Millis = Annotated[int, Meta(ge=0, le=86_400_000)]
Percent = Annotated[int, Meta(ge=0, le=100)]
