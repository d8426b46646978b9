"""Messages, Anthropic's API."""

from typing import Any

import msgspec
from msgspec import Raw, Struct, structs

from waypost.shared.apis import Request
from waypost.shared.money import Tokens, Usage
from waypost.validator.apis.fields import ABSENT, decode_fields, encode, is_present, size
from waypost.validator.events import EventReader, is_end_mark, require_object, write_event

__all__ = ["TOLD_NOTHING", "MessageUsage", "bounded", "is_error", "reader", "usage", "usage_told"]


class _OutputDetails(Struct, frozen=True):
    thinking_tokens: Tokens | None = None


class MessageUsage(Struct, frozen=True):
    """Anthropic's usage. Tokens read from the cache and written to it come on top."""

    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    cache_read_input_tokens: Tokens | None = None
    cache_creation_input_tokens: Tokens | None = None
    output_tokens_details: _OutputDetails | None = None

    def updated(self, later: "MessageUsage") -> "MessageUsage":
        """Return both together; in a stream each word is a total, and the last one counts."""
        told = {name: value for name, value in structs.asdict(later).items() if value is not None}
        return structs.replace(self, **told)

    def ours(self) -> Usage:
        """Return it as we count: what was cached is part of the input."""
        cached = self.cache_read_input_tokens or 0
        written = self.cache_creation_input_tokens or 0
        out = self.output_tokens_details
        return Usage(
            input_tokens=(self.input_tokens or 0) + cached + written,
            output_tokens=self.output_tokens or 0,
            cached_tokens=cached,
            cache_write_tokens=written,
            reasoning_tokens=0 if out is None else out.thinking_tokens or 0,
        )


TOLD_NOTHING = MessageUsage()


class _Answer(Struct):
    content: list[Raw]
    usage: Raw = ABSENT


class _Failed(Struct, tag="error", tag_field="type"):
    error: dict[str, Any]


class _Delta(Struct):
    text: str | None = None
    partial_json: str | None = None
    thinking: str | None = None
    stop_reason: str | None = None


class _Started(Struct):
    usage: Raw = ABSENT


class _Event(Struct):
    type: str = ""
    message: _Started | None = None
    delta: _Delta | None = None
    usage: Raw = ABSENT
    error: Raw = ABSENT


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_failed = msgspec.json.Decoder(_Failed).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_usage = msgspec.json.Decoder(MessageUsage).decode


def bounded(
    body: bytes, *, model: str, output_tokens: int, streamed: bool, max_tokens_field: str
) -> bytes:
    """See ``Api``. Streams tell their usage unasked."""
    fields: dict[str, Any] = decode_fields(body)
    fields["model"] = model
    fields["max_tokens"] = output_tokens
    return encode(fields)


def usage(body: bytes) -> Usage | None:
    """See ``Api``."""
    told = usage_told(_decode_answer(body).usage)
    return None if told is None else told.ours()


def usage_told(raw: Raw) -> MessageUsage | None:
    """Return what a usage field says; one that cannot be read is as good as none."""
    if not is_present(raw):
        return None
    try:
        return _decode_usage(raw)
    except ValueError:
        return None


def is_error(body: bytes) -> bool:
    """See ``Api``."""
    try:
        return "message" in _decode_failed(body).error
    except ValueError:
        return False


def reader(request: Request) -> "_Reader":
    """See ``Api``."""
    return _Reader()


# Events that are none of the answer yet: an overload may follow them, and then another model may
# still be asked (litellm#24004, Portkey#741; 2025 and 2026).
_BEFORE = frozenset({"error", "message_start", "ping"})


class _Reader(EventReader):
    """Reads a stream of messages. After a ``stop_reason`` the end of the body is an end as well."""

    __slots__ = ("_has_reason", "_has_stopped", "_told")

    def __init__(self) -> None:
        super().__init__()
        self._told = TOLD_NOTHING
        self._has_reason = self._has_stopped = False

    def _see(self, payload: bytes) -> bool:
        if is_end_mark(payload):
            return True  # of another API, as some proxies end every stream
        try:
            event = _decode_event(payload)
        except ValueError:
            require_object(payload)
            self.has_begun = True
            self.output_bytes += len(payload)
            return True
        if not payload.isascii():
            payload.decode()  # nobody could read what is passed over here either
        kind = event.type or self._name() or ("error" if is_present(event.error) else "")
        self.has_begun = self.has_begun or kind not in _BEFORE
        match kind:
            case "message_start" if event.message is not None:
                self._tell(event.message.usage)
            case "content_block_delta" if event.delta is not None:
                delta = event.delta
                self.output_bytes += (
                    size(delta.text) + size(delta.partial_json) + size(delta.thinking)
                )
            case "message_delta":
                self._tell(event.usage)
                self.usage = self._told.ours() if self._told != TOLD_NOTHING else None
                self._has_reason = event.delta is not None and bool(event.delta.stop_reason)
            case "message_stop":
                self.is_done = self.is_over = self._has_stopped = True
            case "error":
                self.has_failed = self.is_over = True
            case _:
                pass
        return True

    def _tell(self, raw: Raw) -> None:
        told = usage_told(raw)
        if told is not None:
            self._told = self._told.updated(told)

    def _see_end(self) -> None:
        self.is_done = self.is_done or self._has_reason

    def _closing(self) -> bytes:
        is_owed = self.is_done and not self.has_failed and not self._has_stopped
        return write_event({"type": "message_stop"}, name="message_stop") if is_owed else b""

    def breaking_off(self, message: str, *, code: str) -> bytes:
        error = {"type": "api_error", "message": message, "details": {"error_code": code}}
        return write_event({"type": "error", "error": error}, name="error")
