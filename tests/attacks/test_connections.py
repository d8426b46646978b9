"""What a request may do to the connection it came by: nothing that the next one pays for."""

import asyncio
import os
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress

import h11
import msgspec
import pytest
from h11._state import MIGHT_SWITCH_PROTOCOL  # not in its public module
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import Scope

from support.echo import Said, Wire, code_of, echo, wired
from waypost.cli import http_guard

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore:Do not use the `random` module"),
]

POST = b"POST /a HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
GET = b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n"

Connect = Callable[[], "asyncio.Future[Wire]"]


@pytest.fixture
async def connect() -> AsyncGenerator[Connect]:
    async with wired() as connecting:
        yield connecting


# ── what is no request, or two at once ─────────────────────────────────────────────────────────

MALFORMED = {
    "a line break without CR": b"POST /a HTTP/1.1\nHost: x\n\n",
    "a header without CR": POST + b"X: a\nContent-Length: 0\r\n\r\n",
    "CR alone": POST + b"X: a\rb\r\n\r\n",
    "NUL in a value": POST + b"X: a\0b\r\n\r\n",
    "NUL in a name": POST + b"X\0: a\r\n\r\n",
    "a folded header": POST + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "a fold before the first header": b"POST /a HTTP/1.1\r\n Host: x\r\n\r\n",
    "a space before the colon": POST + b"Content-Length : 3\r\n\r\nabc",
    "no colon": POST + b"X\r\n\r\n",
    "no name": POST + b": a\r\n\r\n",
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "a length twice": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "a list of lengths": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "a length with a sign": POST + b"Content-Length: +3\r\n\r\nabc",
    "a length in hexadecimal": POST + b"Content-Length: 0x3\r\n\r\nabc",
    "an empty length": POST + b"Content-Length: \r\n\r\nabc",
    "a length beyond 64 bits": POST + b"Content-Length: 99999999999999999999\r\n\r\nabc",
    "length, then chunks": POST
    + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks, then length": POST
    + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked on two lines": POST
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked is not the last": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "no coding": POST + b"Transfer-Encoding: \r\n\r\n0\r\n\r\n",
    "a quoted coding": POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "a coding with a control character": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": b"POST /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk's size with a sign": CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n",
    "a chunk's size with 0x": CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    "a chunk's size with a space": CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n",
    "a chunk's size without CR": CHUNKED + b"3\nabc\r\n0\r\n\r\n",
    "a chunk's size beyond 64 bits": CHUNKED + b"1ffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "no size": CHUNKED + b"\r\nabc\r\n0\r\n\r\n",
    "an extension with LF": CHUNKED + b"3;\nxx\r\nabc\r\n0\r\n\r\n",
    "an extension with CR": CHUNKED + b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "an extension with a quoted line": CHUNKED + b'3;a="b\r\nc"\r\nabc\r\n0\r\n\r\n',
    "a chunk longer than it says": CHUNKED + b"3\r\nabcXX0\r\n\r\n",
    "a chunk that ends without CR": CHUNKED + b"3\r\nabc\n0\r\n\r\n",
    "chunks that end without CR": CHUNKED + b"0\r\n\n",
    "a length in trailers": CHUNKED + b"0\r\nContent-Length: 3\r\n\r\n",
    "a coding in trailers": CHUNKED + b"0\r\nTransfer-Encoding: gzip\r\n\r\n",
    "a host in trailers": CHUNKED + b"0\r\nHost: y\r\n\r\n",
    "an end of the connection in trailers": CHUNKED + b"0\r\nConnection: close\r\n\r\n",
    "an upgrade in trailers": CHUNKED + b"0\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    "a method in small letters": b"post /a HTTP/1.1\r\nHost: x\r\n\r\n",
    "a tab for a space": b"GET\t/a HTTP/1.1\r\nHost: x\r\n\r\n",
    "an unknown version": b"GET /a HTTP/1.2\r\nHost: x\r\n\r\n",
    "HTTP/2 with prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a target that is neither": b"GET a HTTP/1.1\r\nHost: x\r\n\r\n",
    "a target of another scheme": b"GET ftp://x/a HTTP/1.1\r\nHost: x\r\n\r\n",
    "a target with a password": b"GET http://u:p@x/a HTTP/1.1\r\nHost: x\r\n\r\n",
    "a target with a strange port": b"GET http://x:99999/a HTTP/1.1\r\nHost: x\r\n\r\n",
    "all of a server, by GET": b"GET * HTTP/1.1\r\nHost: x\r\n\r\n",
    "letters beyond ASCII in a target": b"GET /\xc3\xa4 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a TLS greeting": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}

