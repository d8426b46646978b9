"""Transports for httpx and for httpx2: written once, typed as httpx, bound to either library.

The two have one shape and unrelated classes, and a client insists on classes of its own; so these
are made when a library is bound. Imports neither.
"""

from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from waypost.client._core import Core
from waypost.client._network import Network
from waypost.client._token import AsyncTokens, Tokens
from waypost.client._transport import AsyncDriver, SyncDriver, WatchedStream

if TYPE_CHECKING:
    import httpx

__all__ = ["Binding", "bind"]

# As the official SDKs have it, so that this is no narrower place than they are.
CONNECT_TIMEOUT_S = 5.0
MAX_CONNECTIONS, MAX_IDLE = 1_000, 100


class Transport(SyncDriver["httpx.Request", "httpx.Response"]):
    """Sends requests for a validator on their way, through ``inner``; passes on all others."""

    binding: "Binding"

    def __init__(self, core: Core, tokens: Tokens, inner: "httpx.BaseTransport") -> None:
        super().__init__(core, tokens)
        self._inner = inner

    def pass_on(self, request: "httpx.Request") -> "httpx.Response":
        return self._inner.handle_request(request)

    def send(
        self, request: "httpx.Request", url: str, headers: list[tuple[str, str]], body: bytes
    ) -> "httpx.Response":
        return self._inner.handle_request(self.binding.request(request, url, headers, body))

    def close(self) -> None:
        self._inner.close()


class AsyncTransport(AsyncDriver["httpx.Request", "httpx.Response"]):
    """Like ``Transport``, for a client that awaits."""

    binding: "Binding"

    def __init__(self, core: Core, tokens: AsyncTokens, inner: "httpx.AsyncBaseTransport") -> None:
        super().__init__(core, tokens)
        self._inner = inner

    async def pass_on(self, request: "httpx.Request") -> "httpx.Response":
        return await self._inner.handle_async_request(request)

    async def send(
        self, request: "httpx.Request", url: str, headers: list[tuple[str, str]], body: bytes
    ) -> "httpx.Response":
        made = self.binding.request(request, url, headers, body)
        return await self._inner.handle_async_request(made)

    async def aclose(self) -> None:
        await self._inner.aclose()


class Sockets:
    """Connects by itself, or by the proxy that is for the way."""

    binding: "Binding"

    def __init__(self, network: Network) -> None:
        self._network = network
        self._made: dict[str | None, httpx.HTTPTransport] = {}

    def handle_request(self, request: "httpx.Request") -> "httpx.Response":
        proxy = self._network.proxy_for(str(request.url))
        made = self._made.get(proxy)
        if made is None:
            made = self._made[proxy] = self.binding.http.HTTPTransport(
                verify=self._network.verify, proxy=proxy, limits=self.binding.limits
            )
        return made.handle_request(request)

    def close(self) -> None:
        for made in self._made.values():
            made.close()


class AsyncSockets:
    """Like ``Sockets``, for a client that awaits."""

    binding: "Binding"

    def __init__(self, network: Network) -> None:
        self._network = network
        self._made: dict[str | None, httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: "httpx.Request") -> "httpx.Response":
        proxy = self._network.proxy_for(str(request.url))
        made = self._made.get(proxy)
        if made is None:
            made = self._made[proxy] = self.binding.http.AsyncHTTPTransport(
                verify=self._network.verify, proxy=proxy, limits=self.binding.limits
            )
        return await made.handle_async_request(request)

    async def aclose(self) -> None:
        for made in self._made.values():
            await made.aclose()


class Binding:
    """One library, and the classes above as its clients want them."""

    def __init__(self, http: ModuleType) -> None:
        self.http = http
        # Nothing has been sent when these are raised, so another endpoint may be tried.
        unreachable = (http.ConnectError, http.ConnectTimeout)
        self.limits = http.Limits(
            max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_IDLE
        )
        # Parsing one takes as long as choosing a model.
        self._parsed = lru_cache(maxsize=64)(http.URL)
        bodies = (WatchedStream, http.SyncByteStream, http.AsyncByteStream)
        shared = {
            "binding": self,
            "unreachable": unreachable,
            "stream": type("Stream", bodies, {}),
        }
        blocks, awaits = http.BaseTransport, http.AsyncBaseTransport
        self._transport = type("Transport", (Transport, blocks), shared)
        self._async_transport = type("AsyncTransport", (AsyncTransport, awaits), shared)
        self._sockets = type("Sockets", (Sockets, blocks), shared)
        self._async_sockets = type("AsyncSockets", (AsyncSockets, awaits), shared)

    def request(
        self, request: "httpx.Request", url: str, headers: list[tuple[str, str]], body: bytes
    ) -> "httpx.Request":
        """Return ``request`` as it is sent on."""
        made = self.http.Request(
            request.method,
            self._parsed(url),
            headers=headers,
            content=body,
            extensions=request.extensions,
        )
        return cast("httpx.Request", made)

    def transport(self, core: Core, tokens: Tokens, inner: object | None) -> Any:  # noqa: ANN401 - of either library
        """Return the transport over ``inner``, over sockets if there is none."""
        made = self._transport(core, tokens, inner or self._sockets(core.network))
        made.connects = inner is None
        return made

    def async_transport(self, core: Core, tokens: AsyncTokens, inner: object | None) -> Any:  # noqa: ANN401
        """Return the same for a client that awaits."""
        made = self._async_transport(core, tokens, inner or self._async_sockets(core.network))
        made.connects = inner is None
        return made

    def timeout(self, given: object) -> Any:  # noqa: ANN401 - of either library
        """Return ``given`` as the library takes it; seconds are for all but connecting."""
        if isinstance(given, int | float):
            return self.http.Timeout(given, connect=min(given, CONNECT_TIMEOUT_S))
        return self.http.Timeout(given)


_bound: dict[str, Binding] = {}


def bind(http: ModuleType) -> Binding:
    """Return the binding of a library, made once."""
    made = _bound.get(http.__name__)
    if made is None:
        made = _bound[http.__name__] = Binding(http)
    return made
