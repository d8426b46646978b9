"""The cost goes into the usage of an answer, and no other byte changes."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.wires import named_event
from waypost.validator.dialects.told_cost import with_cost, with_cost_in_events

keys = st.sampled_from(["usage", "choices", "id", "cost", "öl"]) | st.text(max_size=4)
values = st.recursive(
    st.none() | st.integers(-9, 9) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
counts = st.integers(0, 10**6)
usages = st.dictionaries(st.sampled_from(["prompt_tokens", "total_tokens", "x"]), counts)
spaces = st.sampled_from([None, 1, "\t"])


def without_cost(body: bytes) -> Any:  # noqa: ANN401 - any JSON
    found = json.loads(body)
    found["usage"].pop("cost")
    return found


@settings(max_examples=150)
@given(
    before=st.dictionaries(keys, values, max_size=3),
    usage=usages,
    after=st.dictionaries(keys, values, max_size=3),
    nusd=st.integers(0, 10**15),
    indent=spaces,
)
def test_the_cost_is_put_into_the_usage_at_the_top_and_nowhere_else(
    before: dict[str, Any],
    usage: dict[str, int],
    after: dict[str, Any],
    nusd: int,
    indent: int | str | None,
) -> None:
    # The same usage elsewhere, as in a choice, must stay as it is.
    body = {**before, "first": usage, "usage": None, **after, "last": [{"usage": usage}]}
    body["usage"] = usage
    wire = json.dumps(body, indent=indent, ensure_ascii=False).encode()

    told = with_cost(wire, nusd)

    assert json.loads(told, parse_float=Decimal)["usage"]["cost"] == Decimal(nusd) / 10**9
    assert without_cost(told) == body
    # One piece was put in; or, of an empty usage, it was written anew.
    place = next((at for at, (a, b) in enumerate(zip(wire, told, strict=False)) if a != b), 0)
    rest = len(told) - len(wire)
    if usage and indent is None:
        assert wire == told[:place] + told[place + rest :]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"id":"1"}',
        b'{"usage":null}',
        b'{"usage":7}',
        b'{"usage":[1]}',
        b'{"choices":[{"usage":{"prompt_tokens":1}}]}',
        b'{"text":"\\"usage\\":{}"}',
        b'{"usage":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    ],
)
def test_what_tells_no_usage_at_its_top_stays_as_it_is(body: bytes) -> None:
    assert with_cost(body, 5) == body


def test_the_cost_that_a_provider_tells_is_replaced_by_what_is_charged() -> None:
    body = b'{"usage": {"cost": 0.95, "prompt_tokens": 194, "cost_details": {"a": 19}}}'

    assert json.loads(with_cost(body, 2_200)) == {
        "usage": {"cost": 0.0000022, "prompt_tokens": 194, "cost_details": {"a": 19}}
    }
    assert b"0.0000022" in with_cost(body, 2_200), "no exponent: not all parsers know one"


CHUNK = b'data: {"choices":[],"usage":{"prompt_tokens":1}}'


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
@pytest.mark.parametrize("around", [b"", b": a comment\n\n", b'data: {"choices":[]}\n\n'])
def test_the_last_event_with_a_usage_has_the_cost(end: bytes, around: bytes) -> None:
    events = around + CHUNK + end + CHUNK + end + b"data: [DONE]" + end

    told = with_cost_in_events("chat.completions", events, 1_500_000_000)

    last = CHUNK[:-2] + b',"cost":1.5}}'
    assert told == around + CHUNK + end + last + end + b"data: [DONE]" + end


def test_other_events_that_tell_a_usage_are_left_alone() -> None:
    start = named_event({"type": "message_start", "message": {"usage": {"input_tokens": 1}}})
    flat = named_event({"type": "message_start", "usage": {"input_tokens": 1}})
    begun = named_event({"type": "response.created", "response": {"usage": {"input_tokens": 1}}})
    wrong = named_event({"type": "response.completed", "usage": {"input_tokens": 1}})

    for endpoint, events in (("messages", start + flat), ("responses", begun + wrong)):
        assert with_cost_in_events(endpoint, events, 5) == events


def test_a_response_has_it_where_its_usage_is() -> None:
    response = {"output": [{"usage": {"input_tokens": 1}}], "usage": {"input_tokens": 1}}
    events = named_event({"type": "response.incomplete", "response": response})

    told = with_cost_in_events("responses", events, 1)

    payload = json.loads(told.partition(b"data: ")[2])
    assert payload["response"]["usage"] == {"input_tokens": 1, "cost": 1e-09}
    assert payload["response"]["output"] == response["output"]
    assert b'"cost":0.000000001' in told
