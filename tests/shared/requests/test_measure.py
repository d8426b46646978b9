"""What is read from a chat request, and what is refused before anything is spent."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.shared.contracts import Route, TextHas
from waypost.shared.decision.reading import TextReader, Vocabulary
from waypost.shared.errors import InvalidRequestError
from waypost.shared.requests.measure import decode_chat, measure_chat

NOTHING_ASKED = TextReader(())


def body(**fields: object) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "hello"}], **fields}).encode()


@pytest.mark.parametrize(
    ("raw", "code", "param"),
    [
        (b"{", "invalid_json", None),
        (b"", "invalid_json", None),
        (b"\xff\xfe", "invalid_json", None),
        (b'{"x":' + b"[" * 100_000, "invalid_json", None),
        (b"[]", "invalid_body", None),
        (b"{}", "invalid_body", None),
        (body(messages=[]), "invalid_body", "messages"),
        (body(messages="hello"), "invalid_body", "messages"),
        (body(messages=[{"role": "user", "content": 3}]), "invalid_body", "messages[0].content"),
        (body(messages=[{"role": "wizard"}]), "invalid_body", "messages[0].role"),
        (body(max_tokens=-1), "invalid_body", "max_tokens"),
        (body(max_tokens=0), "invalid_body", "max_tokens"),
        (body(max_completion_tokens="7"), "invalid_body", "max_completion_tokens"),
        (body(model=7), "invalid_body", "model"),
        (body(model=""), "invalid_body", "model"),
        (body(stream="yes"), "invalid_body", "stream"),
        (body(n=100), "invalid_body", "n"),
    ],
)
def test_a_malformed_body_is_named_and_refused(raw: bytes, code: str, param: str | None) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        decode_chat(raw)

    assert (caught.value.code, caught.value.param) == (code, param)


def test_an_error_does_not_quote_what_the_caller_wrote() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        decode_chat(body(messages=[{"role": "patient has diabetes"}]))

    assert "diabetes" not in caught.value.message


@given(st.lists(st.text(max_size=300), min_size=1, max_size=5))
def test_the_bound_on_tokens_is_never_below_the_text_in_bytes(texts: list[str]) -> None:
    raw = json.dumps({"messages": [{"role": "user", "content": t} for t in texts]}).encode()

    measured = measure_chat(decode_chat(raw), body=raw, reader=NOTHING_ASKED)

    # Lone surrogates are not text; the decoder turned them away or replaced them.
    assert measured.max_input_tokens >= sum(len(t.encode("utf-8", "replace")) for t in texts)
    assert measured.messages == len(texts)


def test_needs_are_what_the_request_uses() -> None:
    raw = body(
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what is this?"},
                    {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                    {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
                ],
            }
        ],
        tools=[{"type": "function", "function": {"name": "look"}}],
        response_format={"type": "json_object"},
    )

    measured = measure_chat(decode_chat(raw), body=raw, reader=NOTHING_ASKED)

    assert measured.needs == ("audio", "json", "tools", "vision")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Please REFUND me", ("refund",)),
        ("refunds are nice", ()),
        ("Straße und ÉTAT", ("strasse", "état")),
        ("step by step, please", ("step by step",)),
        ("step-by step", ()),
        ("non-refund", ()),
    ],
)
def test_keywords_are_whole_words_case_folded(text: str, found: tuple[str, ...]) -> None:
    assert Vocabulary(["refund", "strasse", "état", "step by step"]).find(text) == found


def test_only_the_newest_user_message_is_searched_for_keywords() -> None:
    raw = body(
        messages=[
            {"role": "user", "content": "refund"},
            {"role": "assistant", "content": "refund"},
            {"role": "user", "content": "thanks"},
        ]
    )

    asking = Route(name="r", models=(), when=(TextHas("keywords", any_of=("refund",)),))
    reader = TextReader([asking])

    measured = measure_chat(decode_chat(raw), body=raw, reader=reader)

    assert measured.keywords == ()
