"""What the SDK costs the program that embeds it: time for each request, memory, and wake-ups.

Both against the same program with plain httpx, in one run.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from bench.deciding import a_large_policy
from bench.processes import SERVER_CORE, free_port, running, uvicorn
from bench.trusting import LEAN, START, URL, keep_a_manifest
from waypost.client.testing import static_waypost

REQUESTS = 400
BODY = b'{"model": "auto", "messages": [{"role": "user", "content": "Capital of France?"}]}'
# Not ``getrusage``: there a child begins with the peak of the process that forked it.
PEAK = """
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")), flush=True)
"""
HTTPX = LEAN + "import httpx\nclient = httpx.Client()" + PEAK
SDK = START.replace("os._exit(0)", PEAK + "os._exit(0)")
IDLE_S = 5
# How often any thread of the process was woken while it had nothing to do. The client refreshes
# first, and next when this is over.
IDLE = r"""
import asyncio, pathlib, re, sys, time
from bench.deciding import a_large_policy
from waypost.client.testing import static_async_waypost, static_waypost

def wakes():
    found = (p.read_text() for p in pathlib.Path("/proc/self/task").glob("*/status"))
    return sum(int(re.search(r"(?m)^voluntary\w+:\s*(\d+)", text)[1]) for text in found)

async def main():
    wp = static_async_waypost(policy, refresh_interval_s=60)
    wp.choose("Hello")
    await asyncio.sleep(1)
    before = wakes()
    await asyncio.sleep(seconds)
    print(wakes() - before)

how, seconds = sys.argv[1], float(sys.argv[2])
policy = a_large_policy(10, 10)
if how == "asyncio":
    asyncio.run(main())
else:
    if how == "threads":
        wp = static_waypost(policy, refresh_interval_s=60)
        wp.choose("Hello")
    time.sleep(1)
    before = wakes()
    time.sleep(seconds)
    print(wakes() - before)
"""


def rows(folder: Path) -> list[tuple[str, str, str]]:
    """Return the section's figures."""
    return [*_sending(folder), *_holding(folder), *_idling()]


def _sending(folder: Path) -> list[tuple[str, str, str]]:
    port = free_port()
    server = uvicorn("bench.baselines:echo", port)
    base = f"http://127.0.0.1:{port}"
    wp = static_waypost(a_large_policy(10, 10), base_url=base)
    url = f"{base}/v1/chat/completions"
    if wp.choose("Hello").model is None:
        raise RuntimeError("nothing is chosen, so the cost of choosing is not seen")
    with (
        running(server, port=port, core=SERVER_CORE, log=folder / "echo.log"),
        httpx.Client() as plain,
        wp.http_client() as sdk,
    ):
        plain_us: list[float] = []
        sdk_us: list[float] = []
        for _ in range(REQUESTS):  # in turn, so that a busy machine slows both
            plain_us.append(_took_us(lambda: plain.post(url, content=BODY)))
            sdk_us.append(_took_us(lambda: sdk.post(url, content=BODY)))
    added_ms = (statistics.median(sdk_us) - statistics.median(plain_us)) / 1_000
    return [
        (
            "a request by the SDK's transport, over plain httpx, to a server on this machine",
            f"+ {added_ms:.2f} ms ({statistics.median(plain_us) / 1_000:.2f} ms by httpx alone)",
            "≤ 0.3 ms",
        )
    ]


def _took_us(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e6


def _holding(folder: Path) -> list[tuple[str, str, str]]:
    keep_a_manifest(folder)
    httpx_mib, sdk_mib = (_peak_mib(program, folder) for program in (HTTPX, SDK))
    return [
        ("peak memory: httpx with a client", f"{httpx_mib:.1f} MiB", ""),
        ("the same with the SDK, after a choice", f"+ {sdk_mib - httpx_mib:.1f} MiB", "≤ 10 MB"),
    ]


def _peak_mib(program: str, folder: Path) -> float:
    command = [sys.executable, "-c", program, str(folder), URL]
    out = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    if out.startswith("auto"):
        raise RuntimeError("the cached manifest was not used, so its cost was not seen")
    return int(out.split()[-2]) / 1_024


def _idling() -> list[tuple[str, str, str]]:
    if not Path("/proc/self/task").exists():
        return [("wake-ups of an idle client", "skipped: this system does not count them", "")]
    alone, threads, tasks = (_wakes(how) for how in ("nothing", "threads", "asyncio"))
    return [
        (
            f"wake-ups of an idle client in {IDLE_S} s: no client, threads, asyncio",
            f"{alone}, {threads}, {tasks}",
            "none beyond its refresh",
        )
    ]


def _wakes(how: str) -> int:
    command = [sys.executable, "-c", IDLE, how, str(IDLE_S)]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
