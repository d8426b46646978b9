"""Chat completions, as OpenAI, Azure, Groq, Mistral, vLLM, Ollama and others speak them."""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from waypost.shared.apis import Request
from waypost.shared.money import Usage
from waypost.validator.apis.fields import (
    ABSENT,
    breaking_off,
    decode_fields,
    encode,
    is_openai_error,
    is_present,
    size,
    usage_of,
)
from waypost.validator.events import EventReader

__all__ = ["Reader", "bounded", "is_error", "order_usage", "reader", "shows_usage", "usage"]

MAX_TOKENS_FIELDS = ("max_tokens", "max_completion_tokens")

is_error = is_openai_error


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

    def size(self) -> int:
        texts = (self.content, self.reasoning_content, self.reasoning, self.refusal)
        raws = (self.tool_calls, self.function_call, self.audio)
        return sum(size(text) for text in texts) + sum(
            len(bytes(raw)) for raw in raws if is_present(raw)
        )


class _Choice(Struct):
    delta: _Delta | None = None
    text: str | None = None


class _Chunk(Struct):
    choices: list[_Choice] = []
    usage: Raw = ABSENT
    error: Raw = ABSENT


_decode_options = msgspec.json.Decoder(dict[str, Any] | None).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_chunk = msgspec.json.Decoder(_Chunk).decode


def bounded(
    body: bytes, *, model: str, output_tokens: int, streamed: bool, max_tokens_field: str
) -> bytes:
    """See ``Api``."""
    fields: dict[str, Any] = decode_fields(body)
    for field in MAX_TOKENS_FIELDS:
        fields.pop(field, None)
    fields["model"] = model
    fields[max_tokens_field] = output_tokens
    if streamed:
        order_usage(fields)
    return encode(fields)


def order_usage(fields: dict[str, Any]) -> None:
    """Have a stream tell its usage at the end, whatever else was ordered."""
    options = fields.get("stream_options")
    known = _decode_options(options) if options is not None else None
    fields["stream_options"] = {**(known or {}), "include_usage": True}


def usage(body: bytes) -> Usage | None:
    """See ``Api``."""
    return usage_of(_decode_answer(body).usage)


def shows_usage(request: Request) -> bool:
    """Whether the caller ordered the chunk that tells the usage."""
    options = getattr(request, "stream_options", None)
    return options is not None and options.include_usage is True


def reader(request: Request) -> "Reader":
    """See ``Api``."""
    return Reader(shows_usage=shows_usage(request))


class Reader(EventReader):
    """Reads chunks of chat completions and, since they look alike, of completions."""

    __slots__ = ("_shows_usage",)

    breaking_off = staticmethod(breaking_off)

    def __init__(self, *, shows_usage: bool) -> None:
        super().__init__()
        self._shows_usage = shows_usage

    def _see(self, payload: bytes) -> bool:
        if payload == b"[DONE]":
            self.is_done = True
            return True
        try:
            chunk = _decode_chunk(payload)
        except ValueError:
            self.output_bytes += len(payload)
            return True
        if is_present(chunk.error):
            self.has_failed = True
        for choice in chunk.choices:
            if choice.delta is not None:
                self.output_bytes += choice.delta.size()
            self.output_bytes += size(choice.text)
        told = usage_of(chunk.usage)
        if told is None:
            return True
        # The last word counts; some providers keep a running total on every chunk.
        self.usage = told
        return self._shows_usage or bool(chunk.choices)
