"""Keeps the workers of one validator: starts them, and again when they end; lets them share a port.

The rule: the port is open exactly while somebody can serve. It opens when the first worker can,
and closes everywhere at once. A worker is as slow to start as it likes: only one whose process
ends has failed. It never runs on without its supervisor (docs/adr/0032).
"""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final

from msgspec import Struct

from waypost.cli.listening import begin
from waypost.shared.errors import WaypostError
from waypost.validator.startup.control import (
    Adopt,
    Adopted,
    Channel,
    Close,
    Cut,
    Failed,
    Go,
    Leave,
    Message,
    Ready,
    Share,
    Shared,
    Start,
)

__all__ = ["StartError", "Stopping", "Supervisor"]

logger = logging.getLogger(__name__)

# Not `-m`: that would look for modules in whatever folder this is run in.
WORKER: Sequence[str] = (sys.executable, "-P", "-m", "waypost.validator.startup.worker")

LINGER_S = 1.0  # longer than a request takes that was on its way when the port closed
HASTY_LINGER_S = 0.1
END_S = 30.0  # after the drain, for errors to be told and records to be written
LAST_S = 5.0  # then it is killed
SHARE_S = 5.0  # how long one that shares waits for the others
SLOW_START_S = 30.0  # after which the log says that it is waited for
REMEMBERED = 4  # states kept for workers to come: of two that crossed the newer may be the first
STEADY_S = 60.0  # a worker that ran this long starts anew at once
FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 30.0


class StartError(WaypostError):
    """No worker could start; the code is the worker's own."""

    code = "worker_failed"


class Stopping(Struct, frozen=True):
    """How a validator stops.

    Attributes:
        grace_s: how long it serves on when it is no longer ready.
        drain_s: how long answers under way may take then; 0: as long as they do.
    """

    grace_s: float
    drain_s: float


class _Worker:
    """One process, and the way to talk to it."""

    def __init__(
        self, process: asyncio.subprocess.Process, channel: Channel, port: socket.socket
    ) -> None:
        """Args:
        port: what the worker is given the listening socket by.
        """
        self.process = process
        self.channel = channel
        self._port = port
        self.pid: Final = process.pid
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.create_task(process.wait())
        self.waits_for: dict[int, asyncio.Event] = {}

    def go(self, listener: socket.socket) -> None:
        """Have it take connections.

        Only now is it given the port: what holds a port and takes nothing from its queue would
        keep it open when all others have closed it.
        """
        with self._port, suppress(OSError):
            socket.send_fds(self._port, [b"\0"], [listener.fileno()])
        self.channel.send(Go())

    def adopted(self, number: int) -> None:
        """Note that it uses what it was told under this number, or is not there to do so."""
        event = self.waits_for.pop(number, None)
        if event is not None:
            event.set()

    def close(self) -> None:
        """Let go of it: without its supervisor it ends."""
        self._port.close()
        self.channel.close()

    async def gone(self) -> None:
        """Return when its process has ended."""
        await asyncio.wait({self.ended})

    def how_it_ended(self) -> str:
        """Return that in words."""
        code = self.process.returncode
        if code is None:
            return "has not ended"
        if code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name
        hint = ", as by the system when memory runs out" if name == "SIGKILL" else ""
        return f"was ended by {name}{hint}"


class _Slot:
    """A place for one worker at a time. Whoever puts another there holds the lock."""

    def __init__(self) -> None:
        self.worker: _Worker | None = None
        self.lock = asyncio.Lock()


