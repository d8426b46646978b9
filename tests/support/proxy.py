"""A forward proxy on a real socket: CONNECT, and plain HTTP by absolute URLs, with a login."""

import asyncio
import base64
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class RunningProxy:
    """A running proxy.

    Attributes:
        login: ``user:password`` that it asks for, if any.
        asked: each request line it got.
    """

    port: int = 0
    login: str | None = None
    asked: list[str] = field(default_factory=list)
    is_silent: bool = False
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._serve(reader, writer)
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        request_line, *lines = head.decode("latin-1").strip().split("\r\n")
        self.asked.append(request_line)
        if self.is_silent:
            await asyncio.sleep(3_600)
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        if self.login is not None:
            wanted = "Basic " + base64.b64encode(self.login.encode()).decode()
            if headers.get("proxy-authorization") != wanted:
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n")
                writer.write(b"Proxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
                return
        method, target, _ = request_line.split(" ")
        url = urlsplit(f"//{target}" if method == "CONNECT" else target)
        try:
            far_reader, far_writer = await asyncio.open_connection(url.hostname, url.port)
        except OSError:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            far_writer.write(head)
        try:
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        finally:
            far_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
        else:
            writer.close()
    except (ConnectionError, RuntimeError):  # uvloop's, of what is closed already
        writer.transport.abort()  # a reset is passed on as one


@asynccontextmanager
async def running_proxy(
    *, login: str | None = None, tls: ssl.SSLContext | None = None
) -> AsyncGenerator[RunningProxy]:
    proxy = RunningProxy(login=login, scheme="http" if tls is None else "https")
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(proxy.handle(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await asyncio.sleep(0)
