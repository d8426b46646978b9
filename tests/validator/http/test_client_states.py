"""Exchanges of every kind in every order on one origin: none of them affects a later one.

The server is a real one, that sends what it is told to by the path it is asked for. The oracle
is h11, reading the same bytes.
"""

import asyncio
import itertools
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
import uvloop
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from support.answers import Sent, answers, heard_by_h11, pieces
from waypost.validator.http.client import ExchangeError, Origin
from waypost.validator.http.transports.connection import State

# More than sockets hold, so that the request is still written when an early answer comes: where
# all of it has left, nobody can tell that the server does not mean to read it.
BIG = b"x" * 8_000_000
SERVER_BUFFER_BYTES = 65_536


@dataclass
class Script:
    """What the server does about one request.

    Attributes:
        parts: sent one by one, a turn of the loop apart.
        is_early: whether as soon as the head is there; the body is then never read.
        then: what becomes of the connection.
    """

    parts: list[bytes]
    is_early: bool = False
    then: str = "stay"


class Server(asyncio.Protocol):
    """One connection to the server."""

    def __init__(self, scripts: dict[int, Script], open_: set["Server"]) -> None:
        self._scripts = scripts
        self._open = open_
        self._got = bytearray()
        self._doing: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self)
        if self._doing is not None:
            self._doing.cancel()

    def data_received(self, data: bytes) -> None:
        self._got += data
        end = self._got.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._got[:end])
        script = self._scripts[int(head.split(b" ")[1].rpartition(b"/")[2])]
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        if script.is_early:
            self.transport.pause_reading()
        elif len(self._got) < end + 4 + length:
            return
        del self._got[: end + 4 + length]
        self._doing = asyncio.get_running_loop().create_task(self._do(script))

    async def _do(self, script: Script) -> None:
        for part in script.parts:
            self.transport.write(part)
            await asyncio.sleep(0)
        if script.then == "end":
            self.transport.close()
        elif script.then == "reset":
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()


PARTS = st.composite(pieces)


