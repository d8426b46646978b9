"""Runs the validator: a supervisor, and workers that share a socket and the stores."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

from waypost.cli.listening import bind, url_of
from waypost.validator.config import load_config
from waypost.validator.startup.logs import configure_logs
from waypost.validator.startup.supervisor import Stopping, Supervisor
from waypost.validator.telemetry.workers import forget

__all__ = ["run"]


def run(
    config_path: Path,
    *,
    host: str,
    port: int,
    workers: int,
    stopping: Stopping,
    ready: Callable[[str], None],
) -> None:
    """Serve until a signal says otherwise.

    Args:
        port: 0 takes a free one.
        ready: called once with the address, when requests are taken.

    Raises:
        ConfigError: the configuration cannot be used.
        ListenError: the port is taken, or the host is not ours.
        StartError: no worker could start, as when a store cannot be opened, or there is no
            manifest to serve; the code says which.
    """
    config = load_config(config_path)
    with bind(host, port) as listener:
        configure_logs()
        forget(config.metrics.path)
        supervisor = Supervisor(
            listener,
            (f"--config={config_path}",),
            workers=workers,
            stopping=stopping,
            ready=partial(ready, url_of(listener)),
        )
        asyncio.run(supervisor.run())
