"""The guarded protocol (``waypost.cli.http_guard``), and what the hot route needs beside it.

For what models answer it knows whether a body has come whole with its head, as most do, and sends
an answer's head and the beginning of its body as one: each write is a call of the kernel, and a
packet to the caller.
"""

import asyncio
from collections.abc import Callable, MutableMapping
from typing import cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from waypost.cli import http_guard
from waypost.cli.http_guard import Fault
from waypost.shared.errors import InvalidRequestError
from waypost.shared.requests.apis import ENDPOINT_BY_PATH
from waypost.validator.http.problems import describe

__all__ = ["GuardedProtocol", "end_with_server", "has_whole_body"]

_ENDING = "waypost.ending"
_CYCLE = "waypost.cycle"


def has_whole_body(scope: Scope) -> bool:
    """Whether all of the request's body is here, so that ``receive`` returns it at once."""
    cycle = cast("RequestResponseCycle | None", scope.get(_CYCLE))
    return cycle is not None and not cycle.more_body


def end_with_server(scope: Scope, end: Callable[[], None]) -> None:
    """Have ``end`` called when the server stops: it waits for answers, and some have no end."""
    scope[_ENDING] = end


class GuardedProtocol(http_guard.GuardedProtocol):
    """One connection. Give the class to uvicorn as ``http``."""

    def envelope(self, fault: Fault, path: bytes) -> bytes:
        """See the base: in the words of the API that is asked."""
        error = InvalidRequestError(fault.message, code=fault.code)
        is_anthropics = path.startswith(b"/v1/messages")
        return describe(error, "messages" if is_anthropics else "chat.completions").body

    def shutdown(self) -> None:
        """End with the server; an answer without an end of its own is told to end."""
        for cycle in self._unanswered():
            end = cast("MutableMapping[str, Callable[[], None]]", cycle.scope).get(_ENDING)
            if end is not None:
                end()
        super().shutdown()

    def on_headers_complete(self) -> None:
        before = self.cycle
        super().on_headers_complete()
        cycle, scope = self.cycle, self.scope
        # A HEAD is answered without a body that its head could wait for.
        if cycle is before or scope["method"] != "POST" or scope["path"] not in ENDPOINT_BY_PATH:
            return
        cast("MutableMapping[str, object]", scope)[_CYCLE] = cycle
        # What asks to go on has a head of its own; what is HTTP/1.0 ends in another way.
        if not self.expect_100_continue and scope["http_version"] == "1.1":
            cycle.transport = cast(asyncio.Transport, _HeadAndBody(self.transport, self.finish))


class _HeadAndBody:
    """A transport for one answer, whose head waits for the first piece of its body."""

    __slots__ = ("_finish", "_head", "_is_first", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport, finish: Callable[[], None]) -> None:
        self._transport = transport
        self._finish = finish
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
        self._finish()
