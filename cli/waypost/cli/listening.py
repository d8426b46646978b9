"""How a server takes its port, and says when it answers. For parts that serve: wants uvicorn."""

import socket
from collections.abc import Callable
from errno import EADDRINUSE

import uvicorn

from waypost.shared.errors import WaypostError

__all__ = [
    "BACKLOG",
    "KEEP_ALIVE_S",
    "ListenError",
    "SayingServer",
    "begin",
    "bind",
    "listen",
    "url_of",
]

BACKLOG = 2_048
# Longer than proxies and clients keep idle connections (nginx: 60 s), so that none is closed under
# a request.
KEEP_ALIVE_S = 75


class ListenError(WaypostError):
    """The address cannot be listened on."""

    code = "address_unavailable"


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket: what comes before the server is up waits in the kernel.

    Args:
        port: 0 takes a free one.

    Raises:
        ListenError: the port is taken, or the host is not ours.
    """
    listener = bind(host, port)
    begin(listener)
    return listener


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that has its port, and refuses whoever connects until ``begin``.

    Args:
        port: 0 takes a free one.

    Raises:
        ListenError: the port is taken, or the host is not ours.
    """
    listener: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # Named as TCP, since asyncio sends at once only where the socket says so; else an answer
        # in two writes waits 40 ms for the first to be acknowledged.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as exc:
        if listener is not None:
            listener.close()
        raise _unavailable(host, port, exc) from exc
    return listener


def begin(listener: socket.socket) -> None:
    """Let ``listener`` take connections. Raises ListenError when another was faster."""
    host, port = listener.getsockname()[:2]
    try:
        listener.listen(BACKLOG)
    except OSError as exc:
        listener.close()
        raise _unavailable(host, port, exc) from exc


def _unavailable(host: str, port: int, why: OSError) -> ListenError:
    # A host that is not ours has another mend than a port that is taken.
    mend = "; choose another with --port; 0 takes a free one" if why.errno == EADDRINUSE else ""
    return ListenError(f"cannot listen on {host} port {port}: {why.strerror}{mend}")


def url_of(listener: socket.socket) -> str:
    """Return where ``listener`` is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class SayingServer(uvicorn.Server):
    """Says when requests are answered."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        if self.started:
            self._ready()
