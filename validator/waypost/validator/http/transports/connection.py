"""One HTTP/1.1 connection and the exchange that is on it at the moment.

::

    closed → idle → sending → head → body → complete → idle
                                                     ↘ closed

``begin`` is the one place where an exchange begins: all that is known of one is its ``Message``,
made there. ``settle`` is the one place where one ends: a connection is idle again only if that
is proved, and is closed if not. From any state a failure leads to ``closed``.
"""

import asyncio
import enum
from collections.abc import Callable
from typing import cast

from waypost.validator.http.transports.interface import MAX_IDLE_S, ExchangeError, Stage
from waypost.validator.http.transports.message import MalformedError, Message

__all__ = ["Connection", "State"]

HIGH_WATER_BYTES = 65_536  # read ahead of a slow reader; then the provider is held back
# Written at once; the rest of a large request follows as the provider takes it, or TLS would
# encrypt all of it, and copy it, while every other request waits.
MAX_WRITE_BYTES = 65_536


class State(enum.Enum):
    """Where a connection is; an early answer leads on while the request is still written."""

    IDLE = enum.auto()
    SENDING = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()
    COMPLETE = enum.auto()
    CLOSED = enum.auto()


# Looking up a member of an enumeration takes five times as long as a name.
_IDLE, _SENDING, _HEAD = State.IDLE, State.SENDING, State.HEAD
_BODY, _COMPLETE, _CLOSED = State.BODY, State.COMPLETE, State.CLOSED


