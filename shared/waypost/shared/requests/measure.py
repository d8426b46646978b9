"""Reads from a chat request what a decision needs, the same way in client and validator.

Pure, and reads no more than it must: fields that no decision looks at are never parsed. The
types reject what providers would reject later and dearer: missing messages, a negative
``max_tokens``, a number where text belongs.
"""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct

from waypost.shared.contracts import Demands, Measured
from waypost.shared.decision.demands import Demanding, demanded, require_parameters
from waypost.shared.decision.reading import Findings, TextReader
from waypost.shared.errors import InvalidRequestError

__all__ = [
    "ABSENT",
    "ChatRequest",
    "Count",
    "Part",
    "RequestSummary",
    "decode_body",
    "decode_chat",
    "measure_chat",
]

BYTES_PER_TOKEN = 4  # English prose in current tokenizers; an estimate, never a bound
TOKENS_PER_MESSAGE = 4  # role and separators in the usual chat templates
IMAGE_TOKENS = 1_500  # a large picture in high detail, as providers price it
# A hundred pages, which few providers exceed, each of them read as a picture. A page may take less
# than a byte of the file, so no length bounds them.
DOCUMENT_TOKENS = 100 * IMAGE_TOKENS
DOCUMENT_BYTES_PER_TOKEN = 40  # of base64; a page of 50 kB is some 1,500 tokens; an estimate too
AUDIO_BYTES_PER_TOKEN = 1_000
TOOLS_OVERHEAD_TOKENS = 1_000  # providers put a system prompt of their own before tools

_Request = TypeVar("_Request", bound=Demanding)

Count = Annotated[int, Meta(ge=1, le=10_000_000)]


# Raw cannot be one of several types, so its absence has to be a Raw as well.
ABSENT = Raw()


class Part(Struct):
    """A piece of a message's content, of any API.

    Attributes:
        cache_control: Anthropic's, which OpenRouter and LiteLLM take in chats too.
    """

    type: str = "text"
    text: str = ""
    cache_control: Raw = ABSENT


class _File(Struct):
    file_id: str | None = None
    file_data: str = ""


class _ChatPart(Part):
    file: _File | None = None


