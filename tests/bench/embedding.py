"""What the SDK costs the program that embeds it: time for each request, and memory.

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
from bench.trusting import LEAN, START, URL, keep_a_manifest
from waypost.client.testing import BASE_URL, static_waypost

REQUESTS = 400
BODY = b'{"model": "auto", "messages": [{"role": "user", "content": "Capital of France?"}]}'
# Not ``getrusage``: there a child begins with the peak of the process that forked it.
PEAK = """
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")), flush=True)
"""
HTTPX = LEAN + "import httpx\nclient = httpx.Client()" + PEAK
SDK = START.replace("os._exit(0)", PEAK + "os._exit(0)")


def rows(folder: Path) -> list[tuple[str, str, str]]:
    """Return the section's figures."""
    return [*_sending(), *_holding(folder)]


def _sending() -> list[tuple[str, str, str]]:
    answering = httpx.MockTransport(lambda _: httpx.Response(200, content=b"{}"))
    wp = static_waypost(a_large_policy(10, 10))
    url = f"{BASE_URL}/chat/completions"
    if wp.choose("Hello").model is None:
        raise RuntimeError("nothing is chosen, so the cost of choosing is not seen")
    with httpx.Client(transport=answering) as plain, wp.http_client(transport=answering) as sdk:
        plain_us: list[float] = []
        sdk_us: list[float] = []
        for _ in range(REQUESTS):  # in turn, so that a busy machine slows both
            plain_us.append(_took_us(lambda: plain.post(url, content=BODY)))
            sdk_us.append(_took_us(lambda: sdk.post(url, content=BODY)))
    added_ms = (statistics.median(sdk_us) - statistics.median(plain_us)) / 1_000
    return [
        (
            "the SDK's transport, over plain httpx (nothing on the wire)",
            f"{added_ms:.2f} ms",
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
