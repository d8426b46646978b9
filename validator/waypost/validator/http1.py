"""A small HTTP/1.1 client for one origin: a pool of connections that POST and read.

For the hot route alone, by measurement (docs/adr/0007). It knows TLS, keep-alive, chunked and
counted bodies, time-outs, back-pressure and cancellation; llhttp parses. It knows no redirects,
cookies, proxies, compression or HTTP/2, which the route does not want. Whatever goes wrong is
one ``ExchangeError`` that says at which stage.
"""

import asyncio
import ssl
from contextlib import suppress
from typing import Literal, Protocol, Self, cast
from urllib.parse import urlsplit

import httptools

from waypost.validator.certificates import day, expires_at, presented_expiry

__all__ = ["ExchangeError", "Origin", "Progress", "Response", "Stage"]

CERT_HAS_EXPIRED = 10  # X509_V_ERR_CERT_HAS_EXPIRED, OpenSSL's x509_vfy.h

# Where an exchange failed: before a connection stood, by silence, by the connection's end, or
# by bytes that are not HTTP or too many of them.
Stage = Literal["connect", "timeout", "broken", "malformed"]

MAX_HEAD_BYTES = 65_536
HIGH_WATER_BYTES = 65_536  # read ahead of a slow reader; then the provider is held back
# Servers close idle connections after some seconds and up. What has been idle for longer than
# most of them wait is not worth the failure it might cause.
MAX_IDLE_S = 30.0
# A server that had closed an idle connection says so within a round trip.
MAX_STALE_S = 1.0


class Progress(Protocol):
    """Is told how far an exchange has come.

    Attributes:
        was_sent: whether a byte of the request may have reached the server.
    """

    was_sent: bool


class ExchangeError(Exception):
    """An exchange that did not come to its end."""

    def __init__(self, stage: Stage, detail: str) -> None:
        super().__init__(f"{stage}: {detail}")
        self.stage: Stage = stage
        self.detail = detail


class Response(asyncio.Protocol):
    """One connection, and the response that is on it at the moment.

    At the end of a ``with`` it goes back to its origin.

    Attributes:
        status: 0 until the head has come.
        content_type, content_encoding, retry_after: as sent; empty if not.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, origin: "Origin") -> None:
        self._loop = loop
        self._origin = origin
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._until = 0.0
        self._paused = False
        self._idle_since = 0.0
        self._begin()

    def _begin(self) -> None:
        self._failure: ExchangeError | None = None
        self._has_head = self._is_complete = self._ends_with_connection = False
        self._keeps_alive = False
        self._head_bytes = 0
        self._body = bytearray()
        self.status = 0
        self.content_type = self.content_encoding = self.retry_after = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._origin.finish(self)

    # ── by the pool ────────────────────────────────────────────────────────────────────────

    @property
    def is_reusable(self) -> bool:
        """Whether the exchange is over and the connection may carry another."""
        return (
            self._is_complete
            and not self._paused  # it would not hear the next answer, nor that it was closed
            and self._keeps_alive
            and self._failure is None
            and self._transport is not None
            and not self._transport.is_closing()
        )

    def listen(self) -> None:
        """Read on, where reading was held back for a slow reader."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def rest(self) -> None:
        """Note that it is idle from now on."""
        self._idle_since = self._loop.time()

    @property
    def is_fresh(self) -> bool:
        """Whether it may carry another, and the server will hardly have given it up yet."""
        return self.is_reusable and self._loop.time() - self._idle_since < MAX_IDLE_S

    @property
    def is_untouched(self) -> bool:
        """Whether not a byte of a response has come."""
        return not self._head_bytes

    def send(self, request: bytes) -> bool:
        """Begin a new exchange; return whether anything was sent."""
        self._begin()
        if self._transport is None or self._transport.is_closing():
            self._fail("broken", "the connection was closed")
            return False
        self._transport.write(request)
        return True

    def abort(self) -> None:
        """Close the connection, whatever is on it."""
        if self._transport is not None:
            self._transport.abort()

    # ── by the reader ──────────────────────────────────────────────────────────────────────

    async def head(self, *, until: float) -> None:
        """Wait for the head; ``until`` is by the loop's clock. Raises ExchangeError."""
        while not self._has_head:
            await self._wait(until)

    async def read(self, *, until: float) -> bytes:
        """Return the next bytes of the body as they arrive; empty at its end.

        Raises:
            ExchangeError: it did not come to its end.
        """
        while not self._body and not self._is_complete:
            await self._wait(until)
        body = bytes(self._body)
        self._body.clear()
        self.listen()
        return body

    async def read_all(self, *, until: float, at_most: int) -> bytes:
        """Return the whole body; raises ExchangeError (``malformed``) if it is longer."""
        while not self._is_complete:
            if len(self._body) > at_most:
                raise ExchangeError("malformed", f"a body of more than {at_most} bytes")
            self.listen()
            await self._wait(until)
        return bytes(self._body)

    async def _wait(self, until: float) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = self._loop.create_future()
        self._until = until
        # Set for the first wait and then moved on only when it rings: hardly any wait lasts.
        if self._timer is None or self._timer.when() > until:
            self._set_timer()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _set_timer(self) -> None:
        self._stop_timer()
        self._timer = self._loop.call_at(self._until, self._ring)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        if self._waiter is None:
            return
        if self._loop.time() < self._until:
            self._set_timer()
        else:
            self._fail("timeout", "no answer in time")

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, stage: Stage, detail: str) -> None:
        if self._failure is None:
            self._failure = ExchangeError(stage, detail)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(self._failure)

    # ── by the event loop ──────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # TCP and TLS are streams

    def data_received(self, data: bytes) -> None:
        if not self._has_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self._fail("malformed", str(exc))
            self.abort()
            return
        if not self._has_head and self._head_bytes > MAX_HEAD_BYTES:
            self._fail("malformed", f"a head of more than {MAX_HEAD_BYTES} bytes")
            self.abort()
        elif len(self._body) > HIGH_WATER_BYTES and not self._paused and self._transport:
            self._paused = True
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._has_head and self._ends_with_connection and exc is None:
            self._is_complete = True
            self._wake()
        elif not self._is_complete:
            self._fail("broken", str(exc or "the provider closed the connection"))

    # ── by the parser ──────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        if self._is_complete:
            raise ValueError("a response that nobody asked for")
        self._ends_with_connection = True

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"content-length" | b"transfer-encoding":
                self._ends_with_connection = False
            case b"content-type":
                self.content_type = value.decode("latin-1")
            case b"content-encoding":
                self.content_encoding = value.decode("latin-1")
            case b"retry-after":
                self.retry_after = value.decode("latin-1")
            case _:
                pass

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # others announce the one that counts
            self.status = status
            self._keeps_alive = self._parser.should_keep_alive()
            self._has_head = True
            self._wake()

    def on_body(self, body: bytes) -> None:
        self._body += body
        self._wake()

    def on_message_complete(self) -> None:
        if self._has_head:
            self._is_complete = True
            self._wake()


