"""Messages, Anthropic's API."""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from waypost.shared.requests.apis import Request
from waypost.validator.dialects.passthrough.body_fields import (
    ABSENT,
    decode_fields,
    encode,
    size,
)
from waypost.validator.dialects.sse import EventReader, is_end_mark, require_object, write_event
from waypost.validator.dialects.usage import UsageReport, read_anthropic
from waypost.validator.http.provider_errors import says_error

__all__ = ["bounded", "is_error", "reader", "report"]


class _Answer(Struct):
    content: list[Raw]
    usage: Raw = ABSENT


class _Failed(Struct, tag="error", tag_field="type"):
    error: dict[str, Any]


class _Block(Struct):
    """What a block has in it when it starts: proxies send whole ones so."""

    type: str = ""
    name: str = ""
    text: str | None = None
    thinking: str | None = None
    data: str | None = None

    def size(self) -> int:
        return size(self.text) + size(self.thinking) + size(self.data)


class _Delta(Struct):
    text: str | None = None
    partial_json: str | None = None
    thinking: str | None = None
    stop_reason: str | None = None


class _Started(Struct):
    usage: Raw = ABSENT


class _Event(Struct):
    type: str = ""
    content_block: _Block | None = None
    message: _Started | None = None
    delta: _Delta | None = None
    usage: Raw = ABSENT
    error: Raw = ABSENT


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_failed = msgspec.json.Decoder(_Failed).decode
_decode_event = msgspec.json.Decoder(_Event).decode


def bounded(
    body: bytes, *, model: str, output_tokens: int, streamed: bool, max_tokens_field: str
) -> bytes:
    """See ``Api``. Streams tell their usage unasked."""
    fields: dict[str, Any] = decode_fields(body)
    fields["model"] = model
    fields["max_tokens"] = output_tokens
    return encode(fields)


def report(body: bytes) -> UsageReport:
    """See ``Api``."""
    return read_anthropic(_decode_answer(body).usage)


def is_error(body: bytes) -> bool:
    """See ``Api``."""
    try:
        return "message" in _decode_failed(body).error
    except ValueError:
        return False


def reader(request: Request) -> "_Reader":
    """See ``Api``."""
    return _Reader()


def _kind_of_unnamed(payload: bytes) -> str:
    return "error" if says_error(require_object(payload)) else ""


# Events that are none of the answer yet: an overload may follow them, and then another model may
# still be asked (litellm#24004, Portkey#741; 2025 and 2026).
_BEFORE = frozenset({"error", "message_start", "ping"})


class _Reader(EventReader):
    """Reads a stream of messages. After a ``stop_reason`` the end of the body is an end as well."""

    __slots__ = ("_calls", "_has_reason", "_has_stopped")

    def __init__(self) -> None:
        super().__init__()
        self._has_reason = self._has_stopped = False
        self._calls: dict[str, int] = {}

    def _see(self, payload: bytes) -> bool:
        if is_end_mark(payload):
            return True  # of another API, as some proxies end every stream
        try:
            event = _decode_event(payload)
        except ValueError:
            self._see_unknown(payload, read_anthropic)
            self.is_over = self.has_failed
            return True
        kind = event.type or self._name() or _kind_of_unnamed(payload)
        self.has_begun = self.has_begun or kind not in _BEFORE
        match kind:
            case "message_start" if event.message is not None:
                self.tell(read_anthropic(event.message.usage))
            case "content_block_start" if event.content_block is not None:
                block = event.content_block
                if block.type == "server_tool_use":
                    self._calls[block.name] = self._calls.get(block.name, 0) + 1
                    self.count(tuple(sorted(self._calls.items())))
            case "content_block_delta" if event.delta is not None:
                delta = event.delta
                self.output_bytes += (
                    size(delta.text) + size(delta.partial_json) + size(delta.thinking)
                )
            case "content_block_start" if event.content_block is not None:
                self.output_bytes += event.content_block.size()
            case "message_delta":
                self.tell(read_anthropic(event.usage))
                if event.delta is not None and event.delta.stop_reason:
                    self._has_reason = True
            case "message_stop":
                self.is_done = self.is_over = self._has_stopped = True
            case "error":
                self.tell(read_anthropic(event.usage), is_last=True)
                self.has_failed = self.is_over = True
            case _:
                pass
        return True

    def _see_end(self) -> None:
        self.is_done = self.is_done or self._has_reason

    def _closing(self) -> bytes:
        is_owed = self.is_done and not self.has_failed and not self._has_stopped
        return write_event({"type": "message_stop"}, name="message_stop") if is_owed else b""

    def breaking_off(self, message: str, *, code: str) -> bytes:
        error = {"type": "api_error", "message": message, "details": {"error_code": code}}
        return write_event({"type": "error", "error": error}, name="error")
