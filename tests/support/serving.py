"""``waypost validator serve`` in a folder of its own, as an operator runs it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from support.publisher import Publisher
from support.tokens import AUDIENCE, App
from waypost.shared.contracts import Issuers
from waypost.shared.trust import ManifestKeeper

WAYPOST = Path(sys.executable).with_name("waypost")


def eventually(is_so: Callable[[], bool], what: str, *, tries: int = 3_000) -> None:
    """Return once ``is_so``; fail with ``what`` if it never is."""
    for _ in range(tries):
        if is_so():
            return
        time.sleep(0.02)
    raise AssertionError(f"never: {what}")


@dataclass
class Running:
    """A running validator."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def workers(self) -> list[int]:
        """Return the process ids of the workers that run, oldest first."""
        found = subprocess.run(
            ["ps", "-o", "pid=,stat=", "--ppid", str(self.process.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line.split() for line in found.stdout.splitlines()]
        return [int(pid) for pid, state in lines if not state.startswith("Z")]

    @contextmanager
    def only(self, worker: int) -> Generator[None]:
        """Have all others stand still, so that this one takes every connection."""
        others = [pid for pid in self.workers() if pid != worker]
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in others:
                os.kill(pid, signal.SIGCONT)

    def refuses(self) -> bool:
        """Whether the port refuses a connection."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        except ConnectionRefusedError:
            return True
        return False

    def signal(self, which: signal.Signals) -> None:
        self.process.send_signal(which)

    def ended(self) -> int:
        """Return its exit code, once it has ended."""
        assert self.process.stdout is not None
        with self.process.stdout:
            return self.process.wait(60)

    def get(self, path: str) -> httpx.Response:
        """Ask on a connection of its own."""
        return httpx.get(self.url + path, timeout=30)


class Project:
    """A folder that a validator can be run in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.app = App()
        self.publisher = Publisher()
        self.file = folder / "validator.yaml"
        (folder / "root.json").write_bytes(self.publisher.root)
        self.write()

    def write(self, port: int = 9, manifest: str = "root: root.json", limit_usd: int = 1) -> None:
        self.file.write_text(
            f"audience: {AUDIENCE}\nmanifest: {{{manifest}}}\nproviders:\n"
            f"  acme: {{base_url: 'http://127.0.0.1:{port}/v1', api_key: ACME_KEY}}\n"
            f"budgets: {{default: [{{window: day, limit_usd: {limit_usd}}}]}}\n"
        )

    def bundle(self, issuers: Issuers | None = None) -> bytes:
        """Return the bundle of a new publication."""
        return self.publisher.publish(issuers=issuers or self.app.issuers())

    def publish(self) -> None:
        cache = self.folder / "state/manifest.json"
        cache.parent.mkdir()
        root = self.publisher.root
        keeper = ManifestKeeper(url=None, channel="prod", root=root, cache=cache)
        keeper.accept(self.bundle(), etag=None)

    def bearer(self) -> str:
        return self.app.bearer(now=int(time.time()))

    def chat(self, url: str, **body: object) -> httpx.Response:
        """Ask for a chat on a connection of its own."""
        content = {"model": "auto", "messages": [{"role": "user", "content": "2 + 2?"}], **body}
        headers = {"Authorization": self.bearer()}
        return httpx.post(url + "/v1/chat/completions", json=content, headers=headers, timeout=30)

    def start(self, *options: str, port: int = 0, log: Path | None = None) -> subprocess.Popen[str]:
        with (log or self.folder / "log").open("a") as errors:
            return subprocess.Popen(
                [
                    *(WAYPOST, "validator", "serve", "--config", self.file),
                    *("--port", str(port), *options),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if log is None else errors,
                text=True,
                env={**os.environ, "ACME_KEY": "sk-acme-secret"},
            )

    @contextmanager
    def running(self, *options: str, port: int = 0) -> Generator[Running]:
        """Run it until the block ends; it may have ended by then."""
        log = self.folder / "log"
        process = self.start(*options, port=port, log=log)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("waypost validator listening on http://127.0.0.1:"), (
                line + log.read_text()
            )
            yield Running(process, line.split()[-1], log)
        finally:
            for _ in range(3):  # not ready, drain, cut
                process.send_signal(signal.SIGTERM)
                time.sleep(0.02)
            try:
                process.wait(60)
            finally:
                process.kill()
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()
        assert "Traceback" not in log.read_text()
        assert "sk-acme-secret" not in log.read_text()

    @contextmanager
    def serving(self, *options: str) -> Generator[str]:
        """Run it until the block ends; gives its address."""
        with self.running(*options) as running:
            yield running.url
            running.signal(signal.SIGINT)
            assert running.ended() == 0

    def refused(self, *options: str, port: int = 0) -> str:
        process = self.start(*options, port=port)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert out == ""
        assert "Traceback" not in err
        return " ".join(err.split())
