"""Server-sent events read as the WHATWG's standard has them, wherever the network cuts."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.validator.dialects.sse import EventReader, write_event

ENDS = ("\n", "\r\n", "\r")
LINES = (
    'data: {"a":1}',
    "data:b",
    "data: two ",
    "data",
    "data:",
    ": a comment",
    ":",
    "event: ping",
    "id: 7",
    "retry: 100",
    "dataset: no field of ours",
    "Grüße: x",
    "data: Grüße",
    "",
    "",
    "",
)


def by_the_standard(stream: bytes) -> list[str]:
    """Return each event's data, by the steps of the standard, one character after the other.

    Departs in one thing: what is left at the end without a blank line is an event as well.
    """
    text = stream.decode().removeprefix("\ufeff")
    lines: list[str] = [""]
    skips = False
    for character in text:
        if skips and character == "\n":
            skips = False
            continue
        skips = character == "\r"
        if character in "\r\n":
            lines.append("")
        else:
            lines[-1] += character
    found: list[str] = []
    data: list[str] = []
    for line in [*lines, ""]:
        if not line:
            if "\n".join(data):
                found.append("\n".join(data))
            data = []
        name, _, value = line.partition(":")
        if name == "data":
            data.append(value.removeprefix(" "))
    return found


class Reading(EventReader):
    """Notes what it sees; keeps from the caller what is named."""

    def __init__(self, hidden: str = "") -> None:
        super().__init__()
        self.seen: list[str] = []
        self._hidden = hidden

    def _see(self, payload: bytes) -> bool:
        self.seen.append(payload.decode())
        return self.seen[-1] != self._hidden


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    lines = draw(st.lists(st.tuples(st.sampled_from(LINES), st.sampled_from(ENDS)), max_size=14))
    text = "".join(line + end for line, end in lines)
    if draw(st.booleans()):
        text += draw(st.sampled_from(LINES))
    mark = draw(st.sampled_from((b"", b"", b"\xef\xbb\xbf")))
    return mark + text.encode()


# Blank space at the ends of data is no part of any JSON.
def stripped(found: list[str]) -> list[str]:
    return [data for one in found if (data := one.strip(" \t\r\n"))]


@given(stream=streams(), places=st.lists(st.integers(0, 500), max_size=12))
def test_events_are_those_of_the_standard_wherever_the_network_cuts(
    stream: bytes, places: list[int]
) -> None:
    reading = Reading()
    passed = b"".join(reading.feed(piece) for piece in cut(stream, places))
    passed += reading.end(is_whole=True)

    assert stripped(reading.seen) == stripped(by_the_standard(stream))
    # Whoever reads what was passed on reads the same; and no byte is changed on the way.
    assert stripped(by_the_standard(passed)) == stripped(by_the_standard(stream))
    assert stream.removeprefix(b"\xef\xbb\xbf").startswith(passed.removesuffix(b"\n\n"))


@given(stream=streams(), places=st.lists(st.integers(0, 500), max_size=12))
def test_an_event_that_is_kept_back_takes_no_other_with_it(
    stream: bytes, places: list[int]
) -> None:
    reading = Reading(hidden="b")
    passed = b"".join(reading.feed(piece) for piece in cut(stream, places))
    passed += reading.end(is_whole=True)

    kept = [one for one in stripped(by_the_standard(stream)) if one != "b"]
    assert stripped(by_the_standard(passed)) == kept


def test_what_is_left_when_a_stream_breaks_is_no_event() -> None:
    reading = Reading()
    reading.feed(b"data: a\n\ndata: b")

    assert reading.end(is_whole=False) == b""
    assert reading.seen == ["a"]


@pytest.mark.parametrize("fault", [KeyError, RecursionError, UnicodeError, OverflowError])
def test_an_event_that_cannot_be_read_ends_the_reading_and_keeps_what_came_before(
    fault: type[Exception],
) -> None:
    class Failing(Reading):
        def _see(self, payload: bytes) -> bool:
            if payload == b"bad":
                raise fault
            return super()._see(payload)

    reading = Failing()

    assert reading.feed(b"data: a\n\ndata: bad\n\ndata: b\n\n") == b"data: a\n\n"
    assert (reading.fault, reading.is_over, reading.seen) == (fault.__name__, True, ["a"])
    assert reading.feed(b"data: c\n\n") == b""


def test_want_of_memory_is_nobodys_nonsense() -> None:
    class Failing(Reading):
        def _see(self, payload: bytes) -> bool:
            raise MemoryError

    with pytest.raises(MemoryError):
        Failing().feed(write_event({}))


@pytest.mark.parametrize("line", [b": \xff", b"event: \xc3", b"dat\xe9: x", b"id: \xed\xa0\x80"])
def test_half_a_character_is_passed_on_in_no_line_of_an_event(line: bytes) -> None:
    reading, good = Reading(), "data: Grüße\n\n".encode()

    assert reading.feed(good + line + b"\ndata: a\n\n" + good) == good
    assert (reading.fault, reading.is_over) == ("UnicodeDecodeError", True)
