"""Reads from a chat request what a decision needs, the same way in client and validator.

Pure, and reads no more than it must: fields that no decision looks at are never parsed. The
types reject what providers would reject later and dearer: missing messages, a negative
``max_tokens``, a number where text belongs.
"""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, structs

from waypost.shared.contracts import Extra, Measured
from waypost.shared.decision.demands import ABSENT, Demanding, demanded, require_parameters
from waypost.shared.decision.reading import Findings, TextReader
from waypost.shared.errors import InvalidRequestError
from waypost.shared.pictures import Picture
from waypost.shared.requests.parts import (
    SizeOf,
    hosted_definition,
    hosted_tool,
    in_words,
    look_through,
    ordered,
    picture_of,
)

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
DOCUMENT_BYTES_PER_TOKEN = 40  # of base64; a page of 50 kB is some 1,500 tokens; an estimate too
AUDIO_BYTES_PER_TOKEN = 1_000
TOOLS_OVERHEAD_TOKENS = 1_000  # providers put a system prompt of their own before tools

_Request = TypeVar("_Request", bound=Demanding)

Count = Annotated[int, Meta(ge=1, le=10_000_000)]


class Part(Struct):
    """A piece of a message's content, of any API.

    Attributes:
        cache_control: Anthropic's, which OpenRouter and LiteLLM take in chats too.
    """

    type: str = "text"
    text: str = ""
    cache_control: Raw = ABSENT


class _ImageUrl(Struct):
    url: str = ""
    detail: str | None = None


class _Audio(Struct):
    data: str = ""
    format: str = ""


class _ChatPart(Part):
    file: Raw = ABSENT
    image_url: Raw = ABSENT
    input_audio: Raw = ABSENT


