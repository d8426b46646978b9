"""A rolling restart behind nginx, as our guide sets it up, under load all the while."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from support.debian import program
from support.serving import Project, Running, eventually
from support.upstream import answering, running_upstream

GUIDE = Path(__file__).parents[2] / "docs/deploy-cdn.md"
AT_ONCE = 6
PAUSE_S = 0.05
OPTIONS = ("--workers", "2", "--grace-s", "1")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def configuration(folder: Path, *, listen: int, validators: list[int]) -> str:
    """Return the guide's configuration for these ports, without TLS and without the edge."""
    (text,) = re.findall(r"```nginx\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    text = re.sub(r"\n +ssl_[^\n]*", "", text)
    (_, upstream), (_, server) = (
        re.findall(rf"^{name}[^\n]*{{\n.*?^}}", text, re.DOTALL | re.MULTILINE)
        for name in ("upstream", "server")
    )
    (old,) = re.findall(r" *server 127\.0\.0\.1:8800[^\n]*\n", upstream)
    lines = "".join(old.replace("8800", str(port)) for port in validators)
    server = server.replace("listen 443 ssl http2;", f"listen 127.0.0.1:{listen};")
    places = "".join(
        f"{name}_temp_path {folder}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    return (
        f"daemon off; {user} worker_processes 1; pid {folder}/pid; error_log {folder}/errors;"
        f"events {{}} http {{ access_log off; {places}\n{upstream.replace(old, lines)}\n{server} }}"
    )


@contextmanager
def nginx(folder: Path, validators: list[int]) -> Generator[str]:
    """Run nginx in front of ``validators``; gives its URL."""
    port, binary = free_port(), program("nginx")
    text = configuration(folder, listen=port, validators=validators)
    (folder / "nginx.conf").write_text(text)
    process = subprocess.Popen(
        [binary, "-e", str(folder / "errors"), "-c", str(folder / "nginx.conf")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: is_open(port), "nginx answers")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


class _Instance:
    """One validator that can be restarted at its port."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.port = free_port()
        self._running: Running | None = None
        self._stack = ExitStack()

    def start(self) -> None:
        self._running = self._stack.enter_context(self.project.running(*OPTIONS, port=self.port))

    def restart(self) -> None:
        assert self._running is not None
        self._running.signal(signal.SIGTERM)
        assert self._running.ended() == 0
        self.stop()
        self.start()

    def stop(self) -> None:
        self._stack.close()


class _Load:
    """Callers who ask until they are told that it is enough."""

    def __init__(self, url: str, project: Project) -> None:
        self.came_to: Counter[str] = Counter()
        self.is_enough = False
        self._url = url
        self._project = project

    async def run(self) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=30) as client:
            await asyncio.gather(*(self._ask(client, number) for number in range(AT_ONCE)))

    async def _ask(self, client: httpx.AsyncClient, number: int) -> None:
        headers = {"Authorization": self._project.bearer()}
        body = {
            "model": "auto",
            "messages": [{"role": "user", "content": "2 + 2?"}],
            "stream": bool(number % 2),
        }
        while not self.is_enough:
            try:
                answer = await client.post("/v1/chat/completions", json=body, headers=headers)
            except httpx.HTTPError as exc:
                self.came_to[type(exc).__name__] += 1
            else:
                is_whole = not body["stream"] or answer.text.endswith("data: [DONE]\n\n")
                self.came_to[f"{answer.status_code}" if is_whole else "cut short"] += 1
            await asyncio.sleep(PAUSE_S)


async def restart_in_turn(folder: Path, *, requests: int) -> Counter[str]:
    """Restart two validators in turn, again and again until ``requests`` were made.

    Returns:
        What came of them: a status, the name of an error, or ``cut short``.
    """
    instances: list[_Instance] = []
    first: Project | None = None
    async with running_upstream(answering("Four it is.")) as acme:
        for name in ("a", "b"):
            (folder / name).mkdir()
            project = Project(folder / name)
            if first is not None:
                project.app, project.publisher = first.app, first.publisher
                (project.folder / "root.json").write_bytes(first.publisher.root)
            first = first or project
            project.write(port=acme.port, limit_usd=1_000)
            project.publish()
            instances.append(_Instance(project))
        try:
            await asyncio.gather(*(asyncio.to_thread(one.start) for one in instances))
            with nginx(folder, [one.port for one in instances]) as url:
                load = _Load(url, instances[0].project)
                asking = asyncio.create_task(load.run())
                turns = 0
                while turns < len(instances) or load.came_to.total() < requests:
                    await asyncio.to_thread(instances[turns % len(instances)].restart)
                    turns += 1
                load.is_enough = True
                await asking
        finally:
            for one in instances:
                await asyncio.to_thread(one.stop)
    return load.came_to


def main() -> None:
    """Say what came of so many requests; more than one line is a loss."""
    requests = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        came_to = asyncio.run(restart_in_turn(Path(folder), requests=requests))
    for what, count in came_to.items():
        sys.stdout.write(f"validators restarted in turn: {count} requests: {what}\n")
    raise SystemExit(0 if set(came_to) == {"200"} else 1)


if __name__ == "__main__":
    main()
