"""Bodies, headers and queries of any shape: an error of the caller is told as one, never as ours."""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.dialects import three_models
from support.publisher import Publisher
from support.upstream import answering, running_upstream
from support.validator import OPERATOR_TOKEN, Running, running_validator
from support.wires import generating, messaging
from support.worlds import a_policy
from waypost.client.testing import unsigned_token
from waypost.edge.serving.app import create_app

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(180),
    # The validator, which runs beside the strategies, draws numbers of its own.
    pytest.mark.filterwarnings("ignore:Do not use the `random` module"),
]

T = TypeVar("T")
CONTROLS = bytes([*range(32), 127])  # refused as no HTTP
EXAMPLES = int(os.environ.get("WAYPOST_BODY_EXAMPLES", "150"))
PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/responses",
    "/v1/decide",
    "/v1/decide?api=messages",
    "/v1/decide?api=responses",
    "/v1/feedback",
)
HEADERS = (
    "waypost-facts",
    "waypost-proposal",
    "waypost-deadline-ms",
    "anthropic-version",
    "anthropic-beta",
    "idempotency-key",
    "traceparent",
    "content-type",
    "dpop",
    "accept",
    "origin",
    "cookie",
)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def validator(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Running]:
    """A validator with a provider of each dialect, detectors and a console."""

    def change(providers: dict[str, Any]) -> None:
        providers["anthropic"]["dialect"] = "anthropic"
        providers["google"]["dialect"] = "gemini"
        for one in providers.values():
            one["breaker"] = {"failures": 1_000, "min_calls": 100_000}

    async with (
        running_upstream(answering()) as openai,
        running_upstream(messaging()) as anthropic,
        running_upstream(generating()) as gemini,
        running_validator(
            tmp_path_factory.mktemp("validator"),
            {"openai": openai, "anthropic": anthropic, "google": gemini},
            policy=three_models(),
            change=change,
            console={"token": "CONSOLE_TOKEN"},
            detectors={"ssn": "phi"},
        ) as running,
    ):
        yield running


@pytest.fixture(scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[httpx.AsyncClient]:
    tree, publisher = tmp_path_factory.mktemp("tree"), Publisher(policy=a_policy())
    for path, content in {
        "v1/prod/bundle.json": publisher.publish(),
        "metadata/1.root.json": publisher.root,
    }.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content)
    transport = httpx.ASGITransport(app=create_app(tree), raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {unsigned_token(tier='pro')}"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://edge", headers=headers
    ) as client:
        yield client


def examples(check: Callable[..., None], *strategies: Any) -> Callable[[], None]:  # noqa: ANN401
    bounds = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    tried: Callable[[], None] = bounds(given(*strategies)(check))  # type: ignore[no-untyped-call]
    return tried


def on(loop: asyncio.AbstractEventLoop) -> Callable[[Coroutine[Any, Any, T]], T]:
    return lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(60)


# ── whatever may be written ────────────────────────────────────────────────────────────────────

NAMES = [
    "model",
    "messages",
    "role",
    "content",
    "type",
    "text",
    "image_url",
    "url",
    "file",
    "file_id",
    "file_data",
    "input",
    "prompt",
    "system",
    "tools",
    "tool_choice",
    "function",
    "functions",
    "name",
    "arguments",
    "parameters",
    "stream",
    "max_tokens",
    "n",
    "stop",
    "user",
    "temperature",
    "response_format",
    "json_schema",
    "schema",
    "provider",
    "only",
    "order",
    "max_price",
    "models",
    "source",
    "data",
    "media_type",
    "tool_calls",
    "tool_call_id",
    "id",
    "output",
    "instructions",
    "reasoning",
    "thinking",
    "cache_control",
    "stream_options",
    "include_usage",
    "metadata",
    "input_schema",
    "tool_use_id",
    "decision",
    "rating",
    "cause",
]
WORDS = [
    "auto",
    "gpt",
    "claude",
    "gemini",
    "user",
    "assistant",
    "system",
    "tool",
    "text",
    "image",
    "image_url",
    "document",
    "base64",
    "function",
    "tool_use",
    "tool_result",
    "thinking",
    "input_text",
    "output_text",
    "function_call",
    "function_call_output",
    "message",
    "input_image",
    "input_file",
    "reasoning",
    "json_object",
    "json_schema",
    "good",
    "bad",
    "data:image/png;base64,AAAA",
    "{}",
    "��",
    "\x00",
]
leaves = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 2**63, 2**64, 10**30, 0.5, 1e308, -0.0])
    | st.sampled_from(WORDS)
    | st.text(max_size=8)
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
BASES: tuple[dict[str, Any], ...] = (
    {"model": "auto", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20},
    {"model": "auto", "input": "hi"},
    {"model": "auto", "prompt": ["hi", [1, 2]]},
    {
        "model": "claude",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "a", "content": "1"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "max_tokens": 20,
    },
    {"decision": "019ac000-0000-7000-8000-000000000000", "rating": "good"},
)  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:  # noqa: ANN401
    found = [at]
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            found += places(one, (*at, key))
    return found


