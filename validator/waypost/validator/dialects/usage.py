"""What a provider says that it used: evidence, of which the richest counts.

The rules:

- A count is told or it is not; ``None`` is not 0. A usage without counts is as good as none.
- Counts grow. Of several reports the larger count is taken, field by field, so that neither a
  repeated nor a poorer nor an empty report takes anything back.
- Tokens that the total has beyond its parts were used. If nobody says for what, they count as
  output, which is dearer.
- A part that is larger than its whole was told beside it, and comes on top.

Providers call the same count by many names. The tables list them, with the provider, and where
and when it was seen.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Annotated, Any, Protocol, cast

import msgspec
from msgspec import Meta, Raw, Struct, structs

from waypost.shared.money import Usage

__all__ = [
    "NOTHING",
    "Told",
    "UsageReport",
    "read_anthropic",
    "read_anywhere",
    "read_completion",
    "read_completion_parts",
    "read_gemini",
    "read_openai",
    "with_tier",
]

# The largest count that is believed; what is more is no count (``money.Tokens``).
MAX_TOKENS = 2**40


class UsageReport(Struct, frozen=True):
    """Counts as told so far; ``None`` where nothing was.

    Attributes:
        calls: of tools that the provider ran, by name; ``None`` where it does not count them.
        asks: by which tier or speed it says that it charges, as ``service_tier=priority``.
        beside_input_tokens: input that is told beside ``input_tokens``, as what tools read.
        is_cache_beside: what a cache held or took comes on top of ``input_tokens``.
        is_reasoning_beside: likewise ``reasoning_tokens`` on top of ``output_tokens``.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    beside_input_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    image_input_tokens: int | None = None
    audio_input_tokens: int | None = None
    audio_output_tokens: int | None = None
    reasoning_tokens: int | None = None
    calls: tuple[tuple[str, int], ...] | None = None
    asks: tuple[str, ...] = ()
    is_cache_beside: bool = False
    is_reasoning_beside: bool = False

    def joined(self, other: "UsageReport") -> "UsageReport":
        """Return what both tell together: the larger of each count."""
        if self is NOTHING or self == other:
            return other
        if other is NOTHING:
            return self
        both = zip(structs.astuple(self), structs.astuple(other), strict=True)
        larger: Any = [_larger(*one) for one in both]
        # Of the last that says so: a tier is told when it is known.
        return structs.replace(
            UsageReport(*larger),
            calls=_more(self.calls, other.calls),
            asks=other.asks or self.asks,
        )

    def usage(self, *, has_output: bool = True) -> Usage | None:
        """Return the whole usage; ``None`` as long as a side of it has not been told.

        Args:
            has_output: whether the API writes an answer. Embeddings are none, and there the
                total is the input.
        """
        total, into, out = self.total_tokens, self.input_tokens, self.output_tokens
        if (
            has_output
            and into is not None
            and out is not None
            and not (
                self.cached_tokens
                or self.reasoning_tokens
                or self.cache_write_tokens
                or self.cache_write_1h_tokens
                or self.beside_input_tokens
                or self.image_input_tokens
                or self.audio_input_tokens
                or self.audio_output_tokens
            )
        ):
            # As most are: both sides, and nothing of their parts.
            rest = 0 if total is None else total - into
            return Usage(input_tokens=into, output_tokens=max(out, rest))
        into, out = self.told_input, self._whole_output
        if not has_output:
            out = max(out or 0, self._output_parts)
            if total is not None:
                into = max(into or 0, total - out, self._input_parts)
        elif total is not None and into is None and out is not None:
            into = max(self._input_parts, total - out)
        elif total is not None and out is None and into is not None:
            out = self.told_output
        if into is None or out is None:
            return None
        if has_output and total is not None:
            out = max(out, total - into)
        return Usage(
            input_tokens=into,
            output_tokens=out,
            cached_tokens=self.cached_tokens or 0,
            cache_write_tokens=self._written,
            cache_write_1h_tokens=self.cache_write_1h_tokens or 0,
            image_input_tokens=self.image_input_tokens or 0,
            audio_input_tokens=self.audio_input_tokens or 0,
            audio_output_tokens=self.audio_output_tokens or 0,
            reasoning_tokens=self.reasoning_tokens or 0,
        )

    def at_least(self) -> Usage:
        """Return what it comes to by now, be it half of what will be told."""
        into = self.told_input
        if into is None:
            into = max(self._input_parts, (self.total_tokens or 0) - self.told_output)
        return Usage(
            input_tokens=into,
            output_tokens=self.told_output,
            cached_tokens=self.cached_tokens or 0,
            cache_write_tokens=self._written,
            cache_write_1h_tokens=self.cache_write_1h_tokens or 0,
            image_input_tokens=self.image_input_tokens or 0,
            audio_input_tokens=self.audio_input_tokens or 0,
            audio_output_tokens=self.audio_output_tokens or 0,
            reasoning_tokens=self.reasoning_tokens or 0,
        )

    @property
    def told_input(self) -> int | None:
        """All of the input; ``None`` until it is told, whatever is told of parts of it."""
        if self.input_tokens is None:
            return None
        beside = (self.cached_tokens or 0) + self._written
        largest = max(self.cached_tokens or 0, self._written)
        is_beside = self.is_cache_beside or largest > self.input_tokens
        into = self.input_tokens + (self.beside_input_tokens or 0) + (beside if is_beside else 0)
        return max(into, self.image_input_tokens or 0, self.audio_input_tokens or 0)

    @property
    def told_output(self) -> int:
        """As much output as is told by now, in whatever words."""
        into = self.told_input
        rest = 0 if self.total_tokens is None or into is None else self.total_tokens - into
        return max(self._whole_output or 0, self._output_parts, rest)

    @property
    def _whole_output(self) -> int | None:
        if self.output_tokens is None:
            return None
        reasoning = self.reasoning_tokens or 0
        is_beside = self.is_reasoning_beside or reasoning > self.output_tokens
        whole = self.output_tokens + (reasoning if is_beside else 0)
        return max(whole, self.audio_output_tokens or 0)

    @property
    def _input_parts(self) -> int:
        """As much input as is told in parts; at least as much as their largest."""
        cache = (self.cached_tokens or 0) + self._written
        kinds = max(cache, self.image_input_tokens or 0, self.audio_input_tokens or 0)
        return (self.beside_input_tokens or 0) + kinds

    @property
    def _output_parts(self) -> int:
        return max(self.reasoning_tokens or 0, self.audio_output_tokens or 0)

    @property
    def _written(self) -> int:
        return max(self.cache_write_tokens or 0, self.cache_write_1h_tokens or 0)


