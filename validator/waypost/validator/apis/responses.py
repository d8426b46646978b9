"""Responses, OpenAI's newer API, where it keeps nothing: ``waypost.shared.apis`` sees to that."""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from waypost.shared.apis import Request
from waypost.shared.money import Usage
from waypost.validator.apis.fields import (
    ABSENT,
    decode_fields,
    encode,
    is_openai_error,
    size,
    usage_of,
)
from waypost.validator.events import EventReader, write_event

__all__ = ["bounded", "is_error", "reader", "usage"]

is_error = is_openai_error

ENDS = ("response.completed", "response.incomplete", "response.failed")


class _Answer(Struct):
    output: list[Raw]
    usage: Raw = ABSENT


class _Response(Struct):
    usage: Raw = ABSENT


class _Event(Struct):
    type: str
    delta: Any = None
    response: _Response | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_event = msgspec.json.Decoder(_Event).decode


def bounded(
    body: bytes, *, model: str, output_tokens: int, streamed: bool, max_tokens_field: str
) -> bytes:
    """See ``Api``. Streams tell their usage unasked."""
    fields: dict[str, Any] = decode_fields(body)
    fields["model"] = model
    fields["max_output_tokens"] = output_tokens
    return encode(fields)


def usage(body: bytes) -> Usage | None:
    """See ``Api``."""
    return usage_of(_decode_answer(body).usage)


def reader(request: Request) -> "_Reader":
    """See ``Api``."""
    return _Reader()


class _Reader(EventReader):
    __slots__ = ("_events",)

    def __init__(self) -> None:
        super().__init__()
        self._events = 0

    def _see(self, payload: bytes) -> bool:
        self._events += 1
        try:
            event = _decode_event(payload)
        except ValueError:
            self.output_bytes += len(payload)
            return True
        if event.type in ENDS:
            self.has_failed = event.type == "response.failed"
            self.is_done = not self.has_failed
            if event.response is not None:
                self.usage = usage_of(event.response.usage)
        elif event.type == "error":
            self.has_failed = True
        elif isinstance(event.delta, str):
            self.output_bytes += size(event.delta)
        return True

    def breaking_off(self, message: str, *, code: str) -> bytes:
        error = {"message": message, "code": code, "param": None}
        # Its own event is flat; the SDK raises where an ``error`` is in it, as in the older APIs.
        event = {"type": "error", "sequence_number": self._events, **error, "error": error}
        return write_event(event, name="error")
