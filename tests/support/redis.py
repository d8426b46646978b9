"""A Redis of the tests' own, on a free port, that can be killed and started again."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import redis

__all__ = ["RedisCluster", "RedisServer", "find_redis", "running_cluster", "running_redis"]


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


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class RedisCluster:
    """Three nodes that share the slots; none has a replica."""

    def __init__(self, servers: list[RedisServer]) -> None:
        self.nodes = [redis.Redis.from_url(server.url, decode_responses=True) for server in servers]
        self.urls = [server.url.replace("redis", "redis+cluster", 1) for server in servers]
        bounds = [0, 5_461, 10_923, 16_384]
        for node, first, end in zip(self.nodes, bounds, bounds[1:], strict=False):
            _command(node, "CLUSTER ADDSLOTSRANGE", first, end - 1)
        for node, server in zip(self.nodes, servers, strict=True):
            bus = cast(Any, node.config_get("cluster-port"))["cluster-port"]
            port = server.url.rpartition(":")[2]
            _command(self.nodes[0], "CLUSTER MEET", "127.0.0.1", port, bus)
        _until(lambda: all("state:ok" in str(_raw(node, "CLUSTER INFO")) for node in self.nodes))

    def move(self, slot: int) -> None:
        """Give the slot, with all its keys, to the next node."""
        place = next(n for n in range(3) if slot < (5_461, 10_923, 16_384)[n])
        source, target = self.nodes[place], self.nodes[(place + 1) % 3]
        ids = [str(_raw(node, "CLUSTER MYID")) for node in (source, target)]
        _command(target, "CLUSTER SETSLOT", slot, "IMPORTING", ids[0])
        _command(source, "CLUSTER SETSLOT", slot, "MIGRATING", ids[1])
        port = target.get_connection_kwargs()["port"]
        while keys := _raw(source, "CLUSTER GETKEYSINSLOT", slot, 100):
            _command(source, "MIGRATE", "127.0.0.1", port, "", 0, 5_000, "KEYS", *keys)
        for node in (target, source):
            _command(node, "CLUSTER SETSLOT", slot, "NODE", ids[1])

    def close(self) -> None:
        for node in self.nodes:
            node.close()


def _raw(node: "redis.Redis", command: str, *arguments: object) -> Any:  # noqa: ANN401 - as it says
    # The client's own cluster commands want a client of the whole cluster.
    pool = cast(Any, node.connection_pool)  # half of the client's own types are unknown
    connection = pool.get_connection()
    try:
        connection.send_command(*command.split(), *arguments)
        return connection.read_response()
    finally:
        pool.release(connection)


def _command(node: "redis.Redis", command: str, *arguments: object) -> None:
    assert _raw(node, command, *arguments) in ("OK", b"OK")


def _until(is_so: Callable[[], bool]) -> None:
    for _ in range(1_000):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("the cluster did not come together")


@contextmanager
def running_cluster() -> Iterator[RedisCluster]:
    """Run three nodes until the block ends."""
    with ExitStack() as stack:
        options = ("--cluster-enabled", "yes", "--appendonly", "no")
        cluster = RedisCluster(
            [
                stack.enter_context(running_redis(*options, "--cluster-port", str(_free_port())))
                for _ in range(3)
            ]
        )
        stack.callback(cluster.close)
        yield cluster


@contextmanager
def running_redis(*options: str) -> Iterator[RedisServer]:
    """Run a server until the block ends."""
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="waypost-redis-") as name:
        server = RedisServer(Path(name), port, *options)
        server.start()
        try:
            yield server
        finally:
            server.kill()
