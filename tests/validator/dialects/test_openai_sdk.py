"""The official OpenAI SDK, unchanged, with the validator as its base URL."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

import openai
import pytest
from anyio import to_thread

from support.upstream import Exchange, Upstream, breaking_off_after, event, failing
from support.validator import Running
from waypost.shared.contracts import SpendLimit

pytestmark = pytest.mark.anyio

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [
    {"role": "user", "content": "2 + 2?"}
]


def token(validator: Running, **wishes: object) -> str:
    return validator.bearer(**wishes).removeprefix("Bearer ")  # type: ignore[arg-type]


@pytest.fixture
async def client(validator: Running) -> AsyncGenerator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{validator.url}/v1", api_key=token(validator)
    ) as client:
        yield client


@contextmanager
def sync_client(validator: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{validator.url}/v1", api_key=token(validator)) as client:
        yield client


async def test_an_answer(client: openai.AsyncOpenAI, validator: Running) -> None:
    answer = await client.chat.completions.with_raw_response.create(model="auto", messages=MESSAGES)

    completion = answer.parse()
    assert completion.choices[0].message.content == "Four."
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 7
    record = await validator.record_of(answer.headers["x-request-id"])
    assert record.verdict == "decided"


async def test_a_stream(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="large", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Four."
    assert chunks[-1].usage is not None


async def test_without_asyncio(validator: Running) -> None:
    def talk() -> tuple[str | None, str]:
        with sync_client(validator) as client:
            answer = client.chat.completions.create(model="auto", messages=MESSAGES)
            stream = client.chat.completions.create(model="auto", messages=MESSAGES, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            return answer.choices[0].message.content, text

    assert await to_thread.run_sync(talk) == ("Four.", "Four.")


async def test_the_models(client: openai.AsyncOpenAI) -> None:
    assert await anext(model.id async for model in client.models.list()) == "auto"


async def test_errors_have_the_sdks_own_classes(validator: Running, acme: Upstream) -> None:
    async def error_of(**wishes: object) -> openai.APIStatusError:
        async with openai.AsyncOpenAI(
            base_url=f"{validator.url}/v1", api_key=token(validator, **wishes), max_retries=0
        ) as client:
            with pytest.raises(openai.APIStatusError) as error:
                await client.chat.completions.create(model="auto", messages=MESSAGES)
            return error.value

    assert isinstance(await error_of(aud="another"), openai.AuthenticationError)
    assert isinstance(await error_of(tier="platinum"), openai.PermissionDeniedError)
    acme.behave = failing(400, code="bad")
    bad = await error_of()
    assert isinstance(bad, openai.BadRequestError)
    assert bad.code == "bad"


async def test_an_exhausted_budget_is_not_asked_for_again(
    validator: Running, acme: Upstream
) -> None:
    limits = (SpendLimit(window="day", limit_nusd=20_000),)
    async with openai.AsyncOpenAI(
        base_url=f"{validator.url}/v1", api_key=token(validator, limits=limits), max_retries=5
    ) as client:
        with pytest.raises(openai.APIStatusError) as error:
            await client.chat.completions.create(model="auto", messages=MESSAGES)

    assert (error.value.status_code, error.value.code) == (402, "budget_exhausted")
    assert error.value.type == "insufficient_quota"
    assert not acme.seen


async def test_a_stream_that_breaks_off_is_an_error_and_not_a_short_answer(
    client: openai.AsyncOpenAI, acme: Upstream
) -> None:
    acme.behave = breaking_off_after(event("half an ans"))
    stream = await client.chat.completions.create(model="auto", messages=MESSAGES, stream=True)

    with pytest.raises(openai.APIError, match="broke off"):
        async for _ in stream:
            pass


async def test_tools_pass_both_ways(client: openai.AsyncOpenAI, acme: Upstream) -> None:
    function = {"name": "add", "arguments": '{"a": 2, "b": 2}'}
    call = {"id": "call_1", "type": "function", "function": function}

    async def behave(exchange: Exchange) -> None:
        from support.upstream import completion

        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        await exchange.respond(200, completion(choices=[choice]))

    acme.behave = behave
    tool: openai.types.chat.ChatCompletionToolParam = {
        "type": "function",
        "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
    }
    answer = await client.chat.completions.create(model="auto", messages=MESSAGES, tools=[tool])

    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].id == "call_1"
    # Only models that can call tools were considered.
    assert acme.seen[0].json["model"] == "acme-large"
    assert acme.seen[0].json["tools"] == [tool]
