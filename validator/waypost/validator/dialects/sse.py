"""Server-sent events as they come off the wire: cut at their blank lines, read one by one.

Every reader of a stream is made of ``EventReader``, which passes whole events on untouched;
what an event means is the business of who derives from it. Lines end as the WHATWG's standard
has it, by ``\\n``, ``\\r\\n`` or ``\\r``; what is left unterminated at the end is an event too.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html, "Parsing an event stream".
"""

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn, cast

import msgspec
from msgspec import Raw

from waypost.shared.money import Usage
from waypost.validator.dialects.usage import NOTHING, UsageReport, read_anywhere, read_openai
from waypost.validator.http.provider_errors import says_error

__all__ = ["MAX_EVENT_BYTES", "EventReader", "is_end_mark", "require_no_error"]
__all__ += ["require_object", "write_event"]

# The longest event that is waited for. Pictures and sounds come as base64 inside one.
MAX_EVENT_BYTES = 8 * 1_048_576

BOM = b"\xef\xbb\xbf"
# A blank line, with the end of the line before it. Of ``\r\n`` no half is a line end of its own.
_BLANK = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")

_encode = msgspec.json.Encoder().encode


class EventReader:
    """Follows one stream. ``_see`` looks at each event's data and says whether it passes.

    Attributes:
        report: what the provider says it used, all that it said together.
        reported_bytes: bytes of answer that had come when it last said so.
        has_last_word: whether what it says it used is all that it will say of it, though the
            answer has not come to its end, as where it failed.
        has_begun: whether any of the answer has come. Pings and announcements are none.
        is_done: whether the answer has come to its end. Its usage may still follow.
        is_over: whether nothing more that matters can follow.
        has_failed: whether the provider reported an error inside the stream.
        failure: the data of the event that said so first; empty if none did.
        fault: the kind of the exception that an event met which cannot be read; nothing is read
            after it. Empty if there was none.
        output_bytes: bytes of answer so far: no tokenizer makes more tokens of them.
    """

    __slots__ = (
        "_event",
        "_has_returns",
        "_is_start",
        "_pending",
        "failure",
        "fault",
        "has_begun",
        "has_failed",
        "has_last_word",
        "is_done",
        "is_over",
        "output_bytes",
        "report",
        "reported_bytes",
    )

    def __init__(self) -> None:
        self.report = NOTHING
        self.has_begun = self.is_done = self.is_over = self.has_failed = False
        self.has_last_word = False
        self.fault = ""
        self.failure = b""
        self.output_bytes = self.reported_bytes = 0
        self._event = b""
        self._pending = bytearray()
        self._is_start = True
        self._has_returns = False

    @property
    def usage(self) -> Usage | None:
        """The usage, if it has been told of all that has come."""
        return self.report.usage() if self.output_bytes == self.reported_bytes else None

    def count(self, calls: tuple[tuple[str, int], ...]) -> None:
        """Take in how often the provider's own tools were called, by what came so far."""
        self.report = self.report.joined(UsageReport(calls=calls))

    def tell(self, report: UsageReport, *, is_last: bool = False) -> None:
        """Take in what the provider says it used so far; it takes nothing back of what it said.

        Args:
            is_last: whether it says so of an answer that has failed, or else has ended.
        """
        if report is NOTHING:
            return
        self.report = self.report.joined(report)
        if report.output_tokens is not None and report.output_tokens == self.report.output_tokens:
            self.reported_bytes = self.output_bytes
        if is_last and report.usage() is not None:
            self.has_last_word = True

    def feed(self, data: bytes) -> bytes:
        """Return what to pass on now: whole events, less what the caller did not order.

        Raises:
            ValueError: an event that does not end.
        """
        whole = self._whole(data)
        if not whole:
            return b""
        kept: list[bytes] | None = None
        events, between = self._events(whole)
        for place, event in enumerate(events):
            if self.is_over:
                passes = False
            elif not (event.isascii() or _is_text(event)):
                # Also where nothing is read, as in a comment: some SDKs decode each line.
                self.fault, self.is_over, passes = UnicodeDecodeError.__name__, True, False
            elif payload := _payload(event):
                self._event = event
                passes = self._read(payload)
            else:
                passes = True
            if not passes and kept is None:
                kept = events[:place]
            elif passes and kept is not None:
                kept.append(event)
        return whole if kept is None else b"".join(event + between for event in kept)

    def end(self, *, is_whole: bool) -> bytes:
        """Return what is left to pass on when nothing more is read.

        Args:
            is_whole: whether the body has come to its end.
        """
        rest = b""
        if is_whole and not self.is_over:
            rest = self.feed(b"\n\n") if self._pending else b""
            self.fault = ""  # a part of an event says that the stream was cut
            self._see_end()
        return rest + self._closing()

    def _read(self, payload: bytes) -> bool:
        """See an event. Whatever goes wrong with that is the provider's fault, and its end."""
        try:
            passes = self._see(payload)
            if self.has_failed and not self.failure:
                self.failure = payload
            return passes
        except MemoryError:
            raise
        except Exception as exc:
            self.fault = type(exc).__name__
            self.is_over = True
            self._see_unreadable(payload)
            return False

    def _whole(self, data: bytes) -> bytes:
        """Return the events that are whole now that ``data`` has come."""
        pending = self._pending
        # Only what is new is looked through: a picture's event comes in thousands of pieces.
        start = max(0, len(pending) - 3)
        pending += data
        if not self._has_returns and b"\r" in data:
            self._has_returns = True
        # A part of an event helps no reader, and could not be completed if the provider died.
        cut = _end_of_events(pending, start, has_returns=self._has_returns)
        if len(pending) - cut > MAX_EVENT_BYTES:
            raise ValueError("an event without end")
        if not cut:
            return b""
        whole = bytes(pending[:cut])
        del pending[:cut]
        if self._is_start:
            self._is_start = False
            whole = whole.removeprefix(BOM)
        return whole

    def _events(self, whole: bytes) -> tuple[list[bytes], bytes]:
        """Return the events in ``whole``, and what stood after each and is not in them."""
        if not self._has_returns:
            return whole[:-2].split(b"\n\n"), b"\n\n"
        ends = [found.end() for found in _BLANK.finditer(whole)]
        starts = [0, *ends]
        return [whole[a:b] for a, b in zip(starts, [*ends, len(whole)], strict=True) if a < b], b""

    def _payloads(self, data: bytes) -> list[bytes]:
        """Return the data of the events that are whole now, for readers that pass nothing on."""
        whole = self._whole(data)
        if not whole:
            return []
        return [payload for event in self._events(whole)[0] if (payload := _payload(event))]

    def _name(self) -> str:
        """Return the name of the event that is being seen, where it has one."""
        lines = (line for line in _lines(self._event) if line.startswith(b"event:"))
        return b"".join(lines).removeprefix(b"event:").strip().decode("latin-1")

    def _see(self, payload: bytes) -> bool:
        """Take note of an event; whether the caller is to see it.

        Raises:
            Exception: it cannot be read.
        """
        raise NotImplementedError

    def _see_unknown(
        self, payload: bytes, read: Callable[[Raw], UsageReport] = read_openai
    ) -> None:
        """Take note of what is none of the events we know: an error, or some of the answer."""
        if says_error(require_object(payload)):
            self.has_failed = True
        else:
            self.has_begun = True
            self.output_bytes += len(payload)
        self.tell(read_anywhere(payload, read), is_last=self.has_failed)

    def _see_unreadable(self, payload: bytes) -> None:
        """Take note of what can be read of an event that ``_see`` could not read."""
        self.tell(read_anywhere(payload))

    def _see_end(self) -> None:
        """Take note of the end of the body."""

    def _closing(self) -> bytes:
        """Return the events that the caller's API has at the end, and that have not come."""
        return b""