class _Message(Struct):
    """``audio`` is an earlier answer that the provider keeps; ``images`` is OpenRouter's."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[_ChatPart] | None = None
    audio: Raw = ABSENT
    images: Raw = ABSENT


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
    modalities: list[str] | None = None

    @property
    def output_limit(self) -> int | None:
        """Tokens per answer as asked for; the newer field wins, as it does at OpenAI."""
        return self.max_completion_tokens or self.max_tokens


_decode_chat = msgspec.json.Decoder(ChatRequest).decode
_decode_image_url = msgspec.json.Decoder(_ImageUrl | str).decode
_decode_audio = msgspec.json.Decoder(_Audio).decode
_decode_any = msgspec.json.Decoder().decode
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


# Sound of which each second has so many bytes that they are more than its tokens (at most 32, by
# Google; 10 by OpenAI). Others may compress silence to next to nothing.
_BOUNDED_AUDIO = frozenset({"mp3", "wav", "pcm16"})


class RequestSummary:
    """What there is in a request of any API, counted up; ``measured`` makes facts of it."""

    __slots__ = (
        "_body",
        "_parsed",
        "_size_of",
        "audio",
        "document_bytes",
        "documents",
        "extras",
        "keeps_cache",
        "messages",
        "most_calls",
        "newest_user",
        "picture_bytes",
        "pictures",
        "text_bytes",
        "tools",
        "wants_json",
    )

    def __init__(self, body: bytes = b"", size_of: SizeOf | None = None) -> None:
        """Args:
        body: looked through where there is something in it that nobody knows.
        size_of: reads pictures' pixels; without it each is as large as pictures get.
        """
        self._body = body
        self._parsed: object = None
        self._size_of = size_of
        self.text_bytes = self.messages = self.picture_bytes = 0
        self.documents = self.document_bytes = 0
        self.audio = self.wants_json = self.keeps_cache = False
        self.pictures: list[Picture] = []
        self.extras: list[Extra] = []
        self.most_calls: int | None = None  # of all tools that the provider runs
        self.tools: list[Raw] = []
        self.newest_user: str | Sequence[Part] | None = None

    def add_text(self, text: str) -> None:
        """Count a text in."""
        self.text_bytes += len(text) if text.isascii() else len(text.encode())

    def add_cache_control(self, control: Raw) -> None:
        """Note for how long a cache is to keep what comes before: five minutes, or an hour."""
        self.keeps_cache |= b"1h" in bytes(control)

    def add_picture(self, data: str, kind: str, at: str, *, detail: str | None = None) -> None:
        """Count a picture in: a ``data:`` URL, base64, or the address of one.

        An address is bounded too: providers scale what is behind it down, and take no film for it.
        """
        if data.startswith("data:"):
            if not data.startswith("data:image/"):
                self.add_other(kind, at, {"url": data})
                return
        elif not data.startswith(("https://", "http://")):
            self.add_extra(kind, at)
            return
        self.pictures.append(picture_of(data, self._size_of, detail=detail))
        self.picture_bytes += len(data) if data.startswith("data:") else 0

    def add_picture_data(self, data: str) -> None:
        """Count a picture in, in plain base64."""
        self.pictures.append(picture_of(data, self._size_of))
        self.picture_bytes += len(data)

    def add_document(self, data: str, at: str) -> None:
        """Count a document in, by its pages, of which there may be many to a byte."""
        self.add_extra("pdf", at)
        self.documents += 1
        self.document_bytes += len(data)

    def add_file(self, data: str, kind: str, at: str) -> None:
        """Count a file in: a document, if its ``data:`` URL says nothing else."""
        if "://" in data[:64]:
            self.add_extra(kind, at)
        elif data.startswith(("data:image/", "data:audio/", "data:video/")):
            self.add_other(kind, at, {"url": data})
        elif not data.startswith("data:text/"):
            self.add_document(data, at)

    def add_extra(self, name: str, at: str) -> None:
        """Note a part that no length bounds."""
        self.extras.append(Extra(kind="part", name=in_words(name, "part"), at=at))

    def add_other(self, kind: str, at: str, part: object, *, is_history: bool = False) -> None:
        """Look through a part of which nobody knows what it is."""
        found = look_through(part, is_history=is_history)
        for data in found.pictures:
            self.add_picture_data(data)
        for data in found.documents:
            self.add_document(data, at)
        for below, tool in found.tools:
            hosted = hosted_definition(tool, at + below)
            if hosted is not None:
                self.extras.append(hosted)
        for _ in found.elsewhere[:1]:
            self.add_extra(kind, at)

    def add_unknown(self, kind: str, at: str, *path: str | int, is_history: bool = False) -> None:
        """Look through a part of the body that nobody knows, at ``path``."""
        if self._parsed is None:
            self._parsed = _decode_any(self._body)
        part: Any = self._parsed
        for step in path:
            part = part[step]
        self.add_other(kind, at, part, is_history=is_history)

    def measured(
        self,
        endpoint: str,
        *,
        body_bytes: int,
        reader: TextReader,
        max_output_tokens: int | None,
        request: Demanding,
        choices: int = 1,
    ) -> Measured:
        """Return the facts.

        Args:
            body_bytes: length of the request as JSON. A token is at least a byte long, so that
                length bounds the prompt's tokens in any tokenizer, template included.
            reader: of the policy that is to decide.
        """
        needs: list[str] = []
        orders = ordered(request)
        if self.audio:
            needs.append("audio")
        if self.wants_json:
            needs.append("json")
        text_bytes = self.text_bytes
        if self.tools:
            needs.append("tools")
            for place, tool in enumerate(self.tools):
                hosted = hosted_tool(tool, f"tools[{place}]")
                if hosted is not None:
                    calls = self.most_calls if hosted.calls is None else hosted.calls
                    self.extras.append(structs.replace(hosted, calls=calls))
                written = bytes(tool)
                text_bytes += len(written)
                self.keeps_cache |= b'"1h"' in written and b'"cache_control"' in written
        seen = len(self.pictures) + self.documents
        if seen:
            needs.append("vision")
        findings: Findings = {}
        if not reader.is_idle:
            newest = self.newest_user
            findings = reader.read(
                newest if isinstance(newest, str) else "\n".join(part.text for part in newest or ())
            )
        extras = (*self.extras, *orders.extras)
        return Measured(
            endpoint=endpoint,
            input_bytes=text_bytes,
            input_tokens=-(-text_bytes // BYTES_PER_TOKEN)
            + TOKENS_PER_MESSAGE * self.messages
            + IMAGE_TOKENS * seen
            + self.document_bytes // DOCUMENT_BYTES_PER_TOKEN
            + (body_bytes // AUDIO_BYTES_PER_TOKEN if self.audio else 0),
            max_input_tokens=body_bytes
            - self.picture_bytes
            + (TOOLS_OVERHEAD_TOKENS if self.tools else 0),
            max_output_tokens=max_output_tokens,
            choices=choices,
            messages=self.messages,
            needs=tuple(needs),
            demands=demanded(request),
            keeps_cache=True if self.keeps_cache else UNSET,
            pictures=tuple(self.pictures) if self.pictures else UNSET,
            extras=extras or UNSET,
            reasoning_tokens=orders.reasoning_tokens or UNSET,
            **findings,
        )


def measure_chat(
    request: ChatRequest, *, body: bytes, reader: TextReader, size_of: SizeOf | None = None
) -> Measured:
    """Return the measured facts of a chat-completions request; see ``RequestSummary.measured``."""
    summary = RequestSummary(body, size_of)
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
                if part.type != "text":
                    _add_part(summary, part, number, place)
        if message.audio is not ABSENT or message.images is not ABSENT:
            _add_earlier(summary, message, number)
        if message.role == "user":
            summary.newest_user = content
    summary.wants_json = (
        request.response_format is not None and request.response_format.type != "text"
    )
    summary.tools = [*(request.tools or ()), *(request.functions or ())]
    summary.audio |= request.modalities is not None and "audio" in request.modalities
    return summary.measured(
        "chat.completions",
        body_bytes=len(body),
        reader=reader,
        max_output_tokens=request.output_limit,
        choices=request.n or 1,
        request=request,
    )


def _add_part(summary: RequestSummary, part: _ChatPart, number: int, place: int) -> None:
    at = f"messages[{number}].content[{place}]"
    try:
        match part.type:
            case "image_url" if part.image_url is not ABSENT:
                image = _decode_image_url(part.image_url)
                if isinstance(image, str):
                    summary.add_picture(image, "image_url", at)
                else:
                    summary.add_picture(image.url, "image_url", at, detail=image.detail)
            case "input_audio" if part.input_audio is not ABSENT:
                _add_audio(summary, _decode_audio(part.input_audio), at)
            case "file" if part.file is not ABSENT:
                _add_file(summary, _decode_any(part.file), at)
            case "refusal" | "thinking" | "redacted_thinking":
                pass
            case _:
                summary.add_unknown(part.type, at, "messages", number, "content", place)
    except msgspec.ValidationError:
        summary.add_unknown(part.type, at, "messages", number, "content", place)


def _add_audio(summary: RequestSummary, audio: _Audio, at: str) -> None:
    summary.audio = True
    if audio.format not in _BOUNDED_AUDIO or "://" in audio.data[:32]:
        summary.add_extra("input_audio", at)


def _add_file(summary: RequestSummary, file: object, at: str) -> None:
    """Count a file in: a document, or whatever its data says that it is."""
    fields = cast("dict[str, object]", file) if isinstance(file, dict) else {"file": file}
    data = fields.pop("file_data", None) or ""
    if look_through(fields, is_history=False).elsewhere or not isinstance(data, str):
        summary.add_extra("file", at)
    else:
        summary.add_file(data, "file", at)


def _add_earlier(summary: RequestSummary, message: _Message, number: int) -> None:
    """Count in what an earlier answer had beside its text."""
    for name in ("audio", "images"):
        raw: Raw = getattr(message, name)
        value = None if raw is ABSENT else _decode_any(raw)
        if not value:
            continue
        at = f"messages[{number}].{name}"
        if name == "audio":
            summary.add_extra("audio", at)
            summary.audio = True
        else:
            summary.add_other("images", at, value)
