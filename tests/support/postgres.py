"""A PostgreSQL of the tests' own: a fresh cluster on a socket in a folder that is theirs."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["find_postgres", "running_postgres"]


def find_postgres() -> Path | None:
    """Return the folder of the newest server's programs; ``None`` where none is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return None if initdb is None else Path(initdb).parent


@contextmanager
def running_postgres() -> Iterator[str]:
    """Run a server until the block ends; gives its connection string."""
    programs = find_postgres()
    assert programs is not None
    # The server refuses to be root, and so does its folder.
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="waypost-pg-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        data = folder / "data"

        def run(program: str, *arguments: str) -> None:
            subprocess.run(
                [*as_user, str(programs / program), *arguments],
                check=True, capture_output=True, cwd=folder, timeout=50,
            )  # fmt: skip

        run("initdb", "-D", str(data), "-A", "trust", "-U", "waypost", "--no-sync", "-E", "UTF8")
        options = f"-k {folder} -c listen_addresses= -c fsync=off -c full_page_writes=off"
        run("pg_ctl", "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "start")
        try:
            yield f"host={folder} user=waypost dbname=postgres"
        finally:
            run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
