"""What no length bounds is named, whatever type it comes as; what is all in the request passes."""

import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from anthropic.types import ContentBlockParam, ToolUnionParam
from anthropic.types.beta import BetaContentBlockParam, BetaToolUnionParam
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import (
    ChatCompletionContentPartParam,
    ChatCompletionMessageParam,
    ChatCompletionToolUnionParam,
)
from openai.types.responses import ResponseInputContentParam, ResponseInputItemParam, ToolParam

from support.sdk_types import PNG, variants
from waypost.shared.contracts import Measured
from waypost.shared.decision.reading import TextReader
from waypost.shared.errors import InvalidRequestError
from waypost.shared.requests.apis import decode, measure

NOTHING_ASKED = TextReader(())


def read(endpoint: str, body: dict[str, Any]) -> Measured:
    raw = json.dumps(body).encode()
    return measure(endpoint, decode(endpoint, raw), body=raw, reader=NOTHING_ASKED)


def named(endpoint: str, body: dict[str, Any]) -> set[str]:
    return {f"{one.kind}:{one.name}" for one in read(endpoint, body).extras or ()}


def chat(part: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part]}]}


def item(one: object) -> dict[str, Any]:
    return {"input": [one]}


def tool(one: object) -> dict[str, Any]:
    return {"input": "x", "messages": [{"role": "user", "content": "x"}], "tools": [one]}


HOSTED = {
    "tool:code_interpreter", "tool:file_search", "tool:image_generation", "tool:mcp",
    "tool:programmatic_tool_calling", "tool:shell", "tool:web_search",
}  # fmt: skip
FILES = {"part:input_file", "part:input_image", "part:pdf"}
# Of the SDKs' unions, what each type is named for in at least one of its values. All others pass.
UNBOUNDED: dict[str, dict[str, set[str]]] = {
    "chat part": {"file": {"part:file"}},
    "chat message": {
        "ChatCompletionUserMessageParam": {"part:file"},
        "ChatCompletionAssistantMessageParam": {"part:audio"},
    },
    "chat tool": {},
    "responses content": {
        "input_image": {"part:input_image"},
        "input_file": {"part:input_file", "part:pdf"},
    },
    "responses item": {
        "message": FILES,
        "function_call_output": FILES,
        "custom_tool_call_output": FILES,
        "computer_call_output": {"part:computer_screenshot"},
        "additional_tools": HOSTED,
        "tool_search_output": HOSTED,
        "item_reference": {"stateful_unsupported"},
    },
    "responses tool": {
        "code_interpreter": {"tool:code_interpreter"},
        "file_search": {"tool:file_search"},
        "image_generation": {"tool:image_generation"},
        "mcp": {"tool:mcp"},
        "programmatic_tool_calling": {"tool:programmatic_tool_calling"},
        "shell": {"tool:shell"},
        "web_search": {"tool:web_search"},
        "web_search_preview": {"tool:web_search"},
    },
    "beta block": {
        "image": {"part:image"},
        "document": {"part:document", "part:image", "part:pdf"},
        "tool_result": {"part:document", "part:image", "part:pdf"},
        "web_fetch_tool_result": {"part:pdf"},
        "container_upload": {"part:container_upload"},
        "tool_addition": {
            "tool:advisor", "tool:code_execution", "tool:mcp", "tool:web_fetch", "tool:web_search",
        },
    },
    "block": {
        "image": {"part:image"},
        "document": {"part:document", "part:image", "part:pdf"},
        "tool_result": {"part:document", "part:image", "part:pdf"},
        "web_fetch_tool_result": {"part:pdf"},
        "container_upload": {"part:container_upload"},
    },
}  # fmt: skip
UNIONS: dict[str, tuple[Any, str, Callable[[object], dict[str, Any]]]] = {
    "chat part": (ChatCompletionContentPartParam, "chat.completions", chat),
    "chat message": (
        ChatCompletionMessageParam, "chat.completions", lambda one: {"messages": [one]},
    ),
    "chat tool": (ChatCompletionToolUnionParam, "chat.completions", tool),
    "responses content": (
        ResponseInputContentParam, "responses", lambda one: item({"role": "user", "content": [one]})
    ),
    "responses item": (ResponseInputItemParam, "responses", item),
    "responses tool": (ToolParam, "responses", tool),
    "beta block": (BetaContentBlockParam, "messages", chat),
    "block": (ContentBlockParam, "messages", chat),
}  # fmt: skip


