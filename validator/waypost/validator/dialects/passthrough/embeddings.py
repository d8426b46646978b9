"""Embeddings, as OpenAI has them: priced by what goes in, answered in one piece."""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from waypost.validator.dialects.passthrough.body_fields import ABSENT, decode_fields, encode
from waypost.validator.dialects.passthrough.chat import is_error, reader
from waypost.validator.dialects.usage import UsageReport, read_openai

__all__ = ["bounded", "is_error", "reader", "report"]


class _Answer(Struct):
    data: list[Raw]
    usage: Raw = ABSENT


_decode_answer = msgspec.json.Decoder(_Answer).decode


def bounded(
    body: bytes, *, model: str, output_tokens: int, streamed: bool, max_tokens_field: str
) -> bytes:
    """See ``Api``. Nothing is written, so nothing needs a bound."""
    fields: dict[str, Any] = decode_fields(body)
    fields["model"] = model
    return encode(fields)


def report(body: bytes) -> UsageReport:
    """See ``Api``."""
    return read_openai(_decode_answer(body).usage)
