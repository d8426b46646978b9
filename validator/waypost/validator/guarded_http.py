"""uvicorn's HTTP protocol, with bounds on the head of a request: it has none of its own.

Without them anybody, token or not, could fill this process's memory with one header that never
ends, and with it the event loop, since each piece is joined to all before it.

It also ignores ``Upgrade``, which RFC 9110 §7.8 lets any server do. The parser would end such a
request at its head, and read its body as the next one: whoever writes a body could then write a
request too, on a connection that a proxy shares among callers.

For what models answer it also knows whether a body has come whole with its head, as most do, and
sends an answer's head and the beginning of its body as one: each write is a call of the kernel,
and a packet to the caller.
"""

import asyncio
from collections.abc import Callable, MutableMapping
from typing import cast

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from waypost.shared.apis import ENDPOINT_BY_PATH
from waypost.shared.errors import InvalidRequestError
from waypost.validator.problems import describe

__all__ = ["GuardedProtocol", "end_with_server", "has_whole_body"]

MAX_HEAD_BYTES = 65_536  # eight times the longest token; what came in one read may be more
HEAD_TIMEOUT_S = 30.0


_ENDING = "waypost.ending"
_CYCLE = "waypost.cycle"


def has_whole_body(scope: Scope) -> bool:
    """Whether all of the request's body is here, so that ``receive`` returns it at once."""
    cycle = cast("RequestResponseCycle | None", scope.get(_CYCLE))
    return cycle is not None and not cycle.more_body


def end_with_server(scope: Scope, end: Callable[[], None]) -> None:
    """Have ``end`` called when the server stops: it waits for answers, and some have no end."""
    scope[_ENDING] = end


class GuardedProtocol(HttpToolsProtocol):
    """One connection. Give the class to uvicorn as ``http``."""

    _awaits_head = True
    _has_begun = False
    _is_upgrade = False
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        awaited_head = self._awaits_head
        self._feed(data)
        # Most heads come in one read, and cost nothing here.
        if not self._awaits_head or self.transport.is_closing():
            return
        if awaited_head:
            self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(
                InvalidRequestError(
                    f"The request's head is larger than {MAX_HEAD_BYTES} bytes.",
                    code="head_too_large",
                )
            )
        elif self._head_timer is None:
            self._start_timer()

    def _feed(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as at:
                # What it has read of the request is the head alone. Another parser is told the
                # same without the upgrade, and reads on from there.
                data = data[at.args[0] :]
                plain = self._plain_head()
                if plain is None:
                    self._refuse(
                        InvalidRequestError("CONNECT is not served.", code="method_not_allowed")
                    )
                    return
                self._is_upgrade = False
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                data = plain + data
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
                return
            else:
                return

    def _plain_head(self) -> bytes | None:
        """Return the head that was read, without its upgrade; ``None`` if it is a CONNECT's."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            return None
        lines = [b"%s %s HTTP/%s" % (method, self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                value = b", ".join(o for o in options if o.lower() != b"upgrade")
            if name != b"upgrade":
                lines.append(name + b": " + value)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """End with the server; an answer without an end of its own is told to end."""
        if self.cycle and not self.cycle.response_complete:
            end = cast("MutableMapping[str, Callable[[], None]]", self.cycle.scope).get(_ENDING)
            if end is not None:
                end()
        super().shutdown()

    def on_message_begin(self) -> None:
        self._awaits_head = self._has_begun = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_upgrade = self.parser.should_upgrade()
        if self._is_upgrade:
            return
        self._awaits_head = False
        self._stop_timer()
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before and self.scope["path"] in ENDPOINT_BY_PATH:
            cast("MutableMapping[str, object]", self.scope)[_CYCLE] = self.cycle
            if not self.expect_100_continue:  # that is a head of its own
                self.cycle.transport = cast(asyncio.Transport, _HeadAndBody(self.transport))

    def on_message_complete(self) -> None:
        if not self._is_upgrade:
            super().on_message_complete()

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._time_out)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _time_out(self) -> None:
        if not self._has_begun:
            # A proxy that connects ahead of need would take words for its next answer.
            self.transport.close()
            return
        self._refuse(
            InvalidRequestError(
                f"The request's head did not arrive within {HEAD_TIMEOUT_S:g} s.",
                code="head_timeout",
            )
        )

    def _refuse(self, error: InvalidRequestError) -> None:
        self._stop_timer()
        # Into an answer that is under way, no other may be written.
        if not self.cycle or self.cycle.response_complete:
            problem = describe(error)
            self.transport.write(
                b"HTTP/1.1 %d \r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n%s" % (problem.status, len(problem.body), problem.body)
            )
        self.transport.close()


class _HeadAndBody:
    """A transport for one answer, whose head waits for the first piece of its body."""

    __slots__ = ("_head", "_is_first", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self._is_first = True
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if self._is_first:
            self._head, self._is_first = data, False
        elif self._head:
            self._transport.writelines((self._head, data))
            self._head = b""
        else:
            self._transport.write(data)

    def close(self) -> None:
        self._transport.write(self._head)
        self._transport.close()