@pytest.mark.parametrize("union", UNIONS)
def test_of_all_that_the_sdks_can_say_no_unbounded_part_passes_and_no_other_is_named(
    union: str,
) -> None:
    kind, endpoint, wrap = UNIONS[union]
    found: dict[str, set[str]] = defaultdict(set)
    seen = 0
    for name, made in variants(kind):
        seen += 1
        try:
            found[name] |= named(endpoint, wrap(made))
        except InvalidRequestError as refusal:
            found[name].add(refusal.code)

    assert seen >= 3
    assert {name: what for name, what in found.items() if what} == UNBOUNDED[union]


@pytest.mark.parametrize("union", [BetaToolUnionParam, ToolUnionParam])
def test_of_anthropics_tools_those_are_named_that_it_runs_itself(union: object) -> None:
    runs = ("advisor", "code_execution", "mcp_toolset", "web_fetch", "web_search")
    for name, made in variants(union):
        assert bool(named("messages", tool(made))) == name.startswith(runs), name


@pytest.mark.parametrize(
    ("endpoint", "body", "name"),
    [
        ("chat.completions", chat({"type": "video_url", "video_url": {"url": "https://a/b.mp4"}}), "video_url"),
        ("chat.completions", chat({"type": "audio_url", "audio_url": {"url": "https://a/b.mp3"}}), "audio_url"),
        ("chat.completions", chat({"type": "document_url", "document_url": "https://a/b.pdf"}), "document_url"),
        ("chat.completions", chat({"type": "file", "file": {"file_data": "https://a/b.pdf"}}), "file"),
        ("chat.completions", chat({"type": "file", "file": {"file_id": "file-1"}}), "file"),
        ("chat.completions", chat({"type": "image_url", "image_url": {"url": "gs://bucket/film"}}), "image_url"),
        ("chat.completions", chat({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}), "image_url"),
        ("chat.completions", chat({"type": "image_url", "image_url": "file-123"}), "image_url"),
        ("chat.completions", chat({"type": "image_url", "image_url": {"url": "data:video/mp4;base64,AAAA"}}), "image_url"),
        ("chat.completions", chat({"type": "video", "video": "data:video/mp4;base64,AAAA"}), "video"),
        ("chat.completions", chat({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "flac"}}), "input_audio"),
        ("chat.completions", chat({"type": "later", "thing": {"assetUri": "x"}}), "later"),
        ("chat.completions", chat({"type": "later", "thing": "s3://bucket/thing"}), "later"),
        ("chat.completions", {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}, "audio"),
        ("responses", item({"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot", "image_url": "https://a/b.png"}}), "computer_screenshot"),
        ("responses", item({"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}), "input_image"),
        ("responses", item({"role": "user", "content": [{"type": "input_file", "file_url": "https://a/b"}]}), "input_file"),
        ("responses", item({"type": "video_call", "video_id": "v"}), "video_call"),
        ("messages", chat({"type": "document", "source": {"type": "url", "url": "https://a/b.pdf"}}), "document"),
        ("messages", chat({"type": "image", "source": {"type": "file", "file_id": "f"}}), "image"),
    ],
)  # fmt: skip
def test_a_reference_out_of_the_request_is_named(
    endpoint: str, body: dict[str, Any], name: str
) -> None:
    (extra,) = read(endpoint, body).extras or ()

    assert (extra.kind, extra.name) == ("part", name)
    assert extra.at.startswith(("messages[0]", "input[0]"))


texts = st.text(max_size=40) | st.sampled_from(("https://a.example/x is down", "data: none"))
plain = st.dictionaries(
    st.sampled_from(("text", "content", "title", "name", "id", "call_id", "note", "status")),
    st.recursive(texts | st.integers() | st.booleans() | st.none(), st.lists, max_leaves=5),
    max_size=5,
)


@given(plain)
def test_a_new_type_of_part_passes_as_long_as_all_of_it_is_in_the_request(
    fields: dict[str, Any],
) -> None:
    part = {"type": "later", **{k: v for k, v in fields.items() if _is_words(v)}}
    for endpoint in ("chat.completions", "messages"):
        if endpoint == "messages":
            part.pop("content", None)
        part["text"] = "words"
        assert not read(endpoint, chat(part)).extras


def _is_words(value: object) -> bool:
    return not isinstance(value, str) or "://" not in value or " " in value


@given(plain, st.sampled_from(("url", "file_id", "videoUrl", "media_uri", "asset_ids", "href")))
def test_a_reference_is_found_at_any_depth(fields: dict[str, Any], name: str) -> None:
    for reference in ("x", ["x"], [{}, "x"], [[1, "x"]]):
        part = {"type": "later", "inner": [{**fields, "deeper": {name: reference}}]}
        assert named("chat.completions", chat(part)) >= {"part:later"}


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"service_tier": "priority"}, "price:service_tier=priority"),
        ({"service_tier": "flex"}, "price:service_tier=flex"),
        ({"speed": "fast"}, "price:speed=fast"),
        ({"inference_geo": "us"}, "price:inference_geo=us"),
        ({"service_tier": "my patient has flu"}, "price:service_tier=unknown"),
        ({"web_search_options": {}}, "tool:web_search"),
        ({"search_parameters": {"mode": "on"}}, "tool:live_search"),
        ({"plugins": [{"id": "web"}]}, "tool:plugins"),
        ({"enable_search": True}, "tool:web_search"),
        ({"mcp_servers": [{"url": "https://a"}]}, "tool:mcp"),
        ({"extra_body": {"google": {"cached_content": "c"}}}, "tool:cached_content"),
        ({"tools": [{"googleSearch": {}}]}, "tool:googleSearch"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "web_search"}]}]}, "tool:web_search"),
    ],
)  # fmt: skip
def test_what_has_another_price_is_named(fields: dict[str, Any], name: str) -> None:
    assert named("chat.completions", {**chat({"type": "text", "text": "x"}), **fields}) == {name}


