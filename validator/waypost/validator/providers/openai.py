"""OpenAI's chat completions, as OpenAI, Azure v1, Groq, Mistral, vLLM, Ollama and others speak it.

Pure. A body passes through as it came but for the model's name, the bound on the answer, and,
in a stream, the order to tell the usage at its end: without that nobody could settle.
"""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from waypost.shared.money import Tokens, Usage

__all__ = ["PATH", "headers", "is_error", "reader", "request", "usage"]

PATH = "/chat/completions"

MAX_TOKENS_FIELDS = ("max_tokens", "max_completion_tokens")

# The longest event that is waited for. Pictures and sounds come as base64 inside one.
MAX_EVENT_BYTES = 8 * 1_048_576


# Raw cannot be one of several types, so its absence has to be a Raw as well.
ABSENT = Raw()
NULL = b"null"


def _is_present(raw: Raw) -> bool:
    return bytes(raw) not in (b"", NULL)


class _PromptDetails(Struct):
    cached_tokens: Tokens | None = None


class _Usage(Struct):
    prompt_tokens: Tokens = 0
    completion_tokens: Tokens = 0
    prompt_tokens_details: _PromptDetails | None = None

    def ours(self) -> Usage:
        details = self.prompt_tokens_details
        return Usage(
            input_tokens=self.prompt_tokens,
            output_tokens=self.completion_tokens,
            cached_tokens=0 if details is None else details.cached_tokens or 0,
        )


class _Answer(Struct):
    choices: list[Raw]
    usage: Raw = ABSENT


class _Delta(Struct):
    """What a model has written; every field that a provider bills by the token."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: Raw = ABSENT
    function_call: Raw = ABSENT
    audio: Raw = ABSENT


class _Choice(Struct):
    delta: _Delta | None = None


class _Chunk(Struct):
    choices: list[_Choice] = []
    usage: Raw = ABSENT
    error: Raw = ABSENT


class _Failed(Struct):
    error: dict[str, Any]


_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_options = msgspec.json.Decoder(dict[str, Any] | None).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_usage = msgspec.json.Decoder(_Usage | None).decode
_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_failed = msgspec.json.Decoder(_Failed).decode
_encode = msgspec.json.Encoder().encode


def headers(api_key: str | None) -> dict[str, str]:
    """See ``Dialect``."""
    always = {"content-type": "application/json"}
    return always if api_key is None else {**always, "authorization": f"Bearer {api_key}"}


def request(
    body: bytes, *, model: str, max_tokens_field: str, output_tokens: int, streamed: bool
) -> bytes:
    """See ``Dialect``. ``body`` has been found to be a JSON object."""
    fields: dict[str, Any] = _decode_fields(body)
    for field in MAX_TOKENS_FIELDS:
        fields.pop(field, None)
    fields["model"] = model
    fields[max_tokens_field] = output_tokens
    if streamed:
        options = fields.get("stream_options")
        known = _decode_options(options) if options is not None else None
        fields["stream_options"] = {**(known or {}), "include_usage": True}
    return _encode(fields)


def usage(body: bytes) -> Usage | None:
    """See ``Dialect``."""
    return _usage_of(_decode_answer(body).usage)


def _usage_of(raw: Raw) -> Usage | None:
    if not _is_present(raw):
        return None
    try:
        told = _decode_usage(raw)
    except ValueError:
        return None  # a usage that cannot be read is as good as none
    return None if told is None else told.ours()


def is_error(body: bytes) -> bool:
    """See ``Dialect``."""
    try:
        return "message" in _decode_failed(body).error
    except ValueError:
        return False


def reader(*, shows_usage: bool) -> "_Reader":
    """See ``Dialect``."""
    return _Reader(shows_usage=shows_usage)


class _Reader:
    """Server-sent events, cut at their blank lines and looked into, but not rewritten."""

    __slots__ = ("_pending", "_shows_usage", "has_failed", "is_done", "output_bytes", "usage")

    def __init__(self, *, shows_usage: bool) -> None:
        self.usage: Usage | None = None
        self.is_done = False
        self.has_failed = False
        self.output_bytes = 0
        self._shows_usage = shows_usage
        self._pending = bytearray()

    def feed(self, data: bytes) -> bytes:
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
        kept: list[bytes] | None = None
        events = _events(whole)
        for place, event in enumerate(events):
            passes = self._look(event)
            if not passes and kept is None:
                kept = events[:place]
            elif passes and kept is not None:
                kept.append(event)
        return whole if kept is None else b"".join(event + b"\n\n" for event in kept)

    def _look(self, event: bytes) -> bool:
        """Take note of an event; whether the caller is to see it."""
        payload = _payload(event)
        if not payload:
            return True
        if payload == b"[DONE]":
            self.is_done = True
            return True
        try:
            chunk = _decode_chunk(payload)
        except ValueError:
            self.output_bytes += len(payload)
            return True
        if _is_present(chunk.error):
            self.has_failed = True
        for choice in chunk.choices:
            if choice.delta is not None:
                self.output_bytes += _size(choice.delta)
        told = _usage_of(chunk.usage)
        if told is None:
            return True
        # The last word counts; some providers keep a running total on every chunk.
        self.usage = told
        return self._shows_usage or bool(chunk.choices)

    def breaking_off(self, message: str, *, code: str) -> bytes:
        error = {"message": message, "type": "server_error", "code": code, "param": None}
        return b"data: " + _encode({"error": error}) + b"\n\n"


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


def _size(delta: _Delta) -> int:
    size = 0
    for text in (delta.content, delta.reasoning_content, delta.reasoning, delta.refusal):
        if text:
            size += len(text) if text.isascii() else len(text.encode())
    for raw in (delta.tool_calls, delta.function_call, delta.audio):
        if _is_present(raw):
            size += len(bytes(raw))
    return size
