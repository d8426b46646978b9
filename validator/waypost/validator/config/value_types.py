"""What the fields of ``validator.yaml`` may hold, and how a wrong one is refused.

No message repeats what it refuses: it may be a key, or hold a password, in the wrong place.
"""

import contextlib
import re
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, HttpUrl
from pydantic_core import PydanticCustomError

from waypost.shared.errors import WaypostError

__all__ = [
    "Channel",
    "ConfigError",
    "EnvName",
    "FilePath",
    "Fraction",
    "NameText",
    "Number",
    "Seconds",
    "Usd",
    "http_url",
    "matching",
    "plain_http",
    "plain_proxy",
    "wrong",
]


class ConfigError(WaypostError):
    """``validator.yaml`` cannot be used; the message names file, line, field and the mend."""

    code = "config_invalid"


def wrong(message: str) -> PydanticCustomError:
    """Return the error to raise for a field, told in exactly these words."""
    return PydanticCustomError("config", "{message}", {"message": message})


def _path(value: object) -> object:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value:
        raise wrong("should be the path of a file")
    return Path(value)


def _usd(value: object) -> object:
    if isinstance(value, Decimal):
        return value
    if isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(InvalidOperation):
            return Decimal(value)
    raise wrong("write dollars as a plain number, as in 0.50")


def _number(value: object) -> object:
    return float(value) if isinstance(value, Decimal) else value


def matching(pattern: str, message: str) -> BeforeValidator:
    """Refuse text that does not match, without repeating it: it may be a key in the wrong place."""

    def check(value: object) -> object:
        if isinstance(value, str) and not re.fullmatch(pattern, value):
            raise wrong(message)
        return value

    return BeforeValidator(check)


# Fractions in the file are read as decimals.
Number = Annotated[float, BeforeValidator(_number)]
FilePath = Annotated[Path, BeforeValidator(_path)]
Usd = Annotated[
    Decimal, BeforeValidator(_usd), Field(ge=0, le=9_000_000, decimal_places=9, allow_inf_nan=False)
]
EnvName = Annotated[
    str,
    matching(
        r"[A-Za-z_][A-Za-z0-9_]*",
        "should be the name of an environment variable that holds the key",
    ),
]
NameText = Annotated[
    str,
    matching(
        r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}",
        "should be a name: up to 64 of A-Z a-z 0-9 . _ : / -, beginning with a letter or digit",
    ),
]
Channel = Annotated[
    str,
    matching(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
        "should be a channel: up to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit",
    ),
]
Seconds = Annotated[Number, Field(gt=0, le=86_400)]
Fraction = Annotated[Number, Field(ge=0, le=1)]


def http_url(value: str) -> HttpUrl:
    """Return the URL, which is one of HTTP."""
    try:
        return HttpUrl(value)
    except ValueError:
        # Its own words might quote a password.
        raise wrong("should be a URL that begins with https:// or http://") from None


def plain_http(url: str) -> str:
    """Return scheme, host and path without a final slash; there is nothing else in it."""
    parsed = http_url(url)
    if parsed.username or parsed.password or parsed.query or parsed.fragment:
        raise wrong("give scheme, host and path only; keys belong in the environment")
    # As parsed: what is sent as Host and path holds neither spaces nor letters beyond ASCII.
    return str(parsed).rstrip("/")


def plain_proxy(url: str) -> str:
    """Return scheme, host and port of a proxy; its login is not part of it."""
    try:
        parsed = HttpUrl(url)
    except ValueError:
        raise wrong(
            "should be none, or the URL of a proxy: http://host:port, https://host:port"
        ) from None
    if parsed.username or parsed.password:
        raise wrong("give scheme, host and port only; the login goes into proxy_auth's variable")
    if parsed.path not in (None, "", "/") or parsed.query or parsed.fragment:
        raise wrong("give scheme, host and port only")
    return str(parsed).rstrip("/")
