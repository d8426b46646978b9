"""The parent of the workers, with workers that do as a test tells them."""

import asyncio
import logging
import os
import re
import shlex
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from support.serving import eventually
from waypost.cli.listening import bind
from waypost.validator.startup import supervisor
from waypost.validator.startup.supervisor import END_S, StartError, Stopping, Supervisor

pytestmark = pytest.mark.anyio

DEPLOY = Path(__file__).parents[3] / "deploy"

# A worker that is as slow to start, or fails, as the file beside it says.
WORKER = """
import argparse, asyncio, os, signal, socket, sys
from pathlib import Path
from waypost.validator.startup.control import Channel, Close, Failed, Ready

parser = argparse.ArgumentParser()
for name in ("--control", "--port", "--folder"):
    parser.add_argument(name)
told = parser.parse_args()
folder = Path(told.folder)

async def work():
    channel = await Channel.over(socket.socket(fileno=int(told.control)))
    await channel.receive()
    (folder / f"starting-{os.getpid()}").touch()
    while not (folder / "may").exists():
        await asyncio.sleep(0.01)
    how = (folder / "may").read_text()
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "fail":
        channel.send(Failed("config_invalid", "it is wrong"))
        await channel.flushed()
        sys.exit(1)
    channel.send(Ready())
    while True:
        message = await channel.receive()
        if message is None or isinstance(message, Close):
            return

asyncio.run(work())
"""


@asynccontextmanager
async def supervising(folder: Path) -> AsyncGenerator[tuple[asyncio.Task[None], socket.socket]]:
    """Run a supervisor of one worker; gives it and its port."""
    (folder / "worker.py").write_text(WORKER)
    with bind("127.0.0.1", 0) as listener:
        one = Supervisor(
            listener,
            (f"--folder={folder}",),
            workers=1,
            stopping=Stopping(0.0, 0.0),
            ready=(folder / "ready").touch,
        )
        task = asyncio.create_task(one.run())
        try:
            yield task, listener
        finally:
            if not task.done():
                signal.raise_signal(signal.SIGTERM)
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def anyio_backend() -> str:
    """The loop that the parent runs on."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "WORKER", (sys.executable, str(tmp_path / "worker.py")))
    monkeypatch.setattr(supervisor, "SLOW_START_S", 0.02)


def found(folder: Path, pattern: str) -> list[Path]:
    return list(folder.glob(pattern))


async def until(is_so: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(eventually, lambda: bool(is_so()), what)


def refuses(listener: socket.socket) -> bool:
    with socket.socket() as one:
        return one.connect_ex(listener.getsockname()) != 0


async def test_a_slow_start_is_waited_for_and_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervising(tmp_path) as (_, listener):
        await until(lambda: found(tmp_path, "starting-*"), "it starts")
        await until(lambda: "it is waited for" in caplog.text, "the log says so")
        assert refuses(listener)

        (tmp_path / "may").write_text("serve")
        await until((tmp_path / "ready").exists, "it is ready")
        assert not refuses(listener)
        assert len(found(tmp_path, "starting-*")) == 1


@pytest.mark.parametrize(
    ("how", "code", "says"),
    [
        ("fail", "config_invalid", "it is wrong"),
        ("die", "worker_failed", "was ended by SIGKILL, as by the system when memory runs out"),
    ],
)
async def test_a_first_worker_that_cannot_start_says_why(
    tmp_path: Path, how: str, code: str, says: str
) -> None:
    (tmp_path / "may").write_text(how)
    async with supervising(tmp_path) as (task, _):
        with pytest.raises(StartError, match=re.escape(says)) as told:
            await task
    assert told.value.code == code


async def test_a_worker_that_ends_is_replaced_and_the_log_says_how_it_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "may").write_text("serve")
    async with supervising(tmp_path):
        await until((tmp_path / "ready").exists, "it is ready")
        (first,) = found(tmp_path, "starting-*")
        pid = int(first.name.partition("-")[2])
        os.kill(pid, signal.SIGKILL)
        first.unlink()

        await until(lambda: found(tmp_path, "starting-*"), "another starts")
    (said,) = [one for one in caplog.records if "another is started" in one.getMessage()]
    assert said.levelno == logging.ERROR
    assert f"worker {pid} was ended by SIGKILL" in said.getMessage()


def test_the_units_in_deploy_leave_the_time_that_stopping_takes() -> None:
    unit = (DEPLOY / "waypost-validator.service").read_text()
    (command,) = re.findall(r"ExecStart=(.*)", unit)
    (limit,) = re.findall(r"TimeoutStopSec=(\d+)", unit)
    pod = yaml.safe_load((DEPLOY / "kubernetes.yaml").read_text())["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    for options, limit_s in (
        (shlex.split(command), int(limit)),
        (container["args"], pod["terminationGracePeriodSeconds"]),
    ):
        grace_s, drain_s = (
            float(options[options.index(name) + 1]) for name in ("--grace-s", "--drain-s")
        )
        assert grace_s + drain_s + END_S <= limit_s
    probe = container["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < 5
