"""The APIs a request may come by: where each is asked, and what is read of its bodies.

Pure, and the same in client and validator. As in ``measure``, fields that no decision looks at
are never parsed, and what cannot be bounded is refused: a body that refers to something the
provider keeps has no length that bounds its price, and nobody here could look for regulated
data in it.
"""

from collections.abc import Callable
from typing import Annotated, Any, Protocol, cast

import msgspec
from msgspec import Meta, Raw, Struct

from waypost.shared.contracts import Measured
from waypost.shared.decision.demands import ABSENT, Demanding
from waypost.shared.decision.reading import TextReader
from waypost.shared.errors import InvalidRequestError
from waypost.shared.requests.measure import (
    Count,
    Part,
    RequestSummary,
    decode_body,
    decode_chat,
    measure_chat,
)
from waypost.shared.requests.parts import HISTORY, SizeOf

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
    request: CompletionRequest, *, body: bytes, reader: TextReader, size_of: SizeOf | None
) -> Measured:
    summary = RequestSummary(body, size_of)
    prompts = _add_texts(summary, request.prompt, "prompt")
    return summary.measured(
        "completions",
        body_bytes=len(body),
        reader=reader,
        max_output_tokens=request.max_tokens,
        request=request,
        choices=prompts * max(request.n or 1, request.best_of or 1),
    )


def _measure_embeddings(
    request: EmbeddingRequest, *, body: bytes, reader: TextReader, size_of: SizeOf | None
) -> Measured:
    summary = RequestSummary(body, size_of)
    _add_texts(summary, request.input, "input")
    return summary.measured(
        "embeddings",
        body_bytes=len(body),
        reader=reader,
        max_output_tokens=0,
        request=request,
    )


# ── messages and responses ─────────────────────────────────────────────────────────────────────


class _Source(Struct):
    type: str = ""
    data: str = ""
    media_type: str = ""
    url: str = ""
    content: "str | list[_Block] | None" = None


class _Block(Part):
    """A piece of content in either API, flat enough to hold what matters of each kind."""

    source: _Source | str | None = None
    content: str | list["_Block"] | dict[str, Any] | None = None
    arguments: Raw = ABSENT
    input: Raw = ABSENT
    file_id: str | None = None
    file_url: str | None = None
    file_data: str = ""
    image_url: str | None = None
    detail: str | None = None
    input_audio: Raw = ABSENT


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
    arguments: Raw = ABSENT
    result: Any = None


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
    max_tool_calls: int | None = None
    previous_response_id: str | None = None
    prompt: Any = None


_TEXTS = frozenset(
    {"text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text"}
)
_Path = tuple[str | int, ...]


def _add_content(
    summary: RequestSummary,
    content: str | list[_Block] | dict[str, Any] | None,
    at: str,
    path: _Path,
) -> None:
    """Count in what is said, at ``path`` of the body."""
    if isinstance(content, str):
        summary.add_text(content)
        return
    if not isinstance(content, list):
        return
    for place, block in enumerate(content):
        summary.add_text(block.text)
        if block.cache_control is not ABSENT:
            summary.add_cache_control(block.cache_control)
        if block.type not in _TEXTS:
            _add_block(summary, block, f"{at}[{place}]", (*path, place))


def _add_block(summary: RequestSummary, block: _Block, at: str, path: _Path) -> None:
    summary.text_bytes += len(bytes(block.input)) + len(bytes(block.arguments))
    source = block.source
    match block.type:
        case "image" if isinstance(source, _Source) and source.type == "base64":
            summary.add_picture_data(source.data)
        case "image" if isinstance(source, _Source) and source.type == "url":
            summary.add_picture(source.url, "image", at)
        case "input_image" | "computer_screenshot" if block.image_url and not block.file_id:
            summary.add_picture(block.image_url, block.type, at, detail=block.detail)
        case "document" if isinstance(source, _Source) and source.type in ("text", "content"):
            summary.add_text(source.data)
            # Which may be blocks, each counted by itself.
            _add_content(
                summary, source.content, f"{at}.source.content", (*path, "source", "content")
            )
        case "document" if isinstance(source, _Source) and source.type == "base64":
            summary.add_document(source.data, at)
        case "input_file" if block.file_data and not (block.file_id or block.file_url):
            summary.add_file(block.file_data, "input_file", at)
        case "tool_result":
            _add_content(summary, block.content, f"{at}.content", (*path, "content"))
        case _:
            summary.audio |= block.type == "input_audio"
            is_words = block.type in HISTORY and block.type != "tool_addition"
            if is_words and not isinstance(block.content, dict | list):
                return
            summary.add_unknown(block.type, at, *path, is_history=block.type in HISTORY)


