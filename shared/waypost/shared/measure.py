"""Reads from a chat request what a decision needs, the same way in client and validator.

Pure, and reads no more than it must: fields that no decision looks at are never parsed. The
types reject what providers would reject later and dearer: missing messages, a negative
``max_tokens``, a number where text belongs.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from waypost.shared.contracts import AUTO, Measured
from waypost.shared.errors import InvalidRequestError
from waypost.shared.reading import Findings, TextReader

__all__ = ["ChatRequest", "decode_chat", "measure_chat"]

BYTES_PER_TOKEN = 4  # English prose in current tokenizers; an estimate, never a bound
TOKENS_PER_MESSAGE = 4  # role and separators in the usual chat templates
IMAGE_TOKENS = 1_500  # a large picture in high detail, as providers price it
AUDIO_BYTES_PER_TOKEN = 1_000
TOOLS_OVERHEAD_TOKENS = 1_000  # providers put a system prompt of their own before tools

Count = Annotated[int, Meta(ge=1, le=10_000_000)]


class _Part(Struct):
    type: str
    text: str = ""


class _Message(Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[_Part] | None = None


class _ResponseFormat(Struct):
    type: str


class _StreamOptions(Struct):
    include_usage: bool | None = None


class ChatRequest(Struct):
    """The fields of a chat-completions body that a decision or the forwarder reads."""

    messages: Annotated[list[_Message], Meta(min_length=1, max_length=10_000)]
    model: Annotated[str, Meta(min_length=1, max_length=200)] = AUTO
    stream: bool | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    tools: list[Raw] | None = None
    functions: list[Raw] | None = None
    response_format: _ResponseFormat | None = None
    stream_options: _StreamOptions | None = None

    @property
    def output_limit(self) -> int | None:
        """Tokens per answer as asked for; the newer field wins, as it does at OpenAI."""
        return self.max_completion_tokens or self.max_tokens


_chat_decoder = msgspec.json.Decoder(ChatRequest)


def decode_chat(body: bytes) -> ChatRequest:
    """Return the request in ``body``.

    Raises:
        InvalidRequestError: ``invalid_json``, or ``invalid_body`` with the path at fault.
    """
    try:
        return _chat_decoder.decode(body)
    except msgspec.ValidationError as exc:
        text, _, path = str(exc).partition(" - at ")
        # An unknown enum value is quoted by the decoder, and may be prompt text.
        text = text.partition(" '")[0]
        param = path.strip("`").removeprefix("$").removeprefix(".") or None
        raise InvalidRequestError(
            f"{text} (at {param})" if param else text, code="invalid_body", param=param
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # The decoder's own words quote the input, which may be prompt text.
        raise InvalidRequestError("The body is not valid JSON.", code="invalid_json") from None


def measure_chat(request: ChatRequest, *, body_bytes: int, reader: TextReader) -> Measured:
    """Return the measured facts of a chat-completions request.

    Args:
        body_bytes: length of the request as JSON. A token is at least a byte long, so that
            length bounds the prompt's tokens in any tokenizer, template included.
        reader: of the policy that is to decide.
    """
    chars = 0
    images = 0
    audio = 0
    newest_user: str | list[_Part] | None = None
    for message in request.messages:
        content = message.content
        if isinstance(content, str):
            chars += len(content.encode()) if not content.isascii() else len(content)
        elif content:
            for part in content:
                chars += len(part.text.encode())
                images += part.type == "image_url"
                audio += part.type == "input_audio"
        if message.role == "user":
            newest_user = content
    needs: list[str] = []
    if audio:
        needs.append("audio")
    if request.response_format is not None and request.response_format.type != "text":
        needs.append("json")
    tools = [*(request.tools or ()), *(request.functions or ())]
    if tools:
        needs.append("tools")
        chars += sum(len(bytes(tool)) for tool in tools)
    if images:
        needs.append("vision")
    findings: Findings = {}
    if not reader.is_idle:
        findings = reader.read(
            newest_user
            if isinstance(newest_user, str)
            else "\n".join(part.text for part in newest_user or ())
        )
    audio_tokens = body_bytes // AUDIO_BYTES_PER_TOKEN if audio else 0
    return Measured(
        input_bytes=chars,
        input_tokens=-(-chars // BYTES_PER_TOKEN)
        + TOKENS_PER_MESSAGE * len(request.messages)
        + IMAGE_TOKENS * images
        + audio_tokens,
        max_input_tokens=body_bytes
        + IMAGE_TOKENS * images
        + (TOOLS_OVERHEAD_TOKENS if tools else 0),
        max_output_tokens=request.output_limit,
        choices=request.n or 1,
        messages=len(request.messages),
        needs=tuple(needs),
        **findings,
    )
