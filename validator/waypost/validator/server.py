"""Runs the validator: one process, or several that share a socket and the stores."""

import asyncio
import gc
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import uvicorn
from uvicorn.supervisors import Multiprocess

from waypost.cli.listening import BACKLOG, SayingServer, listen, url_of
from waypost.shared.errors import StoreError
from waypost.validator.app import create_app
from waypost.validator.asgi import ValidatorApp
from waypost.validator.config import ValidatorConfig, load_config
from waypost.validator.desk import Desk
from waypost.validator.guarded_http import GuardedProtocol
from waypost.validator.logs import configure_logs
from waypost.validator.opening import open_desk
from waypost.validator.telemetry.siblings import forget

__all__ = ["run"]

# Longer than clients keep idle connections, so that none is closed under a request.
KEEP_ALIVE_S = 75
SHUTDOWN_S = 30
GC_OBJECTS = 20_000  # some megabytes that may wait to be freed


def run(
    config_path: Path, *, host: str, port: int, workers: int, ready: Callable[[str], None]
) -> None:
    """Serve until a signal says otherwise.

    Args:
        port: 0 takes a free one.
        ready: called once with the address, when requests are taken.

    Raises:
        ConfigError: the configuration cannot be used.
        ListenError: the port is taken, or the host is not ours.
        StoreError: a store cannot be opened, or there is no manifest to serve.
    """
    config = load_config(config_path)
    with listen(host, port) as listener:
        asyncio.run(_check(config))
        address = url_of(listener)
        server_config = uvicorn.Config(
            partial(_make_app, config_path),
            factory=True,
            http=GuardedProtocol,
            workers=workers,
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,  # nobody's address is looked at
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
        configure_logs()
        forget(config.metrics.path)
        if workers > 1:
            listener.set_inheritable(True)
            # The kernel queues what comes before the first worker is up.
            ready(address)
            Multiprocess(server_config, sockets=[listener]).run()
        else:
            SayingServer(server_config, partial(ready, address)).run(sockets=[listener])


def _make_app(config_path: Path) -> ValidatorApp:
    configure_logs()
    config = load_config(config_path)
    return create_app(partial(_open_desk, config))


@asynccontextmanager
async def _open_desk(config: ValidatorConfig) -> AsyncGenerator[Desk]:
    async with open_desk(config, environment=os.environ) as desk:
        # What is here by now stays, and a request leaves hardly a cycle behind: looking for some
        # after each 700 new objects, in all there are, took a twentieth of the time.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_OBJECTS)
        yield desk


async def _check(config: ValidatorConfig) -> None:
    """Find out before any worker starts what would keep them all from serving."""
    async with open_desk(config, environment=os.environ) as desk:
        if desk.keeper.current is None and not config.manifest.admin:
            error = desk.keeper.last_error
            why = f": {error.code}: {error.message}" if error is not None else ""
            raise StoreError(
                f"there is no manifest to serve at {config.manifest.url or 'any URL'}, nor in"
                f" {config.manifest.cache}{why}",
                code="manifest_missing",
            )
        if desk.refused is not None and desk.trusted is None and not config.manifest.admin:
            raise StoreError(
                f"there is a manifest, and it cannot be served here: {desk.refused.message}",
                code="manifest_refused",
            )
