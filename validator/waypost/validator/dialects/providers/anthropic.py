"""Anthropic's dialect: the Messages API, asked in its first version when we translate."""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from waypost.validator.dialects.adapter import ProviderRequest
from waypost.validator.dialects.passthrough.body_fields import encode
from waypost.validator.dialects.sse import is_end_mark
from waypost.validator.dialects.translation.neutral import (
    UNSAID,
    Answer,
    Choice,
    Failure,
    Image,
    Prompt,
    Reasoning,
    Sink,
    StopReason,
    Text,
    ToolCall,
    ToolResult,
    arguments_of,
    untranslatable,
)
from waypost.validator.dialects.usage import UsageReport, read_anthropic

__all__ = [
    "NATIVE",
    "REFUSES",
    "VERSION",
    "answer",
    "compose",
    "decoder",
    "failure",
    "headers",
    "path",
    "provider_request",
    "report",
]

NATIVE = {"messages": "/messages"}
# Documented: the API has no seed and no penalties, and models since Opus 4.7 take no sampling
# parameters; see ``ProviderConfig.sampling`` for the ones before.
REFUSES = frozenset(
    {"frequency_penalty", "presence_penalty", "seed", "temperature", "top_k", "top_p"}
)
VERSION: str | None = "2023-06-01"

_STOPS: dict[str, StopReason] = {
    "end_turn": "end",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "filter",
    "stop_sequence": "stop_sequence",
    "tool_use": "tools",
}


def headers(api_key: str | None) -> dict[str, str]:
    """See ``Dialect``."""
    always = {"content-type": "application/json"}
    return always if api_key is None else {**always, "x-api-key": api_key}


def path(model: str, *, streamed: bool) -> str:
    """See ``ProviderSide``."""
    return NATIVE["messages"]


# ── a request ──────────────────────────────────────────────────────────────────────────────────


def compose(prompt: Prompt) -> dict[str, object]:
    """See ``ProviderSide``."""
    if not prompt.turns:
        raise untranslatable("turns", "The provider's API wants a message after the instructions.")
    fields: dict[str, object] = {
        "messages": [
            {"role": turn.role, "content": [_block(part) for part in turn.parts if _says(part)]}
            for turn in prompt.turns
        ]
    }
    if prompt.system:
        fields["system"] = [{"type": "text", "text": text} for text in prompt.system if text]
    if prompt.tools:
        fields["tools"] = [
            {
                "name": tool.name,
                **({"description": tool.description} if tool.description else {}),
                "input_schema": tool.schema or {"type": "object"},
                **({} if tool.strict is None else {"strict": tool.strict}),
            }
            for tool in prompt.tools
        ]
        choice = prompt.tool_choice or (Choice("auto") if prompt.parallel_tools is False else None)
        if choice is not None:
            fields["tool_choice"] = _choice(choice, single=prompt.parallel_tools is False)
    if prompt.json is not None:
        if prompt.json.schema is None:
            raise untranslatable("json", "The provider's API writes JSON only by a schema.")
        schema = {"type": "json_schema", "schema": prompt.json.schema}
        fields["output_config"] = {"format": schema}
    if prompt.stop:
        fields["stop_sequences"] = prompt.stop
    for name in ("temperature", "top_p", "top_k"):
        value = getattr(prompt, name)
        if value is not None:
            fields[name] = value
    if (prompt.temperature or 0) > 1:
        raise untranslatable("temperature", "The provider takes a temperature from 0 to 1.")
    return fields


def _says(part: object) -> bool:
    """Whether there is anything in it: the API takes no empty text."""
    return not isinstance(part, Text) or bool(part.text)


def _block(part: Text | Image | ToolCall | ToolResult) -> dict[str, Any]:
    match part:
        case Text():
            return {"type": "text", "text": part.text}
        case Image():
            if part.url:
                return {"type": "image", "source": {"type": "url", "url": part.url}}
            source = {"type": "base64", "media_type": part.media_type, "data": part.data}
            return {"type": "image", "source": source}
        case ToolCall():
            return {
                "type": "tool_use",
                "id": part.id,
                "name": part.name,
                "input": arguments_of(part),
            }
        case ToolResult():
            return {
                "type": "tool_result",
                "tool_use_id": part.call_id,
                "content": [_block(piece) for piece in part.parts if _says(piece)],
                **({"is_error": True} if part.is_error else {}),
            }


def _choice(choice: Choice, *, single: bool) -> dict[str, Any]:
    if choice.mode == "none":
        return {"type": "none"}
    named = {"type": "tool", "name": choice.name} if choice.name else {"type": choice.mode}
    return {**named, "disable_parallel_tool_use": True} if single else named