_Calls = tuple[tuple[str, int], ...]


def _more(one: _Calls | None, other: _Calls | None) -> _Calls | None:
    """Return the larger count of each tool's calls."""
    if one is None or other is None or one == other:
        return other if one is None else one
    counts = dict(one)
    for name, count in other:
        counts[name] = max(count, counts.get(name, 0))
    return tuple(sorted(counts.items()))


def _larger(one: Any, other: Any) -> Any:  # noqa: ANN401 - a count, or a mark
    if isinstance(one, tuple) or isinstance(other, tuple):
        return None
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)


NOTHING = UsageReport()

# ── the names that counts have ─────────────────────────────────────────────────────────────────

_Names = Mapping[str, "str | _Names"]

_INPUT_DETAILS: _Names = {
    # OpenAI's API reference, and its SDK 2.x (openai.types.completion_usage), 2026-11.
    "cached_tokens": "cached_tokens",
    "cache_write_tokens": "cache_write_tokens",  # OpenRouter's usage accounting too, 2026-03
    "image_tokens": "image_input_tokens",
    "audio_tokens": "audio_input_tokens",
    # Gateways in front of Claude: ragflow#17629, 2026-07; any-llm#896, 2026-03.
    "cache_creation_tokens": "cache_write_tokens",
    "cache_creation_input_tokens": "cache_write_tokens",
}
_OUTPUT_DETAILS: _Names = {
    "reasoning_tokens": "reasoning_tokens",
    "audio_tokens": "audio_output_tokens",
}
_OPENAI: _Names = {
    "prompt_tokens": "input_tokens",
    "completion_tokens": "output_tokens",
    "total_tokens": "total_tokens",
    "prompt_tokens_details": _INPUT_DETAILS,
    "completion_tokens_details": _OUTPUT_DETAILS,
    # The same in the Responses API.
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "input_tokens_details": _INPUT_DETAILS,
    "output_tokens_details": _OUTPUT_DETAILS,
    # DeepSeek: a part of prompt_tokens. litellm#5017, 2024-08; hermes-agent#61871, 2026-07.
    "prompt_cache_hit_tokens": "cached_tokens",
    # Moonshot, with details or without. AstrBot#6614, 2026-03; vera-bench#97, 2026-07.
    "cached_tokens": "cached_tokens",
    # Gateways in front of Claude. ragflow#17629, 2026-07; any-llm#1335, 2026-08.
    "cache_read_input_tokens": "cached_tokens",
    "cache_creation_input_tokens": "cache_write_tokens",
    # Perplexity's deep research: 73,248 beside 3,256 of the answer, and in no total.
    # open-webui-cost-tracker#6, 2025-05; vercel/ai#7429, 2025-07.
    "reasoning_tokens": "reasoning_tokens",
    # Perplexity's, billed as input and in no other count: langchain#33480, 2025-10;
    # open-webui-cost-tracker#6, 2025-05.
    "citation_tokens": "beside_input_tokens",
}
_ANTHROPIC: _Names = {
    # Anthropic's API reference, and its SDK (anthropic.types.beta.BetaUsage), 2026-11.
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cache_read_input_tokens": "cached_tokens",
    "cache_creation_input_tokens": "cache_write_tokens",
    "cache_creation": {"ephemeral_1h_input_tokens": "cache_write_1h_tokens"},
    "output_tokens_details": {"thinking_tokens": "reasoning_tokens"},
}
_GEMINI: _Names = {
    # Gemini's API reference and google-genai (GenerateContentResponseUsageMetadata), 2026-11.
    "promptTokenCount": "input_tokens",
    "candidatesTokenCount": "output_tokens",
    "totalTokenCount": "total_tokens",
    "cachedContentTokenCount": "cached_tokens",
    "thoughtsTokenCount": "reasoning_tokens",
    "toolUsePromptTokenCount": "beside_input_tokens",
}
# Calls of tools, which cost something beside their tokens.
_CALLS: Mapping[str, str] = {
    # Perplexity and xAI, their API references, 2026-11; litellm#11268, vercel/ai#6823, 2025.
    "num_search_queries": "web_search",
    "num_sources_used": "live_search",
    # Anthropic's SDK 2.12 (BetaServerToolUsage), 2026-11.
    "web_search_requests": "web_search",
    "web_fetch_requests": "web_fetch",
    "code_execution_requests": "code_execution",
}
# What a provider says it charges by. Anthropic's SDK (BetaUsage) and OpenAI's, 2026-11.
_ASKS = ("service_tier", "speed", "inference_geo")

