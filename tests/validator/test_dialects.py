"""Every API against every dialect, by the official SDKs, over sockets."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from anthropic.types import Message, ToolUseBlock
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

from support.dialects import Dialects, running_dialects
from support.upstream import (
    DONE,
    Behaviour,
    Exchange,
    completion,
    event,
    usage_event,
)
from support.wires import (
    Call,
    generating,
    message,
    messaging,
    streaming,
)

pytestmark = pytest.mark.anyio

MODELS = ("gpt", "claude", "gemini")
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
CALLS = (Call(id="call_1"), Call(arguments='{"city":"Rome"}', id="call_2"))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[Dialects]:
    async with running_dialects(tmp_path) as world:
        yield world


@pytest.fixture
async def gpt_sdk(world: Dialects) -> AsyncGenerator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{world.validator.url}/v1", api_key=world.token(), max_retries=0
    ) as client:
        yield client


@pytest.fixture
async def claude_sdk(world: Dialects) -> AsyncGenerator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=world.validator.url, api_key=world.token(), max_retries=0
    ) as client:
        yield client


def calling(*calls: Call) -> Behaviour:
    """Calls tools as OpenAI does, streamed and not."""
    wire = [
        {
            "index": place,
            "id": c.id,
            "type": "function",
            "function": {"name": c.name, "arguments": ""},
        }
        for place, c in enumerate(calls)
    ]

    async def behave(exchange: Exchange) -> None:
        if not exchange.seen.json.get("stream"):
            whole = [
                {
                    "id": c.id,
                    "type": "function",
                    "function": {"name": c.name, "arguments": c.arguments},
                }
                for c in calls
            ]
            said = {"role": "assistant", "content": None, "tool_calls": whole}
            choice = {"index": 0, "message": said, "finish_reason": "tool_calls"}
            await exchange.respond(200, completion(choices=[choice]))
            return
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None}]
        for place, c in enumerate(calls):
            half = len(c.arguments) // 2
            deltas.append({"tool_calls": [wire[place]]})
            for piece in (c.arguments[:half], c.arguments[half:]):
                deltas.append({"tool_calls": [{"index": place, "function": {"arguments": piece}}]})
        events = [
            event(None, choices=[{"index": 0, "delta": d, "finish_reason": None}]) for d in deltas
        ]
        end = event(None, choices=[{"index": 0, "delta": {}, "finish_reason": "tool_calls"}])
        await streaming([*events, end, usage_event(), DONE])(exchange)

    return behave


def everybody_calls(world: Dialects) -> None:
    world.openai.behave = calling(*CALLS)
    world.anthropic.behave = messaging(message(None, *CALLS))
    world.gemini.behave = generating("", *CALLS)


# ── text, in one piece and as a stream ─────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", MODELS)
async def test_chat_is_answered_by_each(gpt_sdk: openai.AsyncOpenAI, model: str) -> None:
    answer = await gpt_sdk.chat.completions.create(
        model=model,
        messages=[
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "2 + 2?"},
        ],
    )

    ChatCompletion.model_validate(answer.model_dump(), strict=True)
    assert answer.model == {"gpt": "acme-1"}.get(model, f"{model}-1")
    assert answer.choices[0].message.content == "Four."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (20, 7)


@pytest.mark.parametrize("model", MODELS)
async def test_chat_is_streamed_by_each(gpt_sdk: openai.AsyncOpenAI, model: str) -> None:
    stream = await gpt_sdk.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "2 + 2?"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]

    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.model_dump(), strict=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Four."
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (20, 7)


@pytest.mark.parametrize("model", MODELS)
async def test_messages_are_answered_by_each(
    claude_sdk: anthropic.AsyncAnthropic, model: str
) -> None:
    answer = await claude_sdk.messages.create(
        model=model,
        max_tokens=50,
        system="Be short.",
        messages=[{"role": "user", "content": "2 + 2?"}],
    )

    Message.model_validate(answer.model_dump(), strict=True)
    assert [block.text for block in answer.content if block.type == "text"] == ["Four."]
    assert answer.stop_reason == "end_turn"
    assert answer._request_id, "where Anthropic's SDK looks for it"
    used = answer.usage
    cached = (used.cache_read_input_tokens or 0) + (used.cache_creation_input_tokens or 0)
    assert (used.input_tokens + cached, used.output_tokens) == (20, 7)


@pytest.mark.parametrize("model", MODELS)
async def test_messages_are_streamed_by_each(
    claude_sdk: anthropic.AsyncAnthropic, model: str
) -> None:
    async with claude_sdk.messages.stream(
        model=model, max_tokens=50, messages=[{"role": "user", "content": "2 + 2?"}]
    ) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        whole = await stream.get_final_message()

    Message.model_validate(whole.model_dump(exclude={"content"}) | {"content": []}, strict=True)
    assert text == "Four."
    assert (whole.stop_reason, whole.usage.output_tokens) == ("end_turn", 7)


@pytest.mark.parametrize("model", ["claude", "gemini"])
async def test_responses_are_translated(gpt_sdk: openai.AsyncOpenAI, model: str) -> None:
    answer = await gpt_sdk.responses.create(model=model, instructions="Be short.", input="2 + 2?")

    Response.model_validate(answer.model_dump(by_alias=True), strict=True)
    assert (answer.status, answer.output_text) == ("completed", "Four.")
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (20, 7)


@pytest.mark.parametrize("model", ["claude", "gemini"])
async def test_responses_are_streamed_in_translation(
    gpt_sdk: openai.AsyncOpenAI, model: str
) -> None:
    async with gpt_sdk.responses.stream(model=model, input="2 + 2?") as stream:
        kinds = [one.type async for one in stream]
        final = await stream.get_final_response()

    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert final.output_text == "Four."
    assert final.usage is not None


# ── tools ──────────────────────────────────────────────────────────────────────────────────────

CHAT_TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "description": "Tells it.", "parameters": WEATHER},
}
MESSAGE_TOOL: Any = {"name": "weather", "description": "Tells it.", "input_schema": WEATHER}
RESPONSE_TOOL: Any = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": None}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("model", MODELS)
async def test_tools_are_called_side_by_side_in_a_chat(
    world: Dialects, gpt_sdk: openai.AsyncOpenAI, model: str, streamed: bool
) -> None:
    everybody_calls(world)
    said: Any = [{"role": "user", "content": "The weather in Oslo and Rome?"}]
    async with gpt_sdk.chat.completions.stream(
        model=model, messages=said, tools=[CHAT_TOOL]
    ) as stream:
        answer: Any = await stream.get_final_completion()
    if not streamed:
        answer = await gpt_sdk.chat.completions.create(
            model=model, messages=said, tools=[CHAT_TOOL]
        )

    calls = answer.choices[0].message.tool_calls
    assert [json.loads(call.function.arguments) for call in calls] == [
        {"city": "Oslo"},
        {"city": "Rome"},
    ]
    assert answer.choices[0].finish_reason == "tool_calls"

    world.openai.behave, world.anthropic.behave = calling(CALLS[0]), messaging()
    world.gemini.behave = generating("Both are fine.")
    said += [
        answer.choices[0].message.model_dump(exclude_none=True),
        *({"role": "tool", "tool_call_id": call.id, "content": "Sunny."} for call in calls),
    ]
    await gpt_sdk.chat.completions.create(model=model, messages=said, tools=[CHAT_TOOL])


@pytest.mark.parametrize("model", MODELS)
async def test_tools_are_called_side_by_side_in_messages(
    world: Dialects, claude_sdk: anthropic.AsyncAnthropic, model: str
) -> None:
    everybody_calls(world)
    said: Any = [{"role": "user", "content": "The weather in Oslo and Rome?"}]
    asked: Any = {"model": model, "max_tokens": 50, "tools": [MESSAGE_TOOL]}
    async with claude_sdk.messages.stream(messages=said, **asked) as stream:
        streamed = await stream.get_final_message()
    answer = await claude_sdk.messages.create(messages=said, **asked)

    for one in (streamed, answer):
        calls = [block for block in one.content if isinstance(block, ToolUseBlock)]
        assert [call.input for call in calls] == [{"city": "Oslo"}, {"city": "Rome"}]
        assert one.stop_reason == "tool_use"

    results = [
        {"type": "tool_result", "tool_use_id": call.id, "content": "Sunny."} for call in calls
    ]
    said += [answer.to_param(), {"role": "user", "content": results}]
    await claude_sdk.messages.create(messages=said, **asked)


@pytest.mark.parametrize("model", ["claude", "gemini"])
async def test_tools_are_called_side_by_side_in_responses(
    world: Dialects, gpt_sdk: openai.AsyncOpenAI, model: str
) -> None:
    everybody_calls(world)
    said: Any = [{"role": "user", "content": "The weather in Oslo and Rome?"}]
    async with gpt_sdk.responses.stream(model=model, input=said, tools=[RESPONSE_TOOL]) as stream:
        streamed = await stream.get_final_response()
    answer = await gpt_sdk.responses.create(model=model, input=said, tools=[RESPONSE_TOOL])

    for one in (streamed, answer):
        calls = [item for item in one.output if item.type == "function_call"]
        assert [json.loads(c.arguments) for c in calls] == [{"city": "Oslo"}, {"city": "Rome"}]

    said += [item.model_dump(exclude_none=True) for item in answer.output]
    said += [
        {"type": "function_call_output", "call_id": c.call_id, "output": "Sunny."} for c in calls
    ]
    await gpt_sdk.responses.create(model=model, input=said, tools=[RESPONSE_TOOL])
