"""The transport for httpx. Imports it, so it is imported late."""

from functools import lru_cache

import httpx

from waypost.client._core import Core
from waypost.client._network import Network
from waypost.client._token import AsyncTokens, Tokens
from waypost.client._transport import AsyncDriver, SyncDriver, WatchedStream

__all__ = ["async_transport", "timeout", "transport"]

# Nothing has been sent when these are raised, so another endpoint may be tried.
UNREACHABLE = (httpx.ConnectError, httpx.ConnectTimeout)

# As the official SDKs have it, so that this is no narrower place than they are.
CONNECT_TIMEOUT_S = 5.0
LIMITS = httpx.Limits(max_connections=1_000, max_keepalive_connections=100)

# Parsing one takes as long as choosing a model.
parsed = lru_cache(maxsize=64)(httpx.URL)


class Stream(WatchedStream, httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body as httpx wants it."""


class Transport(SyncDriver[httpx.Request, httpx.Response], httpx.BaseTransport):
    """Sends requests for a validator on their way, through ``inner``; passes on all others."""

    unreachable = UNREACHABLE
    stream = Stream

    def __init__(self, core: Core, tokens: Tokens, inner: httpx.BaseTransport) -> None:
        super().__init__(core, tokens)
        self._inner = inner

    def pass_on(self, request: httpx.Request) -> httpx.Response:
        return self._inner.handle_request(request)

    def send(
        self, request: httpx.Request, url: str, headers: list[tuple[str, str]], body: bytes
    ) -> httpx.Response:
        return self._inner.handle_request(
            httpx.Request(
                request.method,
                parsed(url),
                headers=headers,
                content=body,
                extensions=request.extensions,
            )
        )

    def close(self) -> None:
        self._inner.close()


class AsyncTransport(AsyncDriver[httpx.Request, httpx.Response], httpx.AsyncBaseTransport):
    """Like ``Transport``, for ``httpx.AsyncClient``."""

    unreachable = UNREACHABLE
    stream = Stream

    def __init__(self, core: Core, tokens: AsyncTokens, inner: httpx.AsyncBaseTransport) -> None:
        super().__init__(core, tokens)
        self._inner = inner

    async def pass_on(self, request: httpx.Request) -> httpx.Response:
        return await self._inner.handle_async_request(request)

    async def send(
        self, request: httpx.Request, url: str, headers: list[tuple[str, str]], body: bytes
    ) -> httpx.Response:
        return await self._inner.handle_async_request(
            httpx.Request(
                request.method,
                parsed(url),
                headers=headers,
                content=body,
                extensions=request.extensions,
            )
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


class Sockets(httpx.BaseTransport):
    """Connects by itself, or by the proxy that is for the way."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._made: dict[str | None, httpx.HTTPTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        proxy = self._network.proxy_for(str(request.url))
        made = self._made.get(proxy)
        if made is None:
            made = self._made[proxy] = httpx.HTTPTransport(
                verify=self._network.verify, proxy=proxy, limits=LIMITS
            )
        return made.handle_request(request)

    def close(self) -> None:
        for made in self._made.values():
            made.close()


class AsyncSockets(httpx.AsyncBaseTransport):
    """Like ``Sockets``, for ``httpx.AsyncClient``."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._made: dict[str | None, httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        proxy = self._network.proxy_for(str(request.url))
        made = self._made.get(proxy)
        if made is None:
            made = self._made[proxy] = httpx.AsyncHTTPTransport(
                verify=self._network.verify, proxy=proxy, limits=LIMITS
            )
        return await made.handle_async_request(request)

    async def aclose(self) -> None:
        for made in self._made.values():
            await made.aclose()


def transport(core: Core, tokens: Tokens, inner: httpx.BaseTransport | None) -> Transport:
    """Return the transport over ``inner``, over sockets if there is none."""
    made = Transport(core, tokens, inner or Sockets(core.network))
    made.connects = inner is None
    return made


def async_transport(
    core: Core, tokens: AsyncTokens, inner: httpx.AsyncBaseTransport | None
) -> AsyncTransport:
    """Return the transport over ``inner``, over sockets if there is none."""
    made = AsyncTransport(core, tokens, inner or AsyncSockets(core.network))
    made.connects = inner is None
    return made


def timeout(given: httpx.Timeout | float | None) -> httpx.Timeout:
    """Return ``given`` as httpx takes it; seconds are for all but connecting."""
    if given is None or isinstance(given, httpx.Timeout):
        return httpx.Timeout(given)
    return httpx.Timeout(given, connect=min(given, CONNECT_TIMEOUT_S))
