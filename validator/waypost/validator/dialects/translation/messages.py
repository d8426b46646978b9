"""Messages, the callers' side: what a request says, and how it is answered."""

from typing import Any

import msgspec

from waypost.shared.money import Usage
from waypost.validator.dialects.adapter import InboundRequest
from waypost.validator.dialects.passthrough.body_fields import encode
from waypost.validator.dialects.sse import write_event
from waypost.validator.dialects.translation.neutral import (
    Answer,
    Choice,
    Failure,
    Image,
    JsonFormat,
    Prompt,
    StopReason,
    Text,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
    object_of,
    untranslatable,
)
from waypost.validator.dialects.translation.strict import (
    Body,
    Strict,
    late_instructions,
    only,
    read,
)

__all__ = ["PARAMS", "STOP_REASONS", "answer", "failure", "prompt", "writer"]

PARAMS = {
    "json": "output_config",
    "parallel_tools": "tool_choice.disable_parallel_tool_use",
    "stop": "stop_sequences",
    "turns": "messages",
}

STOP_REASONS: dict[StopReason, str] = {
    "end": "end_turn",
    "filter": "refusal",
    "length": "max_tokens",
    "stop_sequence": "stop_sequence",
    "tools": "tool_use",
}

# ── what a request says ────────────────────────────────────────────────────────────────────────


# ``cache_control`` says where to cache, without bearing on the answer.


class _Text(Strict, tag_field="type", tag="text"):
    text: str
    citations: Any = None  # as an answer had them, sent back
    cache_control: Any = None


class _Base64(Strict, tag_field="type", tag="base64"):
    media_type: str
    data: str


class _Url(Strict, tag_field="type", tag="url"):
    url: str


class _Image(Strict, tag_field="type", tag="image"):
    source: _Base64 | _Url
    cache_control: Any = None


class _ToolUse(Strict, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]
    caller: Any = None
    toolset_name: None = None
    cache_control: Any = None


class _ToolResult(Strict, tag_field="type", tag="tool_result"):
    tool_use_id: str
    content: str | list[_Text | _Image] | None = None
    is_error: bool | None = None
    toolset_name: None = None
    cache_control: Any = None


class _User(Strict, tag_field="role", tag="user"):
    content: str | list[_Text | _Image | _ToolResult]


class _Assistant(Strict, tag_field="role", tag="assistant"):
    content: str | list[_Text | _ToolUse]


class _System(Strict, tag_field="role", tag="system"):
    content: str | list[_Text]


class _Tool(Strict):
    name: str
    input_schema: dict[str, Any]
    type: str | None = None
    description: str | None = None
    strict: bool | None = None
    eager_input_streaming: Any = None  # how finely to cut the stream
    cache_control: Any = None


class _Choice(Strict):
    type: str
    name: str = ""
    disable_parallel_tool_use: bool | None = None


class _Format(Strict, tag_field="type", tag="json_schema"):
    schema: dict[str, Any]


class _Output(Strict):
    format: _Format | None = None
    effort: None = None


class _Thinking(Strict, tag_field="type", tag="disabled"):
    pass


class _Body(Body):
    messages: list[_User | _Assistant | _System]
    system: str | list[_Text] | None = None
    tools: list[_Tool] | None = None
    tool_choice: _Choice | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    output_config: _Output | None = None
    thinking: _Thinking | None = None
    # Translated elsewhere: by the pipeline.
    max_tokens: Any = None
    # Without bearing on the answer.
    service_tier: str | None = None
    cache_control: Any = None


_decode = msgspec.json.Decoder(_Body).decode


def prompt(body: bytes) -> Prompt:
    """See ``CallerSide``."""
    inbound = read(_decode, body)
    only(inbound, {"service_tier": ("auto", "standard_only")})
    system = _texts(inbound.system) if inbound.system else []
    turns: list[Turn] = []
    names: dict[str, str] = {}
    for place, message in enumerate(inbound.messages):
        match message:
            case _System():
                if turns:
                    raise late_instructions(f"messages[{place}].role")
                system += _texts(message.content)
            case _User():
                parts = tuple(_user_part(block, names) for block in _blocks(message.content))
                turns.append(Turn("user", parts))
            case _Assistant():
                blocks = _blocks(message.content)
                names |= {block.id: block.name for block in blocks if isinstance(block, _ToolUse)}
                turns.append(Turn("assistant", tuple(_assistant_part(block) for block in blocks)))
    tools = inbound.tools or ()
    for place, tool in enumerate(tools):
        if tool.type not in (None, "custom"):
            raise untranslatable(
                f"tools[{place}].type", "The provider's API has no such tool of its own."
            )
    choice = inbound.tool_choice
    single = choice is not None and choice.disable_parallel_tool_use is True
    output = inbound.output_config
    return Prompt(
        turns=tuple(turns),
        system=tuple(system),
        tools=tuple(
            Tool(tool.name, tool.description or "", tool.input_schema, tool.strict)
            for tool in tools
        ),
        tool_choice=None if choice is None else _choice(choice),
        parallel_tools=False if single else None,
        json=None if output is None or output.format is None else JsonFormat(output.format.schema),
        stop=tuple(inbound.stop_sequences or ()),
        temperature=inbound.temperature,
        top_p=inbound.top_p,
        top_k=inbound.top_k,
    )


