"""The simulated providers behave like providers."""

import random
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import msgspec
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from starlette.applications import Starlette

from waypost.demo.processes import running
from waypost.demo.upstream import (
    ANNOUNCEMENT,
    Config,
    Profile,
    Provider,
    Relay,
    create_app,
    delays_s,
)

pytestmark = pytest.mark.anyio

KEY = "sk-acme"
FAST = Profile(ttft_ms=1, tokens_per_s=50_000)
ACME = Provider(name="acme", api_key=KEY, models={"acme-1": FAST})
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Why is the sky blue?"}]


def client_of(app: Starlette) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://upstream")


@pytest.fixture
async def acme() -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(create_app(Config(providers=(ACME,)))) as client:
        yield client


def sdk(client: httpx2.AsyncClient, *, key: str = KEY) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        api_key=key, base_url="http://upstream/acme/v1", http_client=client, max_retries=0
    )


async def test_the_official_sdk_reads_an_answer_that_says_it_is_simulated(
    acme: httpx2.AsyncClient,
) -> None:
    raw = await sdk(acme).chat.completions.with_raw_response.create(
        model="acme-1", messages=QUESTION
    )
    completion = raw.parse()

    assert raw.headers["x-simulated"] == "1"
    assert (completion.choices[0].message.content or "").startswith("(simulated) Air")
    assert completion.choices[0].finish_reason == "stop"


async def test_a_stream_carries_the_same_text_and_usage_as_the_whole_answer(
    acme: httpx2.AsyncClient,
) -> None:
    whole = await sdk(acme).chat.completions.create(model="acme-1", messages=QUESTION)
    stream = await sdk(acme).chat.completions.create(
        model="acme-1", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage == whole.usage


async def test_a_stream_ends_as_the_wire_format_wants(acme: httpx2.AsyncClient) -> None:
    answer = await acme.post(
        "/acme/v1/chat/completions",
        headers={"authorization": f"Bearer {KEY}"},
        json={"model": "acme-1", "messages": QUESTION, "stream": True},
    )

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")
    assert "usage" not in answer.text


async def test_max_tokens_cuts_the_answer_and_the_bill(acme: httpx2.AsyncClient) -> None:
    completion = await sdk(acme).chat.completions.create(
        model="acme-1", messages=QUESTION, max_tokens=5
    )

    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 5


def test_the_same_seed_gives_the_same_delays() -> None:
    def drawn(seed: int) -> list[float]:
        return delays_s(Profile(ttft_ms=300, tokens_per_s=80), 20, random.Random(seed))

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert 0.1 < drawn(1)[0] < 0.9


async def test_another_providers_key_opens_nothing(acme: httpx2.AsyncClient) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        await sdk(acme, key="sk-other").chat.completions.create(model="acme-1", messages=QUESTION)

    assert caught.value.code == "invalid_api_key"


async def test_an_unknown_model_is_not_found(acme: httpx2.AsyncClient) -> None:
    with pytest.raises(openai.NotFoundError):
        await sdk(acme).chat.completions.create(model="acme-9", messages=QUESTION)


async def test_a_body_without_messages_is_refused(acme: httpx2.AsyncClient) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk(acme).chat.completions.create(model="acme-1", messages=[])

    assert caught.value.param == "messages"


async def test_an_outage_lasts_until_it_is_ended(acme: httpx2.AsyncClient) -> None:
    await acme.put("/acme/outage")
    with pytest.raises(openai.InternalServerError):
        await sdk(acme).chat.completions.create(model="acme-1", messages=QUESTION)

    await acme.delete("/acme/outage")
    assert [model.id async for model in sdk(acme).models.list()] == ["acme-1"]


@pytest.fixture
def real_server(tmp_path: Path) -> Iterator[str]:
    """A model server as a process of its own, reached over a socket."""
    config = tmp_path / "upstream.json"
    config.write_bytes(msgspec.json.encode(Config(providers=(ACME,))))
    with running(
        "upstream",
        [sys.executable, "-m", "waypost.demo.upstream", str(config)],
        announcement=ANNOUNCEMENT,
        log=tmp_path / "upstream.log",
    ) as server:
        yield f"{server.url()}/acme/v1"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_relay_answers_with_what_stands_behind_it(real_server: str, stream: bool) -> None:
    relay = Relay(base_url=real_server, api_key=KEY, models={"front-1": "acme-1"})
    fronted = Provider(name="front", api_key="sk-front", models={}, relay=relay)
    app = create_app(Config(providers=(fronted,)))
    async with app.router.lifespan_context(app), client_of(app) as client:
        answer = await client.post(
            "/front/v1/chat/completions",
            headers={"authorization": "Bearer sk-front"},
            json={"model": "front-1", "messages": QUESTION, "stream": stream},
        )

    assert answer.status_code == 200
    assert "Air" in answer.text
    assert ("data: [DONE]" in answer.text) is stream


async def test_a_relay_whose_server_is_gone_is_a_bad_gateway() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    fronted = Provider(
        name="front", api_key="sk-front", models={}, relay=Relay(base_url=nowhere, api_key=KEY)
    )
    app = create_app(Config(providers=(fronted,)))
    async with app.router.lifespan_context(app), client_of(app) as client:
        answer = await client.post(
            "/front/v1/chat/completions", headers={"authorization": "Bearer sk-front"}, json={}
        )

    assert answer.status_code == 502