_GEMINI_MODALITIES = (
    ("promptTokensDetails", "IMAGE", "image_input_tokens"),
    ("promptTokensDetails", "AUDIO", "audio_input_tokens"),
    ("candidatesTokensDetails", "AUDIO", "audio_output_tokens"),
)

# ── reading them ───────────────────────────────────────────────────────────────────────────────

_decode = msgspec.json.Decoder(dict[str, Any] | None).decode
_decode_text = msgspec.json.Decoder(str).decode


class Told(Struct):
    """Whatever else has a usage in it."""

    usage: Raw = Raw()


class ToldOfCompletion(Struct):
    """Where a completion, or a chunk of one, may have its usage.

    Moonshot has it in the choice (go-moonshot#17, 2024-06; pi#2017, 2026-03), Groq below
    ``x_groq`` as well (Portkey gateway#1338, 2025-09; pydantic-ai-gateway#146).
    """

    usage: Raw = Raw()
    choices: list[Told] = []
    x_groq: Told | None = None
    service_tier: Raw = Raw()


_decode_completion = msgspec.json.Decoder(ToldOfCompletion).decode
_decode_raw_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_told = msgspec.json.Decoder(Told).decode


# What most usage looks like, of which a count is in one place. What is in another must be null
# there: else it is read by the names, at ten times the cost.

_Told = Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None


def _strange(names: _Names, usual: type[Struct]) -> list[tuple[str, Any, Any]]:
    """Return the fields of ``names`` that ``usual`` does not have; nothing may be told in them."""
    return [(name, None, None) for name in names if name not in usual.__struct_fields__]


class _UsualInput(Struct):
    cached_tokens: _Told = None
    cache_write_tokens: _Told = None
    image_tokens: _Told = None
    audio_tokens: _Told = None
    cache_creation_tokens: None = None
    cache_creation_input_tokens: None = None


