"""Responses, the callers' side: what a request says, and how it is answered."""

from typing import Any

import msgspec

from waypost.shared.money import Usage
from waypost.validator.dialects.adapter import InboundRequest
from waypost.validator.dialects.passthrough.body_fields import encode
from waypost.validator.dialects.passthrough.responses import broken_off
from waypost.validator.dialects.sse import write_event
from waypost.validator.dialects.translation.chat import failure
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
    untranslatable,
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

__all__ = ["PARAMS", "answer", "failure", "prompt", "writer"]

PARAMS = {"json": "text.format", "parallel_tools": "parallel_tool_calls", "turns": "input"}

# ── what a request says ────────────────────────────────────────────────────────────────────────


class _InputText(Strict, tag_field="type", tag="input_text"):
    text: str


class _OutputText(Strict, tag_field="type", tag="output_text"):
    text: str
    annotations: Any = None  # as an answer had them, sent back
    logprobs: Any = None


class _Refusal(Strict, tag_field="type", tag="refusal"):
    refusal: str


class _InputImage(Strict, tag_field="type", tag="input_image"):
    image_url: str
    detail: str | None = None
    file_id: None = None


_Part = _InputText | _OutputText | _Refusal | _InputImage


class _Item(Strict):
    """Any item that can be translated: a message may leave out its type."""

    type: str = "message"
    role: str = ""
    content: str | list[_Part] | None = None
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: str | list[_Part] | None = None
    # As an answer had them, sent back.
    id: Any = None
    status: Any = None
    phase: Any = None


class _Tool(Strict, tag_field="type", tag="function"):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _NamedTool(Strict, tag_field="type", tag="function"):
    name: str


class _TextFormat(Strict, tag_field="type", tag="text"):
    pass


class _ObjectFormat(Strict, tag_field="type", tag="json_object"):
    pass


class _SchemaFormat(Strict, tag_field="type", tag="json_schema"):
    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class _TextConfig(Strict):
    format: _TextFormat | _ObjectFormat | _SchemaFormat | None = None
    verbosity: str | None = None


class _Body(OpenAIBody):
    input: str | list[_Item]
    instructions: str | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | _NamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: _TextConfig | None = None
    temperature: float | None = None
    top_p: float | None = None
    # Translated elsewhere: by the pipeline.
    max_output_tokens: Any = None
    # Nothing is kept here, whatever this says.
    store: Any = None
    # Translatable only where they ask for nothing, see ``_IDLE``.
    background: bool | None = None
    conversation: Any = None
    include: list[str] | None = None
    max_tool_calls: int | None = None
    previous_response_id: str | None = None
    prompt: Any = None
    reasoning: dict[str, Any] | None = None
    service_tier: str | None = None
    top_logprobs: int | None = None
    truncation: str | None = None


_IDLE: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "conversation": (),
    # Without reasoning items there is nothing to include of them.
    "include": ([], ["reasoning.encrypted_content"]),
    "max_tool_calls": (),
    "previous_response_id": (),
    "prompt": (),
    "reasoning": ({}, {"effort": None}, {"effort": None, "summary": None}),
    "service_tier": ("auto", "default"),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}

_decode = msgspec.json.Decoder(_Body).decode


def prompt(body: bytes) -> Prompt:
    """See ``CallerSide``."""
    inbound = read(_decode, body)
    only(inbound, _IDLE)
    system = [inbound.instructions] if inbound.instructions else []
    turns: list[Turn] = []
    if isinstance(inbound.input, str):
        turns.append(Turn("user", (Text(inbound.input),)))
    else:
        _read_items(inbound.input, system, turns)
    text = inbound.text or _TextConfig()
    only(text, {"verbosity": ("medium",)})
    choice = inbound.tool_choice
    return Prompt(
        turns=tuple(turns),
        system=tuple(system),
        tools=tuple(
            Tool(tool.name, tool.description or "", tool.parameters, tool.strict)
            for tool in inbound.tools or ()
        ),
        tool_choice=Choice("any", choice.name)
        if isinstance(choice, _NamedTool)
        else openai_choice(choice),
        parallel_tools=inbound.parallel_tool_calls,
        json=_json(text.format),
        temperature=inbound.temperature,
        top_p=inbound.top_p,
    )