class Supervisor:
    """The parent of all workers."""

    def __init__(
        self,
        listener: socket.socket,
        arguments: Sequence[str],
        *,
        workers: int,
        stopping: Stopping,
        ready: Callable[[], None],
    ) -> None:
        """Args:
        listener: bound, and not listening yet.
        arguments: for a worker's command line.
        ready: called once, when requests are taken.
        """
        self._listener = listener
        self._arguments = arguments
        self._slots = [_Slot() for _ in range(workers)]
        self._stopping = stopping
        self._say_ready = ready
        self._all: set[_Worker] = set()
        self._known: defaultdict[str, deque[bytes]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._number = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting: set[asyncio.Task[None]] = set()
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._is_stopping = False

    async def run(self) -> None:
        """Serve until a signal says otherwise.

        Raises:
            StartError: the first worker could not start.
            ListenError: another took the port meanwhile.
        """
        loop = asyncio.get_running_loop()
        for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(one, self._signals.put_nowait, one)
        try:
            if await self._begin():
                await self._obey()
        finally:
            self._is_stopping = True
            for task in (*self._tasks, *self._starting):
                task.cancel()
            for worker in self._all:
                worker.close()
            await self._ended(LAST_S)

    async def _begin(self) -> bool:
        """Start the first worker and open the port; whether no signal came first."""
        first = asyncio.create_task(self._start())
        told = asyncio.create_task(self._next_end())
        await asyncio.wait({first, told}, return_when=asyncio.FIRST_COMPLETED)
        if told.done():
            first.cancel()
            return False
        told.cancel()
        worker = await first
        begin(self._listener)
        self._slots[0].worker = worker
        worker.go(self._listener)
        self._say_ready()
        for slot in self._slots:
            self._spawn(self._keep(slot), self._starting)
        return True

    async def _obey(self) -> None:
        """Do as signals say, until one ends it all."""
        while (told := await self._signals.get()) is signal.SIGHUP:
            self._spawn(self._replace_all(), self._starting)
        await self._stop(told)

    def _spawn(self, work: Coroutine[Any, Any, None], group: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        group.add(task)
        task.add_done_callback(group.discard)

    # ── starting ───────────────────────────────────────────────────────────────────────────────

    async def _start(self) -> _Worker:
        """Return a new worker once it could serve.

        Raises:
            StartError: it ended before.
        """
        worker = await self._launch()
        waited_s = 0.0
        try:
            while not (await asyncio.wait({worker.ready}, timeout=SLOW_START_S))[0]:
                waited_s += SLOW_START_S
                logger.warning(
                    "worker %d is starting for %.0f s now; it is waited for", worker.pid, waited_s
                )
            worker.ready.result()
        except BaseException:
            worker.ready.cancel()
            worker.close()
            raise
        return worker

    async def _launch(self) -> _Worker:
        ours, theirs = socket.socketpair()
        our_port, their_port = socket.socketpair()
        with theirs, their_port:
            process = await asyncio.create_subprocess_exec(
                *WORKER,
                f"--control={theirs.fileno()}",
                f"--port={their_port.fileno()}",
                *self._arguments,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), their_port.fileno()),
                # Ctrl-C reaches a whole process group; what to do about it is decided here.
                process_group=0,
            )
        worker = _Worker(process, await Channel.over(ours), our_port)
        self._all.add(worker)
        worker.channel.send(Start({what: list(states) for what, states in self._known.items()}))
        self._spawn(self._listen_to(worker), self._tasks)
        return worker

    async def _keep(self, slot: _Slot) -> None:
        """Have a worker in ``slot``, for ever."""
        loop = asyncio.get_running_loop()
        pause_s = 0.0
        while not self._is_stopping:
            worker, began = slot.worker, loop.time()
            if worker is not None:
                await worker.gone()
                if slot.worker is not worker:
                    continue  # it was replaced
                logger.error("worker %d %s; another is started", worker.pid, worker.how_it_ended())
                if loop.time() - began >= STEADY_S:
                    pause_s = 0.0
            await asyncio.sleep(pause_s)
            pause_s = min(LAST_PAUSE_S, max(FIRST_PAUSE_S, 2 * pause_s))
            async with slot.lock:
                if slot.worker is worker:
                    slot.worker = await self._start_or_say_why()

    async def _start_or_say_why(self) -> _Worker | None:
        """Return a new worker that takes connections; ``None`` if it could not start."""
        try:
            worker = await self._start()
        except (StartError, OSError) as exc:
            logger.error("a worker could not start: %s", exc)
            return None
        if not self._is_stopping:
            worker.go(self._listener)
        return worker

    async def _replace_all(self) -> None:
        """Put a new worker in each place, and let the old one end when the new one serves."""
        logger.info("SIGHUP: each worker is replaced by a new one, which reads the settings anew")
        for slot in self._slots:
            async with slot.lock:
                old = slot.worker
                new = await self._start_or_say_why()
                if new is None:
                    logger.error("the old workers go on, on the old settings")
                    return
                slot.worker = new
            if old is not None:
                self._spawn(self._retire(old), self._tasks)
        logger.info("every worker is new")

    async def _retire(self, worker: _Worker) -> None:
        worker.channel.send(Leave(is_stopping=False))
        await asyncio.sleep(self._stopping.grace_s)
        worker.channel.send(Close(LINGER_S, self._stopping.drain_s))

    # ── between ────────────────────────────────────────────────────────────────────────────────

    async def _listen_to(self, worker: _Worker) -> None:
        """Hear what a worker says until it ends."""
        while (message := await worker.channel.receive()) is not None:
            self._heed(worker, message)
        for number in list(worker.waits_for):
            worker.adopted(number)
        await worker.gone()
        if not worker.ready.done():
            said = f"worker {worker.pid} {worker.how_it_ended()} before it could serve"
            worker.ready.set_exception(StartError(said))
        self._all.discard(worker)
        worker.close()

    def _heed(self, worker: _Worker, message: Message) -> None:
        match message:
            case Ready() if not worker.ready.done():
                worker.ready.set_result(None)
            case Failed(code, text) if not worker.ready.done():
                error = StartError(text)
                error.code = code
                worker.ready.set_exception(error)
            case Adopted(number):
                worker.adopted(number)
            case Share():
                self._spawn(self._share(worker, message), self._tasks)
            case _:
                pass

    async def _share(self, origin: _Worker, share: Share) -> None:
        """Let all others have what one verified, and tell it when they use it."""
        self._known[share.what].append(share.state)
        self._number += 1
        number, waited_for = self._number, list[asyncio.Event]()
        for worker in self._all - {origin}:
            worker.channel.send(Adopt(number, share.what, share.state))
            if worker.ready.done():  # one that starts knows it before it serves
                waited_for.append(asyncio.Event())
                worker.waits_for[number] = waited_for[-1]
        with suppress(TimeoutError):
            async with asyncio.timeout(SHARE_S):
                for event in waited_for:
                    await event.wait()
        pending = sum(not event.is_set() for event in waited_for)
        if pending:
            logger.error(
                "%d workers have not said within %.0f s that they use the newest %s",
                pending,
                SHARE_S,
                share.what,
            )
        origin.channel.send(Shared(share.number, pending))

    # ── the end ────────────────────────────────────────────────────────────────────────────────

    async def _stop(self, told: signal.Signals) -> None:
        """Be not ready, close the port, let answers end. A second signal ends a phase at once."""
        self._is_stopping = True
        for task in self._starting:
            task.cancel()
        # Whoever presses Ctrl-C sits before it, and no load balancer asks.
        grace_s = self._stopping.grace_s if told is signal.SIGTERM else 0.0
        if grace_s:
            logger.info("%s: not ready any more; the port closes in %g s", told.name, grace_s)
            self._tell_all(Leave(is_stopping=True))
            await self._signalled(grace_s)
        drain_s = self._stopping.drain_s
        self._listener.close()
        self._tell_all(Close(LINGER_S if grace_s else HASTY_LINGER_S, drain_s))
        logger.info("the port is closed; %s", _patience(drain_s))
        if await self._signalled(drain_s + END_S if drain_s else None):
            self._tell_all(Cut())
            await self._signalled(END_S)

    def _tell_all(self, message: Message) -> None:
        for worker in self._all:
            worker.channel.send(message)

    async def _signalled(self, limit_s: float | None) -> bool:
        """Wait for a signal; whether one came before the time was over and all had ended."""
        signalled = asyncio.create_task(self._next_end())
        ended = asyncio.create_task(self._all_ended())
        await asyncio.wait({signalled, ended}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        signalled.cancel()
        ended.cancel()
        return signalled.done() and not signalled.cancelled() and not ended.done()

    async def _next_end(self) -> None:
        while await self._signals.get() is signal.SIGHUP:
            pass

    async def _all_ended(self) -> None:
        while running := {worker.ended for worker in self._all if not worker.ended.done()}:
            await asyncio.wait(running)

    async def _ended(self, limit_s: float) -> None:
        """Wait for every worker, and kill those that stay."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._all_ended()
        for worker in self._all:
            if not worker.ended.done():
                logger.error("worker %d does not end, and is killed", worker.pid)
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
        await self._all_ended()


def _patience(drain_s: float) -> str:
    return f"answers may take {drain_s:g} s" if drain_s else "answers may take as long as they do"
