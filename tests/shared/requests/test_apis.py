"""What is read from a request of any API, and what is refused before anything is spent."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.shared.contracts import ENDPOINTS, Measured, Route, TextHas
from waypost.shared.decision.reading import TextReader
from waypost.shared.errors import InvalidRequestError
from waypost.shared.requests.apis import decode, measure
from waypost.shared.requests.measure import DOCUMENT_BYTES_PER_TOKEN

NOTHING_ASKED = TextReader(())
BY_WORD = TextReader(
    (Route(name="hard", models=("m",), when=(TextHas("keywords", any_of=("prove",)),)),)
)

PNG = {"type": "base64", "media_type": "image/png", "data": "iVBORw0K"}


def read(endpoint: str, body: object, reader: TextReader = NOTHING_ASKED) -> Measured:
    raw = json.dumps(body).encode()
    return measure(endpoint, decode(endpoint, raw), body=raw, reader=reader)


def saying(endpoint: str, text: str) -> dict[str, Any]:
    """The smallest request that says ``text``."""
    others: dict[str, dict[str, Any]] = {
        "completions": {"prompt": text},
        "embeddings": {"input": text},
        "responses": {"input": text},
    }
    return others.get(endpoint, {"messages": [{"role": "user", "content": text}]})


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@given(text=st.text(max_size=300))
def test_no_tokenizer_makes_more_of_a_prompt_than_its_bound(endpoint: str, text: str) -> None:
    measured = read(endpoint, saying(endpoint, text))

    assert measured.endpoint == endpoint
    assert measured.input_bytes == len(text.encode())
    assert measured.max_input_tokens >= measured.input_bytes


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_rules_read_the_newest_thing_the_user_said(endpoint: str) -> None:
    assert read(endpoint, saying(endpoint, "Please prove it."), BY_WORD).keywords == ("prove",)


@pytest.mark.parametrize(
    ("endpoint", "body", "needs"),
    [
        ("messages", {"tools": [{"name": "t", "input_schema": {}}]}, ("tools",)),
        ("messages", {"output_config": {"format": {"type": "json_schema"}}}, ("json",)),
        ("messages", {"output_config": {"effort": "low"}}, ()),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "image", "source": PNG}]}]},
            ("vision",),
        ),
        (
            "messages",
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "tool_result", "content": [{"type": "image", "source": PNG}]}
                        ],
                    }
                ]
            },
            ("vision",),
        ),
        ("responses", {"tools": [{"type": "function", "name": "t"}]}, ("tools",)),
        ("responses", {"text": {"format": {"type": "json_object"}}}, ("json",)),
        ("responses", {"text": {"format": {"type": "text"}}}, ()),
        (
            "responses",
            {
                "input": [
                    {
                        "role": "user",
                        "content": [{"type": "input_image", "image_url": "https://a.example/x"}],
                    }
                ]
            },
            ("vision",),
        ),
        (
            "responses",
            {"input": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            ("audio",),
        ),
    ],
)
def test_what_a_request_needs_is_seen(
    endpoint: str, body: dict[str, Any], needs: tuple[str, ...]
) -> None:
    assert read(endpoint, {**saying(endpoint, "Hi"), **body}).needs == needs


DATA = "JVBERi0xLjcK" * 100


@pytest.mark.parametrize(
    ("endpoint", "block"),
    [
        ("chat.completions", {"type": "file", "file": {"file_data": DATA}}),
        ("messages", {"type": "document", "source": {"type": "base64", "data": DATA}}),
        ("responses", {"type": "input_file", "file_data": DATA}),
    ],
)
def test_a_document_is_bounded_by_its_pages_and_not_by_its_bytes(
    endpoint: str, block: dict[str, Any]
) -> None:
    said = [{"role": "user", "content": [block]}]
    measured = read(endpoint, {"input" if endpoint == "responses" else "messages": said})

    assert measured.needs == ("vision",)
    assert [extra.name for extra in measured.extras or ()] == ["pdf"]
    # What is expected of it is no more than models hold.
    assert len(DATA) / DOCUMENT_BYTES_PER_TOKEN < measured.input_tokens < 2_000


def test_a_document_of_plain_text_is_text() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "Hello, you."}
    inside = {"type": "content", "content": [{"type": "image", "source": PNG}]}
    blocks = [{"type": "document", "source": source}, {"type": "document", "source": inside}]
    measured = read("messages", {"messages": [{"role": "user", "content": blocks}]})

    assert measured.input_bytes == len("Hello, you.")
    assert measured.needs == ("vision",)
    assert not measured.extras


def test_a_tools_result_is_not_what_the_user_said() -> None:
    said = [
        {"role": "user", "content": "Please prove it."},
        {"role": "assistant", "content": [{"type": "tool_use", "input": {"a": "bcd"}}]},
        {"role": "user", "content": [{"type": "tool_result", "content": "sunny"}]},
    ]
    measured = read("messages", {"messages": said, "system": "Be short."}, BY_WORD)

    assert measured.keywords == ("prove",)
    assert measured.input_bytes == len("Please prove it." + '{"a": "bcd"}' + "sunny" + "Be short.")


def test_a_completion_is_as_many_answers_as_prompts_and_choices() -> None:
    measured = read(
        "completions", {"prompt": ["a", "b", "c"], "n": 2, "best_of": 4, "max_tokens": 9}
    )

    assert (measured.choices, measured.max_output_tokens, measured.messages) == (12, 9, 3)


def test_an_embedding_writes_nothing() -> None:
    assert read("embeddings", {"input": ["a", "b"]}).max_output_tokens == 0


def test_texts_may_come_as_tokens() -> None:
    one = read("embeddings", {"input": [1, 2, 3]})
    two = read("embeddings", {"input": [[1, 2], [3]]})

    assert (one.messages, two.messages) == (1, 2)
    assert min(one.input_tokens, two.input_tokens) >= 3


@pytest.mark.parametrize(
    ("endpoint", "body", "code", "param"),
    [
        ("messages", {}, "invalid_body", None),
        ("messages", {"messages": []}, "invalid_body", "messages"),
        ("messages", {"messages": [{"role": "user"}]}, "invalid_body", "messages[0]"),
        ("messages", {"messages": [], "max_tokens": 0}, "invalid_body", "messages"),
        ("responses", {}, "invalid_body", None),
        ("responses", {"input": 7}, "invalid_body", "input"),
        ("responses", {"input": "Hi", "prompt": {"id": "p"}}, "stateful_unsupported", "prompt"),
        ("embeddings", {"input": []}, "invalid_body", "input"),
        ("embeddings", {"input": ["x"] * 2_049}, "invalid_body", "input"),
        ("embeddings", {"input": "x", "stream": True}, "invalid_body", "stream"),
        ("completions", {"prompt": ["x"] * 2_049}, "invalid_body", "prompt"),
        ("completions", {"prompt": "x", "best_of": 17}, "invalid_body", "best_of"),
    ],
)
def test_what_cannot_be_read_or_bounded_is_refused_with_its_place(
    endpoint: str, body: object, code: str, param: str | None
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read(endpoint, body)

    assert (refused.value.code, refused.value.param) == (code, param)
