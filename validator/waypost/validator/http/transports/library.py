"""Exchanges by httpcore, for what our own client leaves out: proxies and HTTP/2.

The same contract (``exchange``), slower by a few times. A connection carries one exchange at a
time, HTTP/2's too, so that leaving early can hang up: httpcore resets no stream, and the provider
would go on to be billed. Each is a pool of one, closed unless it is proved idle. What comes off
the wire of HTTP/1.1 is read along by our own ``Message``, since httpcore takes bytes that follow
an answer for the next one.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import suppress
from typing import Any, Self, cast
from urllib.parse import urlsplit

import httpcore

from waypost.validator.http.certificates import expiry_of
from waypost.validator.http.transports.idle import Idle
from waypost.validator.http.transports.interface import (
    MAX_IDLE_S,
    MAX_STALE_S,
    ExchangeError,
    Progress,
    Stage,
)
from waypost.validator.http.transports.message import MalformedError, Message
from waypost.validator.http.transports.proxies import Proxy

__all__ = ["LibraryOrigin", "LibraryResponse"]

MAX_WRITE_BYTES = 65_536
Header = tuple[bytes, bytes]


class _Wire(httpcore.AsyncNetworkStream):
    """A connection whose bytes are read along."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, line: "_Line") -> None:
        self._stream = stream
        self._line = line

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        try:
            data = await self._stream.read(max_bytes, timeout)
        except httpcore.NetworkError:
            self._line.is_lost = True
            raise
        self._line.hear(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - as httpcore declares it
    ) -> httpcore.AsyncNetworkStream:
        secured = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        self._line.secured(secured)
        return _Wire(secured, self._line)

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - as httpcore declares it
        return self._stream.get_extra_info(info)


class _Network(httpcore.AsyncNetworkBackend):
    """Connects by anyio, which races the addresses of a host (RFC 8305)."""

    def __init__(self, line: "_Line") -> None:
        self._line = line
        self._network = cast(httpcore.AsyncNetworkBackend, httpcore.AnyIOBackend())

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - as httpcore declares it
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self._line.is_used = False
        stream = await self._network.connect_tcp(host, port, timeout, local_address, socket_options)
        return _Wire(stream, self._line)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Line:
    """One connection, at most, and what is known of the exchange on it.

    Attributes:
        message: the answer, read along; of HTTP/2 nothing can be read.
        has_begun: whether a byte of the request may have been sent.
        is_used: whether the connection has carried an exchange before.
        is_lost: whether the connection broke.
        flaw: what is wrong with the bytes that came, by HTTP/1.1.
    """

    def __init__(self, origin: "LibraryOrigin") -> None:
        self._origin = origin
        self.pool = origin.new_pool(_Network(self))
        self.is_used = False
        self._idle_since = 0.0
        self.begin()

    def begin(self) -> None:
        """Begin an exchange; nothing of an earlier one is known any more."""
        self.message = Message()
        self.has_begun = self.is_lost = False
        self.flaw = ""

    def hear(self, data: bytes) -> None:
        """Read along; what a proxy said before the request began is no answer."""
        if not self.has_begun:
            return
        if not data:
            self.is_lost = not self.message.end()
        elif not self.flaw:
            try:
                self.message.feed(data)
                self.message.take()
            except MalformedError as exc:
                self.flaw = str(exc)

    def secured(self, stream: httpcore.AsyncNetworkStream) -> None:
        """Note whose certificate it is; behind a proxy the provider's comes last."""
        wire = stream.get_extra_info("ssl_object")
        certificate = None if wire is None else wire.getpeercert()
        self._origin.certificate_expires_at = expiry_of(certificate)

    def rest(self, now: float) -> None:
        self._idle_since = now
        self.is_used = True

    def is_fresh(self, now: float) -> bool:
        return now - self._idle_since < MAX_IDLE_S

    def abort(self) -> None:
        self._origin.close_later(self.pool.aclose())


