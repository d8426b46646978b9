"""One process of a validator: serves on the port it was given, as its supervisor tells it.

Run by ``supervisor`` alone. What keeps it from starting it tells there, not in its log.
"""

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

from waypost.shared.errors import StoreError, TrustError, WaypostError
from waypost.validator.config import ValidatorConfig, load_config
from waypost.validator.config.manifests import ManifestConfig
from waypost.validator.manifest.refresh import ManifestService
from waypost.validator.services import Services
from waypost.validator.startup.assembly import open_services
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
from waypost.validator.startup.drain import DrainingServer, server_config
from waypost.validator.startup.logs import configure_logs

__all__ = ["main"]

logger = logging.getLogger("waypost.validator.startup.worker")  # it runs as __main__

GC_OBJECTS = 20_000  # some megabytes that may wait to be freed
ORPHAN_DRAIN_S = 30.0
SHARE_S = 10.0  # the supervisor itself waits half as long for the others


def main() -> None:
    """Serve until the supervisor says otherwise, or is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    told = parser.parse_args()
    # They are the supervisor's to act upon, even where a whole group is sent them.
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)
    configure_logs()
    control, port = socket.socket(fileno=told.control), socket.socket(fileno=told.port)
    loop_factory = server_config(_no_app).get_loop_factory()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        is_good = runner.run(_work(told.config, control, port))
    raise SystemExit(0 if is_good else 1)


async def _no_app(*_: object) -> None:
    raise AssertionError("only its loop is asked for")


async def _work(config_path: Path, control: socket.socket, port: socket.socket) -> bool:
    """Serve; return whether that could be."""
    channel = await Channel.over(control)
    try:
        start = await channel.receive()
        if not isinstance(start, Start):
            return True
        config = load_config(config_path)
        async with _open(config) as services:
            await _Worker(services, channel, port).run(start)
    except WaypostError as exc:
        channel.send(Failed(exc.code, exc.message))
        await channel.flushed()
        return False
    finally:
        channel.close()
    return True


@asynccontextmanager
async def _open(config: ValidatorConfig) -> AsyncGenerator[Services]:
    async with open_services(config, environment=os.environ) as services:
        # What is here by now stays, and a request leaves hardly a cycle behind: looking for some
        # after each 700 new objects, in all there are, took a twentieth of the time.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_OBJECTS)
        yield services


class _Worker:
    """Does as it is told, and tells what it verifies."""

    def __init__(self, services: Services, channel: Channel, port: socket.socket) -> None:
        """Args:
        port: what it is given the listening socket by.
        """
        self._manifests = services.manifests
        self._shutdown = services.shutdown
        self._settings = services.config.manifest
        self._channel = channel
        self._port = port
        self._server = DrainingServer(services)
        self._active: asyncio.Task[None] | None = None
        self._numbers = count(1)
        self._shared: dict[int, asyncio.Future[int]] = {}
        self._keeping: set[asyncio.Task[None]] = set()

    async def run(self, start: Start) -> None:
        """Serve until told to end.

        Raises:
            StoreError: there is no manifest to serve.
        """
        for what, states in start.known.items():
            for state in states:
                await self._adopt(what, state)
        require_manifest(self._manifests, self._settings)
        hearing = asyncio.create_task(self._hear())
        self._channel.send(Ready())
        sharing = asyncio.create_task(self._manifests.sharing.begin(self._share))
        try:
            await hearing
            if self._active is not None:
                await self._active
        finally:
            for task in (hearing, sharing, *self._keeping):
                task.cancel()

    async def _hear(self) -> None:
        """Heed what is told until the server has ended, or was never to begin."""
        while (message := await self._next()) is not None:
            await self._heed(message)
            if self._active is None and isinstance(message, Leave | Close):
                return
        if self._active is not None and not self._active.done():
            logger.error("the supervisor is gone: no more connections are taken")
            self._server.close(linger_s=0.0, drain_s=ORPHAN_DRAIN_S)

    async def _next(self) -> Message | None:
        """Return what is told next; ``None`` when there is nothing more to heed."""
        hearing = asyncio.create_task(self._channel.receive())
        waited_for: set[asyncio.Task[Any]] = {hearing}
        if self._active is not None:
            waited_for.add(self._active)
        await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
        if hearing.done():
            return hearing.result()
        hearing.cancel()
        return None

    async def _heed(self, message: Message) -> None:
        match message:
            case Go():
                with self._port:
                    (handle,) = socket.recv_fds(self._port, 1, 1)[1]
                listener = socket.socket(fileno=handle)
                self._active = asyncio.create_task(self._server.run_on(listener))
                is_up = asyncio.create_task(self._server.is_up.wait())
                await asyncio.wait({self._active, is_up}, return_when=asyncio.FIRST_COMPLETED)
            case Adopt(number, what, state):
                await self._adopt(what, state)
                self._channel.send(Adopted(number))
            case Shared(number, pending):
                if (told := self._shared.pop(number, None)) is not None and not told.done():
                    told.set_result(pending)
            case Leave(is_stopping):
                self._shutdown.announce(is_stopping=is_stopping)
                self._server.leave(takes_more=is_stopping)
            case Close(linger_s, drain_s):
                self._server.close(linger_s=linger_s, drain_s=drain_s)
            case Cut():
                self._server.cut()
            case _:
                pass

    async def _adopt(self, what: str, state: bytes) -> None:
        try:
            changed = await self._manifests.adopt(what, state)
        except TrustError as exc:
            logger.info("the %s that another worker has is not taken: %s", what, exc)
            return
        if changed:
            task = asyncio.create_task(self._manifests.keep_policies())
            self._keeping.add(task)
            task.add_done_callback(self._keeping.discard)

    async def _share(self, what: str, state: bytes) -> int:
        """Let all other workers have it; return how many do not use it yet."""
        number = next(self._numbers)
        told: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._shared[number] = told
        self._channel.send(Share(number, what, state))
        try:
            async with asyncio.timeout(SHARE_S):
                return await told
        except TimeoutError:
            return 1  # the supervisor at least
        finally:
            self._shared.pop(number, None)


def require_manifest(manifests: ManifestService, settings: ManifestConfig) -> None:
    """Raise StoreError if there is nothing to serve, nor any way to it.

    Its code is ``manifest_missing``, or ``manifest_refused`` if there is one that cannot be served.
    """
    if manifests.refused is not None and manifests.trusted is None and not settings.admin:
        raise StoreError(
            f"there is a manifest, and it cannot be served here: {manifests.refused.message}",
            code="manifest_refused",
        )
    if manifests.keeper.current is None and not settings.admin:
        error = manifests.keeper.last_error
        why = f": {error.code}: {error.message}" if error is not None else ""
        raise StoreError(
            f"there is no manifest to serve at {settings.url or 'any URL'}, nor in"
            f" {settings.cache}{why}. Start the edge that serves it (`waypost edge serve`), or"
            " correct manifest.url in validator.yaml",
            code="manifest_missing",
        )


if __name__ == "__main__":
    main()
