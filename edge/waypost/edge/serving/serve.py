"""Runs the edge on a socket until it is told to stop."""

# securesystemslib spells __all__ as Class.__name__, which no type checker reads.
# pyright: reportPrivateImportUsage=false

import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import uvicorn
from securesystemslib.signer import Signer
from starlette.types import ASGIApp

from waypost.cli.http_guard import GuardedProtocol
from waypost.cli.listening import KEEP_ALIVE_S, SayingServer, url_of
from waypost.edge.project.project import Project
from waypost.edge.publishing.publish import RESIGN_EVERY_S, expires, resign
from waypost.edge.serving.app import create_app
from waypost.edge.serving.metrics import Expiry
from waypost.edge.serving.request_spans import Traced

if TYPE_CHECKING:
    from waypost.cli.spans import Spans

__all__ = ["run"]

_log = logging.getLogger("waypost.edge")


def run(
    project: Project,
    sock: socket.socket,
    *,
    signers: Callable[[], Mapping[str, Sequence[Signer]]],
    private_token: str | None,
    ready: Callable[[str], None],
    spans: "Spans | None" = None,
    trace_share: float = 0.0,
) -> None:
    """Serve until SIGINT or SIGTERM; ``ready`` gets the URL once requests are answered.

    ``signers`` is asked at each turn, so that a new key is used, and a revoked one not.
    """

    def sign_anew() -> None:
        held = signers()
        if held:
            resign(project, signers=held, now=int(time.time()))

    app: ASGIApp = create_app(
        project.public,
        private=project.private,
        private_token=private_token,
        resign=sign_anew,
        resign_every_s=RESIGN_EVERY_S,
        expiry=Expiry(partial(expires, project)),
    )
    if spans is not None:
        app = Traced(app, spans, share=trace_share)
    if not signers():
        _log.warning("no online keys here: the manifest lapses when its timestamp does")
    server = SayingServer(
        uvicorn.Config(
            app,
            http=GuardedProtocol,
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nobody's address is looked at
            timeout_keep_alive=KEEP_ALIVE_S,
        ),
        ready=lambda: ready(url_of(sock)),
    )
    server.run(sockets=[sock])