class LibraryResponse:
    """The response to one request; at the end of a ``with`` its connection is let go.

    Attributes:
        content_type, content_encoding, retry_after: as sent; empty if not.
    """

    def __init__(self, origin: "LibraryOrigin", line: _Line, response: httpcore.Response) -> None:
        self.status = response.status
        fields = {name.lower(): value.decode("latin-1") for name, value in response.headers}
        self.content_type = fields.get(b"content-type", "")
        self.content_encoding = fields.get(b"content-encoding", "")
        self.retry_after = fields.get(b"retry-after", "")
        self._is_http2 = cast(Any, response).extensions.get("http_version") == b"HTTP/2"
        self._origin = origin
        self._line: _Line | None = line
        self._response = response
        self._pieces = cast(AsyncGenerator[bytes], response.aiter_stream())
        self._is_complete = False
        self.check()

    def check(self) -> None:
        """Raise ExchangeError if what came is no HTTP/1.1, however the library reads it."""
        if not self._is_http2 and self._line is not None and self._line.flaw:
            raise ExchangeError("malformed", self._line.flaw)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_whole(self) -> bool:
        """Whether all of the body has come and been read."""
        return self._is_complete

    def close(self) -> None:
        """Let go of the connection; before the end of the body that hangs up."""
        line, self._line = self._line, None
        if line is None:
            return
        if self._is_complete and (self._is_http2 or line.message.may_continue):
            self._origin.keep(line)
        else:
            self._origin.close_later(self._hang_up(line))

    async def _hang_up(self, line: _Line) -> None:
        await self._pieces.aclose()
        await self._response.aclose()
        await line.pool.aclose()

    async def read(self, *, until: float) -> bytes:
        """Return the next bytes of the body as they arrive; empty at its end.

        Raises:
            ExchangeError: it did not come to its end.
        """
        if self._line is None:
            raise ExchangeError("broken", "the response was closed")
        if self._is_complete:
            return b""
        try:
            async with asyncio.timeout_at(until):
                async for piece in self._pieces:
                    if piece:
                        self.check()
                        return piece
                await self._response.aclose()
        except TimeoutError:
            raise ExchangeError("timeout", "no answer in time") from None
        except httpcore_errors as exc:
            raise _failure(self._line, exc) from exc
        self.check()
        self._is_complete = True
        return b""

    async def read_all(self, *, until: float, at_most: int) -> bytes:
        """Return the whole body; raises ExchangeError (``malformed``) if it is longer."""
        body = bytearray()
        while piece := await self.read(until=until):
            body += piece
            if len(body) > at_most:
                raise ExchangeError("malformed", f"a body of more than {at_most} bytes")
        return bytes(body)


# Its own, and what its parsers let through; all else is a fault of ours.
httpcore_errors = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
    httpcore.ConnectionNotAvailable,
    OSError,
    ValueError,
)


def _failure(line: _Line, exc: Exception) -> ExchangeError:
    stage: Stage = "broken"
    if not line.has_begun:
        stage = "connect"
    elif isinstance(exc, httpcore.ProtocolError) and not line.is_lost and not _is_reset(exc):
        stage = "malformed"
    # Its text may quote what was sent to a proxy; the kind is enough.
    return ExchangeError(stage, line.flaw or type(exc).__name__)


def _is_reset(exc: Exception) -> bool:
    """Whether HTTP/2 ended the stream, or the connection, in good form."""
    told = exc.args[0] if exc.args else None
    return type(told).__name__ in ("ConnectionTerminated", "StreamReset")


