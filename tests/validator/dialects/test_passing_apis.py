"""Messages, responses and completions as they pass through: what is read of them, and no more."""

import json

import pytest
from openai.types.responses import ResponseErrorEvent, ResponseFailedEvent

from support.upstream import DONE, USAGE, usage_event
from support.wires import message, message_events, named_event
from waypost.shared.money import Usage
from waypost.shared.requests.apis import decode
from waypost.validator.dialects.passthrough import APIS, StreamReader

BODIES = {
    "completions": b'{"prompt":"x"}',
    "messages": b'{"messages":[{"role":"user","content":"x"}],"max_tokens":9}',
    "responses": b'{"input":"x"}',
}
RESPONSE_USAGE = {
    "input_tokens": 20,
    "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 1},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 3},
}


def reader(endpoint: str) -> StreamReader:
    return APIS[endpoint].reader(decode(endpoint, BODIES[endpoint]))


def test_a_stream_of_messages_is_read_for_its_usage_and_its_end() -> None:
    reading = reader("messages")
    events = message_events(message("Grüße.", thinking="Hm."))

    assert b"".join(reading.feed(event) for event in events[:-1]) == b"".join(events[:-1])
    assert not reading.is_done
    reading.feed(events[-1])
    assert (reading.is_done, reading.has_failed) == (True, False)
    assert reading.output_bytes == len("Grüße.Hm.".encode())
    assert reading.usage == Usage(
        input_tokens=20, output_tokens=7, cached_tokens=5, cache_write_tokens=3
    )


def test_a_stream_of_a_response_is_read_for_its_usage_and_its_end() -> None:
    reading = reader("responses")
    delta = named_event({"type": "response.output_text.delta", "delta": "Grüße."})
    end = named_event({"type": "response.completed", "response": {"usage": RESPONSE_USAGE}})

    assert reading.feed(delta + end) == delta + end
    assert (reading.is_done, reading.has_failed) == (True, False)
    assert reading.output_bytes == len("Grüße.".encode())
    assert reading.usage == Usage(
        input_tokens=20, output_tokens=7, cached_tokens=5, cache_write_tokens=1, reasoning_tokens=3
    )


def test_a_stream_of_a_completion_is_read_for_its_usage_and_its_end() -> None:
    reading = reader("completions")
    piece = b"data: " + json.dumps({"choices": [{"index": 0, "text": "def"}]}).encode() + b"\n\n"

    assert reading.feed(piece + usage_event() + DONE) == piece + DONE, "nobody ordered the usage"
    assert (reading.is_done, reading.output_bytes) == (True, 3)
    assert reading.usage == Usage(input_tokens=20, output_tokens=7)
    sent = APIS["completions"].bounded(
        BODIES["completions"],
        model="m",
        output_tokens=9,
        streamed=True,
        max_tokens_field="max_completion_tokens",
    )
    assert json.loads(sent)["stream_options"] == {"include_usage": True}
    assert json.loads(sent)["max_tokens"] == 9


@pytest.mark.parametrize(
    ("endpoint", "event"),
    [
        ("messages", {"type": "error", "error": {"type": "overloaded_error", "message": "Busy."}}),
        ("responses", {"type": "error", "message": "Busy."}),
        ("responses", {"type": "response.failed", "response": {"usage": None}}),
    ],
)
def test_an_error_inside_a_stream_is_not_its_end(endpoint: str, event: dict[str, object]) -> None:
    reading = reader(endpoint)
    reading.feed(named_event(event))

    assert (reading.has_failed, reading.is_done) == (True, False)


def test_a_response_that_breaks_off_ends_in_an_error_and_failed() -> None:
    reading = reader("responses")
    reading.feed(named_event({"type": "response.output_text.delta", "delta": "Half"}))
    told = reading.breaking_off("It broke off.", code="upstream_cut_short")

    error, failed = (one.partition(b"data: ")[2] for one in told.rstrip().split(b"\n\n"))
    event = ResponseErrorEvent.model_validate_json(error)
    assert (event.code, event.message, event.sequence_number) == (
        "upstream_cut_short",
        "It broke off.",
        1,
    )
    last = ResponseFailedEvent.model_validate_json(failed)
    assert (last.sequence_number, last.response.status) == (2, "failed")
    assert last.response.error is not None
    assert last.response.error.message == "It broke off."


@pytest.mark.parametrize("endpoint", ["embeddings", "messages", "responses"])
@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'{"choices":[]}', b"\xff"])
def test_what_is_not_an_answer_is_said_to_be_none(endpoint: str, body: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        APIS[endpoint].report(body)


@pytest.mark.parametrize(
    ("endpoint", "body", "usage"),
    [
        ("embeddings", {"data": [], "usage": {"prompt_tokens": 3}}, Usage(input_tokens=3)),
        ("messages", {"content": [], "usage": {"input_tokens": -1}}, None),
        ("messages", {"content": []}, None),
        ("responses", {"output": [], "usage": "much"}, None),
        (
            "responses",
            {"output": [], "usage": USAGE},
            Usage(input_tokens=20, output_tokens=7),
        ),
    ],
)
def test_a_usage_is_read_or_as_good_as_none(
    endpoint: str, body: dict[str, object], usage: Usage | None
) -> None:
    report = APIS[endpoint].report(json.dumps(body).encode())

    assert report.usage(has_output=endpoint != "embeddings") == usage
