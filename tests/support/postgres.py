"""A PostgreSQL of the tests' own: a fresh cluster on a socket in a folder that is theirs."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Postgres", "a_postgres", "find_postgres", "running_postgres"]


def find_postgres() -> Path | None:
    """Return the folder of the newest server's programs; ``None`` where none is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return None if initdb is None else Path(initdb).parent


class Postgres:
    """A server that can be killed and started again on what it left behind.

    Attributes:
        dsn: its connection string.
    """

    def __init__(self, folder: Path) -> None:
        programs = find_postgres()
        assert programs is not None
        self._programs = programs
        self._folder = folder
        self.dsn = f"host={folder} user=waypost dbname=postgres"
        # The server refuses to be root, and so does its folder.
        self._as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        folder.chmod(0o777)
        self._run("initdb", "-A", "trust", "-U", "waypost", "--no-sync", "-E", "UTF8")

    def start(self) -> None:
        options = f"-k {self._folder} -c listen_addresses= -c fsync=off -c full_page_writes=off"
        self._run("pg_ctl", "-o", options, "-l", str(self._folder / "log"), "-w", "start")

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._run("pg_ctl", "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        data = str(self._folder / "data")
        subprocess.run(
            [*self._as_user, str(self._programs / program), "-D", data, *arguments],
            check=True, capture_output=True, cwd=self._folder, timeout=50,
        )  # fmt: skip


@contextmanager
def a_postgres() -> Iterator[Postgres]:
    """Run a server until the block ends."""
    with tempfile.TemporaryDirectory(prefix="waypost-pg-") as name:
        server = Postgres(Path(name))
        server.start()
        try:
            yield server
        finally:
            server.kill()


@contextmanager
def running_postgres() -> Iterator[str]:
    """Run a server until the block ends; gives its connection string."""
    with a_postgres() as server:
        yield server.dsn
