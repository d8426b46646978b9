"""Every API against every dialect, by the official SDKs, over sockets."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from anthropic.types import ErrorResponse, Message, ModelInfo, ToolUseBlock
from anyio import to_thread
from google.genai.types import GenerateContentConfig
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from support.dialects import Dialects, running_dialects
from support.upstream import (
    DONE,
    Behaviour,
    Exchange,
    answering,
    completion,
    event,
    failing,
    usage_event,
)
from support.wires import (
    Call,
    gemini_error,
    generated,
    generating,
    message,
    message_error,
    message_events,
    messaging,
    named_event,
    streaming,
)
from waypost.shared.contracts import SpendLimit
from waypost.shared.wire.headers import parse_decision

pytestmark = pytest.mark.anyio

MODELS = ("gpt", "claude", "gemini")
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
CALLS = (Call(id="call_1"), Call(arguments='{"city":"Rome"}', id="call_2"))


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Dialects]:
    async with running_dialects(tmp_path_factory.mktemp("dialects")) as world:
        yield world


@pytest.fixture
def world(running: Dialects) -> Dialects:
    """The one world, as it was in the beginning."""
    running.openai.behave, running.anthropic.behave = answering(), messaging()
    running.gemini.behave = generating()
    for upstream in running.all:
        upstream.seen.clear()
    return running


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


async def test_what_tools_came_to_is_said_in_the_providers_words(
    world: Dialects, gpt_sdk: openai.AsyncOpenAI
) -> None:
    said: Any = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": "The weather in Oslo?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city":"Oslo"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
    ]
    wishes: Any = {"messages": said, "tools": [CHAT_TOOL], "stop": ["\n"], "max_tokens": 40}
    for model in ("claude", "gemini"):
        await gpt_sdk.chat.completions.create(model=model, tool_choice="required", **wishes)

    assert world.anthropic.seen[0].path == "/v1/messages"
    assert world.anthropic.seen[0].json == {
        "model": "acme-claude",
        "max_tokens": 40,
        "system": [{"type": "text", "text": "Be short."}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "The weather in Oslo?"}]},
            {
                "role": "assistant",
                "content": [
                    {
                        "type": "tool_use",
                        "id": "call_1",
                        "name": "weather",
                        "input": {"city": "Oslo"},
                    }
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "call_1",
                        "content": [{"type": "text", "text": "Sunny."}],
                    }
                ],
            },
        ],
        "tools": [MESSAGE_TOOL],
        "tool_choice": {"type": "any"},
        "stop_sequences": ["\n"],
    }
    assert world.gemini.seen[0].path == "/v1/models/acme-gemini:generateContent"
    sent = world.gemini.seen[0].json
    assert [content["role"] for content in sent["contents"]] == ["user", "model", "user"]
    assert sent["contents"][2]["parts"] == [
        {
            "functionResponse": {
                "id": "call_1",
                "name": "weather",
                "response": {"output": "Sunny."},
            }
        }
    ]
    assert sent["toolConfig"] == {"functionCallingConfig": {"mode": "ANY"}}
    assert sent["generationConfig"] == {"stopSequences": ["\n"], "maxOutputTokens": 40}
    GenerateContentConfig.model_validate(
        {
            **sent["generationConfig"],
            "systemInstruction": sent["systemInstruction"],
            "tools": sent["tools"],
            "toolConfig": sent["toolConfig"],
        }
    )


# ── structured output and pictures ─────────────────────────────────────────────────────────────


class Sum(BaseModel):
    total: int


@pytest.mark.parametrize("model", MODELS)
async def test_answers_are_parsed_by_a_schema(
    world: Dialects, gpt_sdk: openai.AsyncOpenAI, model: str
) -> None:
    world.openai.behave = answering('{"total":4}')
    world.anthropic.behave = messaging(message('{"total":4}'))
    world.gemini.behave = generating('{"total":4}')
    answer = await gpt_sdk.chat.completions.parse(
        model=model, messages=[{"role": "user", "content": "2 + 2?"}], response_format=Sum
    )

    assert answer.choices[0].message.parsed == Sum(total=4)
    schema = {**Sum.model_json_schema(), "additionalProperties": False}
    sent = [upstream.seen[0].json for upstream in world.all if upstream.seen]
    match model:
        case "gpt":
            assert sent[0]["response_format"]["json_schema"]["schema"] == schema
        case "claude":
            assert sent[0]["output_config"]["format"]["schema"] == schema
        case _:
            assert sent[0]["generationConfig"]["responseJsonSchema"] == schema


@pytest.mark.parametrize("model", ["gpt", "gemini"])
async def test_messages_by_a_schema(
    world: Dialects, claude_sdk: anthropic.AsyncAnthropic, model: str
) -> None:
    world.openai.behave, world.gemini.behave = answering('{"total":4}'), generating('{"total":4}')
    answer = await claude_sdk.messages.parse(
        model=model,
        max_tokens=50,
        messages=[{"role": "user", "content": "2 + 2?"}],
        output_format=Sum,
    )

    assert answer.parsed_output == Sum(total=4)


@pytest.mark.parametrize("model", MODELS)
async def test_a_picture_is_shown(world: Dialects, gpt_sdk: openai.AsyncOpenAI, model: str) -> None:
    picture: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0K"}}
    asked: Any = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, picture]}]
    await gpt_sdk.chat.completions.create(model=model, messages=asked)

    (sent,) = [upstream.seen[0].json for upstream in world.all if upstream.seen]
    match model:
        case "gpt":
            assert sent["messages"][0]["content"][1] == picture
        case "claude":
            source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0K"}
            assert sent["messages"][0]["content"][1] == {"type": "image", "source": source}
        case _:
            inline = {"mimeType": "image/png", "data": "iVBORw0K"}
            assert sent["contents"][0]["parts"][1] == {"inlineData": inline}


# ── what cannot be said ────────────────────────────────────────────────────────────────────────

HELLO: Any = [{"role": "user", "content": "2 + 2?"}]


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"n": 2}, "n"),
        ({"seed": 7}, "seed"),
        ({"temperature": 0.5}, "temperature"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"extra_body": {"unheard_of": 1}}, "unheard_of"),
        ({"messages": [*HELLO, {"role": "system", "content": "Now sing."}]}, "messages[1].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]},
            "messages[0].content[0].type",
        ),
    ],
)
async def test_what_a_provider_has_no_words_for_is_refused_before_anything_is_spent(
    world: Dialects, gpt_sdk: openai.AsyncOpenAI, wish: dict[str, Any], param: str
) -> None:
    asked: Any = {"messages": HELLO, **wish}
    async with openai.AsyncOpenAI(
        base_url=f"{world.validator.url}/v1", api_key=world.token(models=("claude",)), max_retries=0
    ) as only_claude:
        with pytest.raises(openai.BadRequestError) as refused:
            await only_claude.chat.completions.create(model="auto", **asked)
    assert (refused.value.code, refused.value.param) == ("untranslatable", param)
    assert not world.anthropic.seen

    # Where another model's provider has the words, that one is chosen.
    answer = await gpt_sdk.chat.completions.with_raw_response.create(model="claude", **asked)
    decision = parse_decision(answer.headers["waypost-decision"])
    assert (decision["verdict"], decision["reason"]) == ("overridden", "untranslatable")
    assert not world.anthropic.seen


async def test_an_operator_may_say_that_models_take_a_temperature(tmp_path: Path) -> None:
    async with (
        running_dialects(tmp_path, anthropic={"sampling": True}) as world,
        openai.AsyncOpenAI(
            base_url=f"{world.validator.url}/v1", api_key=world.token(), max_retries=0
        ) as client,
    ):
        await client.chat.completions.create(model="claude", messages=HELLO, temperature=0.5)

    assert world.anthropic.seen[0].json["temperature"] == 0.5


async def test_thinking_is_sent_to_who_thought_it_alone(
    world: Dialects, claude_sdk: anthropic.AsyncAnthropic
) -> None:
    thought: Any = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
    said: Any = [*HELLO, {"role": "assistant", "content": [thought]}, *HELLO]
    await claude_sdk.messages.create(model="gpt", max_tokens=50, messages=said)

    assert world.anthropic.seen[0].json["messages"] == said
    assert not world.openai.seen


@pytest.mark.parametrize(
    ("wish", "param", "code"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "stateful_unsupported"),
        ({"background": True}, "background", "stateful_unsupported"),
        ({"conversation": "conv_1"}, "conversation", "stateful_unsupported"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "stateful_unsupported"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input[0].content[0]",
            "unbounded_input",
        ),
    ],
)
async def test_what_only_a_provider_keeps_is_refused_whoever_would_serve_it(
    world: Dialects, gpt_sdk: openai.AsyncOpenAI, wish: dict[str, Any], param: str, code: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await gpt_sdk.responses.create(**{"model": "gpt", "input": "Hello", **wish})

    assert (refused.value.code, refused.value.param) == (code, param)
    assert not world.openai.seen


async def test_a_hosted_tool_goes_to_who_has_it(
    world: Dialects, gpt_sdk: openai.AsyncOpenAI
) -> None:
    world.openai.behave = responding()
    asked: Any = {"input": "News?", "tools": [{"type": "web_search"}]}
    await gpt_sdk.responses.create(model="gemini", **asked)

    assert world.openai.seen[0].path == "/v1/responses"
    assert world.openai.seen[0].json["max_tool_calls"] == 3
    assert not world.gemini.seen


# ── errors and broken streams ──────────────────────────────────────────────────────────────────


async def test_a_rejection_is_told_in_the_callers_words(
    world: Dialects, gpt_sdk: openai.AsyncOpenAI, claude_sdk: anthropic.AsyncAnthropic
) -> None:
    async def reject(exchange: Exchange) -> None:
        await exchange.respond(400, message_error("invalid_request_error", "Too odd."))

    async def reject_too(exchange: Exchange) -> None:
        await exchange.respond(400, gemini_error("INVALID_ARGUMENT", "Far too odd."))

    world.anthropic.behave, world.gemini.behave = reject, reject_too
    world.openai.behave = failing(400, code="odd")

    with pytest.raises(openai.BadRequestError) as told:
        await gpt_sdk.chat.completions.create(model="claude", messages=HELLO)
    assert told.value.body == {
        "message": "Too odd.",
        "type": "invalid_request_error",
        "code": "invalid_request_error",
        "param": None,
    }
    with pytest.raises(openai.BadRequestError, match="Far too odd") as told:
        await gpt_sdk.chat.completions.create(model="gemini", messages=HELLO, stream=True)
    assert told.value.code == "invalid_argument"
    with pytest.raises(anthropic.BadRequestError) as said:
        await claude_sdk.messages.create(model="gpt", max_tokens=5, messages=HELLO)
    assert said.value.error_code == "odd"
    assert said.value.request_id
    ErrorResponse.model_validate(said.value.body, strict=True)


async def test_refusals_are_told_in_the_callers_words(world: Dialects) -> None:
    limits = (SpendLimit(window="day", limit_nusd=20_000),)
    for wishes, status, kind, code in (
        ({"aud": "another"}, 401, "authentication_error", "token_audience"),
        ({"tier": "platinum"}, 403, "permission_error", "unknown_tier"),
        ({"limits": limits}, 402, "billing_error", "budget_exhausted"),
    ):
        async with anthropic.AsyncAnthropic(
            base_url=world.validator.url, api_key=world.token(**wishes), max_retries=3
        ) as client:
            with pytest.raises(anthropic.APIStatusError) as refused:
                await client.messages.create(model="gpt", max_tokens=5_000, messages=HELLO)
        error = refused.value
        assert (error.status_code, error.type, error.error_code) == (status, kind, code)
        ErrorResponse.model_validate(error.body, strict=True)


BROKEN = {
    "claude": named_event(
        {"type": "error", "error": {"type": "overloaded_error", "message": "Busy."}}
    ),
    "gemini": b"data: " + gemini_error("UNAVAILABLE", "Busy.", code=503) + b"\n\n",
    "gpt": b'data: {"error": {"message": "Busy.", "code": "overloaded"}}\n\n',
}
BEGUN = {
    "claude": b"".join(message_events(message("Half an ans"))[:5]),
    "gemini": b"data: " + json.dumps(generated("Half an ans", stop=None)).encode() + b"\n\n",
    "gpt": event("Half an ans"),
}


@pytest.mark.parametrize("reason", ["an error", "silence"])
@pytest.mark.parametrize("model", MODELS)
async def test_a_stream_that_fails_is_an_error_in_every_api(
    world: Dialects,
    gpt_sdk: openai.AsyncOpenAI,
    claude_sdk: anthropic.AsyncAnthropic,
    model: str,
    reason: str,
) -> None:
    events = [BEGUN[model], BROKEN[model]] if reason == "an error" else [BEGUN[model]]
    for upstream in world.all:
        upstream.behave = streaming(events, pause_s=0.03)
    match = "Busy" if reason == "an error" else "broke off"

    with pytest.raises(openai.APIError, match=match):
        async for _ in await gpt_sdk.chat.completions.create(
            model=model, messages=HELLO, stream=True
        ):
            pass
    with pytest.raises(anthropic.APIStatusError, match=match):
        async for _ in await claude_sdk.messages.create(
            model=model, max_tokens=50, messages=HELLO, stream=True
        ):
            pass
    if model != "gpt":
        with pytest.raises(openai.APIError, match=match):
            async for _ in await gpt_sdk.responses.create(model=model, input="Hello", stream=True):
                pass


# ── what passes through ────────────────────────────────────────────────────────────────────────


def responding(answer: dict[str, Any] | None = None) -> Behaviour:
    """Answers as OpenAI's Responses API does, or as embeddings."""
    whole = answer or {
        "id": "resp_1",
        "object": "response",
        "created_at": 0,
        "model": "gpt-1",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {"input_tokens": 20, "output_tokens": 7, "total_tokens": 27},
    }

    async def behave(exchange: Exchange) -> None:
        await exchange.respond(200, json.dumps(whole).encode())

    return behave