def _read_items(items: list[_Item], system: list[str], turns: list[Turn]) -> None:
    names: dict[str, str] = {}
    for place, item in enumerate(items):
        match item.type, item.role:
            case "message", "user":
                turns.append(Turn("user", _parts(item.content)))
            case "message", "assistant":
                turns.append(Turn("assistant", _parts(item.content)))
            case "message", "system" | "developer":
                if turns:
                    raise late_instructions(f"input[{place}].role")
                system += [part.text for part in _parts(item.content) if isinstance(part, Text)]
            case "function_call", _:
                names[item.call_id] = item.name
                call = ToolCall(item.call_id, item.name, item.arguments)
                # Calls of one turn are items of their own here.
                if turns and turns[-1].role == "assistant":
                    call_turn = Turn("assistant", (*turns.pop().parts, call))
                else:
                    call_turn = Turn("assistant", (call,))
                turns.append(call_turn)
            case "function_call_output", _:
                result = ToolResult(item.call_id, names.get(item.call_id, ""), _parts(item.output))
                turns.append(Turn("user", (result,)))
            case _:
                raise untranslatable(
                    f"input[{place}].type", "The provider's API has no words for such an item."
                )


def _parts(content: str | list[_Part] | None) -> tuple[Text | Image, ...]:
    if isinstance(content, str):
        return (Text(content),)
    return tuple(_part(part) for part in content or ())


def _part(part: _Part) -> Text | Image:
    match part:
        case _InputImage():
            return image_of(part.image_url)
        case _Refusal():
            return Text(part.refusal)
        case _:
            return Text(part.text)


def _json(wanted: _TextFormat | _ObjectFormat | _SchemaFormat | None) -> JsonFormat | None:
    match wanted:
        case _ObjectFormat():
            return JsonFormat()
        case _SchemaFormat():
            return JsonFormat(wanted.schema, wanted.name, wanted.strict)
        case _:
            return None


# ── how it is answered ─────────────────────────────────────────────────────────────────────────

_INCOMPLETE: dict[StopReason, str] = {"filter": "content_filter", "length": "max_output_tokens"}


