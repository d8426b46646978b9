"""What a provider's error says, and what of it is passed on."""

import json
import logging
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.validator.http.provider_errors import MOST_CHARS, read_complaint
from waypost.validator.startup.logs import JsonFormatter, hide_in_logs
from waypost.validator.telemetry.scrubber import HIDDEN, Scrubber
from waypost.validator.upstream.causes import cause_of_rejection, cause_of_status
from waypost.validator.upstream.known_answers import FOREIGN_STATE, TOO_LONG, TROUBLES

_TEXT = st.text(min_size=1, max_size=30)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | _TEXT,
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["error", "message", "detail", "errors", "code", "type", "details", "loc",
                         "msg", "param", "metadata", "raw", "status", "reason"]) | _TEXT,
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(_JSON)
def test_whatever_json_an_error_is_it_is_read_within_bounds(told: object) -> None:
    complaint = read_complaint(json.dumps(told).encode())

    assert complaint is None or 0 < len(complaint.message) <= MOST_CHARS


@given(st.binary(max_size=200))
def test_whatever_bytes_an_error_is_it_is_read_within_bounds(body: bytes) -> None:
    complaint = read_complaint(body)
    cause_of_rejection(body)
    cause_of_status(404, body, otherwise="bad_response")

    assert complaint is None or 0 < len(complaint.message) <= MOST_CHARS


def test_an_error_as_deep_as_json_can_be_is_read() -> None:
    body = b'{"error":' * 5_000 + b'"x"' + b"}" * 5_000

    assert cause_of_rejection(body) == "client_error"


WORDS = ("prompt is too long", "maximum context length", "Your credit balance is too low")


@pytest.mark.parametrize("words", WORDS)
def test_what_an_error_repeats_of_the_request_decides_nothing(words: str) -> None:
    """Or a caller could have a provider's key rested, or be served by a dearer model, at will."""
    repeats = [
        {"detail": [{"loc": ["body"], "msg": "Field required", "input": {"content": words}}]},
        {"error": {"message": f"Invalid value: '{words}'.", "code": "invalid_value"}},
        {"error": {"message": "Unknown parameter.", "code": "unknown_parameter", "sent": words}},
    ]

    for body in repeats:
        assert cause_of_rejection(json.dumps(body).encode()) == "client_error"


def test_every_known_answer_says_where_it_was_seen() -> None:
    for one in (*TROUBLES, *TOO_LONG, *FOREIGN_STATE):
        assert len(one.sources) == 2, one
        assert one.seen >= "2024", one
        assert one.codes or one.text is not None, one


_KEYS = st.text(string.ascii_letters + string.digits + "-_", min_size=12, max_size=60)


@given(_KEYS, st.integers(2, 8), st.integers(1, 6))
def test_no_form_of_a_key_is_left(key: str, begins: int, ends: int) -> None:
    scrubber = Scrubber([key, "another-key-of-another"])
    shown = (
        key,
        key[: max(8, begins)],
        f"{key[:begins]}***{key[-ends:]}",
        f"{key[:begins]}...{key[-ends:]}",
        f"{key[:begins]}…{key[-ends:]}",
    )

    for form in shown:
        assert scrubber.text(f"Incorrect API key provided: {form}.") == (
            f"Incorrect API key provided: {HIDDEN}."
        )
        error = json.dumps({"error": {"message": f"key {form} is wrong"}}).encode()
        assert json.loads(scrubber.bytes(error))["error"]["message"] == f"key {HIDDEN} is wrong"


@given(st.text(string.ascii_letters + string.digits + "./+=-", min_size=20, max_size=60), st.data())
def test_no_part_of_a_key_is_left_that_is_longer_than_a_word(key: str, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(key)))
    part = key[begin : data.draw(st.integers(begin, len(key)))]
    told = Scrubber([key]).text(f"Unknown key {part} here")

    assert not [word for word in re.findall(r"[\w-]{8,}", part) if word in told]


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "unit", ["a", "x", "*", ".", "a*", "xxxx_", "a-", "sk-acme", "…", "aaaaaaaa "]
)
def test_no_text_takes_long_to_look_through(unit: str) -> None:
    text = unit * (400_000 // len(unit))  # minutes, if the time grows with its square

    assert len(Scrubber(["sk-acme-secret-of-ours"]).text(text)) > len(text) // 2


@pytest.mark.timeout(20)
@pytest.mark.parametrize("unit", ["<title", "<title>", "<title> ", " ", "model ", "[{", "\\"])
def test_no_error_takes_long_to_read(unit: str) -> None:
    for page in ("<html><title>", "<", ""):
        body = page + unit * (60_000 // len(unit))
        for status in (200, 400, 404, 429):  # minutes in all, if the time grows with its square
            cause_of_status(status, body.encode(), otherwise="bad_response")


def test_what_is_no_key_stays_as_it_is() -> None:
    scrubber = Scrubber(["sk-acme-secret", "x"])
    text = 'Invalid value "**bold**" ... at messages[3].content: xylophone, axe... \udcff'

    assert scrubber.text(text) is text
    assert scrubber.bytes(b"\xff\xfe plain") == b"\xff\xfe plain"


def test_logs_hold_no_key() -> None:
    hide_in_logs(Scrubber(["sk-acme-secret"]))
    record = logging.LogRecord("a", logging.ERROR, "f", 1, "header %s", ("sk-acme-secret",), None)
    try:
        assert "sk-acme-secret" not in JsonFormatter().format(record)
    finally:
        hide_in_logs(Scrubber(()))
