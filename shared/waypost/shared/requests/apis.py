"""The APIs a request may come by: where each is asked, and what is read of its bodies.

Pure, and the same in client and validator. As in ``measure``, fields that no decision looks at
are never parsed, and what cannot be bounded is refused: a body that refers to something the
provider keeps has no length that bounds its price, and nobody here could look for regulated
data in it.
"""

from collections.abc import Callable
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta, Raw, Struct

from waypost.shared.contracts import Measured
from waypost.shared.decision.demands import Demanding, demanded
from waypost.shared.decision.reading import TextReader
from waypost.shared.errors import InvalidRequestError
from waypost.shared.requests.measure import (
    ABSENT,
    Count,
    Part,
    RequestSummary,
    decode_body,
    decode_chat,
    measure_chat,
)

__all__ = ["ENDPOINT_BY_PATH", "Request", "decode", "measure"]

# Path → what ``Facts.measured.endpoint`` calls it.
ENDPOINT_BY_PATH = {
    "/v1/chat/completions": "chat.completions",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/messages": "messages",
    "/v1/responses": "responses",
}

MAX_BATCH = 2_048  # inputs or prompts in one request, as OpenAI bounds them


class Request(Protocol):
    """What every API's request says."""

    @property
    def model(self) -> str: ...
    @property
    def stream(self) -> bool | None: ...


# ── completions and embeddings ─────────────────────────────────────────────────────────────────

_Tokens = Annotated[list[int], Meta(min_length=1)]
_Texts = str | Annotated[list[str | int | _Tokens], Meta(min_length=1, max_length=300_000)]


class _StreamOptions(Struct):
    include_usage: bool | None = None


class CompletionRequest(Demanding, kw_only=True):
    """What is read of a completion."""

    prompt: _Texts
    stream: bool | None = None
    max_tokens: Count | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=16)] | None = None
    stream_options: _StreamOptions | None = None


class EmbeddingRequest(Demanding, kw_only=True):
    """What is read of a request for embeddings."""

    input: _Texts
    stream: None = None


def _add_texts(summary: RequestSummary, texts: _Texts, param: str) -> int:
    """Count the texts of ``param`` in, written out or as tokens; return how many there are."""
    if isinstance(texts, str):
        summary.add_text(texts)
        summary.messages = 1
        summary.newest_user = texts
        return 1
    tokens = 0
    for text in texts:
        if isinstance(text, str):
            summary.add_text(text)
        else:
            tokens += 1 if isinstance(text, int) else len(text)
    summary.text_bytes += 4 * tokens
    summary.messages = 1 if isinstance(texts[0], int) else len(texts)
    if isinstance(texts[-1], str):
        summary.newest_user = texts[-1]
    if summary.messages > MAX_BATCH:
        raise InvalidRequestError(
            f"Send at most {MAX_BATCH} texts at a time.", code="invalid_body", param=param
        )
    return summary.messages


def _measure_completion(
    request: CompletionRequest, *, body_bytes: int, reader: TextReader
) -> Measured:
    summary = RequestSummary()
    prompts = _add_texts(summary, request.prompt, "prompt")
    return summary.measured(
        "completions",
        body_bytes=body_bytes,
        reader=reader,
        max_output_tokens=request.max_tokens,
        demands=demanded(request),
        choices=prompts * max(request.n or 1, request.best_of or 1),
    )


def _measure_embeddings(
    request: EmbeddingRequest, *, body_bytes: int, reader: TextReader
) -> Measured:
    summary = RequestSummary()
    _add_texts(summary, request.input, "input")
    return summary.measured(
        "embeddings",
        body_bytes=body_bytes,
        reader=reader,
        max_output_tokens=0,
        demands=demanded(request),
    )


# ── messages and responses ─────────────────────────────────────────────────────────────────────


class _Source(Struct):
    type: str = ""
    data: str = ""
    content: "str | list[_Block] | None" = None


class _Block(Part):
    """A piece of content in either API, flat enough to hold what matters of each kind."""

    source: _Source | None = None
    content: str | list["_Block"] | dict[str, Any] | None = None
    arguments: str = ""
    input: Raw = Raw()
    file_id: str | None = None
    file_url: str | None = None
    file_data: str = ""


class _Message(Struct):
    role: str
    content: str | list[_Block]


class _Format(Struct):
    format: dict[str, Any] | None = None

    @property
    def is_json(self) -> bool:
        return self.format is not None and self.format.get("type") != "text"


class MessagesRequest(Demanding, kw_only=True):
    """What is read of a request to Anthropic's Messages API."""

    messages: Annotated[list[_Message], Meta(min_length=1, max_length=10_000)]
    max_tokens: Count | None = None
    system: str | list[Part] | None = None
    stream: bool | None = None
    tools: list[Raw] | None = None
    output_config: _Format | None = None
    cache_control: Raw = ABSENT


class _Item(Struct):
    type: str = "message"
    role: str = ""
    content: str | list[_Block] | None = None
    output: str | list[_Block] | dict[str, Any] | None = None
    arguments: str = ""


class ResponsesRequest(Demanding, kw_only=True):
    """What is read of a request to OpenAI's Responses API; whatever it would look up is refused."""

    input: str | Annotated[list[_Item], Meta(min_length=1, max_length=10_000)]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Count | None = None
    tools: list[Raw] | None = None
    text: _Format | None = None
    background: bool | None = None
    conversation: Any = None
    previous_response_id: str | None = None
    prompt: Any = None