def written(value: Any, at: tuple[Any, ...], new: Any) -> Any:  # noqa: ANN401
    """Return a copy of ``value`` with ``new`` at a place."""
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = written(copy[at[0]], at[1:], new)
    return copy


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    base: Any = dict(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.integers(0, 2))):
        base = written(base, draw(st.sampled_from(places(base))), draw(values))
    if isinstance(base, dict) and draw(st.booleans()):
        base = {**base, draw(st.sampled_from(NAMES)): draw(values)}
    body = bytearray(json.dumps(base, ensure_ascii=draw(st.booleans())).encode(errors="replace"))
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(body)))
        body[place : place + draw(st.integers(0, 2))] = draw(
            st.binary(max_size=2)
            | st.sampled_from([b"\xff", b"\xed\xa0\x80", b"[" * 3_000, b'{"a":' * 3_000, b"1e999"])
            | st.sampled_from([b"9" * 5_000, b"\\ud800", b"\\u0000", b"\xef\xbb\xbf", b"NaN"])
        )
    return bytes(body)


header_texts = (
    st.binary(max_size=40).map(lambda raw: raw.translate(None, CONTROLS).strip())
    | st.sampled_from([b'a="', b"a=(1 2", b"w=1.5", b"http://[", b"application/openmetrics-text;version=x", b"9" * 30, b"\xff\xfe"])
)  # fmt: skip
headers = st.dictionaries(st.sampled_from(HEADERS), header_texts, max_size=2)


# ── where it may be sent ───────────────────────────────────────────────────────────────────────


async def test_no_request_that_models_are_asked_by_is_a_fault_of_ours(validator: Running) -> None:
    token, run = validator.bearer(), on(asyncio.get_running_loop())

    def check(path: str, body: bytes, extra: dict[str, bytes]) -> None:
        sent = {"authorization": token, "content-type": "application/json", **extra}
        answer: httpx.Response = run(validator.client.post(path, content=body, headers=sent))  # type: ignore[arg-type]

        assert answer.status_code != 500, answer.text
        if answer.status_code == 200:
            json.loads(body.decode())  # nobody was asked what is no JSON

    await asyncio.to_thread(examples(check, st.sampled_from(PATHS), bodies(), headers))