class _Message(Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[_ChatPart] | None = None


class _ResponseFormat(Struct):
    type: str


class _StreamOptions(Struct):
    include_usage: bool | None = None


class ChatRequest(Demanding, kw_only=True):
    """The fields of a chat-completions body that a decision or the forwarder reads."""

    messages: Annotated[list[_Message], Meta(min_length=1, max_length=10_000)]
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


_decode_chat = msgspec.json.Decoder(ChatRequest).decode
_fields = msgspec.json.Decoder(dict[str, Raw]).decode

_QUOTED = re.compile(r" '.*|(?<=unknown field) `(?![a-z_]{1,24}`\Z).*", re.DOTALL)


def decode_chat(body: bytes) -> ChatRequest:
    """Return the request in ``body``; raises as ``decode_body`` does."""
    return decode_body(_decode_chat, body)


def decode_body(decode: Callable[[bytes], _Request], body: bytes) -> _Request:
    """Return the request in ``body``, as ``decode`` reads it.

    Raises:
        InvalidRequestError: ``invalid_json``, or ``invalid_body`` with the path at fault.
    """
    try:
        # Fields that are not read are passed over by the decoder, and read by whoever translates.
        if not body.isascii():
            body.decode()
        request = decode(body)
        if request.provider is not None and request.provider.require_parameters:
            require_parameters(_fields(body))
        return request
    except msgspec.ValidationError as exc:
        text, _, path = str(exc).partition(" - at ")
        # An unknown value or field is quoted by the decoder, and may be prompt text.
        text = _QUOTED.sub("", text)
        param = path.strip("`").removeprefix("$").removeprefix(".") or None
        raise InvalidRequestError(
            f"{text} (at {param})" if param else text, code="invalid_body", param=param
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # The decoder's own words quote the input, which may be prompt text.
        raise InvalidRequestError("The body is not valid JSON.", code="invalid_json") from None


class RequestSummary:
    """What there is in a request of any API, counted up; ``measured`` makes facts of it."""

    __slots__ = (
        "audio",
        "document_bytes",
        "documents",
        "images",
        "keeps_cache",
        "messages",
        "newest_user",
        "text_bytes",
        "tools",
        "wants_json",
    )

    def __init__(self) -> None:
        self.text_bytes = self.messages = self.images = 0
        self.documents = self.document_bytes = 0
        self.audio = self.wants_json = self.keeps_cache = False
        self.tools: list[Raw] = []
        self.newest_user: str | Sequence[Part] | None = None

    def add_text(self, text: str) -> None:
        """Count a text in."""
        self.text_bytes += len(text) if text.isascii() else len(text.encode())

    def add_cache_control(self, control: Raw) -> None:
        """Note for how long a cache is to keep what comes before: five minutes, or an hour."""
        self.keeps_cache |= b"1h" in bytes(control)

    def add_document(self, data: str, *, at: str, is_elsewhere: bool) -> None:
        """Count a document in, by its pages.

        Raises:
            InvalidRequestError: ``unbounded_input``: it is not in the request.
        """
        if is_elsewhere:
            raise InvalidRequestError(
                "Send documents in the request itself: the price of one that the provider fetches"
                " has no bound, and nobody here could look into it.",
                code="unbounded_input",
                param=at,
            )
        self.images += 1
        self.documents += 1
        self.document_bytes += len(data)

    def measured(
        self,
        endpoint: str,
        *,
        body_bytes: int,
        reader: TextReader,
        max_output_tokens: int | None,
        choices: int = 1,
        demands: Demands | None = None,
    ) -> Measured:
        """Return the facts.

        Args:
            body_bytes: length of the request as JSON. A token is at least a byte long, so that
                length bounds the prompt's tokens in any tokenizer, template included.
            reader: of the policy that is to decide.
        """
        needs: list[str] = []
        if self.audio:
            needs.append("audio")
        if self.wants_json:
            needs.append("json")
        text_bytes = self.text_bytes
        if self.tools:
            needs.append("tools")
            for tool in self.tools:
                written = bytes(tool)
                text_bytes += len(written)
                self.keeps_cache |= b'"1h"' in written and b'"cache_control"' in written
        if self.images:
            needs.append("vision")
        findings: Findings = {}
        if not reader.is_idle:
            newest = self.newest_user
            findings = reader.read(
                newest if isinstance(newest, str) else "\n".join(part.text for part in newest or ())
            )
        image_tokens = IMAGE_TOKENS * self.images
        return Measured(
            endpoint=endpoint,
            input_bytes=text_bytes,
            input_tokens=-(-text_bytes // BYTES_PER_TOKEN)
            + TOKENS_PER_MESSAGE * self.messages
            + image_tokens
            + self.document_bytes // DOCUMENT_BYTES_PER_TOKEN
            + (body_bytes // AUDIO_BYTES_PER_TOKEN if self.audio else 0),
            max_input_tokens=body_bytes
            + image_tokens
            + DOCUMENT_TOKENS * self.documents
            + (TOOLS_OVERHEAD_TOKENS if self.tools else 0),
            max_output_tokens=max_output_tokens,
            choices=choices,
            messages=self.messages,
            needs=tuple(needs),
            demands=demands,
            keeps_cache=True if self.keeps_cache else UNSET,
            **findings,
        )


def measure_chat(request: ChatRequest, *, body_bytes: int, reader: TextReader) -> Measured:
    """Return the measured facts of a chat-completions request; see ``RequestSummary.measured``.

    Raises:
        InvalidRequestError: ``unbounded_input``: a document is not in it.
    """
    summary = RequestSummary()
    summary.messages = len(request.messages)
    for number, message in enumerate(request.messages):
        content = message.content
        if isinstance(content, str):
            summary.add_text(content)
        elif content:
            for place, part in enumerate(content):
                summary.add_text(part.text)
                if part.cache_control is not ABSENT:
                    summary.add_cache_control(part.cache_control)
                summary.images += part.type == "image_url"
                summary.audio |= part.type == "input_audio"
                if part.file is not None:
                    summary.add_document(
                        part.file.file_data,
                        at=f"messages[{number}].content[{place}]",
                        is_elsewhere=bool(part.file.file_id),
                    )
        if message.role == "user":
            summary.newest_user = content
    summary.wants_json = (
        request.response_format is not None and request.response_format.type != "text"
    )
    summary.tools = [*(request.tools or ()), *(request.functions or ())]
    return summary.measured(
        "chat.completions",
        body_bytes=body_bytes,
        reader=reader,
        max_output_tokens=request.output_limit,
        choices=request.n or 1,
        demands=demanded(request),
    )
