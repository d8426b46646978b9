"""What the APIs have in common: bodies as fields, and OpenAI's errors."""

from typing import Any

import msgspec
from msgspec import Raw, Struct

__all__ = [
    "ABSENT",
    "breaking_off",
    "decode_fields",
    "encode",
    "is_openai_error",
    "is_present",
    "size",
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
