"""Gemini's dialect: ``generateContent`` of the Gemini API."""

from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from msgspec import Meta, Raw, Struct

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
    Tool,
    ToolCall,
    ToolResult,
    Turn,
    arguments_of,
    untranslatable,
)
from waypost.validator.dialects.usage import UsageReport, read_gemini

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

NATIVE: dict[str, str] = {}
REFUSES: frozenset[str] = frozenset()
VERSION: str | None = None

# Documented for calls in the history that come from another model: Gemini 3 refuses a call
# without the signature that it made, and no other API has a place to keep one.
NO_SIGNATURE = "skip_thought_signature_validator"

MAX_STOPS = 5

_FILTERED = frozenset(
    {
        "BLOCKLIST", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "IMAGE_SAFETY", "LANGUAGE",
        "MODEL_ARMOR", "PROHIBITED_CONTENT", "RECITATION", "SAFETY", "SPII",
    }
)  # fmt: skip


def headers(api_key: str | None) -> dict[str, str]:
    """See ``Dialect``."""
    always = {"content-type": "application/json"}
    return always if api_key is None else {**always, "x-goog-api-key": api_key}


def path(model: str, *, streamed: bool) -> str:
    """See ``ProviderSide``."""
    method = "streamGenerateContent?alt=sse" if streamed else "generateContent"
    return f"/models/{quote(model, safe='/.-_')}:{method}"


# ── a request ──────────────────────────────────────────────────────────────────────────────────


def compose(prompt: Prompt) -> dict[str, object]:
    """See ``ProviderSide``."""
    if not prompt.turns:
        raise untranslatable("turns", "The provider's API wants a message after the instructions.")
    fields: dict[str, object] = {"contents": [_content(turn) for turn in prompt.turns]}
    if prompt.system:
        fields["systemInstruction"] = {"parts": [{"text": text} for text in prompt.system]}
    if prompt.tools:
        if prompt.parallel_tools is False:
            raise untranslatable("parallel_tools", "The provider cannot keep to one call a turn.")
        fields["tools"] = [{"functionDeclarations": [_declared(tool) for tool in prompt.tools]}]
        if prompt.tool_choice is not None:
            fields["toolConfig"] = {"functionCallingConfig": _choice(prompt.tool_choice)}
    if len(prompt.stop) > MAX_STOPS:
        raise untranslatable("stop", f"The provider takes at most {MAX_STOPS} stop sequences.")
    config: dict[str, object] = {
        "temperature": prompt.temperature,
        "topP": prompt.top_p,
        "topK": prompt.top_k,
        "seed": prompt.seed,
        "frequencyPenalty": prompt.frequency_penalty,
        "presencePenalty": prompt.presence_penalty,
        "stopSequences": prompt.stop or None,
    }
    if prompt.json is not None:
        config["responseMimeType"] = "application/json"
        config["responseJsonSchema"] = prompt.json.schema
    fields["generationConfig"] = {
        name: value for name, value in config.items() if value is not None
    }
    return fields


def _content(turn: Turn) -> dict[str, Any]:
    parts = [_part(part) for part in turn.parts]
    return {"role": "user" if turn.role == "user" else "model", "parts": parts}


def _part(part: Text | Image | ToolCall | ToolResult) -> dict[str, Any]:
    match part:
        case Text():
            return {"text": part.text}
        case Image():
            if part.url:
                raise untranslatable("turns", "The provider takes pictures only in the request.")
            return {"inlineData": {"mimeType": part.media_type, "data": part.data}}
        case ToolCall():
            call = {"id": part.id, "name": part.name, "args": arguments_of(part)}
            return {"functionCall": call, "thoughtSignature": NO_SIGNATURE}
        case ToolResult():
            return {"functionResponse": _response(part)}


def _response(result: ToolResult) -> dict[str, Any]:
    if not result.name:
        raise untranslatable("turns", "The provider's API wants each tool's result after its call.")
    texts: list[str] = []
    for part in result.parts:
        if isinstance(part, Image):
            raise untranslatable("turns", "The provider takes no picture as a tool's result.")
        texts.append(part.text)
    # Documented: these two names say which it is.
    response = {"error" if result.is_error else "output": "\n".join(texts)}
    return {"id": result.call_id, "name": result.name, "response": response}


def _declared(tool: Tool) -> dict[str, Any]:
    return {
        "name": tool.name,
        **({"description": tool.description} if tool.description else {}),
        **({} if tool.schema is None else {"parametersJsonSchema": tool.schema}),
    }


def _choice(choice: Choice) -> dict[str, Any]:
    named = {"allowedFunctionNames": [choice.name]} if choice.name else {}
    return {"mode": choice.mode.upper(), **named}


def provider_request(
    fields: dict[str, object],
    *,
    model: str,
    output_tokens: int,
    streamed: bool,
    max_tokens_field: str,
) -> ProviderRequest:
    """See ``ProviderSide``."""
    config: Any = fields["generationConfig"]
    body = {**fields, "generationConfig": {**config, "maxOutputTokens": output_tokens}}
    return ProviderRequest(path(model, streamed=streamed), encode(body))


