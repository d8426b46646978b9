"""Who is asked for answers, with which keys, and when one is given a rest."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from waypost.cli.yamlfile import FileModel
from waypost.validator.config.value_types import (
    EnvName,
    FilePath,
    Number,
    Seconds,
    plain_http,
    plain_proxy,
    wrong,
)

__all__ = ["BreakerConfig", "ProviderConfig"]


class BreakerConfig(FileModel):
    """When a model at a provider is given a rest; see ``BreakerRules`` and docs/resilience.md."""

    failures: Annotated[int, Field(ge=1, le=1_000)] = 5
    window_s: Seconds = 30.0
    min_calls: Annotated[int, Field(ge=1, le=100_000)] = 20
    failed_percent: Annotated[int, Field(ge=1, le=100)] = 50
    slow_percent: Annotated[int, Field(ge=1, le=100)] = 80
    slow_after_s: Seconds = 30.0
    first_rest_s: Seconds = 5.0
    last_rest_s: Seconds = 300.0


class ProviderConfig(FileModel):
    """One upstream, by the name that the manifest's models give as ``provider``.

    Attributes:
        base_url: up to and including the version, as SDKs want it: ``https://…/v1``.
        api_key: name of the environment variable that holds the key; absent: no key is sent.
        api_keys: instead, the names of several, used in turn.
        dialect: how it is spoken to.
        apis: what it speaks itself of OpenAI's APIs, if not all four.
        sampling: whether its models take ``temperature``, ``top_p`` and ``top_k``; ``None``: as
            usual for its dialect.
        max_tokens_field: what the provider calls the answer's limit.
        betas: of what a caller asks for in ``anthropic-beta``, what is passed on.
        timeout_s: longest silence of the provider; of an unstreamed answer, its whole time.
        retries: how often one request may be sent here again after a failure.
        retry_percent: how many requests more, in per cent, all retries together may make.
        max_concurrency: never more requests at once; fewer when it gets slow.
        charge_unanswered: what to charge for a request that it got and never answered, as one
            that timed out: all it can have cost, its prompt, or nothing.
        proxy: URL of the proxy on the way; ``none``: whatever the environment says, none.
        proxy_auth: name of the environment variable that holds its ``user:password``.
        ca_file: PEM of the only authorities that may vouch for it, instead of the system's.
        client_cert, client_key: PEM of our certificate and its key, if it asks for one.
        http2: whether it is spoken to by HTTP/2 where it can.
        simulated: a stand-in, which every table then says.
    """

    base_url: str
    api_key: EnvName | None = None
    api_keys: list[EnvName] = []
    dialect: Literal["anthropic", "gemini", "openai"] = "openai"
    apis: list[Literal["chat.completions", "completions", "embeddings", "responses"]] | None = None
    sampling: bool | None = None
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    betas: list[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]] = []
    timeout_s: Seconds = 60.0
    connect_timeout_s: Seconds = 3.0
    retries: Annotated[int, Field(ge=0, le=5)] = 1
    retry_percent: Annotated[Number, Field(ge=0, le=20)] = 20
    max_concurrency: Annotated[int, Field(ge=1, le=100_000)] = 1_024
    breaker: BreakerConfig = BreakerConfig()
    charge_unanswered: Literal["full", "prompt", "nothing"] = "full"
    proxy: str | None = None
    proxy_auth: EnvName | None = None
    ca_file: FilePath | None = None
    client_cert: FilePath | None = None
    client_key: FilePath | None = None
    http2: bool = False
    simulated: bool = False

    def below(self, folder: Path) -> "ProviderConfig":
        """Return the same with relative paths taken from ``folder``."""
        files = {name: getattr(self, name) for name in ("ca_file", "client_cert", "client_key")}
        return self.model_copy(
            update={name: path and folder / path for name, path in files.items()}
        )

    @property
    def key_names(self) -> list[str]:
        """The environment variables that hold its keys."""
        return self.api_keys if self.api_key is None else [self.api_key]

    @model_validator(mode="after")
    def _one_way_to_name_keys(self) -> "ProviderConfig":
        if self.api_key is not None and self.api_keys:
            raise wrong("give api_key or api_keys, not both")
        if len(set(self.api_keys)) < len(self.api_keys):
            raise wrong("api_keys names a variable twice")
        return self

    @model_validator(mode="after")
    def _apis_are_its_own(self) -> "ProviderConfig":
        if self.apis is not None and self.dialect != "openai":
            raise wrong(f"apis is for dialect openai; {self.dialect} has a fixed set")
        return self

    @model_validator(mode="after")
    def _betas_are_anthropics(self) -> "ProviderConfig":
        if self.betas and self.dialect != "anthropic":
            raise wrong("betas is for dialect anthropic; no other has them")
        return self

    @model_validator(mode="after")
    def _tls_is_for_https(self) -> "ProviderConfig":
        if self.client_key is not None and self.client_cert is None:
            raise wrong("client_key belongs to client_cert; set client_cert as well")
        if self.proxy_auth is not None and self.proxy in (None, "none"):
            raise wrong("proxy_auth is the login at a proxy; set proxy as well")
        if self.base_url.startswith("http:"):
            for name in ("ca_file", "client_cert", "http2"):
                if getattr(self, name):
                    raise wrong(f"{name} is for TLS; base_url must begin with https://")
        return self

    @field_validator("proxy")
    @classmethod
    def _is_a_proxy(cls, url: str | None) -> str | None:
        return url if url in (None, "none") else plain_proxy(url)

    @field_validator("base_url")
    @classmethod
    def _is_plain_http(cls, url: str) -> str:
        return plain_http(url)
