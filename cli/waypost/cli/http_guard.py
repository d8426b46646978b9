"""uvicorn's HTTP protocol, with the bounds and refusals that it lacks.

Behind a proxy one connection carries the requests of many callers, so two things must hold for
whatever anybody sends: where a request ends is read in one way or not at all, and no request
leaves the connection in a state that the next one pays for. Hence:

- what RFC 9112 calls invalid or ambiguous is refused, and nothing behind it is read;
- ``Upgrade`` is ignored, which RFC 9110 §7.8 lets any server do. The parser would end such a
  request at its head, and read its body as the next one;
- trailers are ignored: what was checked is the head;
- all that is no body is bounded in bytes and in time, since each piece of a header is joined to
  those before it, and so is a body whose request is answered already;
- whatever closes a connection lets the answer arrive first (RFC 9112 §9.6).
"""

import asyncio
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from http import HTTPStatus
from ipaddress import IPv6Address
from typing import Literal, NamedTuple, cast

import httptools
import msgspec
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

__all__ = ["FAULT_STATUS", "Fault", "GuardedProtocol"]

MAX_HEAD_BYTES = 65_536  # eight times the longest token; what came in one read may be more
# What may stand between two pieces of a body, or behind the last one: sizes, chunk extensions,
# trailers. As Node bounds them since CVE-2024-22019.
MAX_LOOSE_BYTES = 16_384
HEAD_TIMEOUT_S = 30.0
# Of a request that was answered before all of it came; nginx's lingering_time is as long.
DRAIN_BYTES = 16 * 1_048_576
DRAIN_TIMEOUT_S = 30.0
LINGER_TIMEOUT_S = 5.0  # nginx's lingering_timeout
MAX_PIPELINED = 8  # that wait for the answer before theirs; hardly any client sends one


class Fault(NamedTuple):
    """Why a request is refused before any application sees it."""

    code: str
    message: str


FAULT_STATUS = {
    "head_timeout": 408,
    "head_too_large": 431,
    "framing_too_large": 413,
    "host_invalid": 400,
    "http_version_unsupported": 505,
    "method_not_allowed": 405,
    "request_malformed": 400,
    "transfer_encoding_unsupported": 501,
}

_MALFORMED = Fault("request_malformed", "The request is not well-formed HTTP (RFC 9112).")
_HOST = Fault("host_invalid", "Send one Host header, with a host and perhaps a port.")
_VERSION = Fault("http_version_unsupported", "Send HTTP/1.1.")
_CODING = Fault(
    "transfer_encoding_unsupported", "The only transfer coding that is understood is chunked."
)
_TUNNEL = Fault("method_not_allowed", "CONNECT is not served.")

# Where the parser is: before a request, in its head, in its body, behind it.
_Phase = Literal["idle", "head", "body", "answer"]

# What is looked at here. Fields that say where a message ends, or how a connection goes on, must
# not stand in trailers (RFC 9110 §6.5.1); there the parser would heed some of them.
_WATCHED = frozenset({b"content-length", b"expect", b"host", b"transfer-encoding"})
_NOT_IN_TRAILERS = _WATCHED | {b"connection", b"keep-alive", b"proxy-connection", b"upgrade"}

# RFC 3986 §3.2.2 and §3.2.3, without what no name of a host has.
_HOST_PORT = re.compile(r"(?:[A-Za-z0-9._~%!$&'()*+;=-]*|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{0,5}))?")


