"""A PostgreSQL of the tests' own: a fresh cluster on a socket in a folder that is theirs."""

import atexit
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from support.debian import program

__all__ = ["Postgres", "a_postgres", "find_postgres", "running_postgres"]


def find_postgres() -> Path | None:
    """Return the folder of the newest server's programs; ``None`` where none is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return None if initdb is None else Path(initdb).parent


def _run(name: str, data: Path, *arguments: str) -> None:
    programs = find_postgres()
    path = program("initdb", found=None if programs is None else str(programs / name))
    # The server refuses to be root.
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    subprocess.run(
        [*as_user, path, "-D", str(data), *arguments],
        check=True, capture_output=True, cwd=data.parent, timeout=50,
    )  # fmt: skip


def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="waypost-pg-"))
    folder.chmod(0o777)  # the server's user writes there
    return folder


@cache
def _fresh_cluster() -> Path:
    """Return the data of a server that has never run; made once, since it takes a second."""
    folder = _folder()
    atexit.register(shutil.rmtree, folder)
    data = folder / "data"
    _run("initdb", data, "-A", "trust", "-U", "waypost", "--no-sync", "-E", "UTF8")
    return data


class Postgres:
    """A server that can be killed and started again on what it left behind.

    Attributes:
        dsn: its connection string.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = folder / "data"
        self.dsn = f"host={folder} user=waypost dbname=postgres"
        subprocess.run(["cp", "-a", str(_fresh_cluster()), str(self._data)], check=True)

    def start(self) -> None:
        options = f"-k {self._folder} -c listen_addresses= -c fsync=off -c full_page_writes=off"
        log = str(self._folder / "log")
        _run("pg_ctl", self._data, "-o", options, "-l", log, "-w", "start")

    def kill(self) -> None:
        """End it at once, as a crash would."""
        _run("pg_ctl", self._data, "-m", "immediate", "stop")


@contextmanager
def a_postgres() -> Iterator[Postgres]:
    """Run a server until the block ends; skips the test where none is installed."""
    folder = _folder()
    try:
        server = Postgres(folder)
        server.start()
        try:
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder)


@contextmanager
def running_postgres() -> Iterator[str]:
    """Run a server until the block ends; gives its connection string."""
    with a_postgres() as server:
        yield server.dsn