@pytest.mark.parametrize(
    ("path", "model", "body", "answer", "sent"),
    [
        (
            "completions",
            "gpt",
            rb'{"model":"gpt", "prompt" : "def f(", "max_tokens":9,  "suffix":"\u00fc"}',
            {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
            rb'{"model":"acme-gpt","prompt":"def f(","max_tokens":9,"suffix":"\u00fc"}',
        ),
        (
            "embeddings",
            "gpt",
            b'{"input":["a", "b"],"model":"gpt","dimensions":1e1}',
            {"data": [], "usage": {"prompt_tokens": 3, "total_tokens": 3}},
            b'{"input":["a", "b"],"model":"acme-gpt","dimensions":1e1}',
        ),
        (
            "responses",
            "gpt",
            b'{"model":"gpt","input":"Hi","max_output_tokens":16,"unheard_of":[1, 2.0]}',
            {"output": [], "usage": {"input_tokens": 3, "output_tokens": 2}},
            b'{"model":"acme-gpt","input":"Hi","max_output_tokens":16,"unheard_of":[1, 2.0]}',
        ),
        (
            "messages",
            "claude",
            b'{"model":"claude","max_tokens":9,"messages":[{"role":"user","content":"Hi"}],"x":1.50}',
            {"content": [], "usage": {"input_tokens": 3, "output_tokens": 2}},
            b'{"model":"acme-claude","max_tokens":9,"messages":[{"role":"user","content":"Hi"}],"x":1.50}',
        ),
    ],
)
async def test_bytes_pass_untouched_where_the_provider_speaks_the_api(
    world: Dialects, path: str, model: str, body: bytes, answer: dict[str, Any], sent: bytes
) -> None:
    for upstream in world.all:
        upstream.behave = responding(answer)
    response = await world.validator.client.post(
        f"/v1/{path}",
        content=body,
        headers={
            **world.validator.headers(),
            "Content-Type": "application/json",
            "anthropic-version": "2026-10-21",
        },
    )

    (seen,) = [upstream.seen[0] for upstream in world.all if upstream.seen]
    assert (seen.path, seen.body) == (f"/v1/{path}", sent)
    assert response.content == json.dumps(answer).encode()
    record = await world.validator.record(response)
    assert record.usage is not None
    assert (record.usage.input_tokens, record.facts and record.facts.measured.endpoint) == (3, path)
    if model == "claude":
        assert seen.headers["anthropic-version"] == "2026-10-21", "as the body was written for"
        assert "authorization" not in seen.headers


async def test_of_the_betas_a_caller_asks_for_those_pass_that_the_operator_lists(
    world: Dialects, claude_sdk: anthropic.AsyncAnthropic
) -> None:
    asked = ["thinking-2026", "context-1m-2025", "files-2025", "thinking-2026"]
    for model in ("claude", "gpt"):
        await claude_sdk.beta.messages.create(
            model=model, max_tokens=50, messages=HELLO, betas=asked
        )
    await claude_sdk.beta.messages.create(
        model="claude", max_tokens=50, messages=HELLO, betas=["context-1m-2025"]
    )

    allowed, none = world.anthropic.seen
    assert allowed.headers["anthropic-beta"] == "thinking-2026,files-2025"
    assert "anthropic-beta" not in none.headers
    assert "anthropic-beta" not in world.openai.seen[0].headers


@pytest.mark.parametrize("value", [",,", "files-2025;q=1", "FILES-2025", "ﬁles-2025"])
async def test_nothing_else_of_what_callers_call_a_beta_reaches_a_provider(
    world: Dialects, value: str
) -> None:
    headers = {**world.validator.headers(), "anthropic-beta": value}
    lines = [(name.encode(), text.encode()) for name, text in headers.items()]
    await world.validator.client.post(
        "/v1/messages",
        json={"model": "claude", "max_tokens": 9, "messages": HELLO},
        headers=[*lines, (b"anthropic-beta", b"thinking-2026")],
    )

    assert [seen.headers["anthropic-beta"] for seen in world.anthropic.seen] == ["thinking-2026"]


@pytest.mark.parametrize("model", ["claude", "gemini"])
@pytest.mark.parametrize("path", ["completions", "embeddings"])
async def test_an_api_that_a_provider_has_not_is_served_by_who_has_it(
    world: Dialects, gpt_sdk: openai.AsyncOpenAI, model: str, path: str
) -> None:
    embedding = {"object": "embedding", "index": 0, "embedding": [0.5]}
    world.openai.behave = responding({"data": [embedding], "choices": [], "model": "m"})
    if path == "embeddings":
        await gpt_sdk.embeddings.create(model=model, input="Hello")
    else:
        await gpt_sdk.completions.create(model=model, prompt="Hello")

    assert world.openai.seen[0].json["model"] == "acme-gpt"


async def test_a_provider_without_responses_is_asked_by_chat(tmp_path: Path) -> None:
    async with (
        running_dialects(tmp_path, openai={"apis": ["chat.completions"]}) as world,
        openai.AsyncOpenAI(base_url=f"{world.validator.url}/v1", api_key=world.token()) as client,
    ):
        answer = await client.responses.create(model="gpt", input="2 + 2?")

    assert answer.output_text == "Four."
    assert world.openai.seen[0].path == "/v1/chat/completions"


# ── the models, as each SDK lists them ─────────────────────────────────────────────────────────


async def test_the_models_are_listed_in_both_sdks_words(
    gpt_sdk: openai.AsyncOpenAI, claude_sdk: anthropic.AsyncAnthropic
) -> None:
    assert [model.id async for model in gpt_sdk.models.list()] == ["auto", *MODELS]
    listed = [model async for model in claude_sdk.models.list()]
    assert [model.id for model in listed] == ["auto", *MODELS]
    for model in listed:
        ModelInfo.model_validate(model.model_dump(), strict=True)
    assert (await claude_sdk.models.retrieve("gpt")).id == "gpt"
    assert (await gpt_sdk.models.retrieve("claude")).owned_by == "anthropic"
    with pytest.raises(openai.NotFoundError):
        await gpt_sdk.models.retrieve("clinical")


async def test_counting_tokens_sends_the_prompt_nowhere_and_is_refused_as_the_prompt_would_be(
    world: Dialects, claude_sdk: anthropic.AsyncAnthropic
) -> None:
    counted = await claude_sdk.messages.count_tokens(model="claude", messages=HELLO)

    assert counted.input_tokens == 6  # 6 bytes and a message's frame
    assert not any(upstream.seen for upstream in world.all)
    async with anthropic.AsyncAnthropic(
        base_url=world.validator.url, api_key=world.token(tier="platinum")
    ) as client:
        with pytest.raises(anthropic.PermissionDeniedError):
            await client.messages.count_tokens(model="claude", messages=HELLO)


# ── without asyncio, and in a framework ────────────────────────────────────────────────────────


async def test_anthropics_sdk_without_asyncio(world: Dialects) -> None:
    def talk() -> tuple[str, str]:
        with anthropic.Anthropic(base_url=world.validator.url, api_key=world.token()) as client:
            asked: Any = {"model": "gpt", "max_tokens": 50, "messages": HELLO}
            answer = client.messages.create(**asked)
            with client.messages.stream(**asked) as stream:
                return str(answer.content[0].to_dict()["text"]), stream.get_final_text()

    assert await to_thread.run_sync(talk) == ("Four.", "Four.")


@pytest.mark.parametrize("model", MODELS)
async def test_an_agent_of_pydantic_ai_calls_its_tool_and_answers_by_its_type(
    world: Dialects, gpt_sdk: openai.AsyncOpenAI, model: str
) -> None:
    asked = 0

    async def behave(exchange: Exchange) -> None:
        nonlocal asked
        asked += 1
        call = Call() if asked == 1 else Call("final_result", '{"total":21}', "call_2")
        match model:
            case "gpt":
                await calling(call)(exchange)
            case "claude":
                await messaging(message(None, call))(exchange)
            case _:
                await generating("", call)(exchange)

    for upstream in world.all:
        upstream.behave = behave
    agent = Agent(
        OpenAIChatModel(model, provider=OpenAIProvider(openai_client=gpt_sdk)), output_type=Sum
    )
    cities: list[str] = []

    @agent.tool_plain
    def weather(city: str) -> str:
        cities.append(city)
        return "21 degrees"

    result = await agent.run("How warm is it in Oslo?")

    assert (cities, result.output) == (["Oslo"], Sum(total=21))
