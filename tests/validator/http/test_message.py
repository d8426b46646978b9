"""One response as our client reads it, and as h11 reads the same bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.answers import Heard, Sent, answers, heard_by_h11, pieces
from waypost.validator.http.transports.message import MalformedError, Message

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


def heard_by_us(parts: list[bytes], *, ends: bool) -> Heard | None:
    message, body = Message(), b""
    try:
        for part in parts:
            message.feed(part)
            body += message.take()
    except MalformedError:
        return None
    if ends:
        message.end()
    if not message.is_complete:
        return None
    return Heard(message.status, body, message.may_continue and not ends)


@given(st.data(), answers())
def test_an_answer_is_read_as_h11_reads_it_wherever_it_is_cut(
    data: st.DataObject, sent: Sent
) -> None:
    parts = data.draw(st.builds(lambda: None).flatmap(lambda _: cut(sent.wire)))

    ours, theirs = heard_by_us(parts, ends=sent.ends), heard_by_h11(sent)

    assert ours == theirs


@st.composite
def cut(draw: st.DrawFn, wire: bytes) -> list[bytes]:
    return pieces(draw, wire)


@given(st.data(), answers(st.integers(0, 40)))
def test_a_damaged_answer_is_read_as_h11_reads_it_or_not_at_all(
    data: st.DataObject, sent: Sent
) -> None:
    at = data.draw(st.integers(0, max(0, len(sent.plain) - 1)))
    byte = data.draw(st.one_of(st.sampled_from(list(b"\r\n\0 \t:;,0fx+-_")), st.integers(0, 255)))
    damaged = sent.plain[:at] + bytes([byte]) + sent.plain[at + 1 :]
    parts = data.draw(cut(damaged))

    ours = heard_by_us(parts, ends=sent.ends)

    assert ours is None or ours == heard_by_h11(Sent(damaged, damaged, sent.ends))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("begin", "drops"), [(b"5;", 16_000), (b"0\r\na:", 60_000)])
def test_a_line_that_comes_byte_by_byte_takes_no_longer(begin: bytes, drops: int) -> None:
    message = Message()
    message.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + begin)
    for _ in range(drops):  # most of a minute, if the time grows with its square
        message.feed(b"a")
    message.feed(b"\r\nhello\r\n0\r\n\r\n" if drops < 20_000 else b"\r\n\r\n")

    assert message.may_continue
