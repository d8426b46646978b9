"""Completions, OpenAI's API from before chats, which base models and code models still speak."""

from typing import Any

from waypost.validator.dialects.passthrough.body_fields import decode_fields, encode
from waypost.validator.dialects.passthrough.chat import is_error, order_usage, reader, report

__all__ = ["bounded", "is_error", "reader", "report"]


def bounded(
    body: bytes, *, model: str, output_tokens: int, streamed: bool, max_tokens_field: str
) -> bytes:
    """See ``Api``. The bound has one name here."""
    fields: dict[str, Any] = decode_fields(body)
    fields["model"] = model
    fields["max_tokens"] = output_tokens
    if streamed:
        order_usage(fields)
    return encode(fields)