class _UsualOutput(Struct):
    reasoning_tokens: _Told = None
    audio_tokens: _Told = None


class _Usual(Struct):
    prompt_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
    completion_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
    total_tokens: _Told = None
    prompt_tokens_details: _UsualInput | None = None
    completion_tokens_details: _UsualOutput | None = None

    def report(self) -> UsageReport:
        into, out = self.prompt_tokens_details, self.completion_tokens_details
        if into is None and out is None:
            return UsageReport(self.prompt_tokens, self.completion_tokens, self.total_tokens)
        into, out = into or _UsualInput(), out or _UsualOutput()
        return UsageReport(
            self.prompt_tokens,
            self.completion_tokens,
            self.total_tokens,
            None,
            into.cached_tokens,
            into.cache_write_tokens,
            None,
            into.image_tokens,
            into.audio_tokens,
            out.audio_tokens,
            out.reasoning_tokens,
        )


class _UsualCreation(Struct):
    ephemeral_1h_input_tokens: _Told = None


class _UsualThoughts(Struct):
    thinking_tokens: _Told = None


class _UsualMessage(Struct):
    output_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
    input_tokens: _Told = None
    cache_read_input_tokens: _Told = None
    cache_creation_input_tokens: _Told = None
    cache_creation: _UsualCreation | None = None
    output_tokens_details: _UsualThoughts | None = None
    iterations: None = None
    server_tool_use: None = None
    service_tier: str | None = None
    speed: str | None = None
    inference_geo: str | None = None

    def report(self) -> UsageReport:
        kept, thoughts = self.cache_creation, self.output_tokens_details
        told = zip(_ASKS, (self.service_tier, self.speed, self.inference_geo), strict=True)
        return UsageReport(
            self.input_tokens,
            self.output_tokens,
            None,
            None,
            self.cache_read_input_tokens,
            self.cache_creation_input_tokens,
            None if kept is None else kept.ephemeral_1h_input_tokens,
            None,
            None,
            None,
            None if thoughts is None else thoughts.thinking_tokens,
            asks=tuple([f"{name}={value}" for name, value in told if value is not None]),
            is_cache_beside=True,
        )


_UsualOfAny = cast(
    "type[_Usual]",
    msgspec.defstruct("_UsualOfAny", _strange({**_OPENAI, **_CALLS}, _Usual), bases=(_Usual,)),
)
_decode_usual = msgspec.json.Decoder(_UsualOfAny).decode
_decode_usual_message = msgspec.json.Decoder(_UsualMessage).decode


def read_openai(raw: Raw) -> UsageReport:
    """Return what OpenAI's usage says, in the words of any of its APIs and of its followers."""
    told = bytes(raw)
    if not told or told == b"null":
        return NOTHING
    try:
        return _decode_usual(raw).report()
    except (ValueError, RecursionError):
        return read_openai_by_names(raw)


def read_openai_by_names(raw: Raw) -> UsageReport:
    """Return the same, whatever stands there."""
    told = _fields(raw)
    return _with_calls(_report(_counts(told, _OPENAI)), told) if told else NOTHING


def with_tier(report: UsageReport, tier: Raw) -> UsageReport:
    """Return the report with the tier that OpenAI tells beside the usage."""
    if report is NOTHING or bytes(tier) in (b"", b"null"):
        return report
    try:
        return structs.replace(report, asks=(f"service_tier={_decode_text(tier)}",))
    except ValueError:
        return report


def read_completion(body: bytes) -> UsageReport:
    """Return what a completion says, or what is like one."""
    try:
        told = _decode_completion(body)
    except ValueError:
        return read_anywhere(body)
    report = read_completion_parts(told.usage, told.choices, told.x_groq)
    return with_tier(report, told.service_tier)


class HasUsage(Protocol):
    """A choice, of which ``usage`` is read."""

    @property
    def usage(self) -> Raw: ...


def read_completion_parts(
    usage: Raw, choices: Iterable[HasUsage], x_groq: HasUsage | None
) -> UsageReport:
    """Return what a completion says in any of the places that it may say it in."""
    report = read_openai(usage)
    for choice in choices:
        report = report.joined(read_openai(choice.usage))
    return report if x_groq is None else report.joined(read_openai(x_groq.usage))


