"""The client that reaches providers: what servers do to it, and what it makes of that."""

import asyncio
import ssl
from pathlib import Path

import pytest

from support.upstream import Behaviour, Exchange, Upstream, running_upstream
from waypost.validator.http1 import ExchangeError, Origin

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\n"


def raw(*parts: bytes, then: str = "stay") -> Behaviour:
    """Send these bytes, and then stay, end the connection, or break it."""

    async def behave(exchange: Exchange) -> None:
        for place, part in enumerate(parts):
            if place:
                await asyncio.sleep(0.01)
            await exchange.send(part)
        if then == "end":
            exchange.close()
        elif then == "break":
            exchange.reset()

    return behave


async def post(upstream: Upstream, *, wait_s: float = 2.0, at_most: int = 10**6) -> bytes:
    origin = Origin(upstream.base_url, headers={}, connect_timeout_s=1)
    until = asyncio.get_running_loop().time() + wait_s
    try:
        with await origin.send(b"{}", until=until) as response:
            return await response.read_all(until=until, at_most=at_most)
    finally:
        await origin.close()


@pytest.mark.parametrize(
    "behave",
    [
        raw(OK + b"content-length: 5\r\n\r\nhello"),
        raw(OK + b"content-length: 5\r\n\r\nhel", b"lo"),
        raw(OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
        raw(OK + b"connection: close\r\n\r\nhel", b"lo", then="end"),
        raw(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", OK + b"content-length: 5\r\n\r\nhello"),
        raw(*(bytes([byte]) for byte in OK + b"content-length: 5\r\n\r\nhello")),
    ],
)
async def test_a_body_is_read_to_its_end_however_it_is_framed(behave: Behaviour) -> None:
    async with running_upstream(behave) as upstream:
        assert await post(upstream) == b"hello"


@pytest.mark.parametrize(
    ("behave", "stage"),
    [
        (raw(b"", then="break"), "broken"),
        (raw(b"", then="end"), "broken"),
        (raw(OK[:9], then="end"), "broken"),
        (raw(OK + b"content-length: 50\r\n\r\nhello", then="end"), "broken"),
        (raw(OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", then="end"), "broken"),
        (raw(OK + b"connection: close\r\n\r\nhel", then="break"), "broken"),
        (raw(b""), "timeout"),
        (raw(OK), "timeout"),
        (raw(OK + b"content-length: 50\r\n\r\nhello"), "timeout"),
        (raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "malformed"),
        (raw(OK + b"content-length: x\r\n\r\n"), "malformed"),
        (raw(OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n"), "malformed"),
        (raw(OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n"), "malformed"),
        (raw(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"), "malformed"),
        (raw(OK + b"x: " + b"y" * 70_000), "malformed"),
        (raw(OK + b"content-length: 2000000\r\n\r\n" + b"x" * 2_000_000), "malformed"),
    ],
)
async def test_what_goes_wrong_says_where(behave: Behaviour, stage: str) -> None:
    async with running_upstream(behave) as upstream:
        with pytest.raises(ExchangeError) as failure:
            await post(upstream, wait_s=0.3)

    assert failure.value.stage == stage


async def test_nobody_at_the_address_is_a_failure_to_connect() -> None:
    async with running_upstream() as gone:
        pass

    with pytest.raises(ExchangeError) as failure:
        await post(gone)

    assert failure.value.stage == "connect"


async def test_a_name_that_does_not_resolve_is_a_failure_to_connect() -> None:
    origin = Origin("http://nobody.invalid/v1", headers={}, connect_timeout_s=2)

    with pytest.raises(ExchangeError) as failure:
        await origin.send(b"", until=asyncio.get_running_loop().time() + 2)

    assert failure.value.stage == "connect"


async def test_a_certificate_that_nobody_vouches_for_is_a_failure_to_connect(
    tmp_path: Path,
) -> None:
    from support.certificates import self_signed

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))
    server = await asyncio.start_server(
        lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context
    )
    async with server:
        port = server.sockets[0].getsockname()[1]
        origin = Origin(f"https://127.0.0.1:{port}/v1", headers={}, connect_timeout_s=2)
        with pytest.raises(ExchangeError) as failure:
            await origin.send(b"", until=asyncio.get_running_loop().time() + 2)

    assert failure.value.stage == "connect"


async def test_connections_are_used_again() -> None:
    async with running_upstream(raw(OK + b"content-length: 2\r\n\r\nok")) as upstream:
        origin = Origin(upstream.base_url, headers={}, connect_timeout_s=1)
        until = asyncio.get_running_loop().time() + 5
        for _ in range(3):
            with await origin.send(b"{}", until=until) as response:
                await response.read_all(until=until, at_most=100)
        await origin.close()

    assert (len(upstream.seen), upstream.connections) == (3, 1)


async def test_each_exchange_on_a_connection_has_its_own_time() -> None:
    waits = iter([0.0, 0.2, 0.5])

    async def slower_each_time(exchange: Exchange) -> None:
        await asyncio.sleep(next(waits))
        await exchange.send(OK + b"content-length: 2\r\n\r\nok")

    async with running_upstream(slower_each_time) as upstream:
        origin = Origin(upstream.base_url, headers={}, connect_timeout_s=1)
        now = asyncio.get_running_loop().time
        for wait_s in (0.1, 5.0):
            until = now() + wait_s
            with await origin.send(b"{}", until=until) as response:
                assert await response.read_all(until=until, at_most=100) == b"ok"
        with pytest.raises(ExchangeError, match="timeout"):
            await origin.send(b"{}", until=now() + 0.1)
        await origin.close()

    assert upstream.connections == 1


async def test_a_connection_that_was_closed_while_idle_costs_no_failure() -> None:
    async with running_upstream(raw(OK + b"content-length: 2\r\n\r\nok", then="end")) as upstream:
        origin = Origin(upstream.base_url, headers={}, connect_timeout_s=1)
        until = asyncio.get_running_loop().time() + 5
        for _ in range(5):
            with await origin.send(b"{}", until=until) as response:
                assert await response.read_all(until=until, at_most=100) == b"ok"
        await origin.close()


async def test_a_request_is_sent_anew_only_if_the_server_closed_before_a_word() -> None:
    answers = iter([OK + b"content-length: 2\r\n\r\nok", b"", OK + b"content-length: 2\r\n\r\nok"])

    async def behave(exchange: Exchange) -> None:
        answer = next(answers)
        if answer:
            await exchange.send(answer)
        else:
            exchange.reset()

    async with running_upstream(behave) as upstream:
        origin = Origin(upstream.base_url, headers={}, connect_timeout_s=1)
        until = asyncio.get_running_loop().time() + 5
        for _ in range(2):
            with await origin.send(b"{}", until=until) as response:
                await response.read_all(until=until, at_most=100)
        await origin.close()

    assert (len(upstream.seen), upstream.connections) == (3, 2)


async def test_words_that_nobody_asked_for_end_the_connection() -> None:
    twice = OK + b"content-length: 2\r\n\r\nok" + OK + b"content-length: 6\r\n\r\npoison"
    async with running_upstream(raw(twice)) as upstream:
        origin = Origin(upstream.base_url, headers={}, connect_timeout_s=1)
        until = asyncio.get_running_loop().time() + 5
        for _ in range(2):
            with await origin.send(b"{}", until=until) as response:
                assert await response.read_all(until=until, at_most=100) == b"ok"
        await origin.close()

    assert upstream.connections == 2


async def test_leaving_early_hangs_up() -> None:
    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        while True:
            await exchange.chunk(b"more")
            await asyncio.sleep(0.01)

    async with running_upstream(behave) as upstream:
        origin = Origin(upstream.base_url, headers={}, connect_timeout_s=1)
        until = asyncio.get_running_loop().time() + 5
        with await origin.send(b"{}", until=until) as response:
            await response.read(until=until)
        async with asyncio.timeout(5):
            await upstream.hung_up.wait()
        await origin.close()


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 70_000, 1_000_000])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_large_answer_leaves_a_connection_that_hears_the_next(
    size: int, chunked: bool
) -> None:
    framed = b"content-length: %d\r\n\r\n%b" % (size, b"x" * size)
    if chunked:
        framed = b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size)
    async with running_upstream(raw(OK + framed)) as upstream:
        origin = Origin(upstream.base_url, headers={}, connect_timeout_s=1)
        until = asyncio.get_running_loop().time() + 5
        for _ in range(4):
            with await origin.send(b"{}", until=until) as response:
                assert len(await response.read_all(until=until, at_most=10**7)) == size
        for _ in range(4):
            with await origin.send(b"{}", until=until) as response:
                while await response.read(until=until):
                    pass
        await origin.close()

    assert upstream.connections == 1
