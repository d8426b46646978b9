"""What other gateways do on the same core, in the same run, before the same upstream.

Each is pinned and installed into a folder of its own under the user's cache, once; one that does
not install or does not answer is left out, with a word. Ours runs with every check on, and the
ledger and the records on disk; theirs run with what they do by default, without keys or budgets.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

import httpx

from bench.processes import (
    BODY,
    CHAT,
    LOAD_CORE,
    SERVER_CORE,
    Load,
    Unavailable,
    free_port,
    memory_mib,
    need,
    nginx,
    running,
    uvicorn,
    wrk,
)
from bench.serving import PYTHON, a_validator, first_bytes

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "waypost-bench"
SECONDS = int(os.environ.get("BENCH_RIVALS_SECONDS", "3"))
ROUNDS = int(os.environ.get("BENCH_RIVALS_ROUNDS", "2"))
CONNECTIONS = (1, 32, 128)
INSTALL_S = 900
START_S = 90.0
KEY = "sk-not-a-key"


@dataclass(frozen=True)
class Start:
    """How a rival is run: its command, environment and what a request to it looks like.

    Attributes:
        port_file: where it says which port it took, if it takes none that it is told.
    """

    command: list[str | Path]
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    model: str = "auto"
    path: str = CHAT
    port_file: Path | None = None


@dataclass(frozen=True)
class Packages:
    """What is compared with: packages from PyPI or npm, at one version."""

    name: str
    package: str
    is_npm: bool = field(default=False, kw_only=True)

    @property
    def home(self) -> Path:
        return CACHE / re.sub(r"[/\[ ]", "-", self.package).replace("]", "")


@dataclass(frozen=True)
class Rival(Packages):
    """A gateway."""

    start: Callable[[Path, Path, int, str], Start]


def _litellm(home: Path, folder: Path, port: int, upstream: str) -> Start:
    config = folder / "litellm.yaml"
    parameters = {"model": "openai/auto", "api_base": f"{upstream}/v1", "api_key": KEY}
    config.write_text(
        json.dumps({"model_list": [{"model_name": "auto", "litellm_params": parameters}]})
    )
    return Start(
        [home / "bin/litellm", "--config", config, "--port", str(port), "--host", "127.0.0.1",
         "--num_workers", "1"],
        {"LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False", "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"},
    )  # fmt: skip


def _portkey(home: Path, folder: Path, port: int, upstream: str) -> Start:
    server = home / "node_modules/@portkey-ai/gateway/build/start-server.js"
    return Start(
        [need("node"), server, f"--port={port}", "--headless"],
        headers={
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": f"{upstream}/v1",
            "Authorization": f"Bearer {KEY}",
        },
    )


def _tensorzero(home: Path, folder: Path, port: int, upstream: str) -> Start:
    (folder / "tensorzero.toml").write_text(f"""
[gateway]
observability.enabled = false
[models.auto]
routing = ["it"]
[models.auto.providers.it]
type = "openai"
model_name = "auto"
api_base = "{upstream}/v1/"
api_key_location = "none"
""")
    # The wheel has the gateway as a library only; its port is whatever is free.
    script = folder / "tensorzero_serve.py"
    script.write_text(f"""
import pathlib, socket, time, urllib.parse
from tensorzero.tensorzero import _start_http_gateway
gateway = _start_http_gateway(
    config_file={str(folder / "tensorzero.toml")!r}, clickhouse_url=None, postgres_url=None,
    valkey_url=None, async_setup=False,
)
port = urllib.parse.urlsplit(gateway.base_url).port
pathlib.Path({str(folder / "tensorzero.port")!r}).write_text(str(port))
ready = socket.create_server(("127.0.0.1", {port}))
time.sleep(86400)
""")
    return Start(
        [home / "bin/python", script],
        model="tensorzero::model_name::auto",
        path="/openai/v1/chat/completions",
        port_file=folder / "tensorzero.port",
    )


def _ferrogw(home: Path, folder: Path, port: int, upstream: str) -> Start:
    config = folder / "ferrogw.yaml"
    config.write_text("strategy:\n  mode: single\ntargets:\n  - virtual_key: openai\n")
    return Start(
        [home / "bin/ferrogw", "serve"],
        {
            "GATEWAY_CONFIG": str(config), "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": f"{upstream}/v1", "PORT": str(port), "HOST": "127.0.0.1",
            "MASTER_KEY": "fgw_bench_key", "RATE_LIMIT_RPS": "10000000",
            "RATE_LIMIT_BURST": "10000000", "LOG_LEVEL": "error",
        },
        {"Authorization": "Bearer fgw_bench_key"},
        model="gpt-4o",
    )  # fmt: skip


def _smg(home: Path, folder: Path, port: int, upstream: str) -> Start:
    return Start(
        [home / "bin/smg", "launch", "--worker-urls", upstream, "--backend", "openai",
         "--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port()),
         "--log-level", "error", "--max-concurrent-requests", "-1"],
        headers={"Authorization": f"Bearer {KEY}"},
    )  # fmt: skip


def _rolter(home: Path, folder: Path, port: int, upstream: str) -> Start:
    config = folder / "rolter.toml"
    config.write_text(f"""