async def test_nothing_that_is_looked_at_is_a_fault_of_ours(validator: Running) -> None:
    token, run = validator.bearer(), on(asyncio.get_running_loop())
    origin = {"origin": validator.url}
    login = await validator.client.post(
        "/console/login", data={"token": OPERATOR_TOKEN}, headers=origin
    )
    cookie = login.headers["set-cookie"].partition(";")[0].encode()
    pages = (
        "/v1/models", "/v1/models/{}", "/v1/decisions/{}", "/metrics", "/readyz", "/{}",
        "/console/decisions", "/console/decisions/{}", "/console/decisions.csv", "/console/routes",
        "/console/budgets", "/console/providers", "/console/playground", "/console/login",
        "/console/static/{}",
    )  # fmt: skip
    names = ("window", "verdict", "route", "tenant", "account", "id", "before", "at", "decision", "next", "after")  # fmt: skip
    texts = st.text(max_size=8) | st.sampled_from(["\0", "a\0b", "\ud7ff", "%00", "²", "9" * 40])

    def check(page: str, part: str, query: dict[str, str], extra: dict[str, bytes]) -> None:
        sent = {"authorization": token, "cookie": cookie, **extra}
        url = validator.url + page.format(quote(part, errors="replace"))
        answer: httpx.Response = run(
            validator.client.get(url, params=query, headers=sent)  # type: ignore[arg-type]
        )

        assert answer.status_code != 500, (page, answer.text)

    queries = st.dictionaries(st.sampled_from(names), texts, max_size=3)
    await asyncio.to_thread(examples(check, st.sampled_from(pages), texts, queries, headers))


async def test_no_form_of_the_console_is_a_fault_of_ours(validator: Running) -> None:
    run = on(asyncio.get_running_loop())
    origin = {"origin": validator.url}
    login = await validator.client.post(
        "/console/login", data={"token": OPERATOR_TOKEN}, headers=origin
    )
    cookie = login.headers["set-cookie"].partition(";")[0]
    facts = st.sampled_from(
        ['{"now": 1, "signed": {"tier": "pro"}, "measured": {"endpoint": "chat.completions"}}', "[" * 3_000, "{}", '{"now": 1e999}']
    )  # fmt: skip
    forms = st.dictionaries(
        st.sampled_from(["text", "tier", "tenant", "data", "max_tokens", "facts", "proposal", "needs", "task", "tags"]),
        facts | st.text(max_size=20),
        max_size=4,
    )  # fmt: skip

    def check(path: str, form: dict[str, str], raw: bytes | None) -> None:
        sent = {**origin, "cookie": cookie, "content-type": "application/x-www-form-urlencoded"}
        data = httpx.QueryParams(form).__str__().encode() if raw is None else raw
        answer: httpx.Response = run(validator.client.post(path, content=data, headers=sent))

        assert answer.status_code != 500, answer.text

    paths = st.sampled_from(["/console/playground", "/console/login"])
    raws = st.none() | st.binary(max_size=30) | st.just(b"a=%ff&text=%00&tier=%ed%a0%80")
    await asyncio.to_thread(examples(check, paths, forms, raws))


async def test_nothing_that_the_edge_is_sent_is_a_fault_of_its_own(edge: httpx.AsyncClient) -> None:
    run = on(asyncio.get_running_loop())

    def check(body: bytes, extra: dict[str, bytes], token: str | None, channel: str) -> None:
        sent: dict[str, Any] = dict(extra)
        if token is not None:
            sent["authorization"] = b"Bearer " + token.encode("latin-1", "replace")
        answer: httpx.Response = run(
            edge.post("/v1/decide", params={"channel": channel}, content=body, headers=sent)
        )

        assert answer.status_code != 500, answer.text

    channels = st.sampled_from(["prod", "prod", "prod", "", "../..", "\0", "x" * 300]) | st.text()
    tokens = st.none() | st.none() | st.text(max_size=30) | st.just("e30.e30.e30") | st.just("..")
    await asyncio.to_thread(examples(check, bodies(), headers, tokens, channels))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "field",
    [
        b'"user": "\xff"',
        b'"\xff": 1',
        b'"x": {"y": ["\xc3("]}',
        b'"tools": [{"a": "\xed\xa0\x80"}]',
    ],
)
async def test_bytes_that_are_no_utf_8_are_no_json_wherever_they_stand(
    validator: Running, path: str, field: bytes
) -> None:
    body = b'{"model": "auto", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, '
    body += b'"input": "hi", "prompt": "hi", ' + field + b"}"

    answer = await validator.client.post(
        path, content=body, headers={**validator.headers(), "content-type": "application/json"}
    )

    assert answer.status_code == 400
    error = answer.json()["error"]
    code = error.get("code") or error["details"]["error_code"]
    assert code == ("invalid_body" if path == "/v1/feedback" else "invalid_json")
