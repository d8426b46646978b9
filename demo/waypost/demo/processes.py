"""Server processes of a demonstration: started, awaited, and ended with it whatever happens.

A server binds port 0 and says on standard output where it listens, so no port is ever guessed.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from waypost.shared.errors import WaypostError

__all__ = ["Server", "ServerError", "running", "waypost_command"]

START_DEADLINE_S = 60.0  # a cold disk and two busy cores; usually one second
STOP_DEADLINE_S = 5.0
POLL_S = 0.02
LOG_TAIL_LINES = 8
LOG_LINE_CHARS = 400


class ServerError(WaypostError):
    """A server did not start; the message ends with the last lines of its log."""

    code = "server_failed"


@dataclass(frozen=True)
class Server:
    """A process that was started. ``log`` has everything it wrote."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    announcement: str

    def url(self, *, deadline_s: float = START_DEADLINE_S) -> str:
        """Return where the server listens, as soon as it says so.

        Raises:
            ServerError: it ended, or said nothing in ``deadline_s``.
        """
        says = re.compile(rf"{re.escape(self.announcement)} (http://\S+)")
        give_up_at = time.monotonic() + deadline_s
        while True:
            exit_code = self.process.poll()
            match = says.search(self.log.read_text(errors="replace"))
            if match is not None:
                return match[1]
            if exit_code is not None:
                raise self.failed(f"ended with code {exit_code} before it listened")
            if time.monotonic() > give_up_at:
                raise self.failed(f"did not listen within {deadline_s:.0f} s")
            time.sleep(POLL_S)

    def failed(self, how: str) -> ServerError:
        """Return the error that tells ``how`` it failed, with the last lines of its log."""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        # A traceback in a JSON log is one very long line, with what matters at its end.
        tail = "\n  ".join(line[-LOG_LINE_CHARS:] for line in lines) or "(it wrote nothing)"
        return ServerError(f"{self.name} {how}. The last lines of its log:\n  {tail}")


def waypost_command(*args: str) -> list[str]:
    """Return the command line of ``waypost args`` in this very environment."""
    return [sys.executable, "-c", "from waypost.cli import main; main()", *args]


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    *,
    announcement: str,
    log: Path,
    environment: Mapping[str, str] | None = None,
    stdin: str = "",
) -> Generator[Server, None, None]:
    """Run ``command`` until the block ends; enter at once, without waiting for it to listen.

    Args:
        environment: added to this process's own.
        stdin: what the server reads on its standard input; not seen in process listings.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own commands, no shell
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            # Ctrl-C reaches a whole process group: without this, servers die before their clients.
            start_new_session=True,
        )
    try:
        if process.stdin is not None:
            process.stdin.write(stdin.encode())
            process.stdin.close()
        yield Server(name, process, log, announcement)
    finally:
        process.terminate()
        try:
            process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
