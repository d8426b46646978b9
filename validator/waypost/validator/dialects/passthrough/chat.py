"""Chat completions, as OpenAI, Azure, Groq, Mistral, vLLM, Ollama and others speak them."""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from waypost.shared.requests.apis import Request
from waypost.validator.dialects.passthrough.body_fields import (
    ABSENT,
    breaking_off,
    decode_fields,
    encode,
    is_openai_error,
    is_present,
    size,
)
from waypost.validator.dialects.sse import EventReader, is_end_mark, require_object
from waypost.validator.dialects.usage import (
    NOTHING,
    Told,
    UsageReport,
    read_completion_parts,
    with_tier,
)
from waypost.validator.http.provider_errors import says_error

__all__ = ["Reader", "bounded", "is_error", "order_usage", "reader", "report", "shows_usage"]

MAX_TOKENS_FIELDS = ("max_tokens", "max_completion_tokens")

is_error = is_openai_error


class _Answer(Struct):
    choices: list[Told]
    usage: Raw = ABSENT
    x_groq: Told | None = None
    service_tier: Raw = ABSENT
    error: Raw = ABSENT


class _Delta(Struct):
    """What a model has written; every field that a provider bills by the token."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: Raw = ABSENT
    function_call: Raw = ABSENT
    audio: Raw = ABSENT

    def size(self) -> int:
        texts = (self.content, self.reasoning_content, self.reasoning, self.refusal)
        raws = (self.tool_calls, self.function_call, self.audio)
        return sum(size(text) for text in texts) + sum(
            len(bytes(raw)) for raw in raws if is_present(raw)
        )


class _Choice(Struct):
    delta: _Delta | None = None
    text: str | None = None
    index: int | None = None
    finish_reason: str | None = None
    usage: Raw = ABSENT


class _Chunk(Struct):
    choices: list[_Choice] = []
    usage: Raw = ABSENT
    x_groq: Told | None = None
    service_tier: Raw = ABSENT
    error: Raw = ABSENT


_decode_options = msgspec.json.Decoder(dict[str, Any] | None).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_chunk = msgspec.json.Decoder(_Chunk).decode


def bounded(
    body: bytes, *, model: str, output_tokens: int, streamed: bool, max_tokens_field: str
) -> bytes:
    """See ``Api``."""
    fields: dict[str, Any] = decode_fields(body)
    for field in MAX_TOKENS_FIELDS:
        fields.pop(field, None)
    fields["model"] = model
    fields[max_tokens_field] = output_tokens
    if streamed:
        order_usage(fields)
    return encode(fields)


def order_usage(fields: dict[str, Any]) -> None:
    """Have a stream tell its usage at the end, whatever else was ordered."""
    options = fields.get("stream_options")
    known = _decode_options(options) if options is not None else None
    fields["stream_options"] = {**(known or {}), "include_usage": True}


def report(body: bytes) -> UsageReport:
    """See ``Api``."""
    answer = _decode_answer(body)
    if not answer.choices and is_present(answer.error):
        raise ValueError("an error in the words of an answer")
    report = read_completion_parts(answer.usage, answer.choices, answer.x_groq)
    return with_tier(report, answer.service_tier)


def shows_usage(request: Request) -> bool:
    """Whether the caller ordered the chunk that tells the usage."""
    options = getattr(request, "stream_options", None)
    return options is not None and options.include_usage is True


def reader(request: Request) -> "Reader":
    """See ``Api``."""
    return Reader(shows_usage=shows_usage(request), choices=_choices(request))


def _choices(request: Request) -> int:
    """Return how many answers were asked for: several for each of several prompts."""
    inbound: Any = request
    prompts: list[object] | str = getattr(inbound, "prompt", "")
    several = isinstance(prompts, list) and not isinstance(prompts[0], int)
    count: int = getattr(inbound, "n", None) or 1
    return count * len(prompts) if several else count


class Reader(EventReader):
    """Reads chunks of chat completions and, since they look alike, of completions.

    A ``finish_reason`` ends an answer, whether or not ``[DONE]`` follows: Perplexity, Cerebras and
    GPUStack send none (llmgateway#1901, GoModel#1017, 2026).
    """

    __slots__ = ("_begun", "_choices", "_finished", "_has_mark", "_shows_usage")

    breaking_off = staticmethod(breaking_off)

    def __init__(self, *, shows_usage: bool, choices: int = 1) -> None:
        super().__init__()
        self._shows_usage = shows_usage
        self._choices = choices
        self._begun: set[int] = set()
        self._finished: set[int] = set()
        self._has_mark = False

    def _see(self, payload: bytes) -> bool:
        if is_end_mark(payload):
            self.is_done = self.is_over = self._has_mark = True
            return True
        try:
            chunk = _decode_chunk(payload)
        except ValueError:
            self._see_unknown(payload)
            return True
        if is_present(chunk.error):
            self.has_failed = True
        for choice in chunk.choices:
            self._see_choice(choice)
        told = read_completion_parts(chunk.usage, chunk.choices, chunk.x_groq)
        if told is NOTHING:
            if not chunk.choices and says_error(require_object(payload)):
                self.has_failed = True
            return True
        self.tell(with_tier(told, chunk.service_tier), is_last=self.has_failed)
        return self._shows_usage or bool(chunk.choices)

    def _see_choice(self, choice: _Choice) -> None:
        if choice.delta is not None:
            self.output_bytes += choice.delta.size()
        self.output_bytes += size(choice.text)
        if self.output_bytes:
            self.has_begun = True
        if self._choices > 1:
            self._begun.add(choice.index or 0)
        if choice.finish_reason:
            self.has_begun = True
            self._finished.add(choice.index or 0)
            self.is_done = len(self._finished) >= self._choices

    def _see_end(self) -> None:
        # Some give fewer answers than were asked for.
        if self._finished and self._begun <= self._finished:
            self.is_done = True

    def _closing(self) -> bytes:
        is_owed = self.is_done and not self.has_failed and not self._has_mark
        return b"data: [DONE]\n\n" if is_owed else b""