[server]
host = "127.0.0.1"
port = {port}
[[providers]]
name = "it"
kind = "openai_compatible"
api_base = "{upstream}/v1"
api_key = "{KEY}"
[[routes]]
model = "auto"
strategy = "round_robin"
[[routes.targets]]
provider = "it"
model = "auto"
""")
    return Start([home / "bin/rolter", "gateway", "-c", config], {"RUST_LOG": "error"})


RIVALS = (
    Rival("LiteLLM", "litellm[proxy]==1.106.2", _litellm),
    Rival("Portkey", "@portkey-ai/gateway@1.15.2", _portkey, is_npm=True),
    Rival("TensorZero", "tensorzero==2026.6.0", _tensorzero),
    Rival("ferrogw", "ferrogw==1.5.10", _ferrogw),
    Rival("smg", "smg==1.13.0", _smg),
    Rival("rolter", "rolter==0.1.0", _rolter),
)


def install(rival: Packages) -> None:
    """Install what is not there yet. Raises Unavailable with the last line of what went wrong."""
    done = rival.home / ".installed"
    if done.exists():
        return
    rival.home.mkdir(parents=True, exist_ok=True)
    commands: list[list[str | Path]] = (
        [[need("npm"), "install", "--no-audit", "--no-fund", "--silent", rival.package]]
        if rival.is_npm
        else [
            [sys.executable, "-m", "venv", rival.home],
            [rival.home / "bin/python", "-m", "pip", "install", "-q", *rival.package.split()],
            # Some compile on install and some do not; nobody should be measured compiling.
            [rival.home / "bin/python", "-m", "compileall", "-q", rival.home / "lib"],
        ]
    )
    for command in commands:
        try:
            subprocess.run(
                command, cwd=rival.home, check=True, capture_output=True, text=True,
                timeout=INSTALL_S,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as exc:
            output = getattr(exc, "stderr", None) or str(exc)
            lines = str(output).strip().splitlines() or ["no word"]
            raise Unavailable(f"{rival.package} does not install: {lines[-1][:120]}") from exc
    done.touch()


@dataclass
class Running:
    """One gateway under measurement."""

    name: str
    port: int
    headers: Mapping[str, str]
    body: Path
    cold_s: float = 0.0
    pid: int = 0
    path: str = CHAT


def _write(path: Path, *, model: str, stream: bool) -> None:
    fields = {**json.loads(BODY.read_bytes()), "model": model}
    path.write_text(json.dumps({**fields, "stream": True} if stream else fields))


@contextmanager
def _running(
    rival: Rival, folder: Path, upstream: str, *, stream: bool = False
) -> Iterator[Running]:
    install(rival)
    port = free_port()
    folder.mkdir(exist_ok=True)
    start = rival.start(rival.home, folder, port, upstream)
    body = folder / f"{rival.name}.json"
    _write(body, model=start.model, stream=stream)
    began = time.perf_counter()
    log = folder / f"{rival.name}.log"
    try:
        with running(
            start.command, port=port, core=SERVER_CORE, env=start.env, log=log, wait_s=START_S
        ) as process:
            if start.port_file is not None:
                port = int(start.port_file.read_text())
            one = Running(rival.name, port, start.headers, body, pid=process.pid, path=start.path)
            _answers(one)
            one.cold_s = time.perf_counter() - began
            yield one
    except RuntimeError as exc:
        raise Unavailable(f"{rival.name} does not start: {str(exc)[-200:]}") from exc


def _answers(one: Running) -> None:
    last = "no answer"
    for _ in range(100):
        try:
            answer = httpx.post(
                f"http://127.0.0.1:{one.port}{one.path}",
                content=one.body.read_bytes(),
                headers={"Content-Type": "application/json", **one.headers},
                timeout=10,
            )
            if answer.status_code == 200 and "choices" in answer.text:
                return
            last = f"{answer.status_code} {answer.text[:150]}"
        except httpx.HTTPError as exc:
            last = str(exc)
        time.sleep(0.1)
    raise Unavailable(f"{one.name} does not answer: {last}")


def rows(folder: Path) -> list[tuple[str, str, str]]:
    """Return (what, measured, aim): ours against each rival, interleaved."""
    upstream = free_port()
    command, log = nginx(folder, upstream)
    url = f"http://127.0.0.1:{upstream}"
    result: list[tuple[str, str, str]] = []
    with (
        running(command, port=upstream, core=LOAD_CORE, log=log),
        a_validator(folder / "validator", url) as (ours, headers, pid),
    ):
        waypost = Running("waypost", ours, headers, BODY, pid=pid)
        direct = Running("direct", upstream, {}, BODY)
        idle = memory_mib(pid)
        for rival in RIVALS:
            try:
                with _running(rival, folder / rival.name, url) as theirs:
                    result += _told(_compared(theirs, waypost, direct, folder))
            except Unavailable as why:
                result += _told([(rival.name, f"skipped: {why}", "")])
        memory = f"{idle:.0f} MiB idle, {memory_mib(pid):.0f} after"
        result += _told([("waypost, memory", memory, ""), ("waypost's Python", _python(), "")])
    return [*result, *_told(_stream_rows(folder))]


def _told(some: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, str, str]]:
    """Print each row when it is there: all of them take minutes."""
    for row in some:
        print(f"{time.strftime('%H:%M:%S')} {row[0]}: {row[1]}", file=sys.stderr, flush=True)
        yield row


def _python() -> str:
    """Return what runs ours: as distributions build it, it is an eighth faster."""
    script = (
        "import platform as p; print(p.python_version(), *p.python_build(), p.python_compiler())"
    )
    said = subprocess.run([PYTHON, "-c", script], capture_output=True, text=True, check=True)
    return f"{PYTHON}: {said.stdout.strip()}"


AIMS = {"LiteLLM": "≥ 40 ×", "Portkey": "≥ 4 ×", "TensorZero": "> 1 ×", "ferrogw": "> 1 ×"}


def _compared(
    theirs: Running, waypost: Running, direct: Running, folder: Path
) -> Iterator[tuple[str, str, str]]:
    loads: dict[tuple[str, int], list[Load]] = {}
    everyone = (direct, theirs, waypost)
    idle = memory_mib(theirs.pid)
    for one in everyone:
        _load(one, 32, 1, folder)
    for _ in range(ROUNDS):
        for connections in CONNECTIONS:
            for one in everyone:
                loads.setdefault((one.name, connections), []).append(
                    _load(one, connections, SECONDS, folder)
                )
    errors = sum(load.errors for load in loads[theirs.name, 32])

    def rate(name: str, connections: int) -> float:
        return statistics.median(load.requests_per_s for load in loads[name, connections])

    def added_ms(name: str, took_ms: Callable[[Load], float]) -> float:
        mine, plain = loads[name, 1], loads["direct", 1]
        return statistics.median(map(took_ms, mine)) - statistics.median(map(took_ms, plain))

    p50, p99 = attrgetter("p50_ms"), attrgetter("p99_ms")

    ratios = ", ".join(
        f"{rate('waypost', c) / max(rate(theirs.name, c), 0.1):.1f} × at {c}" for c in CONNECTIONS
    )
    yield (f"waypost against {theirs.name}, requests/s", ratios, AIMS.get(theirs.name, ""))
    yield (
        f"{theirs.name} and waypost",
        f"{rate(theirs.name, 32):,.0f}/s and {rate('waypost', 32):,.0f}/s at 32; added p50"
        f" {added_ms(theirs.name, p50):.2f} and {added_ms('waypost', p50):.2f} ms, p99"
        f" {added_ms(theirs.name, p99):.1f} and {added_ms('waypost', p99):.1f} ms",
        "",
    )
    yield (
        f"{theirs.name}, cold start and memory",
        f"{theirs.cold_s:.1f} s; {idle:.0f} MiB idle, {memory_mib(theirs.pid):.0f} after"
        + (f"; {errors} errors" if errors else ""),
        "",
    )


def _load(one: Running, connections: int, seconds: int, folder: Path) -> Load:
    return wrk(
        one.port, connections=connections, seconds=seconds, headers=one.headers, folder=folder,
        body=one.body, path=one.path,
    )  # fmt: skip


def _stream_rows(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Time to the first byte of a stream that each adds to going direct."""
    upstream = free_port()
    url = f"http://127.0.0.1:{upstream}"
    server = uvicorn("bench.sse_upstream:app", upstream)
    with (
        running(server, port=upstream, core=LOAD_CORE, log=folder / "sse.log"),
        a_validator(folder / "streaming", url) as (ours, headers, _),
    ):
        body = folder / "stream.json"
        _write(body, model="auto", stream=True)
        yield _stream_row(Running("waypost", ours, headers, body), upstream)
        for rival in RIVALS:
            try:
                place = folder / f"{rival.name}-stream"
                with _running(rival, place, url, stream=True) as theirs:
                    yield _stream_row(theirs, upstream)
            except (Unavailable, OSError, EOFError, TimeoutError) as why:
                yield (f"stream, {rival.name}", f"skipped: {str(why)[:120]}", "")


def _stream_row(one: Running, upstream: int) -> tuple[str, str, str]:
    direct, through = first_bytes(upstream, one.port, one.headers, one.body, path=one.path)
    added = statistics.median(through) - statistics.median(direct)
    return (f"stream, {one.name}: added time to first byte", f"{added:.2f} ms", "")
