"""Runs the edge on a socket until it is told to stop."""

# securesystemslib spells __all__ as Class.__name__, which no type checker reads.
# pyright: reportPrivateImportUsage=false

import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence

import uvicorn
from securesystemslib.signer import Signer

from waypost.edge.app import create_app
from waypost.edge.project import Project
from waypost.edge.publish import RESIGN_EVERY_S, resign
from waypost.shared.errors import StoreError

__all__ = ["listen", "run"]

_log = logging.getLogger("waypost.edge")


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket; raises StoreError (``address_unavailable``)."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
    except OSError as exc:
        raise _unavailable(host, port, exc) from exc
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as exc:
        sock.close()
        raise _unavailable(host, port, exc) from exc
    return sock


def _unavailable(host: str, port: int, exc: OSError) -> StoreError:
    return StoreError(f"cannot listen on {host}:{port}: {exc.strerror}", code="address_unavailable")


def run(
    project: Project,
    sock: socket.socket,
    *,
    signers: Callable[[], Mapping[str, Sequence[Signer]]],
    private_token: str | None,
    ready: Callable[[str], None],
) -> None:
    """Serve until SIGINT or SIGTERM; ``ready`` gets the URL once requests are answered.

    ``signers`` is asked at each turn, so that a new key is used, and a revoked one not.
    """

    def sign_anew() -> None:
        held = signers()
        if held:
            resign(project, signers=held, now=int(time.time()))

    app = create_app(
        project.public,
        private=project.private,
        private_token=private_token,
        resign=sign_anew,
        resign_every_s=RESIGN_EVERY_S,
    )
    if not signers():
        _log.warning("no online keys here: the manifest lapses when its timestamp does")
    host, port = sock.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    server = _Server(
        uvicorn.Config(app, log_level="warning", access_log=False, server_header=False),
        ready=lambda: ready(url),
    )
    server.run(sockets=[sock])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, *, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        if self.started:
            self._ready()