def _texts(content: str | list[_Text]) -> list[str]:
    return [content] if isinstance(content, str) else [block.text for block in content]


def _blocks(content: Any) -> list[Any]:  # noqa: ANN401 - of either role
    return [_Text(content)] if isinstance(content, str) else content


def _user_part(
    block: _Text | _Image | _ToolResult, names: dict[str, str]
) -> Text | Image | ToolResult:
    if isinstance(block, _ToolResult):
        parts = tuple(_text_or_image(part) for part in _blocks(block.content or ""))
        name = names.get(block.tool_use_id, "")
        return ToolResult(block.tool_use_id, name, parts, block.is_error is True)
    return _text_or_image(block)


def _text_or_image(block: _Text | _Image) -> Text | Image:
    if isinstance(block, _Text):
        return Text(block.text)
    source = block.source
    if isinstance(source, _Url):
        return Image(url=source.url)
    return Image(media_type=source.media_type, data=source.data)


def _assistant_part(block: _Text | _ToolUse) -> Text | ToolCall:
    if isinstance(block, _Text):
        return Text(block.text)
    return ToolCall(block.id, block.name, encode(block.input).decode())


def _choice(choice: _Choice) -> Choice:
    match choice.type:
        case "auto" | "any" | "none":
            return Choice(choice.type)
        case "tool":
            return Choice("any", choice.name)
        case _:
            raise untranslatable("tool_choice", "There is no such tool_choice.")


# ── how it is answered ─────────────────────────────────────────────────────────────────────────


def answer(answer: Answer, inbound: InboundRequest) -> bytes:
    """See ``CallerSide``.

    What a model thought aloud stays out: a block of thinking holds a signature that only
    Anthropic can make, and would be refused when it is sent back.
    """
    content: list[dict[str, Any]] = []
    for part in answer.parts:
        if isinstance(part, Text):
            content.append({"type": "text", "text": part.text})
        elif isinstance(part, ToolCall):
            content.append(
                {
                    "type": "tool_use",
                    "id": part.id,
                    "name": part.name,
                    "input": object_of(part.arguments),
                }
            )
    message = _message(inbound, answer.model, content)
    message["stop_reason"] = STOP_REASONS[answer.stop]
    message["stop_sequence"] = answer.stop_sequence
    message["usage"] = _usage(answer.usage)
    return encode(message)


def _message(inbound: InboundRequest, model: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"msg_{inbound.id}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(None),
    }


def _usage(usage: Usage | None) -> dict[str, Any]:
    if usage is None:
        return {"input_tokens": 0, "output_tokens": 0}
    # Here what was cached comes on top.
    plain = usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens
    return {
        "input_tokens": max(0, plain),
        "output_tokens": usage.output_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def failure(failure: Failure, inbound: InboundRequest) -> bytes:
    """See ``CallerSide``."""
    error = _error("invalid_request_error", failure)
    return encode({"type": "error", "error": error, "request_id": inbound.id})


def _error(kind: str, failure: Failure) -> dict[str, Any]:
    told = {"error_code": failure.code, "param": failure.param}
    details = {name: value for name, value in told.items() if value is not None}
    error: dict[str, Any] = {"type": kind, "message": failure.message}
    return {**error, "details": details} if details else error


def writer(inbound: InboundRequest) -> "_Writer":
    """See ``CallerSide``."""
    return _Writer(inbound)


class _Writer:
    """Blocks, one after the other: each is opened, filled, and closed before the next."""

    def __init__(self, inbound: InboundRequest) -> None:
        self._inbound = inbound
        self._place = -1
        self._open: int | str | None = None

    def _event(self, kind: str, **fields: Any) -> bytes:  # noqa: ANN401 - whatever JSON can hold
        return write_event({"type": kind, **fields}, name=kind)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return self._event("content_block_stop", index=self._place)

    def _start(self, slot: int | str, block: dict[str, Any]) -> bytes:
        closed = self._close()
        self._place += 1
        self._open = slot
        return closed + self._event("content_block_start", index=self._place, content_block=block)

    def _delta(self, **delta: str) -> bytes:
        return self._event("content_block_delta", index=self._place, delta=delta)

    def begin(self, model: str) -> bytes:
        return self._event("message_start", message=_message(self._inbound, model, []))

    def text(self, text: str) -> bytes:
        start = b"" if self._open == "text" else self._start("text", {"type": "text", "text": ""})
        return start + self._delta(type="text_delta", text=text)

    def reasoning(self, text: str) -> bytes:
        return b""  # as in ``answer``

    def tool(self, slot: int, id: str, name: str) -> bytes:
        return self._start(slot, {"type": "tool_use", "id": id, "name": name, "input": {}})

    def arguments(self, slot: int, text: str) -> bytes:
        if self._open != slot:
            raise ValueError("a piece of a call that is over")
        return self._delta(type="input_json_delta", partial_json=text)

    def finish(self, stop: StopReason, stop_sequence: str | None, usage: Usage | None) -> bytes:
        delta = {"stop_reason": STOP_REASONS[stop], "stop_sequence": stop_sequence}
        return (
            self._close()
            + self._event("message_delta", delta=delta, usage=_usage(usage))
            + self._event("message_stop")
        )

    def fail(self, failure: Failure) -> bytes:
        return self._event("error", error=_error("api_error", failure))
