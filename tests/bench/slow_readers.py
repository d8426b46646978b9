"""What slow readers cost: 200 of them, each on a stream of 10,000 chunks, read a sip at a time.

Whatever the validator took off the provider's hands and not yet passed on would be memory: 300 MiB
here. It is held back instead: what is under way of a stream fills its buffers on both sides, some
300 KiB, and then the provider has to wait.
"""

import asyncio
import json
import socket
from collections.abc import Mapping
from pathlib import Path

from bench.processes import BODY, CHAT, LOAD_CORE, free_port, memory_mib, running, uvicorn
from bench.serving import a_validator

READERS = 200
SIP_BYTES = 512
SIP_S = 0.05
SECONDS = 30


def rows(folder: Path) -> list[tuple[str, str, str]]:
    """Return (what, measured, aim)."""
    upstream = free_port()
    server = uvicorn("bench.sse_upstream:flood", upstream)
    with (
        running(server, port=upstream, core=LOAD_CORE, log=folder / "flood.log"),
        a_validator(folder / "validator", f"http://127.0.0.1:{upstream}") as (port, headers, pid),
    ):
        before, samples = asyncio.run(_read_slowly(port, headers, pid))
    grown = [sample - before for sample in samples]
    return [
        (
            f"{READERS} slow readers of 10,000 chunks: memory a reader",
            f"{grown[-6] / READERS:.2f} MiB after {SECONDS - 5} s,"
            f" {grown[-1] / READERS:.2f} after {SECONDS} s, of 1.5 that each was sent",
            "≤ 0.4",
        )
    ]


async def _read_slowly(
    port: int, headers: Mapping[str, str], pid: int
) -> tuple[float, list[float]]:
    body = json.dumps({**json.loads(BODY.read_bytes()), "stream": True}).encode()
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = (
        f"POST {CHAT} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{lines}\r\n"
    ).encode() + body
    before = memory_mib(pid)
    readers = [asyncio.create_task(_sip(port, request)) for _ in range(READERS)]
    samples: list[float] = []
    for _ in range(SECONDS):
        await asyncio.sleep(1)
        samples.append(memory_mib(pid))
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    return before, samples


async def _sip(port: int, request: bytes) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        await loop.sock_sendall(sock, request)
        while await loop.sock_recv(sock, SIP_BYTES):  # noqa: ASYNC110 - a slow reader is slow
            await asyncio.sleep(SIP_S)
