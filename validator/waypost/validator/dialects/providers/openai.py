"""OpenAI's dialect, as OpenAI, Azure v1, Groq, Mistral, vLLM, Ollama and others speak it.

Callers of other APIs are served by chat completions, which all of these have.
"""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from waypost.validator.dialects.adapter import ProviderRequest
from waypost.validator.dialects.passthrough.body_fields import ABSENT, encode, is_present
from waypost.validator.dialects.sse import is_end_mark, require_no_error
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
    Turn,
    untranslatable,
)
from waypost.validator.dialects.usage import (
    Told,
    UsageReport,
    read_completion,
    read_completion_parts,
)

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

NATIVE = {
    "chat.completions": "/chat/completions",
    "completions": "/completions",
    "embeddings": "/embeddings",
    "responses": "/responses",
}
REFUSES: frozenset[str] = frozenset()
VERSION: str | None = None

MAX_STOPS = 4

_STOPS: dict[str, StopReason] = {
    "content_filter": "filter",
    "function_call": "tools",
    "length": "length",
    "stop": "end",
    "tool_calls": "tools",
}


def headers(api_key: str | None) -> dict[str, str]:
    """See ``Dialect``."""
    always = {"content-type": "application/json"}
    return always if api_key is None else {**always, "authorization": f"Bearer {api_key}"}


def path(model: str, *, streamed: bool) -> str:
    """See ``ProviderSide``."""
    return NATIVE["chat.completions"]


# ── a request ──────────────────────────────────────────────────────────────────────────────────


def compose(prompt: Prompt) -> dict[str, object]:
    """See ``ProviderSide``."""
    messages: list[dict[str, Any]] = []
    if prompt.system:
        messages.append({"role": "system", "content": "\n\n".join(prompt.system)})
    for turn in prompt.turns:
        messages += _user(turn) if turn.role == "user" else [_assistant(turn)]
    fields: dict[str, object] = {"messages": messages}
    if prompt.tools:
        fields["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    **({"description": tool.description} if tool.description else {}),
                    **({} if tool.schema is None else {"parameters": tool.schema}),
                    **({} if tool.strict is None else {"strict": tool.strict}),
                },
            }
            for tool in prompt.tools
        ]
        if prompt.parallel_tools is not None:
            fields["parallel_tool_calls"] = prompt.parallel_tools
        if prompt.tool_choice is not None:
            fields["tool_choice"] = _choice(prompt.tool_choice)
    if prompt.json is not None:
        fields["response_format"] = _format(prompt)
    if prompt.top_k is not None:
        raise untranslatable("top_k", "The provider's API has no top_k.")
    if len(prompt.stop) > MAX_STOPS:
        raise untranslatable("stop", f"The provider takes at most {MAX_STOPS} stop sequences.")
    if prompt.stop:
        fields["stop"] = prompt.stop
    for name in ("temperature", "top_p", "seed", "frequency_penalty", "presence_penalty"):
        value = getattr(prompt, name)
        if value is not None:
            fields[name] = value
    return fields


def _user(turn: Turn) -> list[dict[str, Any]]:
    """Return a user's turn; results come first, as the API has them right after the calls."""
    results = [_result(part) for part in turn.parts if isinstance(part, ToolResult)]
    rest = [part for part in turn.parts if isinstance(part, Text | Image)]
    if not rest:
        return results
    if len(rest) == 1 and isinstance(rest[0], Text):
        return [*results, {"role": "user", "content": rest[0].text}]
    return [*results, {"role": "user", "content": [_part(part) for part in rest]}]


def _part(part: Text | Image) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    url = part.url or f"data:{part.media_type};base64,{part.data}"
    return {"type": "image_url", "image_url": {"url": url}}


def _result(result: ToolResult) -> dict[str, Any]:
    texts: list[str] = []
    for part in result.parts:
        if isinstance(part, Image):
            raise untranslatable("turns", "The provider takes no picture as a tool's result.")
        texts.append(part.text)
    text = "\n".join(texts)
    # The API has no mark for a result that is an error.
    content = f"Error: {text}" if result.is_error else text
    return {"role": "tool", "tool_call_id": result.call_id, "content": content}


def _assistant(turn: Turn) -> dict[str, Any]:
    text = "".join(part.text for part in turn.parts if isinstance(part, Text))
    calls = [part for part in turn.parts if isinstance(part, ToolCall)]
    message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else "")}
    if calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]
    return message


def _choice(choice: Choice) -> object:
    if choice.name:
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice.mode == "any" else choice.mode