def read_anywhere(event: bytes, read: Callable[[Raw], UsageReport] = read_openai) -> UsageReport:
    """Return what an event says that is none of the events we know; nothing if it says nothing.

    Of what cannot be read as a chunk, as with ``choices: null``, the usage may be read all the
    same.
    """
    report = NOTHING
    with suppress(ValueError, RecursionError):
        fields = _decode_raw_fields(event)
        report = read(fields.get("usage", Raw()))
        for place in ("message", "response", "x_groq"):
            if place in fields:
                with suppress(ValueError, RecursionError):
                    report = report.joined(read(_decode_told(fields[place]).usage))
    return report


def read_anthropic(raw: Raw) -> UsageReport:
    """Return what Anthropic's usage says; what a cache held or took is told beside the input.

    What the request took at the server besides (compaction, an advisor, turns of server tools)
    is in ``iterations``, and only in part in the counts above them: theirs are added up.
    """
    if not bytes(raw):
        return NOTHING
    try:
        return _decode_usual_message(raw).report()
    except (ValueError, RecursionError):
        return read_anthropic_by_names(raw)


def read_anthropic_by_names(raw: Raw) -> UsageReport:
    """Return the same, whatever stands there."""
    told = _fields(raw)
    if not told:
        return NOTHING
    whole = _counts(told, _ANTHROPIC)
    iterations = told.get("iterations")
    if isinstance(iterations, list):
        summed: dict[str, int] = {}
        for each in cast("list[object]", iterations):
            for name, count in _counts(each, _ANTHROPIC).items():
                summed[name] = summed.get(name, 0) + count
        for name, count in summed.items():
            whole[name] = max(whole.get(name, 0), count)
    report = _report(whole, is_cache_beside=True)
    server = told.get("server_tool_use")
    report = _with_calls(
        report, cast("dict[str, object]", server) if isinstance(server, dict) else {}
    )
    asks = tuple(f"{name}={told[name]}" for name in _ASKS if isinstance(told.get(name), str))
    return structs.replace(report, asks=asks) if asks and report is not NOTHING else report


def read_gemini(raw: Raw) -> UsageReport:
    """Return what Gemini's ``usageMetadata`` says; what is thought is told beside the answer."""
    told = _fields(raw)
    if not told:
        return NOTHING
    counts = _counts(told, _GEMINI)
    for place, modality, name in _GEMINI_MODALITIES:
        details = told.get(place)
        if isinstance(details, list):
            counts[name] = sum(_of(each, modality) for each in cast("list[object]", details))
    return _report(counts, is_reasoning_beside=True)


def _of(detail: object, modality: str) -> int:
    if not isinstance(detail, dict):
        return 0
    fields = cast("dict[str, object]", detail)
    return (_count(fields.get("tokenCount")) or 0) if fields.get("modality") == modality else 0


def _with_calls(report: UsageReport, told: Mapping[str, object]) -> UsageReport:
    counts: dict[str, int] = {}
    for theirs, ours in _CALLS.items():
        count = _count(told.get(theirs))
        if count is not None:
            counts[ours] = max(count, counts.get(ours, 0))
    return structs.replace(report, calls=tuple(sorted(counts.items()))) if counts else report


def _report(counts: dict[str, int], **how: bool) -> UsageReport:
    return UsageReport(**counts, **how) if counts else NOTHING  # type: ignore[arg-type]


def _fields(raw: Raw) -> dict[str, Any]:
    """Return the fields of a usage; none where it is absent, or cannot be read."""
    if bytes(raw) in (b"", b"null"):
        return {}
    try:
        return _decode(raw) or {}
    except (ValueError, RecursionError):
        return {}


def _counts(told: object, names: _Names) -> dict[str, int]:
    """Return the counts in ``told`` under our names; of one told twice the larger."""
    counts: dict[str, int] = {}
    if not isinstance(told, dict):
        return counts
    for theirs, value in cast("dict[str, object]", told).items():
        ours = names.get(theirs)
        if isinstance(ours, str):
            count = _count(value)
            if count is not None:
                counts[ours] = max(count, counts.get(ours, 0))
        elif ours is not None:
            for name, count in _counts(value, ours).items():
                counts[name] = max(count, counts.get(name, 0))
    return counts


def _count(value: object) -> int | None:
    """Return a count; ``None`` for what is none, as null, a negative or a fraction."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_TOKENS:
        return None
    return value