class Exchanges(RuleBasedStateMachine):
    new_loop: Callable[[], asyncio.AbstractEventLoop]

    def __init__(self) -> None:
        super().__init__()
        self.loop = self.new_loop()
        self.scripts: dict[int, Script] = {}
        self.connections: set[Server] = set()
        self.numbers = itertools.count()
        self.run(self._start())

    def run(self, work: Any) -> Any:  # noqa: ANN401 - whatever it returns
        return self.loop.run_until_complete(asyncio.wait_for(work, 30))

    async def _start(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SERVER_BUFFER_BYTES)
        listener.bind(("127.0.0.1", 0))
        self.server = await self.loop.create_server(
            lambda: Server(self.scripts, self.connections), sock=listener
        )
        port = self.server.sockets[0].getsockname()[1]
        self.origin = Origin(f"http://127.0.0.1:{port}", headers={}, connect_timeout_s=10)

    def teardown(self) -> None:
        self.run(self._stop())
        self.loop.close()

    async def _stop(self) -> None:
        await self.origin.close()
        self.server.close()
        for connection in list(self.connections):
            connection.transport.abort()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not self.origin._open, "a connection outlived its origin"

    async def ask(
        self, script: Script, *, body: bytes = b"{}", wait_s: float = 10, at_once: bool = True
    ) -> tuple[int, bytes] | str:
        """Return what came, or the stage at which it failed."""
        number = next(self.numbers)
        self.scripts[number] = script
        until = self.loop.time() + wait_s
        try:
            with await self.origin.send(body, path=f"/{number}", until=until) as response:
                if at_once:
                    return response.status, await response.read_all(until=until, at_most=10**6)
                got = b""
                while piece := await response.read(until=until):
                    got += piece
                return response.status, got
        except ExchangeError as failure:
            return failure.stage

    async def probe(self) -> None:
        """Ask what is surely answered: nothing that was before has a say in it."""
        word = b"%08d" % next(self.numbers)
        answer = b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n" + word
        got = await self.ask(Script([answer]))
        assert got == (200, word)
        assert all(
            connection.state in (State.IDLE, State.CLOSED) for connection in self.origin._open
        )

    @rule(data=st.data(), sent=answers(), at_once=st.booleans(), reset=st.booleans())
    def an_answer(self, data: st.DataObject, sent: Sent, at_once: bool, reset: bool) -> None:
        heard = heard_by_h11(sent)
        script = Script(data.draw(PARTS(sent.wire)), then="end" if sent.ends else "stay")
        if reset:
            script.then = "reset"
        # Where the server stays and the answer is not whole only the deadline ends it.
        wait_s = 10.0 if heard is not None or script.then != "stay" else 0.02
        got = self.run(self.ask(script, wait_s=wait_s, at_once=at_once))
        if reset:  # it overtakes what was sent before
            assert isinstance(got, str) or (heard and got == (heard.status, heard.body))
        else:
            assert got == (heard.status, heard.body) if heard else isinstance(got, str)
        self.run(self.probe())

    @rule(size=st.sampled_from([0, 5, 70_000]), ends=st.booleans(), turns=st.integers(0, 3))
    def an_early_answer(self, size: int, ends: bool, turns: int) -> None:
        answer = b"HTTP/1.1 413 No\r\ncontent-length: %d\r\n\r\n%b" % (size, b"y" * size)
        parts = [b""] * turns + [answer]
        script = Script(parts, is_early=True, then="end" if ends else "stay")
        got = self.run(self.ask(script, body=BIG))
        # A server that closes with bytes unread resets, and that may overtake its answer.
        assert got == (413, b"y" * size) or (ends and got == "broken")
        self.run(self.probe())

    @rule(data=st.data(), sent=answers(), turns=st.integers(0, 25), big=st.booleans())
    def a_cancelled_one(self, data: st.DataObject, sent: Sent, turns: int, big: bool) -> None:
        script = Script(data.draw(PARTS(sent.wire)), is_early=big and data.draw(st.booleans()))
        self.run(self._cancel(script, turns, BIG if big else b"{}"))
        self.run(self.probe())

    async def _cancel(self, script: Script, turns: int, body: bytes) -> None:
        asking = self.loop.create_task(self.ask(script, body=body, wait_s=5))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])

    @rule(
        data=st.data(),
        sent=answers(),
        wait_ms=st.sampled_from([-1, 0, 1, 2, 5]),
        big=st.booleans(),
    )
    def one_out_of_time(self, data: st.DataObject, sent: Sent, wait_ms: int, big: bool) -> None:
        heard = heard_by_h11(sent)
        script = Script(data.draw(PARTS(sent.wire)), then="end" if sent.ends else "stay")
        got = self.run(self.ask(script, body=BIG if big else b"{}", wait_s=wait_ms / 1_000))
        assert isinstance(got, str) or (heard and got == (heard.status, heard.body))
        self.run(self.probe())

    @rule(words=st.sampled_from([b"x", b"\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n!"]))
    def words_while_idle(self, words: bytes) -> None:
        for connection in self.connections:
            connection.transport.write(words)
        self.run(self._until_none_is_idle())
        self.run(self.probe())

    async def _until_none_is_idle(self) -> None:
        while len(self.origin._idle):  # noqa: ASYNC110 - nothing of it tells
            await asyncio.sleep(0.001)

    @rule(how=st.sampled_from(["close", "abort"]), turns=st.integers(0, 3))
    def closed_while_idle(self, how: str, turns: int) -> None:
        for connection in list(self.connections):
            getattr(connection.transport, how)()
        for _ in range(turns):
            self.run(asyncio.sleep(0))
        self.run(self.probe())

    @rule(data=st.data(), sents=st.lists(answers(st.integers(0, 70_000)), min_size=2, max_size=5))
    def several_at_once(self, data: st.DataObject, sents: list[Sent]) -> None:
        scripts = [
            Script(data.draw(PARTS(sent.wire)), then="end" if sent.ends else "stay")
            for sent in sents
        ]
        heards = [heard_by_h11(sent) for sent in sents]
        for heard, got in zip(heards, self.run(self._gather(scripts, heards)), strict=True):
            assert got == (heard.status, heard.body) if heard else isinstance(got, str)
        self.run(self.probe())

    async def _gather(self, scripts: list[Script], heards: list[Any]) -> list[Any]:
        return await asyncio.gather(
            *(
                self.ask(script, wait_s=10 if heard or script.then == "end" else 0.02)
                for script, heard in zip(scripts, heards, strict=True)
            )
        )


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_no_exchange_affects_a_later_one(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    machine = type("Exchanges", (Exchanges,), {"new_loop": staticmethod(new_loop)})
    examples = max(5, settings().max_examples // 20)
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples, stateful_step_count=12)
    )