class _StopError(Exception):
    """Ends the parser in the middle of what it was given."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection. Give the class to uvicorn as ``http``."""

    _phase: _Phase = "idle"
    _is_deaf = False  # what comes is thrown away
    _is_lingering = False  # all is said, and the other side is to close first
    _is_upgrade = False
    _loose_bytes = 0  # read since the last byte of a body, or the last head
    _drained_bytes = 0
    _fault: Fault | None = None
    _timer: asyncio.TimerHandle | None = None
    _running: RequestResponseCycle | None = None
    _watched: list[tuple[bytes, bytes]]

    # ── what is told ───────────────────────────────────────────────────────────────────────────

    def envelope(self, fault: Fault, path: bytes) -> bytes:
        """Return the body of a refusal, as JSON; ``path`` may be cut short or empty."""
        error = {"message": fault.message, "type": "invalid_request_error", "code": fault.code}
        return msgspec.json.encode({"error": {**error, "param": None}})

    def _refuse(self, fault: Fault) -> None:
        """Answer with what is wrong, read nothing more, and close.

        Into an answer that is under way no other may be written; those that were asked for
        before are still given.
        """
        self._deafen()
        broken: RequestResponseCycle | None = None
        if self._phase == "body":
            broken = self.cycle
            broken.disconnected = True
            broken.message_event.set()
        waiting = [one for one in self._unanswered() if one is not broken]
        if waiting:
            self._end_after(waiting[-1])
            self._drop(broken)
            return
        if broken is None or not broken.response_started:
            self._write_refusal(fault)
        self._linger()

    def _write_refusal(self, fault: Fault) -> None:
        status, body = FAULT_STATUS[fault.code], self.envelope(fault, self._path())
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%b"
            % (status, HTTPStatus(status).phrase.encode(), len(body), body)
        )

    def _path(self) -> bytes:
        return cast(bytes, getattr(self, "url", b""))

    # ── the connection ─────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer(HEAD_TIMEOUT_S, self._head_is_late)

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            self._discard(len(data))
            return
        self._unset_keepalive_if_required()
        self._loose_bytes += len(data)
        self._feed(data)
        # Most requests come in one read, and cost nothing here.
        if self._phase != "answer" or self._loose_bytes > MAX_LOOSE_BYTES:
            self._watch()

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as at:
                # What it has read of the request is the head alone. Another parser is told the
                # same without the upgrade, and reads on from there.
                data = data[at.args[0] :]
                plain = self._plain_head()
                if plain is None:
                    self._refuse(_TUNNEL)
                    return
                self._is_upgrade = False
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                data = plain + data
            except httptools.HttpParserError:
                if not self._is_deaf:
                    self._refuse(self._fault or _MALFORMED)
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

    def _watch(self) -> None:
        """Bound what came without making a request whole."""
        if self._is_deaf or self.transport.is_closing():
            return
        awaits_head = self._phase in ("idle", "head")
        if self._loose_bytes > (MAX_HEAD_BYTES if awaits_head else MAX_LOOSE_BYTES):
            self._refuse(_head_too_large() if awaits_head else _framing_too_large())
        elif awaits_head and self._timer is None and self.timeout_keep_alive_task is None:
            self._start_timer(HEAD_TIMEOUT_S, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        # uvicorn tells the newest request alone.
        for cycle in self._unanswered():
            cycle.disconnected = True
            cycle.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    # ── what the parser finds ──────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            # Those that wait are answered; whoever sends so many must reckon with a close
            # (RFC 9112 §9.3.2).
            self._deafen()
            self._end_after(self.cycle)
            raise _StopError
        self._phase = "head"
        self._watched = []
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if self._phase == "body":  # a trailer
            if name in _NOT_IN_TRAILERS:
                raise _StopError
            return
        if name in _WATCHED:
            self._watched.append((name, value))
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._is_upgrade = self.parser.should_upgrade()
        if self._is_upgrade:
            return
        self._fault = self._fault_of_head()
        if self._fault is not None:
            raise _StopError
        self._stop_timer()
        self._loose_bytes = 0
        super().on_headers_complete()
        if self.pipeline:
            # uvicorn stops reading now, and would not notice whoever hangs up.
            self.flow.resume_reading()
        self._phase = "body"
        if len(self._watched) > 1:  # more than Host
            self.cycle.transport = cast(asyncio.Transport, _Outlet(self.transport, self))
        if self.scope["http_version"] == "1.0":
            self.cycle.transport = cast(asyncio.Transport, _Unchunked(self.transport, self))

    def on_body(self, body: bytes) -> None:
        self._loose_bytes = 0
        cycle = self.cycle
        if cycle.response_complete:
            self._drained_bytes += len(body)
            if self._drained_bytes > DRAIN_BYTES:
                self._deafen()
                self.transport.close()
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        if self._is_upgrade:
            return
        self._loose_bytes = 0
        cycle = self.cycle
        if cycle.response_complete:
            self._phase = "idle"
            self._stop_timer()
            self._start_keepalive()
            return
        self._phase = "answer"
        cycle.more_body = False
        cycle.message_event.set()

    def _fault_of_head(self) -> Fault | None:
        """Return why the request cannot be served; ``None`` if it can."""
        if self._loose_bytes > MAX_HEAD_BYTES and self._head_bytes() > MAX_HEAD_BYTES:
            return _head_too_large()
        version = self.parser.get_http_version()
        hosts, codings = 0, b""
        for name, value in self._watched:
            if name == b"host":
                hosts += 1
                if not _is_host(value):
                    return _HOST
            elif name == b"transfer-encoding":
                codings += b"," + value.lower()
            elif name == b"expect":
                self.expect_100_continue = value.lower() == b"100-continue"
        if version not in ("1.1", "1.0"):
            return _VERSION
        if codings and (fault := _fault_of_codings(codings, version)):
            return fault
        if hosts != 1 and (hosts or version == "1.1"):
            return _HOST
        return None if self.url[:1] == b"/" else self._take_target()

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _take_target(self) -> Fault | None:
        """Read a target that is no path: a proxy's, which names the host itself (RFC 9112 §3.2)."""
        if self.url == b"*" and self.parser.get_method() == b"OPTIONS":
            self.url = b"/"
            return None
        try:
            target = httptools.parse_url(self.url)
        except httptools.HttpParserInvalidURLError:
            return _MALFORMED
        authority = re.split(rb"[/?#]", self.url.partition(b"://")[2], maxsplit=1)[0]
        if target.schema not in (b"http", b"https") or not _is_host(authority):
            return _MALFORMED
        self.url = (target.path or b"/") + (b"?" + target.query if target.query else b"")
        # Whatever Host says counts for nothing. In place: the scope holds this very list.
        self.headers[:] = [
            (name, authority if name == b"host" else value) for name, value in self.headers
        ]
        return None

    # ── answers, and their end ─────────────────────────────────────────────────────────────────

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        self._running = cycle
        super()._start_asgi_task(cycle, app)  # type: ignore[arg-type]

    def _unanswered(self) -> Iterator[RequestResponseCycle]:
        """Give the requests that have no whole answer yet, the oldest first."""
        running = self._running
        if running is not None and not running.response_complete:
            yield running
        for cycle, _ in reversed(self.pipeline):
            yield cycle

    def _drop(self, cycle: RequestResponseCycle | None) -> None:
        for one in [one for one in self.pipeline if one[0] is cycle]:
            self.pipeline.remove(one)

    def on_response_complete(self) -> None:
        if self._is_lingering:
            return
        super().on_response_complete()
        if not self.cycle.response_complete or self.transport.is_closing():
            return
        if self._phase == "answer":
            self._phase = "idle"
        elif self._phase == "body":
            self._await_rest()

    def _await_rest(self) -> None:
        """Read what is left of a request that was answered early, within bounds."""
        self._unset_keepalive_if_required()
        self._drained_bytes = 0
        if self.expect_100_continue:
            # Whether the body still comes, only the caller knows.
            self._linger()
        else:
            self._start_timer(DRAIN_TIMEOUT_S, self._linger)

    def _end_after(self, cycle: RequestResponseCycle) -> None:
        cycle.keep_alive = False
        if cycle.transport is self.transport:
            cycle.transport = cast(asyncio.Transport, _Outlet(self.transport, self))

    def finish(self) -> None:
        """Close, now that the answer is written."""
        if self._phase == "body" or self._is_deaf:
            self._linger()
        else:
            self.transport.close()

    def _deafen(self) -> None:
        self._is_deaf = True
        self._drained_bytes = 0
        self._stop_timer()

    def _linger(self) -> None:
        """End our side and wait for the other's: a close with data unread would undo the answer."""
        self._deafen()
        if self._is_lingering or self.transport.is_closing():
            return
        self._is_lingering = True
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self.flow.resume_reading()
        self._start_timer(LINGER_TIMEOUT_S, self.transport.close)

    def _discard(self, size: int) -> None:
        self._drained_bytes += size
        if self._drained_bytes > DRAIN_BYTES:
            self.transport.close()

    # ── time ───────────────────────────────────────────────────────────────────────────────────

    def _start_timer(self, after_s: float, then: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(after_s, then)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start_keepalive(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _head_is_late(self) -> None:
        if self._phase == "idle":
            # A proxy that connects ahead of need would take words for its next answer.
            self.transport.close()
            return
        self._refuse(
            Fault("head_timeout", f"The request's head did not arrive within {HEAD_TIMEOUT_S:g} s.")
        )


class _Outlet:
    """A connection as an answer sees it, which is not closed before its request was read."""

    __slots__ = ("_protocol", "_transport", "is_closing", "write")

    def __init__(self, transport: asyncio.Transport, protocol: GuardedProtocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self.write = transport.write
        self.is_closing = transport.is_closing

    def close(self) -> None:
        self._protocol.finish()


class _Unchunked:
    """The same for HTTP/1.0, which knows no chunks: an answer without a length ends with the
    connection (RFC 9112 §6.1). Undoes what uvicorn writes, which is a chunk a time."""

    __slots__ = ("_is_first", "_is_plain", "_protocol", "_transport", "is_closing")

    _CHUNKED = b"transfer-encoding: chunked\r\n"

    def __init__(self, transport: asyncio.Transport, protocol: GuardedProtocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self.is_closing = transport.is_closing
        self._is_first = self._is_plain = True

    def write(self, data: bytes) -> None:
        if self._is_first:
            self._is_first, self._is_plain = False, self._CHUNKED not in data
            data = data.replace(self._CHUNKED, b"", 1)
        elif not self._is_plain and data:
            size, _, rest = data.partition(b"\r\n")
            data = rest[: int(size, 16)]
        self._transport.write(data)

    def close(self) -> None:
        self._protocol.finish()


def _fault_of_codings(joined: bytes, version: str) -> Fault | None:
    """Return why a body coded so cannot be read (RFC 9112 §6.1, §6.3); ``None`` if it can."""
    codings = [coding.strip() for coding in joined.split(b",")[1:]]
    if version == "1.0" or codings.pop() != b"chunked" or b"chunked" in codings:
        return _MALFORMED  # nobody can say where it ends
    return _CODING if codings else None


@lru_cache(maxsize=1_024)
def _is_host(value: bytes) -> bool:
    found = _HOST_PORT.fullmatch(value.strip().decode("latin-1"))
    if found is None or int(found[2] or 0) > 65_535:
        return False
    try:
        return found[1] is None or bool(IPv6Address(found[1]))
    except ValueError:
        return False


def _head_too_large() -> Fault:
    return Fault("head_too_large", f"The request's head is larger than {MAX_HEAD_BYTES} bytes.")


def _framing_too_large() -> Fault:
    return Fault(
        "framing_too_large",
        f"More than {MAX_LOOSE_BYTES} bytes came that are neither head nor body.",
    )