@pytest.mark.parametrize(
    "fields",
    [
        *(
            {"service_tier": tier}
            for tier in ("auto", "default", "standard", "standard_only", None)
        ),
        {"speed": "standard"},
        {"inference_geo": "global"},
        {"plugins": []},
        {"enable_search": False},
        {"web_search_options": None},
        {"extra_body": {}},
        {"extra_body": {"google": {"thinking_config": {"include_thoughts": True}}}},
        {"tools": [{"type": "function", "function": {"name": "web_search"}}]},
        {"thinking": {"type": "enabled", "budget_tokens": 5}},
    ],
)
def test_what_asks_for_nothing_costs_nothing_more(fields: dict[str, Any]) -> None:
    assert not named("chat.completions", {**chat({"type": "text", "text": "x"}), **fields})


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        ("messages", {"thinking": {"type": "enabled", "budget_tokens": 9_000}}),
        ("chat.completions", {"thinking": {"type": "enabled", "budget_tokens": 9_000}}),
        ("chat.completions", {"reasoning": {"max_tokens": 9_000}}),
        ("chat.completions", {"thinking_budget": 9_000}),
        (
            "chat.completions",
            {"extra_body": {"google": {"thinking_config": {"thinking_budget": 9_000}}}},
        ),
    ],
)
def test_a_budget_for_thinking_is_part_of_what_is_asked(
    endpoint: str, fields: dict[str, Any]
) -> None:
    measured = read(endpoint, {**chat({"type": "text", "text": "x"}), **fields})

    assert measured.reasoning_tokens == 9_000


def test_pictures_are_no_text() -> None:
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG * 1_000}"}}
    measured = read("chat.completions", chat(picture))

    assert measured.max_input_tokens < 300
    assert len(measured.pictures or ()) == 1