REFUSED: dict[str, tuple[bytes, int, str]] = {
    **{name: (sent, 400, "request_malformed") for name, sent in MALFORMED.items()},
    "no host": (b"GET /a HTTP/1.1\r\n\r\n", 400, "host_invalid"),
    "two hosts": (b"GET /a HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, "host_invalid"),
    "one host twice": (b"GET /a HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400, "host_invalid"),
    "two hosts in HTTP/1.0": (
        b"GET /a HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n",
        400,
        "host_invalid",
    ),
    "a list of hosts": (b"GET /a HTTP/1.1\r\nHost: x, y\r\n\r\n", 400, "host_invalid"),
    "a host with a path": (b"GET /a HTTP/1.1\r\nHost: x/y\r\n\r\n", 400, "host_invalid"),
    "a host with a name": (b"GET /a HTTP/1.1\r\nHost: u@x\r\n\r\n", 400, "host_invalid"),
    "a host that is no address": (b"GET /a HTTP/1.1\r\nHost: [1.2]\r\n\r\n", 400, "host_invalid"),
    "a host with a port too high": (
        b"GET /a HTTP/1.1\r\nHost: x:65536\r\n\r\n",
        400,
        "host_invalid",
    ),
    "compressed chunks": (
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        501,
        "transfer_encoding_unsupported",
    ),
    "codings on two lines": (
        POST + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        501,
        "transfer_encoding_unsupported",
    ),
    "HTTP/2 in the words of HTTP/1": (
        b"GET /a HTTP/2.0\r\nHost: x\r\n\r\n",
        505,
        "http_version_unsupported",
    ),
    "HTTP/0.9": (b"GET /a HTTP/0.9\r\nHost: x\r\n\r\n", 505, "http_version_unsupported"),
    "a tunnel": (b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n", 405, "method_not_allowed"),
}


@pytest.mark.parametrize("cut", ["whole", "bytewise"])
async def test_what_is_no_request_is_refused_and_nothing_behind_it_is_read(
    connect: Connect, cut: str
) -> None:
    for name, (sent, status, code) in REFUSED.items():
        wire = await connect()
        if cut == "whole":
            await wire.send(sent + GET)
        else:
            for place in range(len(sent)):
                wire.writer.write(sent[place : place + 1])
                await asyncio.sleep(0)
            wire.writer.write(GET)

        assert await code_of(wire) == (status, code), name


@pytest.mark.parametrize("name", ["CR alone", "two lengths", "chunked twice", "no colon"])
async def test_an_answer_that_was_asked_for_before_is_still_given(
    connect: Connect, name: str
) -> None:
    wire = await connect()
    await wire.send(GET + GET.replace(b"/b", b"/c") + MALFORMED[name] + GET)

    assert [(await wire.said()).path for _ in range(2)] == ["/b", "/c"]
    assert await wire.rest() == b""


TAKEN: dict[str, tuple[bytes, str, str]] = {
    "a path": (b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n", "/a", "b=c"),
    "a host with a port": (b"GET /a HTTP/1.1\r\nHost: x:80\r\n\r\n", "/a", ""),
    "an address as host": (b"GET /a HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "/a", ""),
    "an empty host": (b"GET /a HTTP/1.1\r\nHost:\r\n\r\n", "/a", ""),
    "lines before it": (b"\r\n\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n", "/a", ""),
    "what a proxy is asked": (b"GET http://x/a?b=c HTTP/1.1\r\nHost: y\r\n\r\n", "/a", "b=c"),
    "a proxy, without a path": (b"GET http://x HTTP/1.1\r\nHost: y\r\n\r\n", "/", ""),
    "a proxy, with a query alone": (b"GET http://x?b=c HTTP/1.1\r\nHost: y\r\n\r\n", "/", "b=c"),
    "all of a server": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "/", ""),
    "two slashes": (b"GET //a HTTP/1.1\r\nHost: x\r\n\r\n", "//a", ""),
    "escapes": (b"GET /%61%2Fb%ff HTTP/1.1\r\nHost: x\r\n\r\n", "/a/b\ufffd", ""),
    "chunks": (CHUNKED + b"3;a=b\r\nabc\r\n00\r\nX-Sum: 1\r\n\r\n", "/a", ""),
    "CHUNKED": (POST + b"Transfer-Encoding: cHuNKed\r\n\r\n0\r\n\r\n", "/a", ""),
    "an upgrade": (
        POST + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc",
        "/a",
        "",
    ),
}


async def test_what_is_a_request_is_served_and_so_is_the_next_one(connect: Connect) -> None:
    wire = await connect()
    for name, (sent, path, query) in TAKEN.items():
        await wire.send(sent + GET)
        said = await wire.said()

        assert (said.path, said.query) == (path, query), name
        assert (await wire.said()).path == "/b", name


async def test_a_proxys_target_names_the_host_whatever_host_says(connect: Connect) -> None:
    wire = await connect()
    await wire.send(b"GET http://real:81/a HTTP/1.1\r\nHost: console.example\r\n\r\n")

    assert (await wire.said()).headers["host"] == "real:81"


# ── one reading, as another parser has it ──────────────────────────────────────────────────────


def read_by_h11(sent: bytes) -> list[tuple[str, str, str]]:
    """Return method, target and body of the requests in ``sent`` that are whole."""
    found: list[tuple[str, str, str]] = []
    while True:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20)
        connection.receive_data(sent.lstrip(b"\r\n"))  # RFC 9112 §2.2: before a request
        request, body = None, b""
        try:
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                if isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                else:
                    return found
        except h11.RemoteProtocolError:
            return found
        assert request is not None
        found.append((request.method.decode(), request.target.decode(), body.decode("latin-1")))
        if connection.their_state not in (h11.DONE, MIGHT_SWITCH_PROTOCOL):
            return found
        sent = connection.trailing_data[0]


@st.composite
def requests_of_harm(draw: st.DrawFn) -> bytes:
    """Return requests of which some have a fault in their framing, or in any byte."""
    parts: list[bytes] = []
    for _ in range(draw(st.integers(1, 3))):
        body = draw(st.sampled_from([b"", b"abc", GET, b"0\r\n\r\n" + GET]))
        length = b"Content-Length: %d\r\n" % (len(body) + draw(st.sampled_from([0, 0, 0, 1, -1])))
        chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        kinds = [
            (length, body),
            (b"Transfer-Encoding: chunked\r\n", chunks),
            (length + b"Transfer-Encoding: chunked\r\n", chunks),
            (b"Connection: Upgrade\r\nUpgrade: x\r\n" + length, body),
            (b"Connection: close\r\n" + length, body),
            (length.replace(b": ", draw(st.sampled_from([b" : ", b":\t", b":\x0b"]))), body),
        ]
        framing, sent = draw(st.sampled_from(kinds))
        parts.append(POST + framing + b"\r\n" + sent)
    whole = bytearray(b"".join(parts))
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(whole) - 1))
        whole[place : place + draw(st.integers(0, 2))] = draw(
            st.sampled_from([b"\n", b"\r", b"\r\n", b" ", b"\0", b"0", b";", b":", b",", b"\xff"])
        )
    return bytes(whole)


async def test_a_request_is_read_as_another_parser_reads_it_or_not_at_all() -> None:
    async with wired() as connecting:
        loop = asyncio.get_running_loop()

        async def served(sent: bytes, cut: int) -> list[Said]:
            wire = await connecting()
            await wire.send(*filter(None, (sent[:cut], sent[cut:])))
            found: list[Said] = []
            try:
                while True:
                    async with asyncio.timeout(0.05 if not found else 0.02):
                        head = await wire.reader.readuntil(b"\r\n\r\n")
                        length = int(re.findall(rb"content-length: (\d+)", head)[0])
                        body = await wire.reader.readexactly(length)
                    if b" 200 " in head:
                        found.append(msgspec.json.decode(body, type=Said))
            except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
                return found
            finally:
                wire.writer.close()

        @settings(
            max_examples=int(os.environ.get("WAYPOST_FRAMING_EXAMPLES", "150")),
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(requests_of_harm(), st.integers(0, 200))
        def check(sent: bytes, cut: int) -> None:
            ours = asyncio.run_coroutine_threadsafe(served(sent, cut), loop).result()
            theirs = read_by_h11(sent)

            assert [(one.method, one.path, one.body) for one in ours] == theirs[: len(ours)]

        await asyncio.to_thread(check)


# ── what is no body ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("apart", [True, False])
async def test_a_trailer_is_never_taken_for_a_header(apart: bool) -> None:
    scopes: list[Scope] = []
    async with wired(echo(scopes.append)) as connecting:
        wire = await connecting()
        trailer = b"0\r\nAuthorization: Bearer stolen\r\nWaypost-Facts: data=none\r\n\r\n"
        body = b"3\r\nabc\r\n"
        await wire.send(*((CHUNKED, body, trailer) if apart else (CHUNKED + body + trailer,)))
        said = await wire.said()
        await wire.send(GET)
        await wire.said()

    assert said.body == "abc"
    assert said.headers.keys() == {"host", "transfer-encoding"}
    assert all(b"authorization" not in dict(scope["headers"]) for scope in scopes)


@pytest.mark.parametrize(
    "piece",
    [b"X-%06d: abcdefgh\r\n", b"%06d" + b"a" * 512],
    ids=["lines without end", "a line without end"],
)
@pytest.mark.parametrize("before", [b"0\r\n", b"0\r\nX: ", b"3;a=", b"3\r\nabc\r\n3;a="], ids=repr)
async def test_what_is_no_body_is_cut_off_before_it_fills_the_memory(
    connect: Connect, before: bytes, piece: bytes
) -> None:
    if b";" in before and b"\r\n" in piece:
        piece = b"%06d"  # an extension has no lines
    wire = await connect()
    await wire.send(CHUNKED + before)
    sent = 0
    for number in range(http_guard.MAX_LOOSE_BYTES * 4):
        if wire.reader.at_eof() or sent > http_guard.MAX_LOOSE_BYTES * 4:
            break
        wire.writer.write(piece % number)
        sent += len(piece % number)
        await asyncio.sleep(0)

    assert await code_of(wire) == (413, "framing_too_large")


async def test_a_head_that_came_in_one_read_is_measured_as_well(connect: Connect) -> None:
    wire = await connect()
    await wire.send(b"GET /a HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000 + b"\r\n\r\n")

    assert await code_of(wire) == (431, "head_too_large")


async def test_lines_that_begin_no_request_do_not_hold_a_connection(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_guard, "HEAD_TIMEOUT_S", 0.2)
    wire = await connect()
    await wire.send(GET)
    await wire.said()
    for _ in range(500):
        wire.writer.write(b"\r\n")
        await asyncio.sleep(0.01)
        if wire.reader.at_eof():
            break

    with suppress(ConnectionResetError):  # a line was on its way when the other side closed
        assert await wire.rest() == b""


async def write_on(wire: Wire, piece: bytes) -> None:
    """Write until nobody reads it any more."""
    while True:
        wire.writer.write(piece)
        await wire.writer.drain()
        await asyncio.sleep(0)


# ── answers that come before their request is whole ────────────────────────────────────────────


async def test_a_connection_is_used_again_once_the_rest_of_an_answered_request_came(
    connect: Connect,
) -> None:
    wire = await connect()
    await wire.send(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\nabc")
    assert (await wire.said()).path == "/early"
    await wire.send(b"a" * 299_997 + GET)

    assert (await wire.said()).path == "/b"


@pytest.mark.parametrize("closes", [b"", b"Connection: close\r\n"])
@pytest.mark.parametrize("chunked", [True, False])
async def test_a_body_that_drips_in_after_its_answer_is_not_read_for_ever(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, closes: bytes, chunked: bool
) -> None:
    monkeypatch.setattr(http_guard, "DRAIN_TIMEOUT_S", 0.1)
    monkeypatch.setattr(http_guard, "LINGER_TIMEOUT_S", 0.1)
    wire = await connect()
    framing = b"Transfer-Encoding: chunked\r\n" if chunked else b"Content-Length: 300000\r\n"
    await wire.send(b"POST /early HTTP/1.1\r\nHost: x\r\n" + closes + framing + b"\r\n")
    assert (await wire.said()).path == "/early"
    for _ in range(1_000):
        wire.writer.write(b"1\r\na\r\n" if chunked else b"a")
        await asyncio.sleep(0.005)
        if wire.reader.at_eof():
            break

    assert await wire.rest() == b""
    with pytest.raises(ConnectionError):  # closed, and not only half of it
        await write_on(wire, b"a")


async def test_an_endless_body_after_its_answer_is_cut_off(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_guard, "DRAIN_BYTES", 500_000)
    wire = await connect()
    await wire.send(b"POST /early HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    await wire.said()

    async with asyncio.timeout(20):
        with pytest.raises(ConnectionError):
            await write_on(wire, b"4000\r\n" + b"a" * 16_384 + b"\r\n")


async def test_an_answer_arrives_before_its_connection_is_closed_under_it(
    connect: Connect,
) -> None:
    # Closed at once, with a body unread, the kernel would reset the connection.
    wire = await connect()
    await wire.send(
        b"POST /early HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9000000\r\n\r\n"
    )
    wire.writer.write(b"a" * 2_000_000)

    assert (await wire.said()).path == "/early"
    assert await wire.rest() == b""


async def test_whoever_asks_to_go_on_and_is_answered_at_once_gets_no_second_request_in(
    connect: Connect,
) -> None:
    # Whether its body comes is for the caller to decide, so what follows has two readings.
    wire = await connect()
    await wire.send(
        b"POST /early HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    )
    assert (await wire.said()).path == "/early"
    await wire.send(GET)

    assert await wire.rest() == b""


# ── requests that do not wait for answers ──────────────────────────────────────────────────────


async def test_requests_in_one_piece_are_answered_in_order_and_their_number_is_bounded(
    connect: Connect,
) -> None:
    wire = await connect()
    many = http_guard.MAX_PIPELINED + 1  # one is being answered
    await wire.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in range(many + 500)))

    assert [(await wire.said()).path for _ in range(many)] == [f"/{n}" for n in range(many)]
    assert await wire.rest() == b""


async def test_whoever_hangs_up_is_noticed_though_another_request_was_behind() -> None:
    gone = asyncio.Event()

    async def app(scope: Scope, receive, send) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
        if scope["type"] == "lifespan":
            await echo()(scope, receive, send)
            return
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async with wired(app) as connecting:
        wire = await connecting()
        await wire.send(GET, GET)
        await asyncio.sleep(0.02)
        wire.writer.transport.abort()
        async with asyncio.timeout(10):
            await gone.wait()


# ── older and shorter answers ──────────────────────────────────────────────────────────────────


async def test_http_1_0_is_told_no_chunks_and_its_connection_ends(connect: Connect) -> None:
    wire = await connect()
    await wire.send(b"POST /stream HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc")
    head, _, body = (await wire.rest()).partition(b"\r\n\r\n")

    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    assert body.startswith(b'{"method":"POST","path":"/stream"')
    assert body.endswith(b'"body":"abc"}')