class Origin:
    """The connections to one scheme, host and port."""

    def __init__(self, url: str, *, headers: dict[str, str], connect_timeout_s: float) -> None:
        """Args:
        url: what every request's path is below.
        headers: of every request, Host and Content-Length aside.
        """
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls is not None else 80)
        self._connect_timeout_s = connect_timeout_s
        lines = {"Host": parts.netloc, **headers}
        self._path = parts.path.rstrip("/")
        self._head = " HTTP/1.1\r\n" + "".join(
            f"{name}: {value}\r\n" for name, value in lines.items()
        )
        self._idle: list[Response] = []
        self._open: set[Response] = set()
        self.certificate_expires_at: float | None = None

    async def send(
        self,
        body: bytes,
        *,
        path: str = "",
        headers: str = "",
        until: float,
        progress: Progress | None = None,
    ) -> Response:
        """Send ``body``; return the response once its head is there, for a ``with``.

        Args:
            path: below the origin's own.
            headers: further header lines, each with its line end.
            until: when the head must be there, by the loop's clock.
            progress: is told how far it has come, whatever is raised.

        Raises:
            ExchangeError: there is no response.
        """
        head = f"POST {self._path}{path}{self._head}{headers}Content-Length: {len(body)}\r\n\r\n"
        request = head.encode() + body
        response = self._take_idle()
        if response is not None:
            sent_at = asyncio.get_running_loop().time()
            try:
                return await self._exchange(response, request, until, progress)
            except ExchangeError as failure:
                # It was closed while we wrote, as servers close what is idle: RFC 9112 §9.3.1.
                # What breaks later may have been at work, and bill for it.
                age_s = asyncio.get_running_loop().time() - sent_at
                if failure.stage != "broken" or not response.is_untouched or age_s > MAX_STALE_S:
                    raise
                if progress is not None:
                    progress.was_sent = False
        return await self._exchange(await self._connect(until), request, until, progress)

    async def _exchange(
        self, response: Response, request: bytes, until: float, progress: Progress | None
    ) -> Response:
        try:
            was_sent = response.send(request)
            if progress is not None:
                progress.was_sent = was_sent
            await response.head(until=until)
        except BaseException:
            self.finish(response)
            raise
        return response

    def finish(self, response: Response) -> None:
        """Keep the connection if its response has been read to the end; close it if not.

        Closing is how a provider learns that nobody listens any more.
        """
        response.listen()
        if response.is_reusable:
            response.rest()
            self._idle.append(response)
        else:
            response.abort()
            self._open.discard(response)

    def _take_idle(self) -> Response | None:
        # The last one used is the least likely to have been closed; the rest may age and go.
        while self._idle:
            response = self._idle.pop()
            if response.is_fresh:
                return response
            response.abort()
            self._open.discard(response)
        return None

    async def _connect(self, until: float) -> Response:
        loop = asyncio.get_running_loop()
        connected_by = loop.time() + self._connect_timeout_s
        try:
            async with asyncio.timeout_at(min(until, connected_by)):
                transport, response = await loop.create_connection(
                    lambda: Response(loop, self), self._host, self._port, ssl=self._tls
                )
        except TimeoutError:
            # Whoever is in a hurry has no word on whether the provider can be reached.
            stage: Stage = "connect" if connected_by <= until else "timeout"
            raise ExchangeError(stage, "no connection in time") from None
        except ssl.SSLCertVerificationError as exc:
            raise ExchangeError("connect", await self._fault(exc, connected_by)) from exc
        except (OSError, ssl.SSLError) as exc:
            raise ExchangeError("connect", str(exc)) from exc
        if self._tls is not None:
            self.certificate_expires_at = expires_at(transport)
        self._open.add(response)
        return response

    async def _fault(self, exc: ssl.SSLCertVerificationError, until: float) -> str:
        """Return what is wrong with the server's certificate, in words for people."""
        if exc.verify_code != CERT_HAS_EXPIRED:
            return f"certificate not trusted: {exc.verify_message}"
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                self.certificate_expires_at = await presented_expiry(self._host, self._port)
        at = self.certificate_expires_at
        return "certificate expired" if at is None else f"certificate expired on {day(at)}"

    async def close(self) -> None:
        """Close all connections."""
        for response in self._open:
            response.abort()
        self._open.clear()
        self._idle.clear()
        await asyncio.sleep(0)  # sockets close on the loop's next turn
