"""A Redis of the tests' own, on a free port, that can be killed and started again."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

__all__ = ["RedisServer", "find_redis", "running_redis"]


def find_redis() -> str | None:
    """Return the server's program; ``None`` where none is installed."""
    return shutil.which("redis-server") or shutil.which("valkey-server")


class RedisServer:
    """One server with its data in ``folder``."""

    def __init__(self, folder: Path, port: int, *options: str) -> None:
        self.url = f"redis://127.0.0.1:{port}"
        self._command = [
            find_redis() or "redis-server", "--port", str(port), "--bind", "127.0.0.1",
            "--dir", str(folder), "--appendonly", "yes", "--appendfsync", "always",
            "--save", "", "--logfile", str(folder / "log"), *options,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers."""
        self._process = subprocess.Popen(self._command)
        client = redis.Redis.from_url(self.url)
        for _ in range(500):
            try:
                client.ping()
            except redis.RedisError:
                time.sleep(0.01)
            else:
                break
        else:
            raise AssertionError("no Redis answers")
        client.close()

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def running_redis(*options: str) -> Iterator[RedisServer]:
    """Run a server until the block ends."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="waypost-redis-") as name:
        server = RedisServer(Path(name), port, *options)
        server.start()
        try:
            yield server
        finally:
            server.kill()
