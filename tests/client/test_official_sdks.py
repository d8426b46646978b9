"""The official SDKs through ours, over real sockets, streaming and not."""

from collections.abc import Iterator
from typing import Any, cast

import anthropic
import httpx2
import openai
import pytest
from msgspec import structs
from openai.types.chat import ChatCompletionMessageParam

from support.loopback import asgi, dead_origin, serving
from support.worlds import a_policy
from waypost.client import AsyncWaypost, Waypost
from waypost.client.testing import FakeValidator, StaticManifest, unsigned_token
from waypost.shared.contracts import ENDPOINTS, Endpoint

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
PROVE: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Please prove it."}]


@pytest.fixture
def validator() -> FakeValidator:
    return FakeValidator(a_policy())


@pytest.fixture
def manifest(validator: FakeValidator) -> Iterator[StaticManifest]:
    """A manifest whose one endpoint is the validator, on a socket."""
    with serving(asgi(validator)) as origin:
        yield StaticManifest(a_policy(endpoints=(Endpoint(id="here", url=origin + "/v1"),)))


@pytest.fixture
def wp(manifest: StaticManifest) -> Iterator[Waypost]:
    with Waypost(token=unsigned_token(), manifest=manifest, refresh_interval_s=None) as made:
        yield made


@pytest.fixture
def awp(manifest: StaticManifest) -> AsyncWaypost:
    return AsyncWaypost(token=unsigned_token(), manifest=manifest, refresh_interval_s=None)


def http_client(wp: Any, library: str) -> httpx2.Client:  # noqa: ANN401 - either client
    # openai takes both at run time; its annotations name httpx2 alone.
    made = wp.http_client() if library == "httpx" else wp.httpx2_client()
    return cast("httpx2.Client", made)


BOTH = pytest.mark.parametrize("library", ["httpx", "httpx2"])


@BOTH
def test_openai_answers(wp: Waypost, validator: FakeValidator, library: str) -> None:
    with openai.OpenAI(
        base_url=wp.base_url, api_key="unused", http_client=http_client(wp, library)
    ) as client:
        answer = client.chat.completions.create(model="auto", messages=MESSAGES)
    assert answer.choices[0].message.content == "This is small."
    assert validator.requests[0].proposal is not None
    assert validator.requests[0].proposal.model == "small"


@BOTH
def test_openai_streams(wp: Waypost, library: str) -> None:
    with openai.OpenAI(
        base_url=wp.base_url, api_key="unused", http_client=http_client(wp, library)
    ) as client:
        stream = client.chat.completions.create(model="auto", messages=PROVE, stream=True)
        words = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(words) == "This is large."
    assert wp._core.models.estimate("large").at_s > 0, "the time to first token was taken"
    assert not wp._core.models.estimate("large").active


@BOTH
@pytest.mark.anyio
async def test_async_openai_answers_and_streams(awp: AsyncWaypost, library: str) -> None:
    made = cast("httpx2.AsyncClient", http_client(awp, library))
    async with (
        awp,
        openai.AsyncOpenAI(base_url=awp.base_url, api_key="unused", http_client=made) as client,
    ):
        answer = await client.chat.completions.create(model="auto", messages=MESSAGES)
        stream = await client.chat.completions.create(model="auto", messages=PROVE, stream=True)
        words = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert answer.choices[0].message.content == "This is small."
    assert "".join(words) == "This is large."


def test_extra_headers_declare_facts_for_one_request(wp: Waypost, validator: FakeValidator) -> None:
    with openai.OpenAI(
        base_url=wp.base_url, api_key="unused", http_client=wp.httpx2_client()
    ) as client:
        client.chat.completions.create(
            model="auto", messages=MESSAGES, extra_headers={"Waypost-Facts": 'data="phi"'}
        )
    assert validator.requests[0].decision is not None
    assert validator.requests[0].decision.model == "clinical"


def test_a_refusal_reaches_the_caller_as_the_sdks_own_error(wp: Waypost) -> None:
    with (
        openai.OpenAI(
            base_url=wp.base_url, api_key="unused", http_client=wp.httpx2_client()
        ) as client,
        wp.facts(data="unheard_of"),
        pytest.raises(openai.PermissionDeniedError) as caught,
    ):
        client.chat.completions.create(model="auto", messages=MESSAGES)
    assert caught.value.code == "unknown_data_class"