def provider_request(
    fields: dict[str, object],
    *,
    model: str,
    output_tokens: int,
    streamed: bool,
    max_tokens_field: str,
) -> ProviderRequest:
    """See ``ProviderSide``."""
    body = {"model": model, "max_tokens": output_tokens, **fields}
    if streamed:
        body["stream"] = True
    return ProviderRequest(
        path(model, streamed=streamed), encode(body), f"anthropic-version: {VERSION}\r\n"
    )


# ── an answer ──────────────────────────────────────────────────────────────────────────────────


class _Block(Struct):
    type: str
    text: str = ""
    thinking: str = ""
    id: str = ""
    name: str = ""
    input: Raw = Raw(b"{}")


class _Message(Struct):
    content: list[_Block]
    model: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: Raw = Raw()


class _Delta(Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None


class _Event(Struct):
    type: str
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: Raw = Raw()


class _Details(Struct):
    error_code: str | None = None


class _Error(Struct):
    message: str | None = None
    type: str | None = None
    details: _Details | None = None


class _Failed(Struct, tag="error", tag_field="type"):
    error: _Error


_decode_message = msgspec.json.Decoder(_Message).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_failed = msgspec.json.Decoder(_Failed).decode


def answer(body: bytes, *, id: str) -> Answer:
    """See ``ProviderSide``."""
    message = _decode_message(body)
    parts: list[Text | ToolCall | Reasoning] = []
    for block in message.content:
        match block.type:
            case "text":
                parts.append(Text(block.text))
            case "thinking":
                parts.append(Reasoning(block.thinking))
            case "tool_use":
                parts.append(ToolCall(block.id, block.name, bytes(block.input).decode()))
            case _:
                pass  # thinking that is not shown; whatever else there is, only its tools bring
    return Answer(
        model=message.model,
        parts=tuple(parts),
        stop=_STOPS.get(message.stop_reason or "", "end"),
        stop_sequence=message.stop_sequence,
        usage=read_anthropic(message.usage).usage(),
    )


class _Told(Struct):
    usage: Raw = Raw()


_decode_told = msgspec.json.Decoder(_Told).decode


def report(body: bytes) -> UsageReport:
    """See ``ProviderSide``."""
    return read_anthropic(_decode_told(body).usage)


def failure(body: bytes) -> Failure | None:
    """See ``ProviderSide``."""
    try:
        error = _decode_failed(body).error
    except ValueError:
        return None
    code = None if error.details is None else error.details.error_code
    return Failure(error.message or UNSAID, code or error.type)


def decoder(*, id: str) -> "_Decoder":
    """See ``ProviderSide``."""
    return _Decoder()


class _Decoder:
    def __init__(self) -> None:
        self.is_over = False
        self._stop: StopReason = "end"
        self._stop_sequence: str | None = None

    def see(self, payload: bytes, sink: Sink) -> None:
        if is_end_mark(payload):
            return  # of another API, as some proxies end every stream
        event = _decode_event(payload)
        match event.type:
            case "message_start" if event.message is not None:
                sink.used(read_anthropic(event.message.usage))
                sink.begin(event.message.model)
            case "content_block_start" if event.content_block is not None:
                block = event.content_block
                if block.type == "tool_use":
                    sink.tool(event.index, block.id, block.name)
                elif block.text:
                    sink.text(block.text)
            case "content_block_delta" if event.delta is not None:
                self._see_delta(event.index, event.delta, sink)
            case "message_delta":
                sink.used(read_anthropic(event.usage))
                if event.delta is not None:
                    self._stop = _STOPS.get(event.delta.stop_reason or "", "end")
                    self._stop_sequence = event.delta.stop_sequence
                    if event.delta.stop_reason:
                        sink.finish(self._stop, self._stop_sequence)
            case "message_stop":
                self.is_over = True
                sink.finish(self._stop, self._stop_sequence)
            case "error":
                sink.used(read_anthropic(event.usage), is_last=True)
                sink.fail(failure(payload) or Failure(UNSAID))
            case _:
                pass  # pings and ends of blocks

    def _see_delta(self, place: int, delta: _Delta, sink: Sink) -> None:
        match delta.type:
            case "text_delta":
                sink.text(delta.text)
            case "thinking_delta":
                sink.reasoning(delta.thinking)
            case "input_json_delta" if delta.partial_json:
                sink.arguments(place, delta.partial_json)
            case _:
                pass
