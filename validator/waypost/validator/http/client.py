"""A small HTTP/1.1 client for one origin: a pool of connections that POST and read.

For the hot route alone, by measurement (docs/adr/0007). It knows TLS, keep-alive, chunked and
counted bodies, time-outs, back-pressure and cancellation. It knows no redirects, cookies,
proxies, compression or HTTP/2, which the route does not want; ``transports.library`` does, for
providers behind a proxy.
"""

import asyncio
import ssl
from collections.abc import Coroutine, Mapping
from functools import cache
from typing import Any, Self
from urllib.parse import urlsplit

from waypost.validator.http.transports.connection import Connection
from waypost.validator.http.transports.dialer import Dialer
from waypost.validator.http.transports.idle import Idle
from waypost.validator.http.transports.interface import (
    MAX_STALE_S,
    ExchangeError,
    Progress,
    Stage,
)

__all__ = ["ExchangeError", "Origin", "Progress", "Response", "Stage"]


class Response:
    """The response to one request; at the end of a ``with`` its connection is let go.

    Attributes:
        content_type, content_encoding, retry_after: as sent; empty if not.
    """

    __slots__ = (
        "_connection",
        "_origin",
        "content_encoding",
        "content_type",
        "retry_after",
        "status",
    )

    def __init__(self, origin: "Origin", connection: Connection) -> None:
        message = connection.message
        self.status = message.status
        self.content_type = message.content_type
        self.content_encoding = message.content_encoding
        self.retry_after = message.retry_after
        self._origin = origin
        self._connection: Connection | None = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_whole(self) -> bool:
        """Whether all of the body has come and been read."""
        connection = self._connection
        return connection is None or (
            connection.message.is_complete and not connection.message.body
        )

    def close(self) -> None:
        """Let go of the connection; before the end of the body that hangs up."""
        # Once: from then on the connection may be another exchange's.
        connection, self._connection = self._connection, None
        if connection is not None:
            self._origin.settle(connection)

    def read(self, *, until: float) -> Coroutine[Any, Any, bytes]:
        """Return the next bytes of the body as they arrive; empty at its end.

        Raises:
            ExchangeError: it did not come to its end.
        """
        return self._held().read(until=until)

    def read_all(self, *, until: float, at_most: int) -> Coroutine[Any, Any, bytes]:
        """Return the whole body; raises ExchangeError (``malformed``) if it is longer."""
        return self._held().read_all(until=until, at_most=at_most)

    def _held(self) -> Connection:
        if self._connection is None:
            raise ExchangeError("broken", "the response was closed")
        return self._connection


@cache
def _default_tls() -> ssl.SSLContext:
    # One for all: to read the system's certificates takes longer than many a handshake.
    return ssl.create_default_context()


class Origin:
    """The connections to one scheme, host and port."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        connect_timeout_s: float,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Args:
        url: what every request's path is below.
        headers: of every request, Host and Content-Length aside.
        tls: for an ``https`` URL, whom to believe in; ``None``: whom the system believes in.
        """
        parts = urlsplit(url)
        is_secure = parts.scheme == "https"
        self._dialer = Dialer(
            parts.hostname or "",
            parts.port or (443 if is_secure else 80),
            tls=(tls or _default_tls()) if is_secure else None,
            timeout_s=connect_timeout_s,
        )
        lines = {"Host": parts.netloc, **headers}
        self._path = parts.path.rstrip("/")
        self._head = " HTTP/1.1\r\n" + "".join(
            f"{name}: {value}\r\n" for name, value in lines.items()
        )
        self._idle: Idle[Connection] = Idle()
        self._open: set[Connection] = set()
        self._is_closed = False

    @property
    def certificate_expires_at(self) -> float | None:
        """When the server's certificate expires, Unix seconds; ``None`` until it has been seen."""
        return self._dialer.certificate_expires_at

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
        now = asyncio.get_running_loop().time
        sent_at = now()
        connection = self._idle.take(sent_at)
        if connection is not None:
            try:
                return await self._exchange(connection, request, until, progress)
            except ExchangeError as failure:
                # It was closed while we wrote, as servers close what is idle: RFC 9112 §9.3.1.
                # What breaks later may have been at work, and bill for it.
                is_stale = failure.stage == "broken" and connection.message.is_untouched
                if not is_stale or now() - sent_at > MAX_STALE_S:
                    raise
                if progress is not None:
                    progress.was_sent = False
        return await self._exchange(await self._connect(until), request, until, progress)

    async def _exchange(
        self, connection: Connection, request: bytes, until: float, progress: Progress | None
    ) -> Response:
        try:
            was_sent = connection.begin(request)
            if progress is not None:
                progress.was_sent = was_sent
            await connection.head(until=until)
        except BaseException:
            self.settle(connection)
            raise
        return Response(self, connection)

    def settle(self, connection: Connection) -> None:
        """Keep the connection if it is proved idle; else it is closed.

        Closing is how a provider learns that nobody listens any more.
        """
        if connection.settle():
            self._idle.put(connection)

    def _forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._idle.forget(connection)

    async def _connect(self, until: float) -> Connection:
        connection = await self._dialer.dial(self._forget, until=until)
        if self._is_closed:
            connection.abort()
            raise ExchangeError("connect", "the validator is stopping")
        self._open.add(connection)
        return connection

    async def close(self) -> None:
        """Close all connections."""
        self._is_closed = True
        self._dialer.close()
        self._idle.close()
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)  # sockets close on the loop's next turn
