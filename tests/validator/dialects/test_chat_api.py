"""Chat completions as they pass through: what is changed on the way, and what is read of an answer."""

import json
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.upstream import DONE, USAGE, completion, event, usage_event
from waypost.shared.money import Usage
from waypost.validator.dialects.passthrough import chat
from waypost.validator.dialects.sse import MAX_EVENT_BYTES

STREAM = event("Grüße, ") + b": keep-alive\n\n" + event("Welt") + event(None) + usage_event() + DONE
TOLD = Usage(input_tokens=20, output_tokens=7)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(st.lists(st.integers(0, 10_000), max_size=20), st.booleans())
def test_a_stream_reads_the_same_however_the_network_cuts_it(
    places: list[int], shows_usage: bool
) -> None:
    reader = chat.Reader(shows_usage=shows_usage)

    passed = b"".join(reader.feed(piece) for piece in cut(STREAM, places))

    assert passed == (STREAM if shows_usage else STREAM.replace(usage_event(), b""))
    assert (reader.usage, reader.is_done, reader.has_failed) == (TOLD, True, False)
    assert reader.output_bytes == len("Grüße, Welt".encode())


@given(st.lists(st.integers(0, 10_000), max_size=20))
def test_events_may_end_in_carriage_returns(places: list[int]) -> None:
    stream = STREAM.replace(b"\n", b"\r\n")
    reader = chat.Reader(shows_usage=True)

    assert b"".join(reader.feed(piece) for piece in cut(stream, places)) == stream
    assert (reader.usage, reader.is_done) == (TOLD, True)


@given(st.binary(max_size=2_000))
def test_no_bytes_of_a_provider_upset_the_reader(data: bytes) -> None:
    reader = chat.Reader(shows_usage=False)

    passed = reader.feed(b"data: " + data + b"\n\n")

    assert len(passed) <= len(data) + 10


def test_an_event_without_end_is_not_waited_for() -> None:
    reader = chat.Reader(shows_usage=True)

    with pytest.raises(ValueError, match="without end"):
        reader.feed(b"data: " + b"x" * MAX_EVENT_BYTES)


def test_a_large_event_in_small_pieces_does_not_stall_other_requests() -> None:
    reader = chat.Reader(shows_usage=True)
    large = event("a" * (MAX_EVENT_BYTES - 1_000))
    before_s = time.process_time()

    passed = b"".join(reader.feed(large[at : at + 1_400]) for at in range(0, len(large), 1_400))

    assert passed == large
    assert time.process_time() - before_s < 2  # looking through all for each piece takes five


def test_the_last_of_several_usages_counts() -> None:
    reader = chat.Reader(shows_usage=True)
    reader.feed(event("a", usage={"prompt_tokens": 20, "completion_tokens": 1}))
    reader.feed(event("b", usage={"prompt_tokens": 20, "completion_tokens": 7}))

    assert reader.usage == TOLD


def test_all_that_a_model_writes_is_counted() -> None:
    reader = chat.Reader(shows_usage=True)
    call = {"index": 0, "function": {"arguments": '{"city":'}}
    for delta in (
        {"content": "four"},
        {"reasoning_content": "hmm"},
        {"refusal": "no"},
        {"tool_calls": [call], "content": None},
    ):
        reader.feed(event(None, choices=[{"index": 0, "delta": delta}]))

    assert reader.output_bytes == len("four" + "hmm" + "no") + len(json.dumps([call]))


def test_cached_tokens_are_part_of_the_prompts() -> None:
    told = {**USAGE, "prompt_tokens_details": {"cached_tokens": 12, "audio_tokens": 0}}

    assert chat.report(completion(usage=told)).usage() == Usage(
        input_tokens=20, output_tokens=7, cached_tokens=12
    )


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {"prompt_tokens": -1},
        {"prompt_tokens": "20"},
        {"prompt_tokens": 1e300},
        {"prompt_tokens": True},
        [],
    ],
)
def test_a_usage_that_cannot_be_read_is_as_good_as_none(usage: object) -> None:
    assert chat.report(json.dumps({"choices": [], "usage": usage}).encode()).usage() is None


def test_a_usage_of_nothing_is_a_usage() -> None:
    told = {"prompt_tokens": 0, "completion_tokens": 0}

    assert chat.report(completion(usage=told)).usage() == Usage()


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'{"choices": 7}', b"\xff"])
def test_what_is_not_an_answer_is_said_to_be_none(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        chat.report(body)


def test_a_name_given_twice_is_sent_once() -> None:
    body = b'{"messages":[],"max_tokens":5,"model":"a","model":"b","max_tokens":500000}'

    sent = chat.bounded(
        body, model="real", max_tokens_field="max_tokens", output_tokens=5, streamed=False
    )

    assert sent == b'{"messages":[],"model":"real","max_tokens":5}'
