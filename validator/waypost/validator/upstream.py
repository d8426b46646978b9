"""Connections to one provider, and what its failures mean.

pyreqwest, by measurement (docs/adr/0007). No redirects: a provider must not be able to send a
prompt, and our key with it, somewhere else. No compression: bytes pass through untouched.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta

from msgspec import Struct
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import (
    ConnectError,
    ConnectTimeoutError,
    NetworkError,
    RequestError,
    RequestTimeoutError,
)
from pyreqwest.http import Url
from pyreqwest.request import RequestBuilder
from pyreqwest.response import Response

from waypost.shared.records import AttemptOutcome
from waypost.validator.config import ProviderConfig
from waypost.validator.providers import DIALECTS
from waypost.validator.resilience.breaker import Breaker

__all__ = ["Answer", "NoAnswer", "Stream", "Upstream"]


class NoAnswer(Exception):
    """A provider could not be asked, or did not answer, or not to the end."""

    def __init__(self, outcome: AttemptOutcome) -> None:
        super().__init__(outcome)
        self.outcome: AttemptOutcome = outcome


class Answer(Struct, frozen=True):
    """A whole response of a provider."""

    status: int
    content_type: str
    body: bytes


class Upstream:
    """One provider: its address, its key, its connections, its breaker."""

    def __init__(self, name: str, config: ProviderConfig, *, api_key: str | None) -> None:
        self.name = name
        self.dialect = DIALECTS[config.dialect]
        self.max_tokens_field = config.max_tokens_field
        self.timeout_s = config.timeout_s
        self.breaker = Breaker()
        self._timeout = timedelta(seconds=config.timeout_s)
        self._url = Url(config.base_url + self.dialect.PATH)
        self._client: Client = (
            ClientBuilder()
            .default_headers(self.dialect.headers(api_key))
            .user_agent("waypost")
            .follow_redirects(False)
            .referer(False)
            .gzip(False)
            .brotli(False)
            .zstd(False)
            .deflate(False)
            .connect_timeout(timedelta(seconds=config.connect_timeout_s))
            .read_timeout(self._timeout)
            .build()
        )

    async def ask(self, body: bytes, *, trace: str | None) -> Answer:
        """Return the provider's answer to ``body``, whole, whatever its status.

        Raises:
            NoAnswer: there was none.
        """
        request = self._post(body, trace).timeout(self._timeout).build()
        try:
            response = await request.send()
            return Answer(
                response.status,
                response.get_header("content-type") or "",
                bytes(await response.bytes()),
            )
        except RequestError as exc:
            raise NoAnswer(_failure(exc)) from exc

    @asynccontextmanager
    async def stream(self, body: bytes, *, trace: str | None) -> AsyncGenerator["Stream"]:
        """Give the provider's answer to ``body`` as it arrives; leaving early hangs up.

        Raises:
            NoAnswer: there was none, or it broke off.
        """
        # The default buffer would hold a stream back until its end.
        request = self._post(body, trace).streamed_read_buffer_limit(0).build_streamed()
        try:
            async with request as response:
                yield Stream(response)
        except RequestError as exc:
            raise NoAnswer(_failure(exc)) from exc

    def _post(self, body: bytes, trace: str | None) -> RequestBuilder:
        request = self._client.post(self._url).body_bytes(body)
        return request if trace is None else request.header("traceparent", trace)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()


class Stream:
    """A response whose body has not arrived yet."""

    __slots__ = ("_read", "content_type", "status")

    def __init__(self, response: Response) -> None:
        self.status = response.status
        self.content_type = response.get_header("content-type") or ""
        self._read = response.body_reader.read_chunk

    async def read(self) -> bytes:
        """Return the next bytes as they come off the wire; empty at the end."""
        chunk = await self._read()
        return b"" if chunk is None else bytes(chunk)


def _failure(error: RequestError) -> AttemptOutcome:
    if isinstance(error, ConnectError | ConnectTimeoutError):
        return "connect_error"
    if isinstance(error, RequestTimeoutError):
        return "timeout"
    return "server_error" if isinstance(error, NetworkError) else "bad_response"