class _Output:
    """An answer's items, complete or still growing."""

    def __init__(self, inbound: InboundRequest) -> None:
        self._inbound = inbound
        self.model = ""
        self.items: list[dict[str, Any]] = []
        try:
            self._echo: dict[str, Any] = _decode_echo(inbound.body)
        except ValueError:
            self._echo = {}

    def add_message(self) -> dict[str, Any]:
        item: dict[str, Any] = {
            "id": f"msg_{self._inbound.id}_{len(self.items)}",
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        self.items.append(item)
        return item

    def add_call(self, id: str, name: str, arguments: str = "") -> dict[str, Any]:
        item = {
            "id": f"fc_{self._inbound.id}_{len(self.items)}",
            "type": "function_call",
            "call_id": id,
            "name": name,
            "arguments": arguments,
            "status": "in_progress",
        }
        self.items.append(item)
        return item

    def response(
        self, status: str, *, stop: StopReason | None = None, usage: Usage | None = None
    ) -> dict[str, Any]:
        """Return the whole as the API has it, with what was asked said again."""
        reason = _INCOMPLETE.get(stop) if stop is not None else None
        echo = self._echo
        return {
            "id": f"resp_{self._inbound.id}",
            "object": "response",
            "created_at": self._inbound.now,
            "status": status,
            "error": None,
            "incomplete_details": None if reason is None else {"reason": reason},
            "instructions": echo.get("instructions"),
            "max_output_tokens": echo.get("max_output_tokens"),
            "metadata": echo.get("metadata") or {},
            "model": self.model,
            "output": self.items,
            "parallel_tool_calls": echo.get("parallel_tool_calls") is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": echo.get("temperature"),
            "text": echo.get("text") or {"format": {"type": "text"}},
            "tool_choice": echo.get("tool_choice") or "auto",
            "tools": echo.get("tools") or [],
            "top_p": echo.get("top_p"),
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
        }


_decode_echo = msgspec.json.Decoder(dict[str, Any]).decode


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def answer(answer: Answer, inbound: InboundRequest) -> bytes:
    """See ``CallerSide``."""
    output = _Output(inbound)
    output.model = answer.model
    status = "incomplete" if answer.stop in _INCOMPLETE else "completed"
    for part in answer.parts:
        if isinstance(part, Text):
            output.add_message()["content"].append(_text(part.text))
        elif isinstance(part, ToolCall):
            output.add_call(part.id, part.name, part.arguments)
    for item in output.items:
        item["status"] = status
    return encode(output.response(status, stop=answer.stop, usage=answer.usage))


def writer(inbound: InboundRequest) -> "_Writer":
    """See ``CallerSide``."""
    return _Writer(inbound)


class _Writer:
    """Items, one after the other; each is said again in full when it is complete."""

    def __init__(self, inbound: InboundRequest) -> None:
        self._output = _Output(inbound)
        self._sequence = -1
        self._slot: int | None = None
        self._written: list[str] = []

    def _event(self, kind: str, **fields: Any) -> bytes:  # noqa: ANN401 - whatever JSON can hold
        self._sequence += 1
        event = {"type": kind, "sequence_number": self._sequence, **fields}
        return write_event(event, name=kind)

    @property
    def _place(self) -> dict[str, Any]:
        items = self._output.items
        return {"item_id": items[-1]["id"], "output_index": len(items) - 1}

    @property
    def _is_writing(self) -> bool:
        items = self._output.items
        return bool(items) and items[-1]["status"] == "in_progress"

    def _added(self) -> bytes:
        items = self._output.items
        return self._event(
            "response.output_item.added", output_index=len(items) - 1, item=items[-1]
        )

    def _complete(self, status: str) -> str:
        """Put all that was written into the item that was being written; return it."""
        item = self._output.items[-1]
        whole = "".join(self._written)
        self._written.clear()
        item["status"] = status
        if item["type"] == "message":
            item["content"] = [_text(whole)]
        else:
            item["arguments"] = whole
        return whole

    def _close(self, status: str = "completed") -> bytes:
        if not self._is_writing:
            return b""
        whole = self._complete(status)
        item = self._output.items[-1]
        if item["type"] == "message":
            part = item["content"][0]
            done = self._event(
                "response.output_text.done",
                **self._place, content_index=0, text=whole, logprobs=[],
            ) + self._event(
                "response.content_part.done", **self._place, content_index=0, part=part
            )  # fmt: skip
        else:
            done = self._event(
                "response.function_call_arguments.done",
                **self._place, name=item["name"], arguments=whole,
            )  # fmt: skip
        place = len(self._output.items) - 1
        return done + self._event("response.output_item.done", output_index=place, item=item)

    def begin(self, model: str) -> bytes:
        self._output.model = model
        response = self._output.response("in_progress")
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def text(self, text: str) -> bytes:
        start = b""
        if not (self._is_writing and self._output.items[-1]["type"] == "message"):
            start = self._close()
            self._output.add_message()
            start += self._added() + self._event(
                "response.content_part.added", **self._place, content_index=0, part=_text("")
            )
        self._written.append(text)
        return start + self._event(
            "response.output_text.delta", **self._place, content_index=0, delta=text, logprobs=[]
        )

    def reasoning(self, text: str) -> bytes:
        return b""  # OpenAI shows none either

    def tool(self, slot: int, id: str, name: str) -> bytes:
        closed = self._close()
        self._output.add_call(id, name)
        self._slot = slot
        return closed + self._added()

    def arguments(self, slot: int, text: str) -> bytes:
        if self._slot != slot or not self._is_writing:
            raise ValueError("a piece of a call that is over")
        self._written.append(text)
        return self._event("response.function_call_arguments.delta", **self._place, delta=text)

    def finish(self, stop: StopReason, stop_sequence: str | None, usage: Usage | None) -> bytes:
        status = "incomplete" if stop in _INCOMPLETE else "completed"
        closed = self._close(status)
        response = self._output.response(status, stop=stop, usage=usage)
        return closed + self._event(f"response.{status}", response=response)

    def fail(self, failure: Failure) -> bytes:
        if self._is_writing:
            self._complete("incomplete")
        sequence, self._sequence = self._sequence + 1, self._sequence + 2
        return broken_off(self._output.response("failed"), failure.fields(), sequence=sequence)
