"""Translators are each other's inverse: what one side of an API writes, the other reads."""

import json
from contextlib import suppress
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.wires import message, message_events
from waypost.shared.money import Usage
from waypost.shared.requests.apis import decode
from waypost.validator.dialects.adapter import InboundRequest, UntranslatableError
from waypost.validator.dialects.providers import DIALECTS, Dialect, anthropic, gemini, openai
from waypost.validator.dialects.translation import CALLERS, CallerSide, Translated, chat, messages
from waypost.validator.dialects.translation.neutral import (
    Answer,
    Choice,
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
from waypost.validator.dialects.usage import NOTHING, UsageReport

BODIES: dict[str, bytes] = {
    "chat.completions": b'{"messages":[{"role":"user","content":"Hi"}],"stream":true,'
    b'"stream_options":{"include_usage":true}}',
    "messages": b'{"messages":[{"role":"user","content":"Hi"}],"max_tokens":9,"stream":true}',
    "responses": b'{"input":"Hi","stream":true}',
}
few = settings(max_examples=40)


def asked(endpoint: str, body: bytes | None = None) -> InboundRequest:
    body = body or BODIES[endpoint]
    return InboundRequest(endpoint, decode(endpoint, body), body, id="1", now=7)


# ── strategies ─────────────────────────────────────────────────────────────────────────────────

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
names = st.text("abcdef_", min_size=1, max_size=8)
objects = st.dictionaries(words, st.integers(-9, 9) | words | st.booleans(), max_size=3)
texts = words.map(Text)
pictures = st.sampled_from([Image("image/png", "iVBORw0K"), Image(url="https://a.example/b.png")])
schemas = objects.map(lambda fields: {"type": "object", "properties": fields})
calls = st.builds(
    ToolCall, names, names, objects.map(lambda one: msgspec.json.encode(one).decode())
)


@st.composite
def prompts(draw: st.DrawFn, *, rich: bool) -> Prompt:
    """Prompts that both ends can hold. ``rich``: with what only chat completions have."""
    turns: list[Turn] = []
    for _ in range(draw(st.integers(1, 3))):
        turns.append(Turn("user", tuple(draw(st.lists(texts | pictures, min_size=1, max_size=3)))))
        called = draw(st.lists(calls, max_size=3, unique_by=lambda call: call.id))
        said = draw(st.lists(texts, min_size=0 if called else 1, max_size=1))
        turns.append(Turn("assistant", (*said, *called)))
        for call in called:
            failed = not rich and draw(st.booleans())
            result = ToolResult(call.id, call.name, (draw(texts),), failed)
            turns.append(Turn("user", (result,)))
    tools = draw(
        st.lists(st.builds(Tool, names, st.just("") | words, schemas, st.none() | st.booleans()))
    )
    choice = draw(st.none() | st.builds(Choice, st.sampled_from(["auto", "none"])) | named)
    can_be_single = choice is not None and choice.mode != "none"
    return Prompt(
        turns=tuple(turns),
        system=tuple(draw(st.lists(words, max_size=1))),
        tools=tuple(tools),
        tool_choice=choice if tools else None,
        parallel_tools=False if tools and can_be_single and draw(st.booleans()) else None,
        json=draw(st.none() | schemas.map(JsonFormat)),
        stop=tuple(draw(st.lists(words, max_size=4))),
        temperature=draw(st.none() | st.sampled_from([0.0, 0.5, 1.0])),
        top_p=draw(st.none() | st.just(0.9)),
        top_k=None if rich else draw(st.none() | st.just(40)),
        seed=draw(st.none() | st.just(7)) if rich else None,
        presence_penalty=draw(st.none() | st.just(0.25)) if rich else None,
    )


named = st.builds(Choice, st.just("any"), st.just("") | names)
usages = st.builds(
    Usage,
    input_tokens=st.integers(10, 99),
    output_tokens=st.integers(10, 99),
    cached_tokens=st.integers(0, 5),
    cache_write_tokens=st.integers(0, 5),
    reasoning_tokens=st.integers(0, 5),
)


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    said = draw(st.lists(texts, max_size=1))
    called = draw(st.lists(calls, max_size=3, unique_by=lambda call: call.id))
    return Answer(
        model="m",
        parts=(*said, *called),
        stop="tools" if called else draw(st.sampled_from(["end", "length", "filter"])),
        usage=draw(usages),
    )


# ── requests ───────────────────────────────────────────────────────────────────────────────────


@few
@given(prompts(rich=True))
def test_a_chat_reads_as_it_was_written(prompt: Prompt) -> None:
    assert chat.prompt(msgspec.json.encode(openai.compose(prompt))) == prompt


@few
@given(prompts(rich=False))
def test_messages_read_as_they_were_written(prompt: Prompt) -> None:
    written = msgspec.json.encode(anthropic.compose(prompt))

    assert _by_value(messages.prompt(written)) == _by_value(prompt)


def _by_value(prompt: Prompt) -> Prompt:
    """Arguments are compared as what they say: spelling is the encoder's."""

    def one(part: Any) -> Any:  # noqa: ANN401
        if not isinstance(part, ToolCall):
            return part
        return msgspec.structs.replace(part, arguments=json.dumps(json.loads(part.arguments)))

    turns = tuple(Turn(turn.role, tuple(map(one, turn.parts))) for turn in prompt.turns)
    return msgspec.structs.replace(prompt, turns=turns)


@few
@given(prompts(rich=False))
def test_all_that_was_said_reaches_gemini(prompt: Prompt) -> None:
    try:
        fields = gemini.compose(prompt)
    except UntranslatableError:
        assert prompt.parallel_tools is False or any(
            isinstance(part, Image) and part.url for turn in prompt.turns for part in turn.parts
        )
        return
    sent = json.dumps(fields, ensure_ascii=False)
    for turn in prompt.turns:
        for part in turn.parts:
            match part:
                case Text():
                    assert json.dumps(part.text, ensure_ascii=False) in sent
                case ToolCall() | ToolResult():
                    assert json.dumps(part.name) in sent
                case _:
                    assert part.data in sent
    assert all(tool.name in sent for tool in prompt.tools)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["user", "text", "hi", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "text", "messages", "input", "tools", "system", "name"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("caller", CALLERS.values(), ids=CALLERS)
@few
@given(value=json_values)
def test_a_body_is_translated_or_refused_and_nothing_else(caller: CallerSide, value: Any) -> None:  # noqa: ANN401
    for said in (value, {"messages": value}, {"input": value, "tools": value}):
        try:
            prompt = caller.prompt(json.dumps(said).encode())
        except UntranslatableError:
            continue
        for dialect in DIALECTS.values():
            with suppress(UntranslatableError):
                assert msgspec.json.encode(dialect.compose(prompt))


# ── answers ────────────────────────────────────────────────────────────────────────────────────


@few
@given(answers())
def test_an_answer_to_a_chat_reads_as_it_was_written(answer: Answer) -> None:
    written = chat.answer(answer, asked("chat.completions"))

    assert openai.answer(written, id="1") == answer


@few
@given(answers())
def test_a_message_reads_as_it_was_written(answer: Answer) -> None:
    written = messages.answer(answer, asked("messages"))

    assert anthropic.answer(written, id="1") == answer


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
@few
@given(data=st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_what_is_no_answer_is_said_to_be_none(dialect: Dialect, data: bytes) -> None:
    """Whatever a provider sends, the request ends as a failure of that provider, not of ours."""
    with suppress(ValueError):
        dialect.answer(data, id="1")
    dialect.failure(data)
    reader = Translated(
        "chat.completions", dialect, name="x", max_tokens_field="max_tokens", refuses=frozenset()
    ).reader(asked("chat.completions"))
    with suppress(ValueError):
        reader.feed(b"data: " + data + b"\n\n")


# ── streams ────────────────────────────────────────────────────────────────────────────────────


class _Heard:
    """Collects what a stream says."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.stop: tuple[str, str | None] | None = None
        self.report = NOTHING

    def begin(self, model: str) -> None:
        self.model = model

    def text(self, text: str) -> None:
        if self.said and isinstance(self.said[-1], str):
            self.said[-1] += text
        else:
            self.said.append(text)

    def reasoning(self, text: str) -> None:
        self.said.append(Reasoning(text))

    def tool(self, slot: int, id: str, name: str) -> None:
        self.said.append([id, name, ""])

    def arguments(self, slot: int, text: str) -> None:
        self.said[-1][2] += text

    def used(self, report: UsageReport, *, is_last: bool = False) -> None:
        self.report = self.report.joined(report)

    def finish(self, stop: StopReason, stop_sequence: str | None = None) -> None:
        self.stop = (stop, stop_sequence)

    def fail(self, failure: object) -> None:
        raise AssertionError(failure)


def _payloads(stream: bytes) -> list[bytes]:
    events = stream.strip().split(b"\n\n")
    return [event[event.index(b"data: ") + 6 :] for event in events]


@pytest.mark.parametrize(
    ("endpoint", "dialect"), [("chat.completions", openai), ("messages", anthropic)]
)
@few
@given(answer=answers(), size=st.integers(1, 5))
def test_a_stream_reads_as_it_was_written(
    endpoint: str, dialect: Dialect, answer: Answer, size: int
) -> None:
    writer = CALLERS[endpoint].writer(asked(endpoint))
    stream = writer.begin("m")
    for slot, part in enumerate(answer.parts):
        if isinstance(part, Text):
            stream += b"".join(writer.text(piece) for piece in _cut(part.text, size))
        elif isinstance(part, ToolCall):
            stream += writer.tool(slot, part.id, part.name)
            stream += b"".join(writer.arguments(slot, p) for p in _cut(part.arguments, size))
    stream += writer.finish(answer.stop, None, answer.usage)
    heard = _Heard()
    decoder = dialect.decoder(id="1")
    for payload in _payloads(stream):
        decoder.see(payload, heard)

    assert (heard.model, heard.stop, heard.report.usage()) == (
        "m",
        (answer.stop, None),
        answer.usage,
    )
    assert heard.said == [
        part.text if isinstance(part, Text) else [part.id, part.name, part.arguments]
        for part in answer.parts
        if not isinstance(part, Reasoning)
    ]


def _cut(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@pytest.mark.parametrize("endpoint", CALLERS)
@few
@given(places=st.lists(st.integers(0, 5_000), max_size=12))
def test_a_translated_stream_is_the_same_however_the_network_cuts_it(
    endpoint: str, places: list[int]
) -> None:
    stream = b"".join(message_events(message("Gr\u00fc\u00dfe aus Oslo.", thinking="Hm.")))
    adapter = Translated(
        endpoint, anthropic, name="x", max_tokens_field="max_tokens", refuses=frozenset()
    )
    edges = [0, *sorted(place % len(stream) for place in places), len(stream)]
    reader, whole = adapter.reader(asked(endpoint)), adapter.reader(asked(endpoint))

    pieces = b"".join(reader.feed(stream[a:b]) for a, b in pairwise(edges))

    assert pieces == whole.feed(stream)
    assert reader.is_done
    assert reader.output_bytes == len("Gr\u00fc\u00dfe aus Oslo.Hm.".encode())
    assert reader.usage == Usage(
        input_tokens=20, output_tokens=7, cached_tokens=5, cache_write_tokens=3
    )


def test_a_translated_stream_leaves_as_it_arrives() -> None:
    reader = Translated(
        "chat.completions", anthropic, name="x", max_tokens_field="max_tokens", refuses=frozenset()
    ).reader(asked("chat.completions"))

    passed = [reader.feed(event) for event in message_events(message("One two three."))]

    assert sum(b'"content":"' in one for one in passed[1:]) >= 3
