"""uvicorn's server as a worker runs it: its port can be left, closed and drained without a loss.

The rule: a connection that the kernel has accepted is served. Before the port closes, answers say
``Connection: close``, so that clients take others; what waits in the kernel's queue is taken out
before the socket is closed, or it would be reset; and a connection without a request may bring one
for a while yet. What is still under way at the end of the drain is told so (``Services.cut_off``).
"""

import asyncio
import logging
import socket
from contextlib import nullcontext, suppress
from typing import Any, cast

import uvicorn

from waypost.cli.listening import BACKLOG
from waypost.validator.http.server_protocol import GuardedProtocol
from waypost.validator.routes.app import create_app
from waypost.validator.services import Services

__all__ = ["DrainingServer", "server_config"]

logger = logging.getLogger(__name__)

# Longer than clients keep idle connections, so that none is closed under a request.
KEEP_ALIVE_S = 75
TICK_S = 1.0  # how often the Date of answers is set
LOOK_S = 0.05  # how often a drain looks whether it is over
CUT_S = 5.0  # what is cut has this long to say so, settle, and leave a record
FLUSH_S = 30.0  # a caller has this long to read an answer that is complete
CLOSE = (b"connection", b"close")


def server_config(app: Any) -> uvicorn.Config:  # noqa: ANN401 - any ASGI application
    """Return how a worker serves ``app``."""
    return uvicorn.Config(
        app,
        http=GuardedProtocol,
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # nobody's address is looked at
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
    )


class DrainingServer(uvicorn.Server):
    """Serves ``services`` until it is told to close.

    Attributes:
        is_up: set when it takes connections.
    """

    # Signals are the supervisor's.
    capture_signals = staticmethod(nullcontext)  # type: ignore[assignment]

    def __init__(self, services: Services) -> None:
        super().__init__(server_config(create_app(lambda: nullcontext(services))))
        self._services = services
        self._listener: socket.socket | None = None
        self._is_closing = asyncio.Event()
        self._is_cut = asyncio.Event()
        self.is_up = asyncio.Event()
        self._linger_s = self._drain_s = 0.0

    async def run_on(self, listener: socket.socket) -> None:
        """Serve on ``listener`` until ``close``, and all that follows."""
        # A second handle on the port: the loop closes its own before the queue is empty.
        self._listener = listener
        await self.serve(sockets=[listener.dup()])

    def leave(self, *, takes_more: bool) -> None:
        """Have each connection end with its answer.

        Args:
            takes_more: whether new connections are still taken.
        """
        self.config.encoded_headers.append(CLOSE)
        self.server_state.default_headers = [*self.server_state.default_headers, CLOSE]
        for connection in self.server_state.connections:
            cycle = cast("Any", connection).cycle
            if cycle is not None and not cycle.response_complete:
                cycle.keep_alive = False  # it says so itself, if it has not begun to answer
        if not takes_more:
            self._stop_listening()  # others read the queue
            if self._listener is not None:
                self._listener.close()

    def close(self, *, linger_s: float, drain_s: float) -> None:
        """Close the port now, and end when what is under way has.

        Args:
            linger_s: how long a connection without a request may still bring one.
            drain_s: how long the rest may take; 0: as long as it does.
        """
        self._linger_s, self._drain_s = linger_s, drain_s
        self._is_closing.set()

    def cut(self) -> None:
        """End the drain."""
        self._is_cut.set()

    # ── what uvicorn asks for ──────────────────────────────────────────────────────────────────

    async def main_loop(self) -> None:
        """Return when the port is to be closed."""
        self.is_up.set()
        while not self._is_closing.is_set():
            await self.on_tick(0)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_closing.wait(), TICK_S)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port, drain, cut, and end."""
        self._stop_listening()
        await asyncio.sleep(0)
        await self._take_queued()
        for sock in sockets or ():
            sock.close()
        if CLOSE not in self.config.encoded_headers:
            self.leave(takes_more=True)
        for connection in list(self.server_state.connections):
            if not _is_idle(connection):
                connection.shutdown()
        if not await self._drained():
            await self._cut_off()
        await self.lifespan.shutdown()

    def _stop_listening(self) -> None:
        for server in self.servers:
            server.close()

    async def _take_queued(self) -> None:
        """Close the port, and serve all that the kernel had accepted by then."""
        queued: list[socket.socket] = []
        assert self._listener is not None  # noqa: S101 - it has served
        # No other step of the loop comes between the last look and the close.
        with suppress(OSError):
            self._listener.setblocking(False)
            while True:
                queued.append(self._listener.accept()[0])
        self._listener.close()
        loop = asyncio.get_running_loop()
        for sock in queued:
            with suppress(OSError):
                await loop.connect_accepted_socket(self._protocol, sock)

    def _protocol(self) -> asyncio.Protocol:
        return GuardedProtocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    async def _drained(self) -> bool:
        """Wait for what is under way; whether it has ended before its time."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        lingers_until = now + self._linger_s
        ends_at = now + self._drain_s if self._drain_s else None
        last_task_at = now
        while self.server_state.connections or self.server_state.tasks:
            if self._is_cut.is_set() or (ends_at is not None and now >= ends_at):
                return False
            if self.server_state.tasks:
                last_task_at = now
            elif now >= max(last_task_at, lingers_until) + FLUSH_S:
                return True
            if now >= lingers_until:
                self._close_idle()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_cut.wait(), LOOK_S)
            now = loop.time()
        return True

    def _close_idle(self) -> None:
        for connection in list(self.server_state.connections):
            if _is_idle(connection):
                connection.shutdown()

    async def _cut_off(self) -> None:
        """Tell what is under way that it ends, and see it end."""
        tasks = self.server_state.tasks
        if tasks:
            logger.warning("%d requests are cut off: they took longer than the drain", len(tasks))
        self._services.shutdown.cut_off()
        await self._until_quiet(CUT_S)
        for task in tasks:
            task.cancel()
        await self._until_quiet(CUT_S)

    async def _until_quiet(self, limit_s: float) -> None:
        """Wait until nothing is under way, and what was said has left."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self.server_state.connections or self.server_state.tasks:
                    self._close_idle()
                    await asyncio.sleep(LOOK_S)


def _is_idle(connection: Any) -> bool:  # noqa: ANN401 - of whichever protocol
    """Whether a connection has no request under way."""
    return connection.cycle is None or connection.cycle.response_complete
