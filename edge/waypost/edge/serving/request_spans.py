"""A span for each request to the edge that is traced, so that a trace has all its parts.

Names are those of routes, never of paths: a collector keeps one series per name.
"""

import random
import re
import time
from typing import TYPE_CHECKING

from anyio import to_thread
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from waypost.edge.project.names import CHANNEL
from waypost.shared.wire.trace_context import begin

if TYPE_CHECKING:
    from waypost.cli.spans import Spans

__all__ = ["TOLD", "Traced"]

TOLD = "waypost.told"  # where in the scope a handler may leave attributes

_BUNDLE = re.compile(rf"/v1/({CHANNEL})/(?:full/)?bundle\.json")
_PLAIN = {"/v1/decide": "decide", "/v1/probe": "probe", "/livez": "livez"}


class Traced:
    """Serves ``app``, and tells a collector of what is traced.

    A caller that says so itself decides; of others a ``share`` is.
    """

    def __init__(self, app: ASGIApp, spans: "Spans", *, share: float) -> None:
        self._app = app
        self._spans = spans
        self._share = share

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closing(message: Message) -> None:
            # Not later: once a server has said so a signal may end its process.
            if message["type"].startswith("lifespan.shutdown"):
                await to_thread.run_sync(self._spans.close)
            await send(message)

        if scope["type"] == "lifespan":
            await self._app(scope, receive, closing)
            return
        trace = None
        if scope["type"] == "http":
            header = Headers(scope=scope).get("traceparent")
            trace = begin(
                None if header is None else header.encode("latin-1"),
                share=self._share,
                rng=random.random(),
                randomness=random.getrandbits(192),
            )
        if trace is None:
            await self._app(scope, receive, send)
            return
        status, told = 500, dict[str, str | int]()
        scope[TOLD] = told

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began_ns = time.time_ns()
        try:
            await self._app(scope, receive, note)
        finally:
            name, channel = _named(scope["path"])
            attributes = {
                "http.request.method": scope["method"],
                "http.response.status_code": status,
                **channel,
                **told,
            }
            span = self._spans.begin(
                f"waypost edge {name}", trace, at_ns=began_ns, attributes=attributes
            )
            span.end(end_time=time.time_ns())


def _named(path: str) -> tuple[str, dict[str, str]]:
    bundle = _BUNDLE.fullmatch(path)
    if bundle is not None:
        return "bundle", {"waypost.channel": bundle[1]}
    return _PLAIN.get(path, "tree"), {}
