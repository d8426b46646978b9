"""The validator under load: every check, a durable ledger and records on, one pinned core.

Compared in one run with the server's own floor (bare ASGI that answers a constant), with the
plainest pass-through (Starlette and httpx, no checks), and with going direct. Rounds are
interleaved and the medians of each are compared.
"""

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from bench.processes import (
    BODY,
    CHAT,
    LOAD_CORE,
    SERVER_CORE,
    Load,
    free_port,
    nginx,
    running,
    uvicorn,
    wrk,
)
from support.publisher import Publisher
from support.tokens import AUDIENCE, App
from support.worlds import a_policy

# Another interpreter of the same version to run the validator with: how it was built tells.
PYTHON = os.environ.get("BENCH_PYTHON", sys.executable)
ROUNDS, SECONDS = 3, 3
STREAMS = 150


@contextmanager
def a_validator(
    folder: Path,
    upstream: str,
    *,
    records: bool = True,
    config: Mapping[str, object] | None = None,
) -> Iterator[tuple[int, dict[str, str], int]]:
    """Run ``waypost validator serve`` on ``upstream``; give its port and a caller's headers.

    Args:
        config: sections of ``validator.yaml``.
    """
    folder.mkdir()
    app, publisher = App(), Publisher(policy=a_policy())
    bundle = publisher.publish(issuers=app.issuers())
    (folder / "root.json").write_bytes(publisher.root)
    provider = {"base_url": upstream + "/v1"}
    settings = {
        "audience": AUDIENCE,
        "manifest": {"root": "root.json", "admin": True},
        "providers": {"acme": provider, "medcloud": provider},
        "budgets": {"default": [{"window": "day", "limit_usd": 1_000_000}]},
        **(config or {}),
    }
    (folder / "validator.yaml").write_text(json.dumps(settings))
    port = free_port()
    waypost: list[str | Path] = (
        [PYTHON, "-c", "from waypost.cli import main; main()"]
        if records
        else [PYTHON, "-m", "bench.unrecorded"]
    )
    # Packages are this environment's, whichever interpreter runs them with its own library.
    ours = [path for path in sys.path if path and not path.startswith(sys.base_prefix)]
    env = {"PYTHONPATH": os.pathsep.join(ours)}
    command: list[str | Path] = [
        *waypost, "validator", "serve",
        "--config", folder / "validator.yaml", "--port", str(port), "--grace-s", "0",
    ]  # fmt: skip
    with running(command, port=port, core=SERVER_CORE, env=env, log=folder / "log") as process:
        put = httpx.put(f"http://127.0.0.1:{port}/admin/bundle", content=bundle)
        if not put.is_success:
            raise RuntimeError(f"the validator refused the manifest: {put.text}")
        token = app.bearer(now=int(time.time()), tier="pro")
        headers = {"Authorization": token, "Waypost-Proposal": 'model="small", manifest=1'}
        yield port, headers, process.pid


def _median(loads: list[Load]) -> Load:
    return Load(
        statistics.median(load.requests_per_s for load in loads),
        statistics.median(load.p50_ms for load in loads),
        statistics.median(load.p99_ms for load in loads),
        sum(load.errors for load in loads),
    )


