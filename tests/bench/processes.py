"""Servers under measurement and the load on them, each pinned to a core of its own."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SERVER_CORE, LOAD_CORE = 0, max(0, (os.cpu_count() or 1) - 1)
CHAT = "/v1/chat/completions"
BODY = Path(__file__).parent / "body.json"


class Unavailable(Exception):
    """Something this section needs is not on this machine; its message says what."""


def need(tool: str) -> str:
    """Return the path of ``tool``, or say which package holds it."""
    path = shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/sbin")
    if path is None:
        raise Unavailable(f"{tool} is not installed (Debian package {tool})")
    return path


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _pin(core: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


@contextmanager
def running(
    command: Sequence[str | Path],
    *,
    port: int,
    core: int,
    env: Mapping[str, str] | None = None,
    log: Path,
    wait_s: float = 20.0,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``command`` pinned to ``core`` until the block ends; enter when ``port`` answers."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=output,
            stderr=output,
            env={**os.environ, **(env or {})},
            preexec_fn=lambda: _pin(core),
        )
    try:
        for _ in range(int(wait_s * 20)):
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended at once: {log.read_text()[-2_000:]}")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
                break
            except OSError:
                time.sleep(0.05)
        else:
            raise RuntimeError(f"nothing listens on {port}: {log.read_text()[-2_000:]}")
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def memory_mib(pid: int) -> float:
    """Return the resident memory of a process and its children."""
    listed = subprocess.run(
        ["ps", "-o", "rss=", "--pid", str(pid), "--ppid", str(pid)],
        capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    return sum(map(int, listed.split())) / 1_024


def worker_of(pid: int) -> int:
    """Return the one worker of the validator ``pid``: the process that serves."""
    (worker,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(worker)


def cpu_s(pid: int, *, thread: int | None = None) -> float:
    """Return the processor time that a process has taken, or one thread of it."""
    stat = f"/proc/{pid}/stat" if thread is None else f"/proc/{pid}/task/{thread}/stat"
    fields = Path(stat).read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def nginx(folder: Path, port: int) -> tuple[list[str | Path], Path]:
    """Return the command of an nginx that answers every request with one static completion."""
    answer = (Path(__file__).parent / "answer.json").read_text()
    conf = folder / "nginx.conf"
    conf.write_text(f"""
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.err;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 100000000; client_body_buffer_size 64k;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port} reuseport;
    location / {{ default_type application/json; return 200 '{answer}'; }}
  }}
}}
""")
    return [need("nginx"), "-c", conf], folder / "nginx.log"


def uvicorn(app: str, port: int) -> list[str | Path]:
    """Return the command of a one-worker uvicorn on uvloop and httptools."""
    return [
        sys.executable, "-m", "uvicorn", app, "--port", str(port), "--loop", "uvloop",
        "--http", "httptools", "--log-level", "warning", "--no-access-log",
    ]  # fmt: skip


@dataclass(frozen=True)
class Load:
    """What a load generator saw. Latencies in milliseconds."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int
    requests: int = 0


def wrk(
    port: int,
    *,
    connections: int,
    seconds: int,
    headers: Mapping[str, str],
    folder: Path,
    body: Path = BODY,
    path: str = CHAT,
) -> Load:
    """POST ``body``, 1.5 kB of it, to the server on ``port`` as fast as it answers."""
    script = folder / "post.lua"
    lines = "\n".join(f'wrk.headers["{k}"] = [[{v}]]' for k, v in headers.items())
    script.write_text(f"""
local f = io.open("{body}", "rb"); wrk.body = f:read("*a"); f:close()
wrk.method = "POST"; wrk.headers["Content-Type"] = "application/json"
{lines}
done = function(summary, latency, requests)
  io.write(string.format("RESULT %f %f %f %d %d\\n",
    summary.requests / (summary.duration / 1e6), latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3,
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout,
    summary.requests))
end
""")
    output = subprocess.run(
        [
            need("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script),
            f"http://127.0.0.1:{port}{path}",
        ],
        capture_output=True, text=True, check=True,
        preexec_fn=lambda: _pin(LOAD_CORE),
    ).stdout  # fmt: skip
    match = re.search(r"RESULT (\S+) (\S+) (\S+) (\d+) (\d+)", output)
    if match is None:
        raise RuntimeError(output)
    rps, p50, p99, errors, requests = match.groups()
    return Load(float(rps), float(p50), float(p99), int(errors), int(requests))