class Connection(asyncio.Protocol):
    """A connection to one provider; for one task at a time.

    Attributes:
        message: the response that is read at the moment, or was read last.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_closed: Callable[["Connection"], None]
    ) -> None:
        """Args:
        on_closed: is told when it is closed, by whomever; it may be told twice.
        """
        self._loop = loop
        self._on_closed = on_closed
        self._raw: asyncio.Transport | None = None
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.Handle | None = None
        self._until = self._rings_at = 0.0
        self._is_paused = self._is_held_back = False
        self._idle_since = 0.0
        self._unsent: memoryview | None = None
        self._failure: ExchangeError | None = None
        self.message = Message()
        self.state = _CLOSED

    # ── by the pool ────────────────────────────────────────────────────────────────────────

    def secured(self, transport: asyncio.Transport) -> None:
        """Speak through TLS from now on."""
        self._transport = transport

    def begin(self, request: bytes) -> bool:
        """Begin an exchange, which knows nothing of earlier ones; return whether it was sent."""
        self.message = Message()
        self._failure = None
        if self.state is not _IDLE or self._transport is None:
            self._fail("broken", "the connection was closed")
            return False
        if self._transport.is_closing():
            self._close("broken", "the connection was closed")
            return False
        self.state = _SENDING
        if len(request) > MAX_WRITE_BYTES:
            self._unsent = memoryview(request)
            self._write_on()
        else:
            self._transport.write(request)
            self.state = _HEAD
        return True

    def settle(self) -> bool:
        """End the exchange; return whether the connection is idle. If not it is closed."""
        if self._is_proved_idle:
            self.state = _IDLE
            self._idle_since = self._loop.time()
            return True
        self._close("broken", "the exchange was left")
        return False

    @property
    def _is_proved_idle(self) -> bool:
        transport, raw = self._transport, self._raw
        return (
            self.state is _COMPLETE
            and self.message.may_continue
            and not self.message.body
            and not self._is_paused  # it would not hear the next answer, nor that it was closed
            and self._failure is None
            # An early answer: what is left of this request would be taken for the next one.
            and self._unsent is None
            and transport is not None
            and raw is not None
            and not transport.is_closing()
            and not transport.get_write_buffer_size()
            and (raw is transport or not raw.get_write_buffer_size())
        )

    def is_fresh(self, now: float) -> bool:
        """Whether it is idle, and the server will hardly have given it up yet."""
        return self.state is _IDLE and now - self._idle_since < MAX_IDLE_S

    def abort(self) -> None:
        """Close it, whatever is on it."""
        self._close("broken", "the connection was closed")

    # ── by the reader ──────────────────────────────────────────────────────────────────────

    async def head(self, *, until: float) -> None:
        """Wait for the head; ``until`` is by the loop's clock. Raises ExchangeError."""
        while not self.message.has_head:
            await self._wait(until)

    async def read(self, *, until: float) -> bytes:
        """Return the next bytes of the body as they arrive; empty at its end.

        Raises:
            ExchangeError: it did not come to its end.
        """
        message = self.message
        while not message.body and not message.is_complete:
            await self._wait(until)
        return self._take()

    async def read_all(self, *, until: float, at_most: int) -> bytes:
        """Return the whole body; raises ExchangeError (``malformed``) if it is longer."""
        message = self.message
        body = b""
        if not message.is_complete:
            body = await self._collect(until, at_most)
        body = body + self._take() if body else self._take()
        if len(body) > at_most:
            raise ExchangeError("malformed", f"a body of more than {at_most} bytes")
        return body

    async def _collect(self, until: float, at_most: int) -> bytes:
        """Return what comes before the last of the body, or more than ``at_most``."""
        message, body = self.message, bytearray()
        while not message.is_complete:
            body += self._take()
            if len(body) > at_most:
                break
            await self._wait(until)
        return bytes(body)

    def _take(self) -> bytes:
        body = self.message.take()
        self._listen()
        return body

    def _listen(self) -> None:
        """Read on, where reading was held back for a slow reader."""
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()

    async def _wait(self, until: float) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = self._loop.create_future()
        self._until = until
        # Set for the first wait and then moved on only when it rings: hardly any wait lasts.
        if self._timer is None or self._rings_at > until:
            self._set_timer()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _set_timer(self) -> None:
        self._stop_timer()
        self._rings_at = self._until  # uvloop cannot tell it of a time that has passed
        self._timer = self._loop.call_at(self._until, self._ring)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        # It may have been set for an earlier wait, or exchange: whoever waits now has the say.
        self._timer = None
        if self._waiter is None:
            return
        if self._loop.time() < self._until:
            self._set_timer()
        else:
            self._close("timeout", "no answer in time")

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, stage: Stage, detail: str) -> None:
        if self._failure is None:
            self._failure = ExchangeError(stage, detail)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(self._failure)

    def _close(self, stage: Stage, detail: str) -> None:
        """Close the connection; an exchange that is not over has failed."""
        if not self.message.is_complete:
            self._fail(stage, detail)
        self.state = _CLOSED
        self._unsent = None
        self._stop_timer()
        if self._transport is not None:
            self._transport.abort()
        self._on_closed(self)

    # ── by the event loop ──────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = self._transport = cast(asyncio.Transport, transport)
        self.state = _IDLE

    def data_received(self, data: bytes) -> None:
        message, state = self.message, self.state
        if state is _IDLE or state is _CLOSED:
            self.abort()  # nobody asked for it
            return
        try:
            message.feed(data)
        except MalformedError as exc:
            self._close("malformed", str(exc))
            return
        if message.is_complete:
            self.state = _COMPLETE
            self._wake()
        elif message.has_head:
            self.state = _BODY
            self._wake()
            if message.held_bytes > HIGH_WATER_BYTES and not self._is_paused and self._transport:
                self._is_paused = True
                self._transport.pause_reading()

    def pause_writing(self) -> None:
        self._is_held_back = True

    def resume_writing(self) -> None:
        self._is_held_back = False
        self._write_on()

    def _write_on(self) -> None:
        """Write what is left of a large request, as much as the provider takes."""
        transport = self._transport
        while self._unsent is not None and not self._is_held_back:
            if transport is None or transport.is_closing():
                return
            piece = self._unsent[:MAX_WRITE_BYTES]
            rest = self._unsent[MAX_WRITE_BYTES:]
            self._unsent = rest if len(rest) else None
            transport.write(piece)
        if self._unsent is None and self.state is _SENDING:
            self.state = _HEAD

    def connection_lost(self, exc: Exception | None) -> None:
        if self.state is _CLOSED:  # by us, and its exchange was told
            return
        # What ends with the connection is whole only if nobody broke it.
        if exc is not None or not self.message.end():
            self._fail("broken", str(exc or "the provider closed the connection"))
        self.state = _CLOSED
        self._unsent = None
        self._stop_timer()
        self._wake()
        self._on_closed(self)
