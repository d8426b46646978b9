"""Responses, OpenAI's newer API, where it keeps nothing: ``requests.apis`` sees to that."""

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Raw, Struct, structs

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
from waypost.validator.dialects.usage import (
    NOTHING,
    UsageReport,
    read_anywhere,
    read_openai,
    with_tier,
)
from waypost.validator.http.provider_errors import says_error

__all__ = ["bounded", "broken_off", "is_error", "reader", "report"]

is_error = is_openai_error

ENDS = ("response.completed", "response.incomplete", "response.failed")

# Events that are none of the answer yet; after them another model may still be asked. The last two
# are what OpenAI's Codex backend and proxies keep connections open with.
_ANNOUNCED = frozenset({"response.created", "response.in_progress", "response.queued"})
_BEFORE = _ANNOUNCED | {"", "error", "keepalive", "ping"}


class _Action(Struct):
    type: str = ""


class _Item(Struct):
    type: str = ""
    action: _Action | None = None


class _Answer(Struct):
    output: list[Raw]
    usage: Raw = ABSENT
    service_tier: Raw = ABSENT
    status: str | None = None


class _Response(Struct):
    usage: Raw = ABSENT
    service_tier: Raw = ABSENT


class _Error(Struct):
    code: str | int | None = None
    message: str | None = None


class _Event(Struct):
    type: str = ""
    sequence_number: int | None = None
    delta: Any = None
    response: Raw = ABSENT
    item: Raw = ABSENT
    error: Raw = ABSENT


class _Failed(Struct):
    """An ``error`` event: flat as documented, or with the error in it, as OpenAI sends it."""

    code: str | int | None = None
    message: str | None = None
    error: _Error | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_item = msgspec.json.Decoder(_Item).decode
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
    answer = _decode_answer(body)
    if answer.status == "failed" and not answer.output:
        raise ValueError("an answer that failed")
    told = with_tier(read_openai(answer.usage), answer.service_tier)
    if told is NOTHING:
        return told
    return structs.replace(told, calls=_counted(answer.output))


# Items of which each is a call that OpenAI prices, by the name of its tool: "Pricing", "Built-in
# tools", and "Web search" (of its actions only a search is priced), 2026-11; its SDK 3.54.
_CALLS = {
    "code_interpreter_call": "code_interpreter",
    "file_search_call": "file_search",
    "image_generation_call": "image_generation",
    "mcp_call": "mcp",
    "web_search_call": "web_search",
}


def _counted(items: Iterable[Raw]) -> tuple[tuple[str, int], ...]:
    """Return how often each tool of the provider was called."""
    counts: dict[str, int] = {}
    for item in items:
        name = _called(item)
        if name:
            counts[name] = counts.get(name, 0) + 1
    return tuple(sorted(counts.items()))


def _called(raw: Raw) -> str:
    if b"_call" not in bytes(raw):
        return ""
    try:
        item = _decode_item(raw)
    except ValueError:
        return ""
    if item.type == "web_search_call" and item.action is not None:
        return "" if item.action.type in ("open_page", "find_in_page", "find") else "web_search"
    return _CALLS.get(item.type, "")


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
    __slots__ = ("_calls", "_error", "_model", "_response", "_sequence")

    def __init__(self, *, model: str = "") -> None:
        super().__init__()
        self._model = model
        self._sequence = -1
        self._response: dict[str, Any] = {}
        self._calls: dict[str, int] = {}
        self._error: _Error | None = None

    def _see(self, payload: bytes) -> bool:
        if is_end_mark(payload):
            return True  # of another API, as some proxies end every stream
        self._sequence += 1
        try:
            event = _decode_event(payload)
        except ValueError:
            self._see_unknown(payload)
            if self.has_failed:
                self._error = _error_of(payload)
            return True
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
                response = _decode_response(event.response)
                told = with_tier(read_openai(response.usage), response.service_tier)
                self.tell(told, is_last=True)
        elif kind in _ANNOUNCED:
            self._response = _decode_fields(event.response) if is_present(event.response) else {}
        elif kind == "error" or (not kind and says_error(require_object(payload))):
            # ``response.failed`` follows, or is owed.
            self.has_failed = True
            self._error = _error_of(payload)
            self.tell(read_anywhere(payload), is_last=True)
        elif kind == "response.output_item.done":
            self._see_call(event.item)
        elif isinstance(event.delta, str):
            self.output_bytes += size(event.delta)
        return True

    def _see_call(self, item: Raw) -> None:
        """Count a call of the provider's own tools: it costs something, whatever follows."""
        name = _called(item)
        if name:
            self._calls[name] = self._calls.get(name, 0) + 1
            self.count(tuple(sorted(self._calls.items())))

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
