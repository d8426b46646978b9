"""Chat completions, the callers' side: what a request says, and how it is answered."""

from typing import Any

import msgspec

from waypost.shared.money import Usage
from waypost.validator.dialects.adapter import InboundRequest
from waypost.validator.dialects.passthrough.body_fields import encode
from waypost.validator.dialects.passthrough.chat import shows_usage
from waypost.validator.dialects.sse import write_event
from waypost.validator.dialects.translation.neutral import (
    Answer,
    Choice,
    Failure,
    Image,
    JsonFormat,
    Prompt,
    Reasoning,
    StopReason,
    Text,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
)
from waypost.validator.dialects.translation.strict import (
    OpenAIBody,
    Strict,
    image_of,
    late_instructions,
    only,
    openai_choice,
    read,
)

__all__ = ["FINISH_REASONS", "PARAMS", "answer", "failure", "prompt", "usage_fields", "writer"]

PARAMS = {"json": "response_format", "parallel_tools": "parallel_tool_calls", "turns": "messages"}

FINISH_REASONS: dict[StopReason, str] = {
    "end": "stop",
    "filter": "content_filter",
    "length": "length",
    "stop_sequence": "stop",
    "tools": "tool_calls",
}

# ── what a request says ────────────────────────────────────────────────────────────────────────


class _TextPart(Strict, tag_field="type", tag="text"):
    text: str


class _ImageUrl(Strict):
    url: str
    detail: str | None = None  # how closely to look: the provider's own way if it has none


class _ImagePart(Strict, tag_field="type", tag="image_url"):
    image_url: _ImageUrl


class _RefusalPart(Strict, tag_field="type", tag="refusal"):
    refusal: str


class _System(Strict, tag_field="role", tag="system"):
    content: str | list[_TextPart]
    name: None = None


class _Developer(Strict, tag_field="role", tag="developer"):
    content: str | list[_TextPart]
    name: None = None


class _User(Strict, tag_field="role", tag="user"):
    content: str | list[_TextPart | _ImagePart]
    name: None = None


class _Function(Strict):
    name: str
    arguments: str


class _Call(Strict):
    id: str
    function: _Function
    type: str = "function"
    index: int | None = None  # as in streams, which some send back as they came


class _Assistant(Strict, tag_field="role", tag="assistant"):
    content: str | list[_TextPart | _RefusalPart] | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None
    name: None = None
    audio: None = None
    function_call: None = None
    # What an answer held besides, sent back as it came: no API asks for that.
    annotations: Any = None
    reasoning: Any = None
    reasoning_content: Any = None


class _ToolMessage(Strict, tag_field="role", tag="tool"):
    content: str | list[_TextPart]
    tool_call_id: str
    name: str | None = None


class _FunctionTool(Strict):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Tool(Strict, tag_field="type", tag="function"):
    function: _FunctionTool


class _Named(Strict):
    name: str


class _NamedTool(Strict, tag_field="type", tag="function"):
    function: _Named


class _Schema(Strict):
    name: str
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class _TextFormat(Strict, tag_field="type", tag="text"):
    pass


class _ObjectFormat(Strict, tag_field="type", tag="json_object"):
    pass


class _SchemaFormat(Strict, tag_field="type", tag="json_schema"):
    json_schema: _Schema


class _Body(OpenAIBody):
    messages: list[_System | _Developer | _User | _Assistant | _ToolMessage]
    tools: list[_Tool] | None = None
    tool_choice: str | _NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: _TextFormat | _ObjectFormat | _SchemaFormat | None = None
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    # Translated elsewhere: by the pipeline.
    max_tokens: Any = None
    max_completion_tokens: Any = None
    # Translatable only where they ask for nothing, see ``_IDLE``.
    logit_bias: dict[str, Any] | None = None
    logprobs: bool | None = None
    modalities: list[str] | None = None
    n: int | None = None
    reasoning_effort: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    top_logprobs: int | None = None
    verbosity: str | None = None


_IDLE: dict[str, tuple[Any, ...]] = {
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "reasoning_effort": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
}

_decode = msgspec.json.Decoder(_Body).decode


def prompt(body: bytes) -> Prompt:
    """See ``CallerSide``."""
    inbound = read(_decode, body)
    only(inbound, _IDLE)
    system: list[str] = []
    turns: list[Turn] = []
    names: dict[str, str] = {}
    for place, message in enumerate(inbound.messages):
        match message:
            case _System() | _Developer():
                if turns:
                    raise late_instructions(f"messages[{place}].role")
                system += _texts(message.content)
            case _User():
                turns.append(Turn("user", _user_parts(message.content)))
            case _Assistant():
                names |= {call.id: call.function.name for call in message.tool_calls or ()}
                turns.append(Turn("assistant", _assistant_parts(message)))
            case _ToolMessage():
                texts = tuple(Text(text) for text in _texts(message.content))
                name = names.get(message.tool_call_id, message.name or "")
                turns.append(Turn("user", (ToolResult(message.tool_call_id, name, texts),)))
    choice = inbound.tool_choice
    return Prompt(
        turns=tuple(turns),
        system=tuple(system),
        tools=tuple(
            Tool(
                tool.function.name,
                tool.function.description or "",
                tool.function.parameters,
                tool.function.strict,
            )
            for tool in inbound.tools or ()
        ),
        tool_choice=Choice("any", choice.function.name)
        if isinstance(choice, _NamedTool)
        else openai_choice(choice),
        parallel_tools=inbound.parallel_tool_calls,
        json=_json(inbound.response_format),
        stop=(inbound.stop,) if isinstance(inbound.stop, str) else tuple(inbound.stop or ()),
        temperature=inbound.temperature,
        top_p=inbound.top_p,
        seed=inbound.seed,
        frequency_penalty=inbound.frequency_penalty,
        presence_penalty=inbound.presence_penalty,
    )