class LibraryOrigin:
    """The connections to one scheme, host and port."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        connect_timeout_s: float,
        tls: ssl.SSLContext,
        proxy: Proxy | None = None,
        http2: bool = False,
    ) -> None:
        """Args:
        url: what every request's path is below.
        headers: of every request, Host and Content-Length aside.
        tls: whom to believe in, and who we are, towards the provider.
        """
        self._url = url.rstrip("/")
        self._headers = [(b"Host", urlsplit(url).netloc.encode()), *_fields(headers.items())]
        self._connect_timeout_s = connect_timeout_s
        self._tls = tls
        self._proxy = proxy
        self._proxy_tls = None
        if proxy is not None and proxy.url.startswith("https:"):
            self._proxy_tls = ssl.create_default_context()
        self._http2 = http2
        self._idle: Idle[_Line] = Idle()
        self._closing: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self.certificate_expires_at: float | None = None

    def new_pool(self, network: httpcore.AsyncNetworkBackend) -> httpcore.AsyncConnectionPool:
        """Return a pool for one connection."""
        if self._proxy is None:
            return httpcore.AsyncConnectionPool(
                ssl_context=self._tls,
                max_connections=1,
                http2=self._http2,
                network_backend=network,
            )
        return httpcore.AsyncHTTPProxy(
            self._proxy.url,
            proxy_auth=self._proxy.login,
            ssl_context=self._tls,
            proxy_ssl_context=self._proxy_tls,
            max_connections=1,
            http2=self._http2,
            network_backend=network,
        )

    async def send(
        self,
        body: bytes,
        *,
        path: str = "",
        headers: str = "",
        until: float,
        progress: Progress | None = None,
    ) -> LibraryResponse:
        """Send ``body``; return the response once its head is there, for a ``with``.

        Args:
            path: below the origin's own.
            headers: further header lines, each with its line end.
            until: when the head must be there, by the loop's clock.
            progress: is told how far it has come, whatever is raised.

        Raises:
            ExchangeError: there is no response.
        """
        lines = (line.partition(": ") for line in headers.splitlines())
        fields = [
            *self._headers,
            *_fields((name, value) for name, _, value in lines),
            (b"Content-Length", str(len(body)).encode()),
        ]
        now = asyncio.get_running_loop().time
        sent_at = now()
        line = self._idle.take(sent_at)
        if line is not None:
            try:
                return await self._exchange(line, path, fields, body, until, progress)
            except ExchangeError as failure:
                # As http1.Origin.send does, for the same reason.
                is_stale = failure.stage == "broken" and line.message.is_untouched
                if not is_stale or not line.is_used or now() - sent_at > MAX_STALE_S:
                    raise
                if progress is not None:
                    progress.was_sent = False
        return await self._exchange(_Line(self), path, fields, body, until, progress)

    async def _exchange(
        self,
        line: _Line,
        path: str,
        fields: list[Header],
        body: bytes,
        until: float,
        progress: Progress | None,
    ) -> LibraryResponse:
        line.begin()
        connected_by = asyncio.get_running_loop().time() + self._connect_timeout_s
        try:
            if self._is_closed:
                raise ExchangeError("connect", "the validator is stopping")
            async with asyncio.timeout_at(min(until, connected_by)) as limit:

                async def trace(event: str, info: Mapping[str, Any]) -> None:
                    if not event.endswith("send_request_headers.started"):
                        return
                    if info["request"].method != b"CONNECT":
                        if not limit.expired():
                            limit.reschedule(until)
                        line.has_begun = True
                        if progress is not None:
                            progress.was_sent = True

                request = httpcore.Request(
                    b"POST",
                    self._url + path,
                    headers=fields,
                    content=_sliced(body),
                    extensions={"trace": trace},
                )
                response = await line.pool.handle_async_request(request)
            return LibraryResponse(self, line, response)
        except TimeoutError:
            line.abort()
            stage: Stage = "timeout"
            if not line.has_begun and connected_by <= until:
                stage = "connect"
            raise ExchangeError(stage, "no answer in time") from None
        except httpcore_errors as exc:
            line.abort()
            raise _failure(line, exc) from exc
        except BaseException:
            line.abort()
            raise

    def keep(self, line: _Line) -> None:
        """Keep a connection that is proved idle."""
        line.rest(asyncio.get_running_loop().time())
        self._idle.put(line)

    def close_later(self, closing: Any) -> None:  # noqa: ANN401 - a coroutine
        """Close in a task of its own, as whoever lets go may be cancelled, or not wait."""
        task = asyncio.get_running_loop().create_task(_quietly(closing))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all connections."""
        self._is_closed = True
        self._idle.close()
        while self._closing:
            await asyncio.wait(self._closing)


async def _quietly(closing: Any) -> None:  # noqa: ANN401 - a coroutine
    """Close; a connection that broke is closed as well."""
    with suppress(*httpcore_errors):
        await closing


def _fields(headers: Iterable[tuple[str, str]]) -> list[Header]:
    return [(name.encode(), value.encode()) for name, value in headers]


async def _sliced(body: bytes) -> AsyncIterator[bytes]:
    view = memoryview(body)
    for at in range(0, len(view), MAX_WRITE_BYTES):
        yield bytes(view[at : at + MAX_WRITE_BYTES])