def _format(prompt: Prompt) -> dict[str, Any]:
    wanted = prompt.json
    if wanted is None or wanted.schema is None:
        return {"type": "json_object"}
    strict = {} if wanted.strict is None else {"strict": wanted.strict}
    schema = {"name": wanted.name, "schema": wanted.schema, **strict}
    return {"type": "json_schema", "json_schema": schema}


def provider_request(
    fields: dict[str, object],
    *,
    model: str,
    output_tokens: int,
    streamed: bool,
    max_tokens_field: str,
) -> ProviderRequest:
    """See ``ProviderSide``."""
    body = {"model": model, **fields, max_tokens_field: output_tokens}
    if streamed:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return ProviderRequest(path(model, streamed=streamed), encode(body))


# ── an answer ──────────────────────────────────────────────────────────────────────────────────


class _Function(Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(Struct):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Message(Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None

    @property
    def thoughts(self) -> str:
        return self.reasoning_content or self.reasoning or ""


class _Choice(Struct):
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None
    usage: Raw = ABSENT


class _Completion(Struct):
    choices: list[_Choice]
    model: str = ""
    usage: Raw = ABSENT
    x_groq: Told | None = None

    def report(self) -> UsageReport:
        return read_completion_parts(self.usage, self.choices, self.x_groq)


class _Chunk(_Completion):
    choices: list[_Choice] = []
    error: Raw = ABSENT


class _Error(Struct):
    message: str | None = None
    code: str | int | None = None
    type: str | None = None
    param: Any = None


class _Failed(Struct):
    error: _Error | str


_decode_completion = msgspec.json.Decoder(_Completion).decode
_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_failed = msgspec.json.Decoder(_Failed).decode


def answer(body: bytes, *, id: str) -> Answer:
    """See ``ProviderSide``."""
    completion = _decode_completion(body)
    if not completion.choices or completion.choices[0].message is None:
        raise ValueError("an answer without a message")
    choice = completion.choices[0]
    message = choice.message or _Message()
    parts: list[Text | ToolCall | Reasoning] = []
    if message.thoughts:
        parts.append(Reasoning(message.thoughts))
    parts += [Text(text) for text in (message.content, message.refusal) if text]
    for place, call in enumerate(message.tool_calls or ()):
        function = call.function or _Function()
        parts.append(
            ToolCall(call.id or f"call_{id}_{place}", function.name or "", function.arguments or "")
        )
    stop = _STOPS.get(choice.finish_reason or "stop", "end")
    return Answer(
        model=completion.model,
        parts=tuple(parts),
        stop="filter" if message.refusal else stop,
        usage=completion.report().usage(),
    )


def report(body: bytes) -> UsageReport:
    """See ``ProviderSide``."""
    return read_completion(body)


def failure(body: bytes) -> Failure | None:
    """See ``ProviderSide``."""
    try:
        error = _decode_failed(body).error
    except ValueError:
        return None
    if isinstance(error, str):
        return Failure(error)
    code = error.code or error.type
    param = error.param if isinstance(error.param, str) else None
    return Failure(error.message or UNSAID, None if code is None else str(code), param)


def decoder(*, id: str) -> "_Decoder":
    """See ``ProviderSide``."""
    return _Decoder(id)


class _Decoder:
    def __init__(self, id: str) -> None:
        self.is_over = False
        self._id = id
        self._stop: StopReason = "end"
        self._slots: set[int] = set()

    def see(self, payload: bytes, sink: Sink) -> None:
        if is_end_mark(payload):
            self.is_over = True
            sink.finish(self._stop)
            return
        chunk = _decode_chunk(payload)
        if is_present(chunk.error):
            sink.used(chunk.report(), is_last=True)
            sink.fail(failure(payload) or Failure(UNSAID))
            return
        if not chunk.choices and not is_present(chunk.usage) and chunk.x_groq is None:
            require_no_error(payload)
        sink.begin(chunk.model)
        for choice in chunk.choices:
            if choice.delta is not None:
                self._see_delta(choice.delta, sink)
            if choice.finish_reason:
                if self._stop != "filter":
                    self._stop = _STOPS.get(choice.finish_reason, "end")
                sink.finish(self._stop)
        sink.used(chunk.report())

    def _see_delta(self, delta: _Message, sink: Sink) -> None:
        if delta.thoughts:
            sink.reasoning(delta.thoughts)
        if delta.content:
            sink.text(delta.content)
        if delta.refusal:
            self._stop = "filter"
            sink.text(delta.refusal)
        for call in delta.tool_calls or ():
            function = call.function or _Function()
            if call.index not in self._slots:
                self._slots.add(call.index)
                id = call.id or f"call_{self._id}_{call.index}"
                sink.tool(call.index, id, function.name or "")
            if function.arguments:
                sink.arguments(call.index, function.arguments)