def write_event(value: Any, *, name: str | None = None) -> bytes:  # noqa: ANN401 - whatever msgspec can encode
    """Return ``value`` as one event."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + _encode(value) + b"\n\n"


def is_end_mark(payload: bytes) -> bool:
    """Whether an event is the mark that ends streams of OpenAI's older APIs."""
    return payload.startswith(b"[DONE]")


def require_object(payload: bytes) -> dict[str, Any]:
    """Return what is none of the events we know, which is at least a JSON object.

    Such events pass: providers have fields of types that OpenAI and Anthropic do not have, and
    some cut a surrogate pair in two, which most clients read.

    Raises:
        ValueError: it is none, so no client can read it.
    """
    told = json.loads(payload.decode(), parse_constant=_refuse)
    if not isinstance(told, dict):
        raise TypeError("an event that is no object")
    return cast("dict[str, Any]", told)


def require_no_error(payload: bytes) -> None:
    """Check that what says nothing in its dialect is no error in another's words.

    Raises:
        ValueError: it is one.
    """
    if says_error(require_object(payload)):
        raise ValueError("an error")


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _end_of_events(data: bytearray, start: int, *, has_returns: bool) -> int:
    """Return where the last blank line from ``start`` on ends; 0 if there is none."""
    if not has_returns:
        place = data.rfind(b"\n\n", start)
        return place + 2 if place >= 0 else 0
    end = 0
    for found in _BLANK.finditer(bytes(data[start:])):
        end = start + found.end()
    return end


def _is_text(event: bytes) -> bool:
    try:
        event.decode()
    except UnicodeDecodeError:
        return False
    return True


def _lines(event: bytes) -> list[bytes]:
    return event.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")


def _payload(event: bytes) -> bytes:
    if event.startswith(b"data:") and b"\n" not in event and b"\r" not in event:
        return event[5:].strip()
    fields = (line.partition(b":") for line in _lines(event))
    values = [value.removeprefix(b" ") for name, _, value in fields if name == b"data"]
    return b"\n".join(values).strip()
