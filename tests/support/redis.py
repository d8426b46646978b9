"""A Redis of the tests' own, on a free port, that can be killed and started again."""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, cast

import redis
from redis.crc import key_slot

from support.debian import program

__all__ = ["RedisCluster", "RedisServer", "find_redis", "running_cluster", "running_redis"]


def find_redis() -> str | None:
    """Return the server's program; ``None`` where none is installed."""
    return shutil.which("redis-server") or shutil.which("valkey-server")


ENDS = (5_461, 10_923, 16_384)  # of the slots of each of three nodes


class RedisServer:
    """One server with its data in ``folder``."""

    def __init__(self, folder: Path, port: int, *options: str) -> None:
        self.url = f"redis://127.0.0.1:{port}"
        self._command = [
            program("redis-server", found=find_redis()), "--port", str(port), "--bind", "127.0.0.1",
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

    def hang(self) -> None:
        """Let it answer nothing any more, though its connections stay."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

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
    """Three nodes that share the slots, and one that has what the first of them has."""

    def __init__(self, servers: list[RedisServer]) -> None:
        self.servers = servers
        self.nodes = [redis.Redis.from_url(server.url, decode_responses=True) for server in servers]
        self.urls = [server.url.replace("redis", "redis+cluster", 1) for server in servers]
        bounds = [0, *ENDS]
        for node, first, end in zip(self.nodes, bounds, ENDS, strict=False):
            _command(node, "CLUSTER ADDSLOTSRANGE", first, end - 1)
        for node, server in zip(self.nodes, servers, strict=True):
            bus = cast(Any, node.config_get("cluster-port"))["cluster-port"]
            port = server.url.rpartition(":")[2]
            _command(self.nodes[0], "CLUSTER MEET", "127.0.0.1", port, bus)
        _until(lambda: all("state:ok" in str(_raw(node, "CLUSTER INFO")) for node in self.nodes))
        first_id = str(_raw(self.nodes[0], "CLUSTER MYID"))
        _until(lambda: first_id in str(_raw(self.nodes[3], "CLUSTER NODES")))
        _command(self.nodes[3], "CLUSTER REPLICATE", first_id)
        self.until_whole()

    def prefix_at(self, place: int) -> str:
        """Return a new ledger's prefix whose keys are at the node ``place`` to begin with."""
        while True:
            prefix = token_hex(4)
            if self.place_of(prefix) == place:
                return prefix

    @staticmethod
    def place_of(prefix: str) -> int:
        """Return the node that has a ledger's keys to begin with."""
        slot = key_slot(f"{{{prefix}}}:zone".encode())
        return next(n for n in range(3) if slot < ENDS[n])

    def move(self, slot: int, *, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Give the slot, with all its keys, to the next node, one by one; windows first."""
        place = next(n for n in range(3) if slot < ENDS[n])
        source, target = self.nodes[place], self.nodes[(place + 1) % 3]
        ids = [str(_raw(node, "CLUSTER MYID")) for node in (source, target)]
        _command(target, "CLUSTER SETSLOT", slot, "IMPORTING", ids[0])
        _command(source, "CLUSTER SETSLOT", slot, "MIGRATING", ids[1])
        port = target.get_connection_kwargs()["port"]
        while keys := _raw(source, "CLUSTER GETKEYSINSLOT", slot, 1_000):
            for key in sorted(keys, key=lambda key: (":w:" in str(key), key), reverse=True):
                # Others may delete or move it meanwhile.
                with suppress(AssertionError):
                    _command(source, "MIGRATE", "127.0.0.1", port, key, 0, 5_000)
                meanwhile()
        for node in (target, source):
            _command(node, "CLUSTER SETSLOT", slot, "NODE", ids[1])

    def take_over(self) -> None:
        """Let the replica take its master's place, as for an update of its machine."""

        # It is given up after five seconds if the master's last words did not come through.
        def is_master() -> bool:
            if "role:master" in str(_raw(self.nodes[3], "INFO replication")):
                return True
            _command(self.nodes[3], "CLUSTER FAILOVER")
            time.sleep(1)
            return False

        _until(is_master)

    def until_taken_over(self) -> None:
        """Return when all nodes that run know that the replica has its master's place."""
        wanted = str(_raw(self.nodes[3], "CLUSTER MYID"))

        def is_known(node: "redis.Redis") -> bool:
            told = _raw(node, "CLUSTER NODES")
            lines = [line.split() for line in told.splitlines()]
            return any(line[0] == wanted and "master" in line[2] and line[8:] for line in lines)

        _until(lambda: all(is_known(node) for node in self.nodes[1:]))
        _until(
            lambda: all("state:ok" in str(_raw(node, "CLUSTER INFO")) for node in self.nodes[1:])
        )

    def until_whole(self) -> None:
        """Return when all nodes are there and the replica has all of its master's keys."""
        _until(lambda: all("state:ok" in str(_raw(node, "CLUSTER INFO")) for node in self.nodes))
        _until(lambda: "master_link_status:up" in str(_raw(self.nodes[3], "INFO replication")))

    def close(self) -> None:
        for node in self.nodes:
            node.close()


def _raw(node: "redis.Redis", command: str, *arguments: object) -> Any:  # noqa: ANN401 - as it says
    # The client's own cluster commands want a client of the whole cluster.
    pool = cast(Any, node.connection_pool)  # half of the client's own types are unknown
    connection = pool.get_connection()
    try:
        connection.send_command(*command.split(), *arguments)
        told = connection.read_response()
    except BaseException:
        connection.disconnect()
        raise
    finally:
        pool.release(connection)
    return told.decode() if isinstance(told, bytes) else told


def _command(node: "redis.Redis", command: str, *arguments: object) -> None:
    assert _raw(node, command, *arguments) in ("OK", b"OK")


def _until(is_so: Callable[[], bool]) -> None:
    for _ in range(2_000):
        with suppress(redis.RedisError):
            if is_so():
                return
        time.sleep(0.01)
    raise AssertionError("the cluster did not come together")


@contextmanager
def running_cluster() -> Iterator[RedisCluster]:
    """Run four nodes until the block ends; skips the test where Redis is not installed."""
    options = (
        "--cluster-enabled", "yes", "--appendonly", "yes", "--appendfsync", "always", "--cluster-node-timeout", "1000",
        "--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0",
    )  # fmt: skip
    with ExitStack() as stack:
        cluster = RedisCluster(
            [
                stack.enter_context(running_redis(*options, "--cluster-port", str(_free_port())))
                for _ in range(4)
            ]
        )
        stack.callback(cluster.close)
        yield cluster


@contextmanager
def running_redis(*options: str) -> Iterator[RedisServer]:
    """Run a server until the block ends; skips the test where none is installed."""
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="waypost-redis-") as name:
        server = RedisServer(Path(name), port, *options)
        server.start()
        try:
            yield server
        finally:
            server.kill()