@BOTH
def test_openai_survives_a_dead_endpoint(validator: FakeValidator, library: str) -> None:
    with serving(asgi(validator)) as alive, dead_origin() as dead:
        endpoints = (
            Endpoint(id="near", url=dead, region="eu"),
            Endpoint(id="far", url=alive, region="us"),
        )
        wp = Waypost(
            token=unsigned_token(region="eu"),
            manifest=StaticManifest(a_policy(endpoints=endpoints)),
            refresh_interval_s=None,
        )
        with openai.OpenAI(
            base_url=wp.base_url,
            api_key="unused",
            max_retries=0,
            http_client=http_client(wp, library),
        ) as client:
            answer = client.chat.completions.create(model="auto", messages=MESSAGES)
    assert answer.choices[0].message.content == "This is small."


SPEAKING_ALL = tuple(structs.replace(model, endpoints=ENDPOINTS) for model in a_policy().models)


@pytest.fixture
def polyglot() -> FakeValidator:
    return FakeValidator(a_policy(models=SPEAKING_ALL))


@pytest.fixture
def everything(polyglot: FakeValidator) -> Iterator[Waypost]:
    """A client whose models speak all APIs."""
    with serving(asgi(polyglot)) as origin:
        here = (Endpoint(id="here", url=origin + "/v1"),)
        manifest = StaticManifest(a_policy(models=SPEAKING_ALL, endpoints=here))
        with Waypost(token=unsigned_token(), manifest=manifest, refresh_interval_s=None) as made:
            yield made


def test_a_model_is_proposed_to_every_api(everything: Waypost, polyglot: FakeValidator) -> None:
    with everything.http_client() as client:
        for path, body in (
            ("messages", {"messages": MESSAGES, "max_tokens": 9}),
            ("responses", {"input": "Hello"}),
            ("completions", {"prompt": "Hello"}),
            ("embeddings", {"input": ["Hello", "again"]}),
        ):
            client.post(f"{everything.base_url}/{path}", json=body)

    assert [seen.headers["waypost-proposal"] for seen in polyglot.requests] == [
        'model="small", route="short-chat", manifest=42'
    ] * 4


def test_the_fake_validator_answers_each_of_openais_apis_as_its_sdk_reads_it(
    everything: Waypost,
) -> None:
    with openai.OpenAI(
        base_url=everything.base_url, api_key="unused", http_client=everything.httpx2_client()
    ) as client:
        chat = client.chat.completions.create(model="auto", messages=MESSAGES)
        written = client.completions.create(model="auto", prompt="Hello")
        response = client.responses.create(model="auto", input="Hello")
        vectors = client.embeddings.create(model="auto", input=["Hello", "again"])
        chunks = client.completions.create(model="auto", prompt="Hello", stream=True)
        completed = "".join(chunk.choices[0].text for chunk in chunks)
        with client.responses.stream(model="auto", input="Hello") as stream:
            streamed = stream.get_final_response()

    assert chat.choices[0].message.content == "This is small."
    assert written.choices[0].text == completed == "This is small."
    assert response.output_text == streamed.output_text == "This is small."
    assert [one.index for one in vectors.data] == [0, 1]
    # Strictly, as the SDK's own types have it: nothing is missing and nothing is of another type.
    for answer in (chat, written, response, vectors):
        type(answer).model_validate(answer.model_dump(), strict=True)


def test_the_fake_validator_answers_messages_as_anthropics_sdk_reads_them(
    everything: Waypost, polyglot: FakeValidator
) -> None:
    with anthropic.Anthropic(
        base_url=everything.base_url.removesuffix("/v1"),
        api_key="unused",
        http_client=everything.httpx2_client(),
        max_retries=0,
    ) as client:
        ask: Any = {"model": "auto", "max_tokens": 9, "messages": MESSAGES}
        message = client.messages.create(**ask)
        with client.messages.stream(**ask) as stream:
            streamed = stream.get_final_message()
        polyglot.status = 503
        with pytest.raises(anthropic.InternalServerError) as down:
            client.messages.create(**ask)

    for one in (message, streamed):
        told = one.model_dump()
        assert [block["text"] for block in told["content"]] == ["This is small."]
        assert told["stop_reason"] == "end_turn"
    type(message).model_validate(message.model_dump(), strict=True)
    assert "down" in down.value.message
    assert [seen.path for seen in polyglot.requests] == ["/v1/messages"] * 3
    assert polyglot.requests[0].headers["authorization"].startswith("Bearer ey")
