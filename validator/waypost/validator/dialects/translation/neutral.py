"""What a conversation says, in no API's words: the middle through which each speaks to each.

Each API has two sides, a caller's (``translation/``) and a provider's (``providers/``), and each
side knows this form alone. So N and M of them need N + M translators, not N × M. What this form
cannot hold cannot be translated: whoever meets it raises ``UntranslatableError``.
"""

from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct

from waypost.shared.money import Usage
from waypost.validator.dialects.adapter import UntranslatableError
from waypost.validator.dialects.usage import UsageReport

__all__ = [
    "UNSAID",
    "Answer",
    "Choice",
    "Failure",
    "Image",
    "JsonFormat",
    "Prompt",
    "Reasoning",
    "Sink",
    "StopReason",
    "Text",
    "Tool",
    "ToolCall",
    "ToolResult",
    "Turn",
    "Writer",
    "arguments_of",
    "object_of",
    "untranslatable",
]

# Why an answer ended: by itself, at the bound, at a stop sequence, to have tools called, or
# because a filter or the model itself refused to go on.
StopReason = Literal["end", "length", "stop_sequence", "tools", "filter"]


class Text(Struct, frozen=True, tag=True):
    """Something written."""

    text: str


class Image(Struct, frozen=True, tag=True):
    """A picture: in base64, or where it is to be had."""

    media_type: str = ""
    data: str = ""
    url: str = ""


class ToolCall(Struct, frozen=True, tag=True):
    """A call that the model wants made. ``arguments`` is a JSON object, as text."""

    id: str
    name: str
    arguments: str


class ToolResult(Struct, frozen=True, tag=True):
    """What a call came to. ``name`` is the tool's, as the call had it."""

    call_id: str
    name: str
    parts: tuple[Text | Image, ...]
    is_error: bool = False


class Reasoning(Struct, frozen=True, tag=True):
    """What a model thought aloud before it answered."""

    text: str


class Turn(Struct, frozen=True):
    """What one side said before it was the other's turn."""

    role: Literal["user", "assistant"]
    parts: tuple[Text | Image | ToolCall | ToolResult, ...]


class Tool(Struct, frozen=True):
    """A function that the model may ask for. ``schema`` is its arguments' JSON schema."""

    name: str
    description: str = ""
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class Choice(Struct, frozen=True):
    """Whether tools must be called: as the model likes, at least one, none, or the one named."""

    mode: Literal["auto", "any", "none"]
    name: str = ""


class JsonFormat(Struct, frozen=True):
    """The answer is to be JSON, and of this schema if there is one."""

    schema: dict[str, Any] | None = None
    name: str = "answer"
    strict: bool | None = None


class Prompt(Struct, frozen=True, kw_only=True):
    """A request. The bound of the answer is not in it: the ledger has the last word on that.

    Attributes:
        parallel_tools: ``False``: one call at a time; ``None``: nobody said.
    """

    turns: tuple[Turn, ...]
    system: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: Choice | None = None
    parallel_tools: bool | None = None
    json: JsonFormat | None = None
    stop: tuple[str, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None


class Answer(Struct, frozen=True, kw_only=True):
    """An unstreamed answer."""

    model: str
    parts: tuple[Text | ToolCall | Reasoning, ...]
    stop: StopReason
    stop_sequence: str | None = None
    usage: Usage | None = None


# Where a provider's error has no message: every API wants one.
UNSAID = "The provider gave up and did not say why."


class Failure(Struct, frozen=True):
    """What a provider says is wrong. What it leaves out is ``None``, and nothing is put there."""

    message: str
    code: str | None = None
    param: str | None = None

    def fields(self) -> dict[str, str | None]:
        """Return it in the words of OpenAI's errors, which have each field or null."""
        return {"message": self.message, "code": self.code, "param": self.param}


class Sink(Protocol):
    """Takes a provider's stream, piece by piece, in the order it comes."""

    def begin(self, model: str) -> None:
        """The answer begins; harmless if repeated."""
        ...

    def text(self, text: str) -> None:
        """A piece of what is written."""
        ...

    def reasoning(self, text: str) -> None:
        """A piece of what is thought aloud."""
        ...

    def tool(self, slot: int, id: str, name: str) -> None:
        """A call begins. ``slot`` tells calls of one answer apart."""
        ...

    def arguments(self, slot: int, text: str) -> None:
        """A piece of a call's arguments."""
        ...

    def used(self, report: UsageReport, *, is_last: bool = False) -> None:
        """What was used so far; ``is_last`` where the provider says no more of it."""
        ...

    def finish(self, stop: StopReason, stop_sequence: str | None = None) -> None:
        """The answer is complete, and may be said to be so again; its usage may still follow."""
        ...

    def fail(self, failure: Failure) -> None:
        """The provider gives up."""
        ...


class Writer(Protocol):
    """Writes a stream anew, as the caller's API has it; each returns the events it takes."""

    def begin(self, model: str) -> bytes: ...
    def text(self, text: str) -> bytes: ...
    def reasoning(self, text: str) -> bytes: ...
    def tool(self, slot: int, id: str, name: str) -> bytes: ...
    def arguments(self, slot: int, text: str) -> bytes: ...
    def finish(self, stop: StopReason, stop_sequence: str | None, usage: Usage | None) -> bytes: ...
    def fail(self, failure: Failure) -> bytes: ...


_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


def object_of(arguments: str) -> dict[str, Any]:
    """Return a call's arguments as an object; raises ValueError if they are none."""
    return _decode_object(arguments or "{}")


def arguments_of(call: ToolCall) -> dict[str, Any]:
    """Return the arguments of a call that is sent to a provider.

    Raises:
        UntranslatableError: they are no JSON object.
    """
    try:
        return object_of(call.arguments)
    except ValueError:
        raise untranslatable(
            "tool_calls", "The arguments of a tool call are no JSON object."
        ) from None


def untranslatable(param: str, message: str) -> UntranslatableError:
    """Return the error that says what there are no words for."""
    return UntranslatableError(message, param=param)