# ── an answer ──────────────────────────────────────────────────────────────────────────────────


class _Call(Struct):
    name: str
    id: str = ""
    args: Raw = Raw(b"{}")


class _Part(Struct, rename="camel"):
    text: str = ""
    thought: bool = False
    function_call: _Call | None = None


class _Content(Struct):
    parts: list[_Part] = []


class _Candidate(Struct, rename="camel"):
    content: _Content | None = None
    finish_reason: str | None = None


class _Feedback(Struct, rename="camel"):
    block_reason: str | None = None


class _Response(Struct, rename="camel"):
    candidates: list[_Candidate] = []
    prompt_feedback: _Feedback | None = None
    usage_metadata: Raw = ABSENT
    model_version: str = ""
    error: Raw = ABSENT

    @property
    def is_blocked(self) -> bool:
        feedback = self.prompt_feedback
        return feedback is not None and feedback.block_reason is not None


class _Told(Struct, rename="camel"):
    usage_metadata: Raw = ABSENT


class _Error(Struct):
    message: str | None = None
    status: str | None = None


class _Failed(Struct):
    error: _Error


_decode_response = msgspec.json.Decoder(_Response).decode
_decode_told = msgspec.json.Decoder(_Told).decode
# Streamed methods put their error in a list.
_decode_failed = msgspec.json.Decoder(_Failed | Annotated[list[_Failed], Meta(min_length=1)]).decode


def _stop(reason: str, *, calls: bool) -> StopReason:
    """Return why the answer ended.

    Raises:
        ValueError: it is none, as after a call that the model could not spell.
    """
    if reason in _FILTERED:
        return "filter"
    if reason == "MAX_TOKENS":
        return "length"
    if reason == "STOP":
        return "tools" if calls else "end"
    raise ValueError(f"an answer that ended with {reason}")


def answer(body: bytes, *, id: str) -> Answer:
    """See ``ProviderSide``."""
    response = _decode_response(body)
    if not response.candidates and not response.is_blocked:
        raise ValueError("an answer without a candidate")
    parts: list[Text | ToolCall | Reasoning] = []
    stop: StopReason = "filter"
    if response.candidates:
        candidate = response.candidates[0]
        content = candidate.content or _Content()
        calls = 0
        for part in content.parts:
            if part.function_call is not None:
                parts.append(_call(part.function_call, id, calls))
                calls += 1
            elif part.text:
                parts.append(Reasoning(part.text) if part.thought else Text(part.text))
        stop = _stop(candidate.finish_reason or "STOP", calls=calls > 0)
    return Answer(
        model=response.model_version,
        parts=tuple(parts),
        stop=stop,
        usage=read_gemini(response.usage_metadata).usage(),
    )


def _call(call: _Call, id: str, place: int) -> ToolCall:
    return ToolCall(call.id or f"call_{id}_{place}", call.name, bytes(call.args).decode())


def report(body: bytes) -> UsageReport:
    """See ``ProviderSide``."""
    return read_gemini(_decode_told(body).usage_metadata)


def failure(body: bytes) -> Failure | None:
    """See ``ProviderSide``."""
    try:
        failed = _decode_failed(body)
    except ValueError:
        return None
    error = failed.error if isinstance(failed, _Failed) else failed[0].error
    return Failure(error.message or UNSAID, error.status.lower() if error.status else None)


def decoder(*, id: str) -> "_Decoder":
    """See ``ProviderSide``."""
    return _Decoder(id)


class _Decoder:
    def __init__(self, id: str) -> None:
        self.is_over = False
        self._id = id
        self._calls = 0

    def see(self, payload: bytes, sink: Sink) -> None:
        if is_end_mark(payload):
            return  # of another API, as some proxies end every stream
        response = _decode_response(payload)
        if is_present(response.error):
            sink.used(read_gemini(response.usage_metadata), is_last=True)
            sink.fail(failure(payload) or Failure(UNSAID))
            return
        if not response.candidates and not is_present(response.usage_metadata):
            require_no_error(payload)
        sink.begin(response.model_version)
        told = read_gemini(response.usage_metadata)
        if not response.candidates:
            sink.used(told)
        if response.is_blocked:
            sink.finish("filter")
            self.is_over = told.usage() is not None
        for candidate in response.candidates[:1]:
            for part in (candidate.content or _Content()).parts:
                self._see_part(part, sink)
            # It is of the parts as well, and the last word of it even if the end is none.
            sink.used(told, is_last=bool(candidate.finish_reason))
            if candidate.finish_reason:
                sink.finish(_stop(candidate.finish_reason, calls=self._calls > 0))
                # The API has no mark of the end; the usage of the last event is the final one.
                self.is_over = told.usage() is not None

    def _see_part(self, part: _Part, sink: Sink) -> None:
        if part.function_call is not None:
            call = _call(part.function_call, self._id, self._calls)
            sink.tool(self._calls, call.id, call.name)
            sink.arguments(self._calls, call.arguments)
            self._calls += 1
        elif part.text:
            (sink.reasoning if part.thought else sink.text)(part.text)