def _texts(content: str | list[_TextPart]) -> list[str]:
    return [content] if isinstance(content, str) else [part.text for part in content]


def _user_parts(content: str | list[_TextPart | _ImagePart]) -> tuple[Text | Image, ...]:
    if isinstance(content, str):
        return (Text(content),)
    return tuple(
        Text(part.text) if isinstance(part, _TextPart) else image_of(part.image_url.url)
        for part in content
    )


def _assistant_parts(message: _Assistant) -> tuple[Text | ToolCall, ...]:
    content = message.content
    texts = [content] if isinstance(content, str) else []
    if isinstance(content, list):
        texts = [part.text if isinstance(part, _TextPart) else part.refusal for part in content]
    if message.refusal:
        texts.append(message.refusal)
    calls = message.tool_calls or ()
    return (
        *(Text(text) for text in texts if text),
        *(ToolCall(call.id, call.function.name, call.function.arguments) for call in calls),
    )


def _json(wanted: _TextFormat | _ObjectFormat | _SchemaFormat | None) -> JsonFormat | None:
    match wanted:
        case _ObjectFormat():
            return JsonFormat()
        case _SchemaFormat():
            schema = wanted.json_schema
            return JsonFormat(schema.schema or {}, schema.name, schema.strict)
        case _:
            return None


# ── how it is answered ─────────────────────────────────────────────────────────────────────────


def answer(answer: Answer, inbound: InboundRequest) -> bytes:
    """See ``CallerSide``."""
    text = "".join(part.text for part in answer.parts if isinstance(part, Text))
    thoughts = "".join(part.text for part in answer.parts if isinstance(part, Reasoning))
    calls = [part for part in answer.parts if isinstance(part, ToolCall)]
    message: dict[str, Any] = {"role": "assistant", "content": text or None, "refusal": None}
    if thoughts:
        message["reasoning_content"] = thoughts
    if calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": FINISH_REASONS[answer.stop],
    }
    return encode(
        {
            "id": f"chatcmpl-{inbound.id}",
            "object": "chat.completion",
            "created": inbound.now,
            "model": answer.model,
            "choices": [choice],
            **({} if answer.usage is None else {"usage": usage_fields(answer.usage)}),
        }
    )


def usage_fields(usage: Usage) -> dict[str, Any]:
    """Return OpenAI's usage."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "image_tokens": usage.image_input_tokens,
            "audio_tokens": usage.audio_input_tokens,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": usage.audio_output_tokens,
        },
    }


def failure(failure: Failure, inbound: InboundRequest) -> bytes:
    """See ``CallerSide``."""
    return encode({"error": {"type": "invalid_request_error", **failure.fields()}})


def writer(inbound: InboundRequest) -> "_Writer":
    """See ``CallerSide``."""
    return _Writer(inbound)


class _Writer:
    def __init__(self, inbound: InboundRequest) -> None:
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{inbound.id}",
            "object": "chat.completion.chunk",
            "created": inbound.now,
            "model": "",
        }
        self._shows_usage = shows_usage(inbound.request)
        self._places: dict[int, int] = {}

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return write_event({**self._head, "choices": [choice]})

    def begin(self, model: str) -> bytes:
        self._head["model"] = model
        return self._chunk({"role": "assistant", "content": ""})

    def text(self, text: str) -> bytes:
        return self._chunk({"content": text})

    def reasoning(self, text: str) -> bytes:
        return self._chunk({"reasoning_content": text})

    def tool(self, slot: int, id: str, name: str) -> bytes:
        place = self._places[slot] = len(self._places)
        function = {"name": name, "arguments": ""}
        call = {"index": place, "id": id, "type": "function", "function": function}
        return self._chunk({"tool_calls": [call]})

    def arguments(self, slot: int, text: str) -> bytes:
        call = {"index": self._places[slot], "function": {"arguments": text}}
        return self._chunk({"tool_calls": [call]})

    def finish(self, stop: StopReason, stop_sequence: str | None, usage: Usage | None) -> bytes:
        last = self._chunk({}, FINISH_REASONS[stop])
        if self._shows_usage and usage is not None:
            last += write_event({**self._head, "choices": [], "usage": usage_fields(usage)})
        return last + b"data: [DONE]\n\n"

    def fail(self, failure: Failure) -> bytes:
        return write_event({"error": {"type": "server_error", **failure.fields()}})
