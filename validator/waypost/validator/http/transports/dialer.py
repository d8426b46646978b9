"""A connection to one host, by whichever of its addresses answers first (RFC 8305).

The name is looked up once for all who wait for it: a resolver that hangs holds one of the
process's few threads for it, not one per request.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import aiohappyeyeballs

from waypost.validator.http.certificates import day, expires_at, presented_expiry
from waypost.validator.http.transports.connection import Connection
from waypost.validator.http.transports.interface import ExchangeError, Stage

__all__ = ["Dialer"]

CERT_HAS_EXPIRED = 10  # X509_V_ERR_CERT_HAS_EXPIRED, OpenSSL's x509_vfy.h
ATTEMPT_DELAY_S = 0.25  # RFC 8305 §5: the recommended value

# As ``getaddrinfo`` tells it: family, kind, protocol, canonical name, address.
_Address = tuple[int, int, int, str, tuple[Any, ...]]


async def look_up(host: str, port: int) -> list[_Address]:
    """Return the addresses of a host, as the system resolves it."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return cast(list[_Address], found)


class Dialer:
    """The way to one host and port."""

    def __init__(
        self, host: str, port: int, *, tls: ssl.SSLContext | None, timeout_s: float
    ) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._timeout_s = timeout_s
        self._lookup: asyncio.Task[list[_Address]] | None = None
        self._last_good: object = None
        self.certificate_expires_at: float | None = None

    async def dial(self, on_closed: Callable[[Connection], None], *, until: float) -> Connection:
        """Return a connection that nothing was sent on yet.

        Raises:
            ExchangeError: none stands by ``until``, or within the time for it.
        """
        loop = asyncio.get_running_loop()
        dialed_by = loop.time() + self._timeout_s
        connection = Connection(loop, on_closed)
        try:
            async with asyncio.timeout_at(min(until, dialed_by)):
                await self._open(loop, connection)
        except TimeoutError:
            connection.abort()
            # Whoever is in a hurry has no word on whether the provider can be reached.
            stage: Stage = "connect" if dialed_by <= until else "timeout"
            raise ExchangeError(stage, "no connection in time") from None
        except ssl.SSLCertVerificationError as exc:
            connection.abort()
            raise ExchangeError("connect", await self._fault(exc, dialed_by)) from exc
        except (OSError, RuntimeError, ValueError) as exc:
            # uvloop tells some failures to connect as RuntimeError, and a name that is none is
            # a UnicodeError.
            connection.abort()
            raise ExchangeError("connect", str(exc)) from exc
        except BaseException:
            connection.abort()
            raise
        return connection

    async def _open(self, loop: asyncio.AbstractEventLoop, connection: Connection) -> None:
        addresses = await self._addresses(loop)
        sock: socket.socket = await cast(Any, aiohappyeyeballs).start_connection(
            addresses, happy_eyeballs_delay=ATTEMPT_DELAY_S, interleave=1, loop=loop
        )
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._last_good = sock.getpeername()
            raw, _ = await loop.create_connection(lambda: connection, sock=sock)
        except BaseException:
            sock.close()
            raise
        if self._tls is not None:
            # In two steps, so that it can be seen whether all that was encrypted has left.
            secured = await loop.start_tls(raw, connection, self._tls, server_hostname=self._host)
            connection.secured(cast(asyncio.Transport, secured))
            self.certificate_expires_at = expires_at(secured)

    async def _fault(self, exc: ssl.SSLCertVerificationError, until: float) -> str:
        """Return what is wrong with the server's certificate, in words for people."""
        if exc.verify_code != CERT_HAS_EXPIRED:
            return f"certificate not trusted: {exc.verify_message}"
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                self.certificate_expires_at = await presented_expiry(self._host, self._port)
        at = self.certificate_expires_at
        return "certificate expired" if at is None else f"certificate expired on {day(at)}"

    async def _addresses(self, loop: asyncio.AbstractEventLoop) -> list[_Address]:
        """Return the host's addresses, the last that answered first."""
        if self._lookup is None:
            self._lookup = loop.create_task(look_up(self._host, self._port))
            self._lookup.add_done_callback(self._looked_up)
        lookup = self._lookup
        try:
            addresses = await asyncio.shield(lookup)
        except asyncio.CancelledError:
            if lookup.cancelled():
                raise OSError("the validator is stopping") from None
            raise
        return sorted(addresses, key=lambda address: address[4] != self._last_good)

    def _looked_up(self, lookup: asyncio.Task[list[_Address]]) -> None:
        self._lookup = None
        if not lookup.cancelled():
            lookup.exception()  # told to whoever waits; if nobody does any more, it is no matter

    def close(self) -> None:
        """Give up a lookup that is under way."""
        if self._lookup is not None:
            self._lookup.cancel()