def _add_content(
    summary: RequestSummary, content: str | list[_Block] | dict[str, Any] | None, at: str
) -> None:
    if isinstance(content, str):
        summary.add_text(content)
        return
    if not isinstance(content, list):
        return
    for place, block in enumerate(content):
        summary.add_text(block.text)
        if block.cache_control is not ABSENT:
            summary.add_cache_control(block.cache_control)
        summary.text_bytes += len(bytes(block.input)) + len(block.arguments)
        match block.type:
            case "image" | "input_image":
                summary.images += 1
            case "document" | "input_file":
                _add_document(summary, block, f"{at}[{place}]")
            case "input_audio":
                summary.audio = True
            case _:
                pass
        _add_content(summary, block.content, f"{at}[{place}].content")
        if block.source is not None:
            _add_content(summary, block.source.content, f"{at}[{place}].source.content")


def _add_document(summary: RequestSummary, block: _Block, at: str) -> None:
    source = block.source or _Source()
    if source.type == "text":
        summary.add_text(source.data)
    elif source.type != "content":  # which is blocks, each counted by itself
        is_elsewhere = block.file_id or block.file_url or source.type in ("file", "url")
        data = source.data or block.file_data
        summary.add_document(data, at=at, is_elsewhere=bool(is_elsewhere))


def _measure_messages(request: MessagesRequest, *, body_bytes: int, reader: TextReader) -> Measured:
    summary = RequestSummary()
    summary.messages = len(request.messages)
    if request.system:
        parts = [Part(text=request.system)] if isinstance(request.system, str) else request.system
        for part in parts:
            summary.add_text(part.text)
            summary.add_cache_control(part.cache_control)
    summary.add_cache_control(request.cache_control)
    for place, message in enumerate(request.messages):
        _add_content(summary, message.content, f"messages[{place}].content")
        if message.role == "user":
            summary.newest_user = _written_by_user(message.content) or summary.newest_user
    summary.tools = request.tools or []
    summary.wants_json = request.output_config is not None and request.output_config.is_json
    return summary.measured(
        "messages",
        body_bytes=body_bytes,
        reader=reader,
        max_output_tokens=request.max_tokens,
        demands=demanded(request),
    )


def _written_by_user(content: str | list[_Block]) -> str | list[Part]:
    """Return what a user wrote. Here a tool's results come in the user's name."""
    if isinstance(content, str):
        return content
    return [block for block in content if block.text]


def _measure_responses(
    request: ResponsesRequest, *, body_bytes: int, reader: TextReader
) -> Measured:
    _check_stateless(request)
    summary = RequestSummary()
    if request.instructions:
        summary.add_text(request.instructions)
    if isinstance(request.input, str):
        summary.add_text(request.input)
        summary.messages = 1
        summary.newest_user = request.input
    else:
        summary.messages = len(request.input)
        for place, item in enumerate(request.input):
            if item.type == "item_reference":
                raise _stateful(f"input[{place}]")
            _add_content(summary, item.content, f"input[{place}].content")
            _add_content(summary, item.output, f"input[{place}].output")
            summary.add_text(item.arguments)
            if item.role == "user" and item.content is not None:
                summary.newest_user = _written_by_user(item.content)
    summary.tools = request.tools or []
    summary.wants_json = request.text is not None and request.text.is_json
    return summary.measured(
        "responses",
        body_bytes=body_bytes,
        reader=reader,
        max_output_tokens=request.max_output_tokens,
        demands=demanded(request),
    )


def _check_stateless(request: ResponsesRequest) -> None:
    for name in ("previous_response_id", "conversation", "prompt", "background"):
        if getattr(request, name):
            raise _stateful(name)


def _stateful(param: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{param} refers to what a provider keeps. Send the whole conversation as input: only what"
        " is in the request can be priced, checked, and served by whichever model is chosen.",
        code="stateful_unsupported",
        param=param,
    )


# ── all of them ────────────────────────────────────────────────────────────────────────────────


class _Measure(Protocol):
    def __call__(self, request: Any, /, *, body_bytes: int, reader: TextReader) -> Measured: ...  # noqa: ANN401 - each its own


def _decoder(kind: type[Any]) -> Callable[[bytes], Request]:
    decode_one: Callable[[bytes], Any] = msgspec.json.Decoder(kind).decode
    return lambda body: decode_body(decode_one, body)


_APIS: dict[str, tuple[Callable[[bytes], Request], _Measure]] = {
    "chat.completions": (decode_chat, measure_chat),
    "completions": (_decoder(CompletionRequest), _measure_completion),
    "embeddings": (_decoder(EmbeddingRequest), _measure_embeddings),
    "messages": (_decoder(MessagesRequest), _measure_messages),
    "responses": (_decoder(ResponsesRequest), _measure_responses),
}


def decode(endpoint: str, body: bytes) -> Request:
    """Return the request in ``body``, for ``measure``.

    Raises:
        InvalidRequestError: ``invalid_json``, or ``invalid_body`` with the path at fault.
    """
    return _APIS[endpoint][0](body)


def measure(endpoint: str, request: Request, *, body_bytes: int, reader: TextReader) -> Measured:
    """Return the measured facts of a request that ``decode`` returned for the same ``endpoint``.

    Args:
        body_bytes: length of the request as JSON.
        reader: of the policy that is to decide.

    Raises:
        InvalidRequestError: ``unbounded_input`` or ``stateful_unsupported``: what it asks for is
            not all in the request.
    """
    return _APIS[endpoint][1](request, body_bytes=body_bytes, reader=reader)
