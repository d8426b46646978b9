"""What the APIs have in common: bodies as fields, OpenAI's usage, and OpenAI's errors."""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from waypost.shared.money import Tokens, Usage

__all__ = [
    "ABSENT",
    "Usages",
    "breaking_off",
    "decode_fields",
    "encode",
    "is_openai_error",
    "is_present",
    "size",
    "usage_of",
]

# Raw cannot be one of several types, so its absence has to be a Raw as well.
ABSENT = Raw()
NULL = b"null"

_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
encode = msgspec.json.Encoder().encode


def decode_fields(body: bytes) -> dict[str, Any]:
    """Return the fields of a request, but for what it demands of us: that has been met here.

    Providers would reject ``provider`` and ``models``, or choose once more by them.
    """
    fields: dict[str, Any] = _decode_fields(body)
    fields.pop("provider", None)
    fields.pop("models", None)
    return fields


def is_present(raw: Raw) -> bool:
    """Whether a field was there, and not null."""
    return bytes(raw) not in (b"", NULL)


def size(text: str | None) -> int:
    """Return the UTF-8 length of a text that may be missing."""
    if not text:
        return 0
    return len(text) if text.isascii() else len(text.encode())


class _InputDetails(Struct):
    cached_tokens: Tokens | None = None
    cache_write_tokens: Tokens | None = None
    image_tokens: Tokens | None = None
    audio_tokens: Tokens | None = None


class _OutputDetails(Struct):
    reasoning_tokens: Tokens | None = None
    audio_tokens: Tokens | None = None


_NO_INPUT_DETAILS = _InputDetails()
_NO_OUTPUT_DETAILS = _OutputDetails()


class Usages(Struct):
    """OpenAI's usage, under the names that its older and its newer APIs have for it."""

    prompt_tokens: Tokens = 0
    completion_tokens: Tokens = 0
    prompt_tokens_details: _InputDetails | None = None
    input_tokens: Tokens = 0
    output_tokens: Tokens = 0
    input_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    output_tokens_details: _OutputDetails | None = None

    def ours(self) -> Usage:
        """Return it as we count."""
        into = self.prompt_tokens_details or self.input_tokens_details or _NO_INPUT_DETAILS
        out = self.completion_tokens_details or self.output_tokens_details or _NO_OUTPUT_DETAILS
        return Usage(
            input_tokens=self.prompt_tokens or self.input_tokens,
            output_tokens=self.completion_tokens or self.output_tokens,
            cached_tokens=into.cached_tokens or 0,
            cache_write_tokens=into.cache_write_tokens or 0,
            image_input_tokens=into.image_tokens or 0,
            audio_input_tokens=into.audio_tokens or 0,
            audio_output_tokens=out.audio_tokens or 0,
            reasoning_tokens=out.reasoning_tokens or 0,
        )


_decode_usage = msgspec.json.Decoder(Usages | None).decode


def usage_of(raw: Raw) -> Usage | None:
    """Return what a usage field says; one that cannot be read is as good as none."""
    if not is_present(raw):
        return None
    try:
        told = _decode_usage(raw)
    except ValueError:
        return None
    return None if told is None else told.ours()


class _Failed(Struct):
    error: dict[str, Any]


_decode_failed = msgspec.json.Decoder(_Failed).decode


def is_openai_error(body: bytes) -> bool:
    """Whether ``body`` is OpenAI's error envelope."""
    try:
        return "message" in _decode_failed(body).error
    except ValueError:
        return False


def breaking_off(message: str, *, code: str) -> bytes:
    """Return the event with which the older OpenAI APIs end a stream that failed."""
    error = {"message": message, "type": "server_error", "code": code, "param": None}
    return b"data: " + encode({"error": error}) + b"\n\n"