def _measure_messages(
    request: MessagesRequest, *, body: bytes, reader: TextReader, size_of: SizeOf | None
) -> Measured:
    summary = RequestSummary(body, size_of)
    summary.messages = len(request.messages)
    if request.system:
        parts = [Part(text=request.system)] if isinstance(request.system, str) else request.system
        for part in parts:
            summary.add_text(part.text)
            summary.add_cache_control(part.cache_control)
    summary.add_cache_control(request.cache_control)
    for place, message in enumerate(request.messages):
        at: _Path = ("messages", place, "content")
        _add_content(summary, message.content, f"messages[{place}].content", at)
        if message.role == "user":
            summary.newest_user = _written_by_user(message.content) or summary.newest_user
    summary.tools = request.tools or []
    summary.wants_json = request.output_config is not None and request.output_config.is_json
    return summary.measured(
        "messages",
        body_bytes=len(body),
        reader=reader,
        max_output_tokens=request.max_tokens,
        request=request,
    )


def _written_by_user(content: str | list[_Block]) -> str | list[Part]:
    """Return what a user wrote. Here a tool's results come in the user's name."""
    if isinstance(content, str):
        return content
    return [block for block in content if block.text]


def _measure_responses(
    request: ResponsesRequest, *, body: bytes, reader: TextReader, size_of: SizeOf | None
) -> Measured:
    _check_stateless(request)
    summary = RequestSummary(body, size_of)
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
            _add_item(summary, item, place)
            if item.role == "user" and item.content is not None:
                summary.newest_user = _written_by_user(item.content)
    summary.tools = request.tools or []
    summary.wants_json = request.text is not None and request.text.is_json
    if request.max_tool_calls is not None and request.max_tool_calls >= 0:
        summary.most_calls = request.max_tool_calls
    return summary.measured(
        "responses",
        body_bytes=len(body),
        reader=reader,
        max_output_tokens=request.max_output_tokens,
        request=request,
    )


_CALLS = frozenset({"custom_tool_call_output", "function_call_output"})


def _add_item(summary: RequestSummary, item: _Item, place: int) -> None:
    """Count in one item of a conversation."""
    summary.text_bytes += len(bytes(item.arguments))
    if item.type == "message" or item.type in _CALLS:
        for name in ("content", "output"):
            _add_content(
                summary, getattr(item, name), f"input[{place}].{name}", ("input", place, name)
            )
    elif item.type == "computer_call_output":
        _add_screenshot(summary, item.output, f"input[{place}].output")
    elif item.type == "image_generation_call" and isinstance(item.result, str):
        summary.add_picture_data(item.result)  # made earlier, and looked at once more
    elif item.type in _PLAIN:
        _add_content(summary, item.content, f"input[{place}].content", ("input", place, "content"))
    else:
        is_history = item.type in HISTORY
        summary.add_unknown(item.type, f"input[{place}]", "input", place, is_history=is_history)


# Of which nothing but text comes back.
_PLAIN = frozenset({"function_call", "custom_tool_call", "reasoning", "local_shell_call"})


def _add_screenshot(summary: RequestSummary, output: object, at: str) -> None:
    fields = cast("dict[str, object]", output) if isinstance(output, dict) else {}
    url = fields.get("image_url")
    if isinstance(url, str) and url.startswith("data:image/") and not fields.get("file_id"):
        summary.add_picture(url, "computer_screenshot", at)
    else:
        summary.add_extra("computer_screenshot", at)


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
    def __call__(
        self,
        request: Any,  # noqa: ANN401 - each its own
        /,
        *,
        body: bytes,
        reader: TextReader,
        size_of: SizeOf | None,
    ) -> Measured: ...


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


def measure(
    endpoint: str,
    request: Request,
    *,
    body: bytes,
    reader: TextReader,
    size_of: SizeOf | None = None,
) -> Measured:
    """Return the measured facts of a request that ``decode`` returned for the same ``endpoint``.

    Args:
        body: the request as JSON.
        reader: of the policy that is to decide.
        size_of: reads pictures' pixels. A client does without: what bounds money is not its call.

    Raises:
        InvalidRequestError: ``stateful_unsupported``: what it asks for is not all in the request.
    """
    return _APIS[endpoint][1](request, body=body, reader=reader, size_of=size_of)
