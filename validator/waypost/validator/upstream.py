"""Connections to one provider, and what its failures mean.

pyreqwest, by measurement (docs/adr/0007). No redirects: a provider must not be able to send a
prompt, and our key with it, somewhere else. No compression: bytes pass through untouched.
"""

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
from pyreqwest.request import RequestBuilder, StreamRequest

from waypost.shared.records import AttemptOutcome
from waypost.validator.config import ProviderConfig
from waypost.validator.providers import DIALECTS
from waypost.validator.resilience.breaker import Breaker

__all__ = ["Answer", "Upstream", "failure_of"]


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
            RequestError: there was none; see ``failure_of``.
        """
        request = self._post(body, trace).timeout(self._timeout).build()
        response = await request.send()
        return Answer(
            response.status,
            response.get_header("content-type") or "",
            bytes(await response.bytes()),
        )

    def ask_streamed(self, body: bytes, *, trace: str | None) -> StreamRequest:
        """Return a request whose answer is read as it arrives; leaving it hangs up."""
        # The default buffer would hold a stream back until its end.
        return self._post(body, trace).streamed_read_buffer_limit(0).build_streamed()

    def _post(self, body: bytes, trace: str | None) -> RequestBuilder:
        request = self._client.post(self._url).body_bytes(body)
        return request if trace is None else request.header("traceparent", trace)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()


def failure_of(error: RequestError) -> AttemptOutcome:
    """Return what kind of failure it is that kept a provider from answering."""
    if isinstance(error, ConnectError | ConnectTimeoutError):
        return "connect_error"
    if isinstance(error, RequestTimeoutError):
        return "timeout"
    return "server_error" if isinstance(error, NetworkError) else "bad_response"
