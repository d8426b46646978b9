"""Responses, OpenAI's newer API, where it keeps nothing: ``requests.apis`` sees to that."""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from waypost.shared.requests.apis import Request
from waypost.validator.dialects.passthrough.body_fields import (
    ABSENT,
    decode_fields,
    encode,
    is_openai_error,
    is_present,
    size,
)
from waypost.validator.dialects.sse import EventReader, is_end_mark, require_object, write_event
from waypost.validator.dialects.usage import UsageReport, read_anywhere, read_openai

__all__ = ["bounded", "broken_off", "is_error", "reader", "report"]

is_error = is_openai_error

ENDS = ("response.completed", "response.incomplete", "response.failed")

# Events that are none of the answer yet; after them another model may still be asked. The last two
# are what OpenAI's Codex backend and proxies keep connections open with.
_ANNOUNCED = frozenset({"response.created", "response.in_progress", "response.queued"})
_BEFORE = _ANNOUNCED | {"", "error", "keepalive", "ping"}


class _Answer(Struct):
    output: list[Raw]
    usage: Raw = ABSENT


class _Response(Struct):
    usage: Raw = ABSENT


class _Error(Struct):
    code: str | int | None = None
    message: str | None = None


class _Event(Struct):
    type: str = ""
    sequence_number: int | None = None
    delta: Any = None
    response: Raw = ABSENT
    error: Raw = ABSENT


class _Failed(Struct):
    """An ``error`` event: flat as documented, or with the error in it, as OpenAI sends it."""

    code: str | int | None = None
    message: str | None = None
    error: _Error | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_failed = msgspec.json.Decoder(_Failed).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_response = msgspec.json.Decoder(_Response).decode


def bounded(
    body: bytes, *, model: str, output_tokens: int, streamed: bool, max_tokens_field: str
) -> bytes:
    """See ``Api``. Streams tell their usage unasked."""
    fields: dict[str, Any] = decode_fields(body)
    fields["model"] = model
    fields["max_output_tokens"] = output_tokens
    return encode(fields)


def report(body: bytes) -> UsageReport:
    """See ``Api``."""
    return read_openai(_decode_answer(body).usage)


_SERVER_ERROR = "server_error"
GAVE_UP = "The provider gave up."


def _failed(response: dict[str, Any], error: dict[str, str | None], *, sequence: int) -> bytes:
    event = {
        "type": "response.failed",
        "sequence_number": sequence,
        "response": {**response, "status": "failed", "error": error},
    }
    return write_event(event, name="response.failed")


def broken_off(response: dict[str, Any], told: dict[str, str | None], *, sequence: int) -> bytes:
    """Return the two events with which OpenAI ends a stream that failed.

    SDKs raise at the first, in which there is an ``error``; Codex waits for the second
    (litellm#40243, codex-router#837). OpenAI's own streams have both, in this order.

    Args:
        response: as far as it came.
        told: message, code and param.
        sequence: the number of the first.
    """
    event = {"type": "error", "sequence_number": sequence, **told, "error": told}
    # The SDK's type has a closed list of codes; ``type`` is for those of others.
    error = {"code": _SERVER_ERROR, "message": told["message"], "type": told["code"]}
    return write_event(event, name="error") + _failed(response, error, sequence=sequence + 1)


def reader(request: Request) -> "_Reader":
    """See ``Api``."""
    return _Reader(model=request.model)


class _Reader(EventReader):
    __slots__ = ("_error", "_model", "_response", "_sequence")

    def __init__(self, *, model: str = "") -> None:
        super().__init__()
        self._model = model
        self._sequence = -1
        self._response: dict[str, Any] = {}
        self._error: _Error | None = None

    def _see(self, payload: bytes) -> bool:
        if is_end_mark(payload):
            return True  # of another API, as some proxies end every stream
        self._sequence += 1
        try:
            event = _decode_event(payload)
        except ValueError:
            require_object(payload)
            self.has_begun = True
            self.output_bytes += len(payload)
            self.tell(read_anywhere(payload))
            return True
        if not payload.isascii():
            payload.decode()  # nobody could read what is passed over here either
        if event.sequence_number is not None:
            self._sequence = event.sequence_number
        kind = event.type or self._name()
        self.has_begun = self.has_begun or kind not in _BEFORE
        if kind in ENDS:
            self.is_over = True
            self.has_failed = kind == "response.failed"
            self.is_done = not self.has_failed
            self._error = None
            if is_present(event.response):
                told = read_openai(_decode_response(event.response).usage)
                self.tell(told, is_last=True)
        elif kind in _ANNOUNCED:
            self._response = _decode_fields(event.response) if is_present(event.response) else {}
        elif kind == "error" or (not kind and is_present(event.error)):
            # ``response.failed`` follows, or is owed.
            self.has_failed = True
            self._error = _error_of(payload)
            self.tell(read_anywhere(payload), is_last=True)
        elif isinstance(event.delta, str):
            self.output_bytes += size(event.delta)
        return True

    def _failing(self) -> dict[str, Any]:
        """Return the response as the provider announced it, or what the API wants at least."""
        if self._response:
            return self._response
        return {
            "id": "resp_0",
            "object": "response",
            "created_at": 0,
            "model": self._model,
            "output": [],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        }

    def _closing(self) -> bytes:
        error, self._error = self._error, None
        if error is None:
            return b""
        code, message = str(error.code or _SERVER_ERROR), error.message or GAVE_UP
        return _failed(
            self._failing(), {"code": code, "message": message}, sequence=self._sequence + 1
        )

    def breaking_off(self, message: str, *, code: str) -> bytes:
        told = {"message": message, "code": code, "param": None}
        return broken_off(self._failing(), told, sequence=self._sequence + 1)


def _error_of(payload: bytes) -> _Error:
    try:
        told = _decode_failed(payload)
    except ValueError:
        return _Error()
    return told.error or _Error(told.code, told.message)
