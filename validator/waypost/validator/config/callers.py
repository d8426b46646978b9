"""How callers are known: by the key of their token, and in records by a pseudonym."""

import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from waypost.cli.yamlfile import FileModel
from waypost.shared.errors import StoreError
from waypost.validator.config.value_types import ConfigError, EnvName, FilePath, plain_http, wrong
from waypost.validator.whole_files import make_once

__all__ = ["CORSConfig", "DPoPConfig", "PseudonymConfig", "load_pseudonym_key"]

PSEUDONYM_KEY_BYTES = 32
_ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]+)?")


class DPoPConfig(FileModel):
    """How clients prove that they hold the key of their token. Absent: bound tokens are refused.

    Attributes:
        origins: what clients put before the path of a request: scheme, host and port as they
            see them, and a prefix that a proxy takes off.
        nonce: ``required``: a proof must hold a nonce of ours, which limits for how long one
            can be made in advance; ``optional``: asked for when a client's clock is off.
        max_age_s: how far a client's clock may be off, else.
    """

    origins: Annotated[list[str], Field(min_length=1)]
    nonce: Literal["required", "optional"] = "optional"
    max_age_s: Annotated[int, Field(ge=5, le=600)] = 60

    @field_validator("origins")
    @classmethod
    def _are_plain(cls, origins: list[str]) -> list[str]:
        return [plain_http(origin) for origin in origins]


class CORSConfig(FileModel):
    """Which web pages may ask from a browser. Without origins none may: pages hold no tokens.

    Attributes:
        origins: scheme, host and port of a page, as ``https://app.example``; or ``*`` alone.
        max_age_s: how long a browser may remember the answer to its preflight.
    """

    origins: list[str] = []
    max_age_s: Annotated[int, Field(ge=0, le=86_400)] = 600

    @field_validator("origins")
    @classmethod
    def _are_origins(cls, origins: list[str]) -> list[str]:
        if origins == ["*"]:
            return origins
        found = [plain_http(origin) for origin in origins]
        if not all(map(_ORIGIN.fullmatch, found)):
            raise wrong("an origin has scheme, host and port, and no path: https://app.example")
        return found


class PseudonymConfig(FileModel):
    """The key that turns a token's subject into the pseudonym in records.

    A file is generated when absent. Whoever holds the key can tell whether a record is about a
    given subject; losing it only ends that.
    """

    path: FilePath | None = None
    env: EnvName | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "PseudonymConfig":
        if (self.path is None) == (self.env is None):
            raise wrong("give exactly one of path and env")
        return self


def load_pseudonym_key(config: PseudonymConfig, environment: Mapping[str, str]) -> bytes:
    """Return the key; a file that does not exist yet is made, readable by its owner alone.

    Raises:
        ConfigError: the variable is unset, or what was found is shorter than 32 bytes.
        StoreError: the file cannot be read or written.
    """
    if config.env is not None:
        key = environment.get(config.env, "").encode()
        where = f"environment variable {config.env}"
    else:
        assert config.path is not None  # noqa: S101 - the model holds exactly one of the two
        where = str(config.path)
        try:
            new = secrets.token_hex(PSEUDONYM_KEY_BYTES).encode()
            key = make_once(config.path, new).strip()
        except OSError as exc:
            raise StoreError(f"{where} cannot be used as the pseudonym key: {exc}") from exc
    if len(key) < PSEUDONYM_KEY_BYTES:
        raise ConfigError(f"the pseudonym key in {where} needs {PSEUDONYM_KEY_BYTES} bytes or more")
    return key