def rows(folder: Path) -> list[tuple[str, str, str]]:
    """Return (what, measured, aim)."""
    upstream = free_port()
    command, log = nginx(folder, upstream)
    url = f"http://127.0.0.1:{upstream}"
    echo, plain = free_port(), free_port()
    with ExitStack() as stack:
        stack.enter_context(running(command, port=upstream, core=LOAD_CORE, log=log))
        for app, port in (("echo", echo), ("passthrough", plain)):
            server = uvicorn(f"bench.baselines:{app}", port)
            env = {"BENCH_UPSTREAM": url}
            log = folder / f"{app}.log"
            stack.enter_context(running(server, port=port, core=SERVER_CORE, env=env, log=log))
        ours, headers, _ = stack.enter_context(a_validator(folder / "validator", url))
        ports = {"direct": upstream, "echo": echo, "pass-through": plain, "waypost": ours}
        loads: dict[tuple[str, int], list[Load]] = {}
        for port in ports.values():  # warm up: connections, caches, the token's signature
            wrk(port, connections=32, seconds=1, headers=headers, folder=folder)
        for _ in range(ROUNDS):
            for connections in (1, 32):
                for name, port in ports.items():
                    load = wrk(
                        port, connections=connections, seconds=SECONDS, headers=headers,
                        folder=folder,
                    )  # fmt: skip
                    loads.setdefault((name, connections), []).append(load)
    medians = {key: _median(some) for key, some in loads.items()}
    if any(medians["waypost", connections].errors for connections in (1, 32)):
        raise RuntimeError("the validator answered with errors, so its speed means nothing")
    us, floor, plainest = (medians[name, 32] for name in ("waypost", "echo", "pass-through"))
    added_ms = medians["waypost", 1].p50_ms - medians["direct", 1].p50_ms
    share = us.requests_per_s / floor.requests_per_s
    result = [
        (f"{name}, 32 connections", f"{medians[name, 32].requests_per_s:,.0f}/s", "")
        for name in ports
    ]
    return [
        *result,
        ("waypost against the bare ASGI echo", f"{share:.0%}", "≥ 25%, or ≥ 3,000/s"),
        (
            "waypost against Starlette + httpx pass-through",
            f"{us.requests_per_s / plainest.requests_per_s:.1f} ×",
            "≥ 4 ×",
        ),
        ("added median latency, 1 connection", f"{added_ms:.2f} ms", "≤ 0.6 ms"),
        ("p99 at 32 connections", f"{us.p99_ms:.1f} ms", ""),
    ]


def stream_rows(folder: Path) -> list[tuple[str, str, str]]:
    """Return the time to the first byte of a stream, against going direct."""
    upstream = free_port()
    url = f"http://127.0.0.1:{upstream}"
    server = uvicorn("bench.sse_upstream:app", upstream)
    with (
        running(server, port=upstream, core=LOAD_CORE, log=folder / "sse.log"),
        a_validator(folder / "streaming", url) as (ours, headers, _),
    ):
        body = folder / "stream.json"
        body.write_bytes(json.dumps({**json.loads(BODY.read_bytes()), "stream": True}).encode())
        direct, through = first_bytes(upstream, ours, headers, body)
    added_ms = statistics.median(through) - statistics.median(direct)
    return [("added time to first byte of a stream, median", f"{added_ms:.2f} ms", "≤ 1 ms")]


def first_bytes(
    upstream: int, ours: int, headers: Mapping[str, str], body: Path, *, path: str = CHAT
) -> tuple[list[float], list[float]]:
    """Return the milliseconds to the first byte of streams, direct and through, in turn."""
    return asyncio.run(_first_bytes(upstream, ours, headers, body.read_bytes(), path))


async def _first_bytes(
    upstream: int, ours: int, headers: Mapping[str, str], body: bytes, path: str
) -> tuple[list[float], list[float]]:
    direct: list[float] = []
    through: list[float] = []
    for _ in range(STREAMS):
        direct.append(await _first_byte_ms(upstream, body, headers))
        through.append(await _first_byte_ms(ours, body, headers, path))
    return direct[10:], through[10:]


async def _first_byte_ms(
    port: int, body: bytes, headers: Mapping[str, str], path: str = CHAT
) -> float:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join(
        [
            f"POST {path} HTTP/1.1", "Host: bench", "Connection: close",
            "Content-Type: application/json", f"Content-Length: {len(body)}", *lines,
        ]
    )  # fmt: skip
    start = time.perf_counter()
    writer.write(head.encode() + b"\r\n\r\n" + body)
    await reader.readuntil(b"data: ")
    took_ms = (time.perf_counter() - start) * 1_000
    await reader.read()
    writer.close()
    await writer.wait_closed()
    return took_ms
