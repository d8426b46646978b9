"""Server-sent events as they come off the wire: cut at their blank lines, read one by one.

Every reader of a stream is made of ``EventReader``, which passes whole events on untouched;
what an event means is the business of who derives from it.
"""

from typing import Any

import msgspec

from waypost.shared.money import Usage

__all__ = ["MAX_EVENT_BYTES", "EventReader", "write_event"]

# The longest event that is waited for. Pictures and sounds come as base64 inside one.
MAX_EVENT_BYTES = 8 * 1_048_576

_encode = msgspec.json.Encoder().encode


class EventReader:
    """Follows one stream. ``_see`` looks at each event's data and says whether it passes.

    Attributes:
        usage: what the provider says it used; ``None`` as long as it has not said.
        is_done: whether the provider has ended the stream as it should.
        has_failed: whether the provider reported an error inside the stream.
        output_bytes: bytes of answer so far: no tokenizer makes more tokens of them.
    """

    __slots__ = ("_pending", "has_failed", "is_done", "output_bytes", "usage")

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.is_done = False
        self.has_failed = False
        self.output_bytes = 0
        self._pending = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Return what to pass on now: whole events, less what the caller did not order.

        Raises:
            ValueError: an event that does not end.
        """
        whole = self._whole(data)
        if not whole:
            return b""
        kept: list[bytes] | None = None
        events = _events(whole)
        for place, event in enumerate(events):
            payload = _payload(event)
            passes = not payload or self._see(payload)
            if not passes and kept is None:
                kept = events[:place]
            elif passes and kept is not None:
                kept.append(event)
        return whole if kept is None else b"".join(event + b"\n\n" for event in kept)

    def _whole(self, data: bytes) -> bytes:
        """Return the events that are whole now that ``data`` has come."""
        pending = self._pending
        # Only what is new is looked through: a picture's event comes in thousands of pieces.
        start = max(0, len(pending) - 3)
        pending += data
        # A part of an event helps no reader, and could not be completed if the provider died.
        cut = _end_of_events(pending, start)
        if len(pending) - cut > MAX_EVENT_BYTES:
            raise ValueError("an event without end")
        if not cut:
            return b""
        whole = bytes(pending[:cut])
        del pending[:cut]
        return whole

    def _payloads(self, data: bytes) -> list[bytes]:
        """Return the data of the events that are whole now, for readers that pass nothing on."""
        whole = self._whole(data)
        return [payload for event in _events(whole) if (payload := _payload(event))]

    def _see(self, payload: bytes) -> bool:
        """Take note of an event; whether the caller is to see it."""
        raise NotImplementedError


def write_event(value: Any, *, name: str | None = None) -> bytes:  # noqa: ANN401 - whatever msgspec can encode
    """Return ``value`` as one event."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + _encode(value) + b"\n\n"


def _end_of_events(data: bytearray, start: int) -> int:
    """Return where the last blank line from ``start`` on ends; 0 if there is none."""
    plain, other = data.rfind(b"\n\n", start), data.rfind(b"\r\n\r\n", start)
    return max(plain + 2 if plain >= 0 else 0, other + 4 if other >= 0 else 0)


def _events(whole: bytes) -> list[bytes]:
    if b"\r" in whole:
        whole = whole.replace(b"\r\n", b"\n")
    return whole[:-2].split(b"\n\n")


def _payload(event: bytes) -> bytes:
    if event.startswith(b"data:") and b"\n" not in event:
        return event[5:].strip()
    lines = (line for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(line[5:].strip() for line in lines)
