"""Answers of HTTP/1.1 servers for property tests, and what h11 reads in them."""

from dataclasses import dataclass

import h11
from hypothesis import strategies as st

# Fields that would frame a message, or end a connection, if a trailer had a say in that.
FRAMING = (
    b"Content-Length: 5\r\n",
    b"content-length: x\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"transfer-encoding: gzip\r\n",
    b"Connection: close\r\n",
    b"connection: upgrade\r\nupgrade: x\r\n",
)
HARMLESS = b"X-Trailer: y\r\n"


@dataclass(frozen=True)
class Sent:
    """What a server sends.

    Attributes:
        wire: its bytes.
        plain: the same with harmless trailers, which must make no difference.
        ends: whether it ends the connection after them.
    """

    wire: bytes
    plain: bytes
    ends: bool


@dataclass(frozen=True)
class Heard:
    """What comes of it; ``None`` for an exchange that fails."""

    status: int
    body: bytes
    is_kept: bool


def heard_by_h11(sent: Sent) -> Heard | None:
    """Return what h11 makes of ``sent``, as the answer to one POST."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=10**7)
    connection.send(
        h11.Request(method="POST", target="/", headers=[("Host", "x"), ("Content-Length", "0")])
    )
    connection.send(h11.EndOfMessage())
    status, body = 0, b""
    try:
        connection.receive_data(sent.plain)
        ended = False
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if ended or not sent.ends:
                    return None
                connection.receive_data(b"")
                ended = True
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            elif not isinstance(event, h11.InformationalResponse):
                return None
    except h11.RemoteProtocolError:
        return None
    is_kept = connection.their_state is h11.DONE and not connection.trailing_data[0]
    return Heard(status, body, is_kept and not sent.ends)


CONNECTION = (
    b"",
    b"",
    b"",
    b"Connection: close\r\n",
    b"connection: keep-alive\r\n",
    b"Upgrade: h2,h2c\r\nConnection: Upgrade, Keep-Alive\r\n",  # as Apache offers it
)

SIZES = st.one_of(
    st.integers(0, 40),
    st.sampled_from([4_095, 16_384, 65_535, 65_536, 65_537, 70_000, 131_073, 300_000]),
)


def _letters(size: int, seed: int) -> bytes:
    return (b"%08x\r\n" % seed * (size // 10 + 1))[:size]


@st.composite
def answers(draw: st.DrawFn, sizes: st.SearchStrategy[int] = SIZES) -> Sent:
    """Answers of every framing, kept and ended connections, early hints, trailers, leftovers."""
    seed = draw(st.integers(0, 2**32 - 1))
    head = b""
    for status in draw(st.lists(st.sampled_from([100, 102, 103]), max_size=3)):
        head += b"HTTP/1.1 %d Wait\r\nlink: x\r\ncontent-type: no\r\n\r\n" % status
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0"]))
    status = draw(st.sampled_from([200, 200, 200, 201, 400, 413, 429, 500, 204, 304]))
    head += b"HTTP/%b %d Status\r\n" % (version, status)
    head += draw(st.sampled_from(CONNECTION))
    plain = b""
    body = _letters(draw(sizes), seed)
    framing = draw(st.sampled_from(["counted", "chunked", "ended", "none"]))
    if framing == "counted":
        head += b"Content-Length: %d\r\n\r\n" % len(body)
        tail = plain = b"" if status in (204, 304) else body
    elif framing == "chunked":
        head += b"Transfer-Encoding: chunked\r\n\r\n"
        tail = plain = b""
        if status not in (204, 304):
            tail, plain = draw(_chunked(body))
    else:
        head += b"\r\n"
        tail = plain = b"" if framing == "none" or status in (204, 304) else body
    extra = draw(
        st.sampled_from(
            [b"", b"", b"", b"", b"\r\n", b"x", b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n!"]
        )
    )
    ends = framing == "ended" or draw(st.integers(0, 5)) == 0
    if draw(st.integers(0, 5)) == 0:  # cut short
        cut = draw(st.integers(0, len(head + tail)))
        # A cut inside the trailers would cut the two elsewhere.
        cut = cut if tail == plain else min(cut, len(head))
        return Sent((head + tail)[:cut], (head + plain)[:cut], ends)
    return Sent(head + tail + extra, head + plain + extra, ends)


@st.composite
def _chunked(draw: st.DrawFn, body: bytes) -> tuple[bytes, bytes]:
    coded, at = b"", 0
    while at < len(body):
        size = draw(st.one_of(st.integers(1, 9), st.integers(1, len(body))))
        if at + size < len(body) and coded.count(b"\r\n") > 40:
            size = len(body) - at
        extension = draw(st.sampled_from([b"", b"", b"", b";a=b", b';a="c d"']))
        piece = body[at : at + size]
        coded += b"%x%b\r\n%b\r\n" % (len(piece), extension, piece)
        at += size
    coded += b"0\r\n"
    trailers = draw(st.lists(st.sampled_from([*FRAMING, HARMLESS]), max_size=3))
    return (
        coded + b"".join(trailers) + b"\r\n",
        coded + HARMLESS * len(trailers) + b"\r\n",
    )


def pieces(draw: st.DrawFn, wire: bytes, at_most: int = 6) -> list[bytes]:
    """Return ``wire`` cut anywhere."""
    cuts = sorted(draw(st.lists(st.integers(0, len(wire)), max_size=at_most)))
    return [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True) if a < b]
