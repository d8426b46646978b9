"""Embeddings, as OpenAI has them: priced by what goes in, answered in one piece."""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from waypost.shared.money import Usage
from waypost.validator.apis.chat import is_error, reader
from waypost.validator.apis.fields import ABSENT, decode_fields, encode, usage_of

__all__ = ["bounded", "is_error", "reader", "usage"]


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


def usage(body: bytes) -> Usage | None:
    """See ``Api``."""
    return usage_of(_decode_answer(body).usage)
